"""Fixtures of faults: small file systems, and a memory folder of the test's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tierstore.emulation.ground import CannotMount, mounted


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a tmpfs: ``mount("disk", "8m")``; skips the test where that cannot be."""
    with contextlib.ExitStack() as stack:

        def made(name: str, size: str) -> Path:
            try:
                return stack.enter_context(mounted(tmp_path / name, size))
            except CannotMount as error:
                pytest.skip(f"a tmpfs cannot be mounted here: {error}")

        yield made


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory folder of the test's own, so that it sees what is left in it; inherited by every process it starts."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(folder))
    return folder
