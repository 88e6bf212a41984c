"""``values``: the module of arrays beside the tests; ``kind``: a test runs once for every type in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tierstore.emulation.procs import Daemon


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


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose memory outlives it, so that it can be killed and started again."""
    made = Daemon(tmp_path, "--dram", "32MiB", "--segment", "1MiB")
    try:
        made.start()
        yield made
        if made.running:
            with made.connect() as store:
                report = store.verify(payloads=True)
            assert report["ok"], report["problems"]
    finally:
        made.end()
