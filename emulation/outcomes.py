"""Tables of legal outcomes (tests/outcomes/*.toml), and the checks of a model against its table.

A table has one section for each scenario, and one that names the kernels its programs were written after:

    [follows]
    "ringbuf/reader.py::find" = "digest of the function's text"  # renewed by python -m tierstore.emulation.outcomes TABLE

    [scenario.reuse]
    legal = ["miss", "whole"]                 # all of them, and no others, must be reached
    mutants."no second look" = ["torn"]       # a variant that is wrong: exactly these illegal outcomes, buffers or not
    buffered."no fence" = ["torn"]            # one that is only wrong where stores are buffered
    harmless = ["..."]                        # variants that look wrong and are not

A scenario is a function from the name of a variant ("" is the product as it is) to a model.
"""

from __future__ import annotations

import ast
import hashlib
import io
import sys
import tokenize
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .interleave import Explored, Model, explore

Scenario = Callable[[str], Model]
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


class IllegalOutcome(AssertionError):
    """A model ended in what its table does not allow."""


class Table:
    """One table and the scenarios it judges."""

    def __init__(self, path: Path, scenarios: Mapping[str, Scenario]):
        self.path, self._scenarios = path, scenarios
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        self.follows: dict[str, str] = content["follows"]
        self._sections: dict[str, dict[str, Any]] = content["scenario"]
        if set(self._sections) != set(scenarios):
            raise ValueError(f"{path} knows {sorted(self._sections)}, its models are {sorted(scenarios)}")

    @property
    def names(self) -> list[str]:
        """The scenarios."""
        return list(self._sections)

    @property
    def mutants(self) -> list[tuple[str, str]]:
        """(scenario, variant) of all mutants."""
        return [
            (name, variant)
            for name, section in self._sections.items()
            for variant in (*section.get("mutants", {}), *section.get("buffered", {}))
        ]

    @property
    def harmless(self) -> list[tuple[str, str]]:
        """(scenario, variant) of what looks wrong and is not."""
        return [(name, variant) for name, section in self._sections.items() for variant in section.get("harmless", ())]

    def explored(self, name: str, variant: str = "", buffered: bool = True) -> Explored:
        """All that a scenario can end in."""
        return explore(self._scenarios[name](variant), buffered)

    def _illegal(self, name: str, found: Explored) -> list[str]:
        return sorted(set(found.outcomes) - set(self._sections[name]["legal"]))

    def check(self, name: str) -> None:
        """Exactly the legal outcomes are reached. Raises IllegalOutcome with the shortest order that leads to another."""
        found = self.explored(name)
        for outcome in self._illegal(name, found)[:1]:
            raise IllegalOutcome(f"{name} can end in {outcome!r}:\n{found.order(outcome)}")
        missing = set(self._sections[name]["legal"]) - set(found.outcomes)
        assert not missing, f"{name} never ends in {sorted(missing)}: take it out of {self.path.name}"

    def check_harmless(self, name: str, variant: str) -> None:
        """A variant has none of the illegal outcomes."""
        found = self.explored(name, variant)
        for outcome in self._illegal(name, found)[:1]:
            raise IllegalOutcome(f"{name}, {variant}, can end in {outcome!r}:\n{found.order(outcome)}")

    def check_mutant(self, name: str, variant: str) -> None:
        """A mutant is caught: it ends in exactly the illegal outcomes that the table lists for it."""
        section = self._sections[name]
        buffered = variant in section.get("buffered", {})
        expected = section["buffered" if buffered else "mutants"][variant]
        assert expected, f"{name}, {variant}: a mutant without an illegal outcome shows nothing"
        found = self._illegal(name, self.explored(name, variant))
        assert found == sorted(expected), f"{name}, {variant}, ends illegally in {found}"
        plain = self._illegal(name, self.explored(name, variant, buffered=False))
        assert bool(plain) != buffered, f"{name}, {variant}, without store buffers: {plain}"

    def check_follows(self) -> None:
        """The kernels are still those that the programs were written after."""
        for place, digest in self.follows.items():
            assert digest_at(self.path, place) == digest, (
                f"{place} was changed: carry the change over to the programs of tests/models/{self.path.stem}.py, "
                f"then run python -m tierstore.emulation.outcomes {self.path}"
            )


def digest_at(table: Path, place: str) -> str:
    """The digest of a function ("ringbuf/reader.py::find") of the tree that a table lies in."""
    path, _, function = place.partition("::")
    return digest_of((table.resolve().parents[2] / path).read_text(encoding="utf-8"), function)


def digest_of(source: str, name: str) -> str:
    """A digest of a function's text ("find", "Store.get") without comments, docstring and line breaks."""
    node: Any = ast.parse(source)
    for part in name.split("."):
        kinds = ast.FunctionDef | ast.ClassDef
        node = next((each for each in node.body if isinstance(each, kinds) and each.name == part), None)
        if node is None:
            raise KeyError(f"no function {name}: it was renamed or moved; find its new place for [follows]")
    lines = source.splitlines(keepends=True)
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        for number in range(first.lineno - 1, first.end_lineno):
            lines[number] = "\n"
    text = "".join(lines[node.lineno - 1 : node.end_lineno])
    indent = len(text) - len(text.lstrip())
    text = "\n".join(line[indent:] for line in text.splitlines())
    tokens = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in _LAYOUT
    ]
    return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:12]


def renew(path: Path) -> None:
    """Write the digests of today into a table, after its programs were compared with the kernels."""
    text = path.read_text(encoding="utf-8")
    for place, digest in tomllib.loads(text)["follows"].items():
        text = text.replace(f'"{place}" = "{digest}"', f'"{place}" = "{digest_at(path, place)}"')
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        renew(Path(name))
