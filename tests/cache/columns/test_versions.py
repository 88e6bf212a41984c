"""What is cached of a file is never served for another version of it, and faults of files are not kept."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from tierstore.cache.columns import files
from tierstore.cache.columns.filling import FileChanged
from tierstore.cache.store import Store

FILE_ERRORS = (pa.ArrowException, OSError, FileChanged)
OLD_S = 3600


def numbers(first: int, rows: int = 1000) -> pa.Table:
    return pa.table({"a": pa.array(range(first, first + rows), pa.int64()), "s": [f"text {first}"] * rows})


def write(path: Path, table: pa.Table, **options: object) -> None:
    pq.write_table(table, path, compression="none", use_dictionary=False, **options)


def test_a_young_file_is_read_through(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    write(path, numbers(0))
    dataset = store.dataset(path)
    for round in range(1, 4):
        assert dataset.to_table().equals(numbers(0))
        stats = dataset.stats()
        assert (stats["cached_chunks"], stats["misses"], stats["untrusted"]) == (0, 2 * round, round)


@pytest.mark.slow
def test_rewritten_in_place_within_a_tick(store: Store, tmp_path: Path) -> None:
    """The same size, and as soon as can be."""
    path = tmp_path / "f.parquet"
    write(path, numbers(10))
    dataset, size = store.dataset(path), path.stat().st_size
    for first in range(11, 40):
        write(path, numbers(first))
        assert path.stat().st_size == size
        assert dataset.to_table().equals(numbers(first))


def hide_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a file system whose clock ticks so slowly that versions look alike."""
    version = files.Source.version

    def alike(source: files.Source) -> files.Version:
        found = version(source)
        return files.Version("alike", found.size, found.changed_s)

    monkeypatch.setattr(files.Source, "version", alike)


@pytest.mark.parametrize("mode", ["all", "remote", "none", "ttl:0"])
def test_what_is_known_of_a_young_file_is_not_used_when_it_is_old(
    mode: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its footer included: the pages that it tells of may lie elsewhere now."""
    hide_changes(monkeypatch)
    path = tmp_path / "f.parquet"
    one, other = numbers(10), numbers(20).select(["s", "a"]).rename_columns(["a", "s"])
    write(path, one)
    dataset = store.dataset(path, validate=mode)
    assert dataset.to_table().equals(one)
    write(path, other)
    later = time.time() + files.DISTRUST_S
    monkeypatch.setattr(files, "time", SimpleNamespace(time=lambda: later))
    for _ in range(3):
        assert dataset.schema.equals(other.schema)
        assert dataset.to_table().equals(other)
    assert dataset.stats()["hits"] == 4


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("how", ["rewritten", "renamed", "copied", "link"])
def test_a_new_version_is_seen(how: str, store: Store, tmp_path: Path) -> None:
    path, other = tmp_path / "f.parquet", tmp_path / "other"
    write(path, numbers(10))
    write(other, numbers(20))
    if how == "link":
        (tmp_path / "link.parquet").symlink_to(path)
        path = tmp_path / "link.parquet"
    dataset = store.dataset(path)
    for _ in range(2):
        assert dataset.to_table().equals(numbers(10))
    times = path.stat()
    if how == "rewritten":
        write(path, numbers(20))
    elif how == "renamed":
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        other.rename(path)
    elif how == "copied":
        shutil.copyfile(other, path)
    else:
        path.unlink()
        path.symlink_to(other)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and tar do
    for _ in range(2):
        assert dataset.to_table().equals(numbers(20))
    assert dataset.stats()["hits"] == 4


@pytest.mark.usefixtures("trusting")
def test_deleted_and_back(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    write(path, numbers(10))
    dataset = store.dataset(path)
    dataset.to_table()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"f\.parquet"):
        dataset.to_table()
    write(path, numbers(20))
    assert dataset.to_table().equals(numbers(20))
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="no Parquet file is found"):
        dataset.to_table()


@pytest.mark.usefixtures("trusting")
def test_another_schema(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    write(path, numbers(10))
    dataset = store.dataset(path)
    assert dataset.to_table(["a"]).num_rows == 1000
    other = pa.table({"a": ["text now"], "new": [1.5]})
    write(path, other)
    assert dataset.schema.equals(other.schema)
    assert dataset.to_table().equals(other)
    assert dataset.to_table(["a"], pds.field("new") > 1).equals(other.select(["a"]))
    with pytest.raises(ValueError, match="'s' cannot be used: this dataset has a, new"):
        dataset.to_table(["s"])


def spoil(path: Path, fault: str) -> None:
    raw = bytearray(path.read_bytes())
    if fault == "garbage":
        raw = bytearray(os.urandom(len(raw)))
    elif fault == "empty":
        raw = bytearray()
    elif fault == "half":
        raw = raw[: len(raw) // 2]
    elif fault == "no tail":
        raw = raw[:-1]
    elif fault == "footer":
        start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
        raw[start : start + 32] = b"\xff" * 32
    elif fault == "footer length":
        raw[-8:-4] = b"\xff\xff\xff\x7f"
    elif fault == "encrypted":
        raw[-4:] = raw[:4] = b"PARE"
    path.write_bytes(raw)


FAULTS = ["garbage", "empty", "half", "no tail", "footer", "footer length", "encrypted"]


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_an_error_of_the_reader_and_leaves_nothing(fault: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    write(path, numbers(10))
    dataset = store.dataset(path)
    assert dataset.to_table(["a"]).num_rows == 1000  # the other column is not cached
    spoil(path, fault)
    with pytest.raises((pa.ArrowException, OSError)) as theirs:
        pds.dataset(path, format="parquet").to_table()
    for ask in (dataset.to_table, lambda: store.dataset(path), lambda: dataset.schema):
        with pytest.raises((pa.ArrowException, OSError)) as ours:
            ask()
        assert ours.type is theirs.type
        assert str(path) in str(ours.value)
    write(path, numbers(20))
    for _ in range(2):
        assert dataset.to_table().equals(numbers(20))


@pytest.mark.slow
@pytest.mark.usefixtures("trusting")
def test_flipped_bytes_in_pages(store: Store, tmp_path: Path) -> None:
    """As pyarrow: an error, or what it reads; and gone with the version."""
    path = tmp_path / "f.parquet"
    pq.write_table(numbers(10), path, compression="zstd")
    good, dataset = path.read_bytes(), store.dataset(path)
    for at in range(4, 400, 23):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            expected = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            with pytest.raises(type(error)):
                dataset.to_table()
        else:
            assert dataset.to_table().equals(expected)
        path.write_bytes(good)
        for _ in range(2):
            assert dataset.to_table().equals(numbers(10))


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("how", ["truncated", "rewritten", "garbage", "replaced", "deleted"])
def test_changed_during_a_scan(how: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either all is as it was at the beginning, or the scan fails."""
    monkeypatch.setattr("tierstore.cache.columns.scanning.GROUP_ROWS", 100)
    path = tmp_path / "f.parquet"
    write(path, numbers(10, 5000), row_group_size=100)
    dataset = store.dataset(path)
    reader = dataset.scan()
    batches = [reader.read_next_batch()]
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "rewritten":
        write(path, numbers(20, 5000), row_group_size=100)
    elif how == "garbage":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif how == "replaced":
        write(tmp_path / "other", numbers(20, 5000), row_group_size=100)
        (tmp_path / "other").rename(path)
    else:
        path.unlink()
    with pytest.raises(FILE_ERRORS):
        while True:
            try:
                batches.append(reader.read_next_batch())
            except StopIteration:
                break
    table = pa.Table.from_batches(batches)
    assert 0 < table.num_rows < 5000 and table.equals(numbers(10, 5000).slice(0, table.num_rows))
    write(path, numbers(30, 5000), row_group_size=100)
    for _ in range(2):
        assert dataset.to_table().equals(numbers(30, 5000))
