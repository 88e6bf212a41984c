"""The tables of outcomes refuse what they should: nothing passes because nobody looked."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tierstore.emulation.interleave import Model, Op, fence, load, store
from tierstore.emulation.outcomes import IllegalOutcome, Table, digest_of, renew

LEGAL = 'legal = ["0 1", "1 0", "1 1"]'


def crossed(variant: str) -> Model:
    """Each of two programs stores one word and loads the other's; without the fence both may miss."""

    def program(own: str, other: str) -> Callable[[], Generator[Op, Any, Any]]:
        def run() -> Generator[Op, Any, Any]:
            if variant == "the load first":
                seen = yield load(other)
            yield store(own, 1)
            if variant != "no fence":
                yield fence()
            if variant != "the load first":
                seen = yield load(other)
            return str(seen)

        return run

    programs = {"left": program("x", "y"), "right": program("y", "x")}
    return Model({"x": 0, "y": 0}, programs, lambda _, got: f"{got['left']} {got['right']}")


def table(tmp_path: Path, *lines: str, follows: str = "") -> Table:
    path = tmp_path / "tests" / "outcomes" / "crossed.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["[follows]", follows, "[scenario.crossed]", *lines]))
    return Table(path, {"crossed": crossed})


def test_exact_table_passes(tmp_path: Path) -> None:
    made = table(tmp_path, LEGAL, 'mutants."the load first" = ["0 0"]', 'buffered."no fence" = ["0 0"]')
    made.check("crossed")
    assert made.mutants == [("crossed", "the load first"), ("crossed", "no fence")]
    for name, mutant in made.mutants:
        made.check_mutant(name, mutant)


def test_illegal_outcome_is_shown_with_its_order(tmp_path: Path) -> None:
    with pytest.raises(IllegalOutcome, match=r"can end in '1 1':\n +left: x = 1\n"):
        table(tmp_path, 'legal = ["0 1", "1 0"]').check("crossed")


def test_outcome_that_never_comes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"never ends in \['0 0'\]"):
        table(tmp_path, 'legal = ["0 0", "0 1", "1 0", "1 1"]').check("crossed")


@pytest.mark.parametrize(
    "line",
    [
        'mutants."nothing is changed" = ["0 0"]',  # not caught
        'mutants."no fence" = ["0 0"]',  # caught, but only with store buffers
        'buffered."the load first" = ["0 0"]',  # caught without them
        'mutants."the load first" = ["0 0", "2 2"]',  # another outcome than the one listed
        'mutants."the load first" = []',
    ],
)
def test_mutant_that_is_not_caught_as_listed(line: str, tmp_path: Path) -> None:
    made = table(tmp_path, LEGAL, line)
    with pytest.raises(AssertionError):
        made.check_mutant(*made.mutants[0])


def test_table_and_models_name_the_same_scenarios(tmp_path: Path) -> None:
    path = table(tmp_path, LEGAL).path
    with pytest.raises(ValueError, match="its models are"):
        Table(path, {"other": crossed})


def test_changed_kernel_is_noticed_and_renewed(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.py"
    kernel.write_text('class A:\n    def f(self):\n        """Words."""\n        return (1 +\n            2)  # why\n')
    with pytest.raises(AssertionError, match=r"kernel.py::A.f was changed"):
        table(tmp_path, LEGAL, follows='"kernel.py::A.f" = "?"').check_follows()
    path = tmp_path / "tests" / "outcomes" / "crossed.toml"
    renew(path)
    Table(path, {"crossed": crossed}).check_follows()
    kernel.write_text("class A:\n    def f(self):\n        return (1 + 2)\n")
    Table(path, {"crossed": crossed}).check_follows()
    kernel.write_text("class A:\n    def f(self):\n        return (1 + 3)\n")
    with pytest.raises(AssertionError, match="was changed"):
        Table(path, {"crossed": crossed}).check_follows()
    with pytest.raises(KeyError, match="no function A.g"):
        digest_of(kernel.read_text(), "A.g")
