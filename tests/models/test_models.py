"""Every model of this folder against its table in tests/outcomes, and every mutant of it.

A model is a twin of a protocol: generator functions that follow the kernels step by step. ``SCENARIOS`` lists what is explored.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tierstore.emulation.outcomes import Table

FOLDER = Path(__file__).parent
MODELS = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.name.startswith(("test_", "_"))}

pytestmark = pytest.mark.slow


def table_of(path: Path) -> Table:
    """A model's table, with its scenarios."""
    spec = importlib.util.spec_from_file_location(f"model_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scenarios = {scenario.__name__: scenario for scenario in module.SCENARIOS}
    return Table(FOLDER.parent / "outcomes" / f"{path.stem}.toml", scenarios)


TABLES = {name: table_of(path) for name, path in MODELS.items()}


def each(of: str) -> list[Any]:
    """(model, item) for every item that the tables list under an attribute; a tuple is spread."""
    found: list[Any] = []
    for model, table in TABLES.items():
        for item in getattr(table, of):
            found.append((model, *item) if isinstance(item, tuple) else (model, item))
    return found


@pytest.mark.parametrize(("model", "scenario"), each("names"))
def test_outcomes_are_the_legal_ones(model: str, scenario: str) -> None:
    TABLES[model].check(scenario)


@pytest.mark.parametrize(("model", "scenario", "mutant"), each("mutants"))
def test_mutant_is_caught(model: str, scenario: str, mutant: str) -> None:
    TABLES[model].check_mutant(scenario, mutant)


@pytest.mark.parametrize(("model", "scenario", "variant"), each("harmless"))
def test_harmless_variant(model: str, scenario: str, variant: str) -> None:
    TABLES[model].check_harmless(scenario, variant)


@pytest.mark.parametrize("model", TABLES)
def test_programs_follow_the_kernels(model: str) -> None:
    TABLES[model].check_follows()


@pytest.mark.parametrize("model", TABLES)
def test_model_does_not_import_what_it_models(model: str) -> None:
    tree = ast.parse(MODELS[model].read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    foreign = [name for name in names if "tierstore" in name and name != "tierstore.emulation.interleave"]
    assert not foreign, f"{MODELS[model]} imports {foreign}: a twin repeats what it models"
