"""The wide form: for engines that compute on 128-bit decimals and text views, kept once a chunk is read again."""

from __future__ import annotations

import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierstore.cache.columns import forms as forms_module
from tierstore.cache.columns.chunks import cut
from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.columns.forms import CODES, WORDS_BYTES_MAX, form_of, narrow, wide
from tierstore.cache.store import Store

GROUPS, ROWS = 4, 1000

pytestmark = pytest.mark.usefixtures("trusting")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = range(GROUPS * ROWS)
    columns = {
        "i": pa.array(rows),
        "price": pa.array([None if i % 7 == 0 else decimal.Decimal(i) / 100 for i in rows], pa.decimal128(15, 2)),
        "word": [None if i % 5 == 0 else f"word {i % 3} that is longer than a view" for i in rows],
        "text": [f"{i}" * (i % 9) for i in rows],
    }
    made = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), made, row_group_size=ROWS, use_dictionary=["word"])
    return made


def read(dataset: Dataset, names: list[str]) -> pa.Table:
    snapshot = dataset.snapshot()
    schema = pa.schema([snapshot.wide.field(name) for name in names])
    return pa.Table.from_batches(dataset.batches(snapshot, snapshot.units(), schema, None, wide=True), schema)


def forms(store: Store) -> list[str]:
    return sorted(key.rpartition("/")[2] for key in store.keys("columns/"))


def test_kept_when_it_is_read_again(store: Store, path: Path) -> None:
    dataset, names = store.dataset(path, prefetch=False), ["i", "price", "word", "text"]
    expected = pq.read_table(path)
    for turn, kept in enumerate([["1"] * 4 * GROUPS, ["1"] * 4 * GROUPS + ["w1"] * 3 * GROUPS]):
        found = read(dataset, names)
        assert found.schema.types == [pa.int64(), pa.decimal128(15, 2), pa.string_view(), pa.string_view()]
        assert found.cast(expected.schema).equals(expected) and forms(store) == kept
        snapshot = dataset.snapshot()
        assert (dataset.mapped(snapshot, snapshot.wide, wide=True) is not None) == bool(turn)
    mapped = dataset.mapped(snapshot, snapshot.wide, wide=True)
    assert mapped is not None and mapped.cast(expected.schema).equals(expected)
    some = dataset.mapped(snapshot, snapshot.wide, snapshot.units()[1:3], wide=True)
    assert some is not None and some.cast(expected.schema).equals(expected.slice(ROWS, 2 * ROWS))
    assert dataset.stats()["misses"] == dataset.stats()["cached_chunks"] == 4 * GROUPS


def test_either_form_counts_as_cached(store: Store, path: Path) -> None:
    dataset = store.dataset(path, prefetch=False)
    for _ in range(2):
        read(dataset, ["price"])
    for key in [key for key in store.keys("columns/") if key.endswith("/1")]:
        store.delete(key)
    assert dataset.stats()["cached_chunks"] == GROUPS and not dataset.fill_one(["price"])
    assert dataset.evict() == GROUPS and forms(store) == []


def test_what_is_not_to_be_kept_is_not(store: Store, path: Path) -> None:
    store.dataset(path).preload()
    dataset = store.dataset(path, hint="once")
    for _ in range(2):
        assert read(dataset, ["word", "price"]).num_rows == GROUPS * ROWS
    assert set(forms(store)) == {"1"}


def test_an_encoded_dataset_is_widened_each_time(store: Store, path: Path) -> None:
    dataset = store.dataset(path, form="encoded", prefetch=False)
    for _ in range(3):
        assert (
            read(dataset, ["word"])
            .cast(pa.schema([("word", pa.string())]))
            .equals(pq.read_table(path, columns=["word"]))
        )
    assert set(forms(store)) == {"e1"}


def test_row_groups_without_rows(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"t": pa.array([], pa.string())}), tmp_path / "t.parquet")
    dataset = store.dataset(tmp_path / "t.parquet")
    for _ in range(3):
        assert read(dataset, ["t"]).num_rows == 0


def test_values_without_a_second_form() -> None:
    same = [pa.int64(), pa.float64(), pa.binary(), pa.date32(), pa.decimal128(38, 2), pa.list_(pa.string())]
    other = [pa.string(), pa.string_view(), pa.large_string(), pa.decimal128(9, 2), pa.decimal128(18, 2)]
    assert {form_of(kind, "w1") for kind in same} == {"1"} and {form_of(kind, "w1") for kind in other} == {"w1"}
    assert {form_of(kind, "e1") for kind in same + other} == {"e1"}


def test_pieces_hold_their_own_text() -> None:
    """A view refers to text beside it, and what is written of a slice is all that the whole refers to."""
    (text,) = narrow(pa.chunked_array([[f"{i:04d}" * 500 for i in range(20_000)]]))
    pieces = [wide(piece) for piece in cut(text)]
    assert len(pieces) > 4 and sum(piece.get_total_buffer_size() for piece in pieces) < 1.1 * text.nbytes
    assert pa.chunked_array(pieces).cast(pa.string()).combine_chunks().equals(text)
    words = pa.array(["x" * (WORDS_BYTES_MAX // 2), "y" * (WORDS_BYTES_MAX // 2)])
    assert wide(pa.DictionaryArray.from_arrays(pa.array([0, 1] * 8, pa.int16()), words).cast(CODES)) is None


def test_dictionaries_with_too_much_text(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms_module, "WORDS_BYTES_MAX", 0)
    dataset = store.dataset(path)
    for _ in range(3):
        assert (
            read(dataset, ["word"])
            .cast(pa.schema([("word", pa.string())]))
            .equals(pq.read_table(path, columns=["word"]))
        )
    assert set(forms(store)) == {"1"}
