"""What queries found is held for a moment: within a budget, for its owner, and no longer."""

from __future__ import annotations

import time
import weakref
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore import Store
from tierstore.cache.columns import holding
from tierstore.cache.columns.holding import Budget, Held


class Value:
    """Something that a weak reference can watch."""


def test_values_go_by_themselves_unless_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "HOLD_S", 0.15)
    budget = Budget(100)
    held, owner, value, other = Held(budget), object(), Value(), Value()
    held.put(owner, "a", value, 10)
    held.put(owner, "b", other, 20)
    gone, kept = weakref.ref(value), weakref.ref(other)
    del value, other
    deadline = time.monotonic() + 20
    while gone() is not None and time.monotonic() < deadline:
        held.get(owner, "b")
        time.sleep(0.01)
    assert gone() is None and kept() is not None and held.get(owner, "a") is None
    held.clear()
    assert kept() is None and budget.held_bytes == 0


def test_another_owner_and_a_full_budget() -> None:
    budget = Budget(100)
    held, one, other = Held(budget), object(), object()
    held.put(one, "a", 1, 60)
    held.put(one, "b", 2, 60)
    assert (held.get(one, "a"), held.get(one, "b"), held.get(other, "a")) == ((1, 60), None, None)
    held.put(other, "b", 3, 60)
    assert (held.get(one, "a"), held.get(other, "b"), budget.held_bytes) == (None, (3, 60), 60)
    held.clear()


@pytest.mark.usefixtures("trusting")
def test_a_scan_finds_what_the_last_one_held(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": range(1000), "b": range(1000)}), tmp_path / "t.parquet")
    dataset = store.dataset(tmp_path / "t.parquet")
    dataset.preload()
    snapshot = dataset.snapshot()
    looked = store.stats()["own"]["hits"]
    first = dataset.mapped(snapshot, snapshot.stored)
    assert store.stats()["own"]["hits"] == looked + 2
    again = dataset.mapped(snapshot, snapshot.stored)
    assert again.equals(first) and store.stats()["own"]["hits"] == looked + 2
    assert dataset.counters.hits == 4
    dataset.evict()
    assert dataset.mapped(snapshot, snapshot.stored) is None


@pytest.mark.usefixtures("trusting")
def test_a_slowed_down_tier_is_paid_for_by_every_scan(tmp_path: Path, tier_options: dict[str, str]) -> None:
    pq.write_table(pa.table({"a": range(1000)}), tmp_path / "t.parquet")
    with tierstore.open(**tier_options, pmem_profile="optane100-1") as store:
        dataset = store.dataset(tmp_path / "t.parquet")
        dataset.preload()
        snapshot, looked = dataset.snapshot(), store.stats()["own"]["hits"]
        for times in (1, 2):
            assert dataset.mapped(snapshot, snapshot.stored).num_rows == 1000
            assert store.stats()["own"]["hits"] == looked + times
