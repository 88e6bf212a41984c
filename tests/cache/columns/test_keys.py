"""Keys name the bytes they stand for; footers keep to their budget; columns are cut into pieces and kept in short forms."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.cache.columns import chunks
from tierstore.cache.columns.chunks import Place, chunk_key, cut, file_prefix, place_of
from tierstore.cache.columns.files import Listing
from tierstore.cache.columns.footers import Footers, _leaves
from tierstore.cache.columns.forms import CODES, coded, narrow, views, widen
from tierstore.cache.keys import check_key
from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")

NAMES = st.text(max_size=30) | st.sampled_from(["a.b", "a/b", "?#", "%25", "~", "columns/", "../x"])
# What os.fsdecode makes of any bytes.
PATHS = st.binary(min_size=1, max_size=60).map(lambda raw: "/" + raw.decode("utf-8", "surrogateescape"))


@settings(derandomize=True, database=None, deadline=None)
@given(PATHS, NAMES, st.integers(0, 2**31), NAMES)
def test_a_key_says_what_it_was_made_of(path: str, version: str, row_group: int, column: str) -> None:
    key = chunk_key(file_prefix(path, version), row_group, column)
    assert check_key(key) and key.isascii()
    assert place_of(key) == Place(path, version, row_group, column)


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(PATHS, NAMES, st.integers(0, 99), NAMES), min_size=2, max_size=2, unique=True))
def test_different_chunks_have_different_keys(both: list) -> None:
    one, other = (chunk_key(file_prefix(path, version), group, column) for path, version, group, column in both)
    assert one != other


@pytest.mark.parametrize(
    ("path", "column"), [("/p" * 3000, "c"), ("/ä" * 700, "c"), ("/p", "c" * 9000), ("/p" * 1700, "ß" * 300)]
)
def test_names_that_are_too_long(path: str, column: str) -> None:
    keys = {
        chunk_key(file_prefix(p, version), group, c)
        for p in (path, path + "x")
        for version in ("v1", "v2")
        for group in (0, 10)
        for c in (column, column + "x")
    }
    assert len(keys) == 16 and all(check_key(key) for key in keys)
    assert all(place_of(key) in (None, Place(path, "v1", 0, column)) for key in list(keys)[:1])


@pytest.mark.parametrize(
    "key", ["", "columns/", "other/a?v#0/c/1", "columns/a", "columns/a?v#x/c/1", "columns/a?v#0/c", "columns/~ab#0/c/1"]
)
def test_other_keys_are_no_places(key: str) -> None:
    assert place_of(key) is None


def footer_of(path: Path, footers: Footers) -> object:
    (source,) = Listing(path).sources()
    return footers.get(source, source.version(), None)


def test_footers_keep_to_their_budget(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(5)]
    for path in paths:
        pq.write_table(pa.table({"a": [1]}), path)
    one = footer_of(paths[0], Footers()).nbytes
    footers = Footers(3 * one)
    kept = [footer_of(path, footers) for path in paths[:3]]
    assert footers.nbytes <= 3 * one
    assert footer_of(paths[0], footers) is kept[0]  # used again, so it stays
    for path in paths[3:]:
        footer_of(path, footers)
        assert footers.nbytes <= 3 * one
    assert footer_of(paths[0], footers) is kept[0]
    assert footer_of(paths[1], footers) is not kept[1]
    tiny = Footers(1)
    assert footer_of(paths[0], tiny).row_counts == [1]
    footer_of(paths[1], tiny)
    assert tiny.nbytes == one, "one is kept, however large"


def test_a_footer_of_a_young_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 10.0)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "f.parquet")
    footers = Footers()
    assert footer_of(tmp_path / "f.parquet", footers) is not footer_of(tmp_path / "f.parquet", footers)
    assert footers.nbytes == 0


def test_leaves_are_counted() -> None:
    point = pa.struct([("x", pa.int8()), ("y", pa.list_(pa.string()))])
    types = {"a": point, "a.x": pa.int8(), "m": pa.map_(pa.string(), point), "d": CODES, "z": pa.null()}
    schema = pa.schema(list(types.items()))
    assert _leaves(schema) == {"a": [0, 1], "a.x": [2], "m": [3, 4, 5], "d": [6], "z": [7]}


# --- pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000, 12345])
def test_pieces_are_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PIECE_BYTES", 4096)
    for array in (pa.array(range(rows)), pa.array(["text"] * rows), pa.array([[i] * 3 for i in range(rows)])):
        pieces = list(cut(array))
        assert pa.chunked_array(pieces).equals(pa.chunked_array([array]))
        assert all(piece.nbytes <= 2 * 4096 for piece in pieces)
        assert all(len(piece) % 64 == 0 for piece in pieces[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("piece_bytes", [4096, 100_000, 8 << 20])
def test_chunks_of_many_pieces(piece_bytes: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a chunk is larger than the store's segments of 1 MiB."""
    monkeypatch.setattr(chunks, "PIECE_BYTES", piece_bytes)
    rows = 200_000
    table = pa.table({
        "i": np.random.default_rng(1).integers(0, 2**60, rows),
        "s": [f"text number {i}" for i in range(rows)],
        "c": [f"text {i % 7}" for i in range(rows)],
        "l": pa.array([[i, None] for i in range(rows)], pa.list_(pa.int32())),
        "n": pa.array([{"x": i, "y": "text"} if i % 9 else None for i in range(rows)]),
        "d": pa.array(range(rows), pa.decimal128(9, 0)),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "f.parquet")
    dataset = store.dataset(tmp_path / "f.parquet")
    for _ in range(2):
        assert dataset.to_table().equals(table)
        assert dataset.to_table(["c"], pds.field("i") < 2**59).num_rows == (np.asarray(table["i"]) < 2**59).sum()
    stats = dataset.stats()
    assert (stats["misses"], stats["cached_chunks"]) == (6, 6)
    assert store.verify(payloads=True)["ok"]


# --- forms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([Decimal("1.25"), None], pa.decimal128(9, 2)), pa.decimal32(9, 2)),
        (pa.array([Decimal("1.25"), None], pa.decimal128(10, 2)), pa.decimal64(10, 2)),
        (pa.array([Decimal("1.25"), None], pa.decimal128(18, 2)), pa.decimal64(18, 2)),
        (pa.array([Decimal("1.25"), None], pa.decimal128(19, 2)), pa.decimal128(19, 2)),
        (pa.array(["a", None], pa.string_view()), pa.string()),
        (pa.array(["a", None], pa.large_string()), pa.string()),
        (pa.array([b"a", None], pa.binary_view()), pa.binary()),
        (pa.array(["a", None] * 8).dictionary_encode(), CODES),
        (pa.array([None] * 16, pa.string()).dictionary_encode(), CODES),
        (pa.array(["a", "b", None]).dictionary_encode(), pa.string()),
        (pa.array([1, None]), pa.int64()),
    ],
    ids=str,
)
def test_forms_and_back(array: pa.Array, kind: pa.DataType) -> None:
    (short,) = narrow(pa.chunked_array([array]))
    assert short.type == kind
    assert widen(short, array.type).type == array.type
    assert widen(short, array.type).to_pylist() == array.to_pylist()


def test_dictionaries_of_several_pages_are_one() -> None:
    parts = [pa.array([f"{word}{i % 3}" for i in range(100)]).dictionary_encode() for word in "ab"]
    (short,) = narrow(pa.chunked_array(parts))
    assert short.type == CODES and len(short.dictionary) == 6
    assert short.to_pylist() == [value for part in parts for value in part.to_pylist()]


def test_a_dictionary_too_long_for_its_codes_is_text() -> None:
    array = pa.array([str(i // 8) for i in range(8 * 33_000)])
    assert narrow(pa.chunked_array([array.dictionary_encode()])) == [array]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.list_(pa.string()), pa.int64()], ids=str)
def test_a_column_that_offsets_do_not_reach(
    kind: pa.DataType, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played with a limit that is lower."""
    monkeypatch.setattr("tierstore.cache.columns.forms.OFFSETS_MAX", 5000)
    values = {pa.int64(): list(range(2000)), pa.list_(pa.string()): [[f"text {i}"] for i in range(2000)]}
    table = pa.table({"v": pa.array(values.get(kind, [f"text {i}" for i in range(2000)]), kind)})
    parts = narrow(table["v"])
    assert len(parts) > 2 and all(part.nbytes <= 5000 for part in parts)
    pq.write_table(table, tmp_path / "f.parquet", use_dictionary=False)
    dataset = store.dataset(tmp_path / "f.parquet")
    for _ in range(2):
        assert dataset.to_table().equals(table)
    assert dataset.stats()["cached_chunks"] == 1


@pytest.mark.parametrize("rows", [0, 1, 32_768, 32_769, 70_000])
def test_codes_of_any_text(rows: int) -> None:
    array = pa.array([None if i % 7 == 3 else f"text {i}" for i in range(rows)], pa.string())
    pieces = coded(array)
    assert all(piece.type == CODES for piece in pieces)
    assert [value for piece in pieces for value in piece.to_pylist()] == array.to_pylist()


@pytest.mark.parametrize("offset", [0, 3])
def test_views_of_codes(offset: int) -> None:
    long = "longer than the twelve bytes that a view holds in place"
    array = pa.array(["a", None, long, "", long] * 20).dictionary_encode().cast(CODES).slice(offset)
    made = views(array)
    made.validate(full=True)
    assert made.type == pa.string_view() and made.to_pylist() == array.to_pylist()
