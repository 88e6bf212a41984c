"""Scans and tables cut into pieces: all pieces together are the whole, whoever reads them, and never another version."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore.cache import object_pieces
from tierstore.cache.columns import pieces
from tierstore.cache.columns.filling import FileChanged

ROWS, GROUP_ROWS = 5000, 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files below key=value folders, one with a column less and a narrower type."""
    root = tmp_path / "table"
    for day in (1, 2):
        numbers = range(day * ROWS, (day + 1) * ROWS)
        columns: dict[str, Any] = {"n": pa.array(numbers, pa.int64() if day == 1 else pa.int32())}
        columns["price"] = pa.array([i * 100 for i in numbers], pa.int64()).cast(pa.decimal128(19, 0))
        if day == 1:
            columns["word"] = pa.array([["red", "green", None][i % 3] for i in numbers])
        (root / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table(columns), root / f"day={day}" / "f.parquet", row_group_size=GROUP_ROWS)
    return root


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def everything(plan: pieces.Plan, planned: list[pieces.FilePiece], store: Any) -> pa.Table:
    batches = [batch for piece in planned for batch in plan.read(sent(piece), store)]
    return pa.Table.from_batches(batches, plan.schema)


@pytest.fixture(autouse=True)
def _forgotten(store: tierstore.Store) -> Iterator[None]:
    yield
    pieces.forget(store)
    assert not pieces._handles


@pytest.mark.parametrize("columns", [None, ["word", "day"], ["n"]])
@pytest.mark.parametrize(
    ("filter", "groups"),
    [(None, 10), (pc.field("n") >= 8500, 7), (pc.field("day") == 1, 5), (pc.field("n") > pc.field("day"), 10)],
)
@pytest.mark.parametrize("size", [0, 10_000, 1 << 30])
def test_pieces_are_the_scan(
    folder: Path, store: tierstore.Store, columns: Any, filter: Any, groups: int, size: int, trusting: None
) -> None:
    plan, planned = pieces.plan(str(folder), columns, filter, size)
    wanted = store.dataset(folder).to_table(columns, filter)
    for _ in range(2):  # filled, and then mapped
        assert everything(sent(plan), planned, store).equals(wanted)
    assert everything(sent(plan), planned, None).equals(wanted)
    assert sum(len(piece.row_groups) for piece in planned) == groups
    if size == 0:
        assert len(planned) == groups
    if size == 1 << 30:
        assert len(planned) == len({piece.path for piece in planned})


def test_pieces_fill_and_read_the_cache(folder: Path, store: tierstore.Store, trusting: None) -> None:
    plan, planned = pieces.plan(str(folder), ["n"])
    everything(plan, planned, store)
    dataset = store.dataset(folder)
    assert dataset.stats()["cached_chunks"] == 10
    (handle,) = {known for _, known in pieces._handles.values() if known.files[0] == planned[0].path}
    before = handle.stats()
    everything(plan, planned, store)
    assert handle.stats()["hits"] == before["hits"] + 5 and handle.stats()["misses"] == before["misses"]


def test_a_dataset_gives_its_options(folder: Path, store: tierstore.Store) -> None:
    plan, planned = pieces.plan(store.dataset(folder, snapshot="v1", hint="once", form="encoded"))
    assert dict(plan.options) == {"snapshot": "v1", "form": "encoded", "pool": "default", "hint": "once"}
    assert everything(plan, planned, store).num_rows == everything(plan, planned, None).num_rows == 2 * ROWS


def test_a_file_that_changed_is_not_read(folder: Path, store: tierstore.Store) -> None:
    plan, planned = pieces.plan(str(folder), ["n"])
    path = planned[0].path
    pq.write_table(pa.table({"n": [1]}), f"{path}.new")
    os.replace(f"{path}.new", path)
    for reader in (store, None):
        with pytest.raises(FileChanged, match="run the job again"):
            list(plan.read(planned[0], reader))
        assert sum(batch.num_rows for batch in plan.read(planned[1], reader)) == ROWS
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        list(plan.read(planned[0], None))


def test_unknown_columns_are_refused(folder: Path, store: tierstore.Store) -> None:
    for source in (str(folder), store.dataset(folder)):
        with pytest.raises(tierstore.ConfigError, match="colour"):
            pieces.plan(source, ["colour"])


def numbers(rows: int) -> pa.Table:
    return pa.table({"i": pa.array(range(rows), pa.int64()), "f": pa.array([i / 2 for i in range(rows)])})


@pytest.mark.parametrize("size", [0, 1 << 20, 3 << 20, 1 << 30])
def test_the_pieces_of_an_object_are_the_object(store: tierstore.Store, size: int) -> None:
    tables = {
        "batches": numbers(400_000),
        "one": numbers(3),
        "none": numbers(0),
        "lists": pa.table({"l": pa.array([[i, None] for i in range(200_000)], pa.list_(pa.int64()))}),
        "views": pa.table({"v": pa.array([f"text number {i}, not inline" for i in range(90_000)], pa.string_view())}),
        "large": pa.table({"b": pa.array([b"x" * (3 << 20)]), "i": [1]}),  # one row over several segments
    }
    for key, table in tables.items():
        store.put(key, table)
        schema, planned = object_pieces.pieces_of(store, key, size)
        read = [batch for piece in planned for batch in object_pieces.read_piece(store, sent(piece))]
        assert schema == table.schema and pa.Table.from_batches(read, schema).equals(table)
        name = table.column_names[-1]
        some = [batch for piece in planned for batch in object_pieces.read_piece(store, piece, [name])]
        assert pa.Table.from_batches(some, table.select([name]).schema).equals(table.select([name]))
        if key == "batches":
            blocks = store.info(key)["blocks"]
            assert len(planned) == {0: blocks, 1 << 30: 1}.get(size, len(planned)) and blocks > 5
        if key in ("one", "large"):
            assert len(planned) == 1
        del read, some
        store.delete(key)


def test_pieces_of_what_was_replaced_are_not_read(store: tierstore.Store) -> None:
    for table in (numbers(400_000), pa.table({"b": pa.array([b"x" * (3 << 20)])})):
        store.put("k", table)
        _, planned = object_pieces.pieces_of(store, "k", 0)
        store.put("k", table)
        for piece in planned:
            with pytest.raises(tierstore.NotFound, match="replaced"):
                object_pieces.read_piece(store, piece)
        store.delete("k")
        with pytest.raises(tierstore.NotFound):
            object_pieces.pieces_of(store, "k", 0)
    store.put_bytes("k", b"v")
    with pytest.raises(tierstore.TierstoreError, match="holds bytes"):
        object_pieces.pieces_of(store, "k", 0)


@pytest.mark.slow
def test_pieces_on_disk(tiered: tierstore.Store) -> None:
    table = numbers(300_000)
    tiered.put("k", table, keep=True)
    for number in range(90):  # 36 MB: with the table more than the tiers in memory have
        tiered.put_bytes(f"{number}", number.to_bytes(4) * 100_000, keep=True)
    assert "disk" in tiered.info("k")["tiers"]
    _, planned = object_pieces.pieces_of(tiered, "k", 1 << 20)
    assert len(planned) > 3
    read = [batch for piece in planned for batch in object_pieces.read_piece(tiered, piece)]
    assert pa.Table.from_batches(read).equals(table)
