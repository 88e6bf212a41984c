"""Fixtures of the column cache's tests: files just written are trusted, unless a test says otherwise."""

from __future__ import annotations

import pytest


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are cached however young they are."""
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 0.0)
