"""A plugin of pytest: Dask's own tests of shuffles, with our method in place of theirs. Used by test_dask_own.py."""

from __future__ import annotations

from typing import Any

import pytest

import tierstore
import tierstore.dask


def pytest_configure() -> None:
    tierstore.dask.use(tierstore.open(dram="256MiB", segment="1MiB"))
    tierstore.dask.register()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: Any) -> None:
    """The fixture says which methods are tested, except in tests that name their own."""
    for definition in metafunc._arg2fixturedefs.get("shuffle_method", ())[-1:]:
        definition.params, definition.ids = ["tierstore"], None
