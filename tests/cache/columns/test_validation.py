"""When files are looked at again: the modes of ``validate``, and snapshots."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore.cache.columns.filling import FileChanged
from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")


def write(path: Path, value: int) -> pa.Table:
    table = pa.table({"a": [value] * 10, "b": [str(value)] * 10})
    pq.write_table(table, path)
    return table


def change(path: Path) -> tuple[pa.Table, pa.Table]:
    """The table before and the one after."""
    return pq.read_table(path), write(path, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "f.parquet", 1)
    return tmp_path / "f.parquet"


def test_all_sees_every_change(store: Store, path: Path) -> None:
    dataset = store.dataset(path, validate="all")
    dataset.to_table()
    _, after = change(path)
    assert dataset.to_table().equals(after)


@pytest.mark.parametrize("mode", ["none", "remote", "ttl:3600", "ttl:inf"])
def test_what_is_not_looked_at_is_served_from_the_cache(mode: str, store: Store, path: Path) -> None:
    dataset = store.dataset(path, validate=mode)
    dataset.to_table()
    before, after = change(path)
    assert dataset.to_table().equals(before)
    assert store.dataset(path).to_table().equals(after), "another handle is not misled"
    assert dataset.to_table().equals(before)


@pytest.mark.parametrize("mode", ["none", "remote", "ttl:3600"])
def test_what_is_not_cached_is_never_mixed_with_it(mode: str, store: Store, path: Path) -> None:
    dataset = store.dataset(path, validate=mode)
    dataset.to_table(["a"])
    _, after = change(path)
    assert dataset.to_table().equals(after)


def test_a_time_to_live_ends(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = store.dataset(path, validate="ttl:60")
    dataset.to_table()
    before, after = change(path)
    assert dataset.to_table().equals(before)
    later = dataset._tables._taken_at + 61
    monkeypatch.setattr("tierstore.cache.columns.tables.time.monotonic", lambda: later)
    assert dataset.to_table().equals(after)
    assert store.dataset(path, validate="ttl:0").to_table().equals(after)


def test_a_snapshot_is_the_version(store: Store, path: Path) -> None:
    """Its user answers for it: nothing is compared, and nothing too young."""
    dataset = store.dataset(path, snapshot="v1")
    table = dataset.to_table()
    assert dataset.stats()["cached_chunks"] == 2
    change(path)
    assert dataset.to_table().equals(table)
    assert store.dataset(path, snapshot="v1").to_table().equals(table)
    assert not store.dataset(path, snapshot="v2").to_table().equals(table)


def test_a_snapshot_is_cached_however_young(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 10.0)
    dataset = store.dataset(path, snapshot="v1")
    dataset.to_table()
    assert dataset.stats()["cached_chunks"] == 2


@pytest.mark.parametrize("value", ["", "sometimes", "ttl", "ttl:", "ttl:-1", "ttl:nan", "ttl:x", "ALL", None, 5])
@pytest.mark.parametrize("snapshot", [None, "v1"])
def test_bad_modes_are_refused(value: str, snapshot: str | None, store: Store, path: Path) -> None:
    with pytest.raises(
        tierstore.ConfigError, match=r"^validate = .*allowed are 'all', 'remote', 'none', or 'ttl:"
    ) as error:
        store.dataset(path, validate=value, snapshot=snapshot)
    assert (error.value.key, error.value.value) == ("validate", value)


@pytest.mark.parametrize(
    ("name", "value"), [("hint", "twice"), ("pool", "none such"), ("snapshot", ""), ("paths", [])], ids=str
)
def test_bad_options_are_refused(name: str, value: object, store: Store, path: Path) -> None:
    with pytest.raises(tierstore.ConfigError) as error:
        store.dataset(**{"paths": path, name: value})
    assert (error.value.key, error.value.value) == (name, value)


def test_a_file_that_never_stands_still(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its footer would belong to one version and its pages to another."""
    from tierstore.cache.columns import footers

    class Changing(footers.Footer):
        def __init__(self, *arguments: object):
            super().__init__(*arguments)
            os.utime(path)

    monkeypatch.setattr("tierstore.cache.columns.footers.Footer", Changing)
    with pytest.raises(FileChanged, match="changed 3 times while its footer was read"):
        store.dataset(path)
