"""``values``: the module of arrays beside the tests; ``kind``: a test runs once for every type in it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shuffle_values", Path(__file__).with_name("values.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VALUES = _load()


@pytest.fixture(scope="session")
def values() -> ModuleType:
    """The module."""
    return VALUES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", VALUES.KINDS)
