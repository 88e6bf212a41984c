"""What an agent does for scans, asked in this process: plans, columns told by their places, and what is no request at all."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierstore.cache.columns import pieces
from tierstore.emulation.procs import Daemon
from tierstore.engines import spark_columns
from tierstore.engines.spark_agent_calls import Calls, Shared
from tierstore.engines.spark_types import known
from tierstore.ringbuf.errors import ConfigError, NotFound, PeerLost, TierstoreError

pytestmark = pytest.mark.slow
ROWS, GROUP_ROWS = 1000, 300
MOMENT = datetime.datetime(2024, 2, 29, 12, 30, 15, 250_001)


class Jvm:
    """A connection of a JVM that scans; it reads columns as Column.java does, value by value."""

    def __init__(self, store: Any):
        self.store, self.calls, self.sent = store, Calls(Shared(store)), 0

    def ask(self, op: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        head, parts = self.calls.handle({"op": op, **arguments}, bytearray())
        return json.loads(json.dumps(head)), b"".join(bytes(memoryview(part)) for part in parts)

    def plan(self, columns: list[str] | None = None, filters: tuple[Any, ...] = (), **options: str) -> dict[str, Any]:
        return self.ask("scan_plan", options=options, columns=columns, filters=list(filters), pieces=True)[0]

    def read(self, kinds: pa.Schema, skip: int = 0, columns: list[str] | None = None, **options: str) -> list[Any]:
        """All rows. sent: how many bytes were not in the store."""
        names = kinds.names if columns is None else columns
        planned, rows, self.sent = self.plan(names, **options), [], 0
        for piece, _ in planned["pieces"]:
            self.ask("scan_open", plan=planned["plan"], columns=names, piece=piece, skip=skip)
            while (told := self.ask("scan_next"))[0]["rows"] >= 0:
                head, body = told
                self.sent += len(body)
                reader = Reader(self.store, body)
                for row in range(head["rows"]):
                    values = [
                        reader.value(column, kinds.field(name).type, row)
                        for name, column in zip(names, head["columns"], strict=True)
                    ]
                    rows.append(tuple(values))
        self.ask("scan_end")
        return rows


class Reader:
    """Values of one batch."""

    def __init__(self, store: Any, body: bytes):
        self._store, self._body = store, body

    def bytes(self, place: list[int], start: int, size: int) -> bytes:
        arena, offset, whole = place
        assert 0 <= start <= start + size <= whole
        if arena == -1:
            return self._body[offset + start : offset + start + size]
        with open(f"/proc/self/fd/{self._store._session.grant.arena_fds[arena]}", "rb") as file:
            return os.pread(file.fileno(), size, offset + start)

    def number(self, place: list[int], width: int, index: int) -> int:
        return int.from_bytes(self.bytes(place, index * width, width), "little", signed=True)

    def bit(self, place: list[int], index: int) -> bool:
        return bool(self.bytes(place, index // 8, 1)[0] >> index % 8 & 1)

    def value(self, told: dict[str, Any], kind: pa.DataType, row: int) -> Any:
        form = told["kind"]
        if form == "constant":
            return told["value"]
        assert row < told["rows"]
        at = told["offset"] + row
        if form == "null" or (told["nulls"] and not self.bit(told["buffers"][0], at)):
            return None
        name, width = form.rstrip("0123456789"), int(form.lstrip("abcdefghijklmnopqrstuvwxyz") or 4)
        if name == "struct":
            fields = [self.value(child, kind.field(i).type, row) for i, child in enumerate(told["children"])]
            return dict(zip([entry.name for entry in kind], fields, strict=True))
        place = told["buffers"][1]
        if name in ("text", "list", "map"):
            start, end = self.number(place, width, at), self.number(place, width, at + 1)
            return self.spanned(told, kind, name, start, end)
        if name == "bits":
            return self.bit(place, at)
        number = self.number(place, width, at)
        if name == "codes":
            return self.value(told["children"][0], kind, number)
        return _scalar(number, width, kind)

    def spanned(self, told: dict[str, Any], kind: pa.DataType, name: str, start: int, end: int) -> Any:
        if name == "text":
            found = self.bytes(told["buffers"][2], start, end - start)
            return found if pa.types.is_binary(kind) else found.decode()
        if name == "map":
            keys, values = told["children"]
            return [
                (self.value(keys, kind.key_type, i), self.value(values, kind.item_type, i)) for i in range(start, end)
            ]
        return [self.value(told["children"][0], kind.value_type, i) for i in range(start, end)]


def _scalar(number: int, width: int, kind: pa.DataType) -> Any:
    if pa.types.is_floating(kind):
        return struct.unpack("<f" if width == 4 else "<d", number.to_bytes(width, "little", signed=True))[0]
    if pa.types.is_decimal(kind):
        return decimal.Decimal(number).scaleb(-kind.scale)
    if pa.types.is_integer(kind):
        return number
    return pa.scalar(number, pa.int32() if width == 4 else pa.int64()).cast(kind).as_py()


def every_type() -> pa.Table:
    """Columns of all kinds, with nulls; what Parquet cannot hold is left out."""
    rows = range(ROWS)

    def some(value: Any) -> list[Any]:
        return [None if i % 7 == 3 else value(i) for i in rows]

    wide = decimal.Decimal("12345678901234567890.123456789")
    return pa.table(
        {
            "b": some(lambda i: i % 3 == 0),
            "i8": pa.array(some(lambda i: i % 100), pa.int8()),
            "i16": pa.array(some(lambda i: -i), pa.int16()),
            "i32": pa.array(some(lambda i: i * 7), pa.int32()),
            "i64": pa.array(list(rows), pa.int64()),
            "u16": pa.array(some(lambda i: 65_535 - i), pa.uint16()),
            "u64": pa.array(some(lambda i: (1 << 64) - 1 - i), pa.uint64()),
            "f32": pa.array(some(lambda i: i / 4), pa.float32()),
            "f64": pa.array(some(lambda i: -i / 8), pa.float64()),
            "d9": pa.array(some(lambda i: decimal.Decimal(i) / 4), pa.decimal128(9, 2)),
            "d18": pa.array(some(lambda i: decimal.Decimal(-i * 10**12) / 4), pa.decimal128(18, 2)),
            "d38": pa.array(some(lambda i: wide * (i - 500)), pa.decimal128(38, 9)),
            "word": some(lambda i: ["red", "green", ""][i % 3]),
            "text": some(lambda i: f"täxt {i}"),
            "bin": some(lambda i: bytes([i % 256]) * (i % 5)),
            "fixed": pa.array(some(lambda i: b"%03d" % i), pa.binary(3)),
            "day": pa.array(some(lambda i: datetime.date(1969, 1, 1) + datetime.timedelta(i)), pa.date32()),
            "ts": pa.array(some(lambda i: MOMENT + datetime.timedelta(seconds=i)), pa.timestamp("us")),
            "utc": pa.array(some(lambda i: MOMENT + datetime.timedelta(i)), pa.timestamp("us", "UTC")),
            "ns": pa.array(some(lambda i: MOMENT), pa.timestamp("us")).cast(pa.timestamp("ns")),
            "ms": pa.array(some(lambda i: i * 1000), pa.timestamp("ms")),
            "list": pa.array(some(lambda i: [None, *map(str, range(i % 4))]), pa.list_(pa.string())),
            "large": pa.array(some(lambda i: [[i], None][: i % 3]), pa.large_list(pa.list_(pa.int64()))),
            "three": pa.array(some(lambda i: [i, 2, 3]), pa.list_(pa.int32(), 3)),
            "map": pa.array(
                some(lambda i: [(str(k), k or None) for k in range(i % 3)]), pa.map_(pa.string(), pa.int32())
            ),
            "struct": some(lambda i: {"a": i, "b": None if i % 2 else {"c": [i] * (i % 3), "d": str(i)}}),
        }
    )


def values_of(table: pa.Table) -> list[Any]:
    """Rows as a Reader gives them."""
    return list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))


def in_spark(schema: pa.Schema) -> pa.Schema:
    return pa.schema([entry.with_type(known(entry.type)) for entry in schema])


def write(path: Path, table: pa.Table, age_s: int = 1000) -> str:
    """A file that is old enough to be cached."""
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return str(path)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, "--dram", "32MiB")
    made.start()
    yield made
    made.end()


@pytest.fixture
def jvm(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jvm]:
    # The change time of a new file is young, whatever its modification time says.
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 0.0)
    with daemon.connect() as store:
        made = Jvm(store)
        yield made
        made.calls.close()
        pieces.forget(store)
    vars(made).clear()  # pytest keeps it, and it would keep the store's memory mapped


def test_all_types_of_files_are_read_in_place_or_sent(jvm: Jvm, tmp_path: Path) -> None:
    table = every_type()
    path = write(tmp_path / "t" / "a.parquet", table)
    kinds = in_spark(pq.read_schema(path).remove_metadata())
    planned = jvm.plan(path=path)
    assert planned["rows"] == ROWS and planned["bytes"] > 0
    types = {field["name"]: field["type"] for field in planned["schema"]["fields"]}
    assert types["u64"] == "decimal(20,0)" and types["ts"] == "timestamp_ntz" and types["utc"] == "timestamp"
    assert types["map"] == {"type": "map", "keyType": "string", "valueType": "integer", "valueContainsNull": True}
    wanted = values_of(pq.read_table(path).cast(kinds))
    assert jvm.read(kinds, path=path) == wanted
    assert jvm.read(kinds, path=path) == wanted  # out of the cache
    cast = {"u16", "u64", "fixed", "ns", "ms", "three"}
    in_place = [name for name in kinds.names if name not in cast]
    assert [row[:2] for row in jvm.read(kinds, columns=in_place, path=path)] == [row[:2] for row in wanted]
    assert jvm.sent == 0
    for name in cast:
        jvm.read(kinds, columns=[name], path=path)
        assert jvm.sent > 0, name
    assert jvm.read(kinds, columns=[], path=path) == [()] * ROWS
    assert jvm.read(kinds, skip=650, columns=["i64", "word"], path=path) == [(row[4], row[12]) for row in wanted[650:]]


def test_what_is_not_admitted_is_sent_in_parts(jvm: Jvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t" / "a.parquet", every_type())
    kinds = in_spark(pq.read_schema(path).remove_metadata())
    wanted = values_of(pq.read_table(path).cast(kinds))
    monkeypatch.setattr(spark_columns, "SENT_BYTES", 8 << 10)
    without = Jvm(None)
    assert without.read(kinds, path=path) == wanted and without.sent > 0
    assert without.read(kinds, columns=["list", "struct", "word"], skip=299, path=path) == [
        (row[21], row[25], row[12]) for row in wanted[299:]
    ]
    with pytest.raises(PeerLost, match="no daemon"):
        without.plan(key="points")
    with pytest.raises(PeerLost, match="no daemon"):
        without.ask("keys", prefix="")
    assert jvm.store.keys("columns/") == []


def test_a_table_under_a_key(jvm: Jvm) -> None:
    table = every_type()
    more = table.append_column("view", table["text"].cast(pa.string_view())).append_column(
        "coded", table["word"].combine_chunks().dictionary_encode(null_encoding="encode")
    )
    kinds = in_spark(more.schema)
    jvm.store.put("whole", more.slice(100, 800), keep=True)
    wanted = values_of(table.slice(100, 800).cast(in_spark(table.schema)))
    found = jvm.read(kinds, key="whole")
    assert [row[: len(wanted[0])] for row in found] == wanted
    assert [row[-2:] for row in found] == [(row[13], row[12]) for row in wanted]
    jvm.store.put("plain", table.select(["i64", "text", "list"]), keep=True)
    assert len(jvm.read(kinds, columns=["text", "list"], key="plain")) == ROWS and jvm.sent == 0
    planned = jvm.plan(["i64"], key="plain")
    assert planned["rows"] == ROWS
    jvm.store.delete("plain")
    jvm.ask("scan_open", plan=planned["plan"], columns=["i64"], piece=planned["pieces"][0][0])
    with pytest.raises(NotFound, match="deleted, evicted or replaced"):
        jvm.ask("scan_next")


def test_what_is_nested_in_a_table_under_a_key(jvm: Jvm) -> None:
    """Dictionaries with a null among their words, and types that Spark has not, within others."""
    words = [["red", None, "red"], None, [], [None, "green"]]
    coded = pa.array(words, pa.list_(pa.string()))
    inner = coded.values.dictionary_encode(null_encoding="encode")
    bytes_of = [[("a", 200), ("b", None)], None, [], [("c", 7)]]
    table = pa.table(
        {
            "coded": pa.ListArray.from_arrays(coded.offsets, inner, mask=coded.is_null()),
            "map": pa.array(bytes_of, pa.map_(pa.string(), pa.uint8())),
        }
    )
    jvm.store.put("nested", table, keep=True)
    types = {field["name"]: field["type"] for field in jvm.plan(key="nested")["schema"]["fields"]}
    assert types["coded"]["elementType"] == "string" and types["map"]["valueType"] == "short"
    assert jvm.read(in_spark(table.schema), key="nested") == list(zip(words, bytes_of, strict=True))


def test_statistics_exclude_row_groups_and_no_row_that_spark_keeps(jvm: Jvm, tmp_path: Path) -> None:
    numbers = list(range(ROWS))
    nan = [float("nan") if i in (5, 650) else i / 2 for i in numbers]
    path = write(
        tmp_path / "a.parquet",
        pa.table(
            {
                "n": numbers,
                "x": nan,
                "d": pa.array([decimal.Decimal(i) for i in numbers], pa.decimal128(9, 2)),
                "day": pa.array(numbers, pa.int32()).cast(pa.date32()),
                "ts": pa.array(numbers, pa.int64()).cast(pa.timestamp("us")),
                "w": [None if i < 300 else f"{i:04}" for i in numbers],
            }
        ),
    )

    def groups(*filters: Any) -> int:
        found = [json.loads(piece)[2] for piece, _ in jvm.plan(["n"], filters, path=path, piece="0")["pieces"]]
        return sum(len(members) for members in found)

    assert groups() == groups([]) == groups(["?", "n", 1]) == groups(["=", "no", 1]) == groups(["=", "n", "1"]) == 4
    assert groups(["<", "n", 300]) == groups(["=", "n", 299]) == groups(["in", "n", [1, 2]]) == 1
    assert groups([">=", "n", 300]) == groups(["not", ["<", "n", 300]]) == 3
    assert groups(["<", "n", 300], [">", "n", 900]) == 0
    assert groups(["or", ["<", "n", 300], [">=", "n", 900]]) == 2
    assert groups(["and", ["<", "n", 300], ["?", "n"]]) == 1
    assert groups(["or", ["<", "n", 300], ["?", "n"]]) == groups(["not", ["and", ["<", "n", 300], ["?"]]]) == 4
    # NaN is greater than all numbers to Spark, and statistics leave it out.
    assert groups([">", "x", 1e9]) == groups([">=", "x", 1e9]) == groups(["not", ["<", "x", 1e9]]) == 4
    assert groups(["<", "x", 10.0]) == groups(["=", "x", 3.5]) == 1
    assert groups(["=", "d", {"decimal": "299.50"}]) == 0 and groups(["=", "d", {"decimal": "0.001"}]) == 4
    assert groups(["<", "d", {"decimal": "300"}]) == 1
    assert groups(["<", "day", {"date": 300}]) == groups(["<", "ts", {"us": 300}]) == 1
    assert groups(["<", "day", {"date": 1 << 40}]) == groups(["<", "day", {"date": "x"}]) == 4
    assert groups(["null", "w"]) == 1 and groups(["valid", "w"]) == 3 and groups(["=", "w", "0300"]) == 1


def test_files_of_different_schemas_and_hive_folders(jvm: Jvm, tmp_path: Path) -> None:
    root = tmp_path / "hive"
    write(
        root / "day=1" / "a.parquet",
        pa.table({"a": pa.array([1, 2], pa.int32()), "p": pa.array(["1.5", None]).cast(pa.decimal128(5, 2))}),
    )
    write(root / "day=2" / "b.parquet", pa.table({"a": pa.array([3, None], pa.int64()), "b": ["x", "y"]}))
    write(root / "day=2" / "empty.parquet", pa.table({"a": pa.array([], pa.int64())}))
    write(
        root / "day=__HIVE_DEFAULT_PARTITION__" / "c.parquet",
        pa.table({"p": pa.array(["2"]).cast(pa.decimal128(15, 4))}),
    )
    kinds = pa.schema({"a": pa.int64(), "p": pa.decimal128(15, 4), "b": pa.string(), "day": pa.int32()})
    found = jvm.read(kinds, path=str(root))
    half = decimal.Decimal("1.5")
    assert sorted(found, key=str) == sorted(
        [
            (1, half, None, 1),
            (2, None, None, 1),
            (3, None, "x", 2),
            (None, None, "y", 2),
            (None, decimal.Decimal(2), None, None),
        ],
        key=str,
    )
    only_empty = jvm.plan(path=str(root / "day=2" / "empty.parquet"))
    assert only_empty["rows"] == 0


def test_pieces_prefer_hosts_where_there_are_several(jvm: Jvm, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.parquet", pa.table({"n": range(ROWS)})) for name in "abc"]
    told = {"options": {"paths": json.dumps(paths), "piece": "0"}, "pieces": True, "driver": "d"}
    alone, _ = jvm.ask("scan_plan", **told, places=["d:1"])
    assert [hosts for _, hosts in alone["pieces"]] == [[]] * 12
    several, _ = jvm.ask("scan_plan", **told, places=["d:1", "x:1", "y:1", "z:7", "z:8"])
    by_path: dict[str, set[tuple[str, ...]]] = {}
    for piece, hosts in several["pieces"]:
        by_path.setdefault(json.loads(piece)[0], set()).add(tuple(hosts))
        assert len(hosts) == 2 and set(hosts) < {"x", "y", "z"}
    assert sorted(by_path) == paths and all(len(hosts) == 1 for hosts in by_path.values())


def test_options_and_files_that_changed(jvm: Jvm, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"n": range(ROWS), "m": range(ROWS)}))
    assert jvm.plan(Path=f"file:{path}")["rows"] == ROWS
    assert [
        f["name"] for f in jvm.ask("scan_plan", options={"path": path, "columns": "m , n"})[0]["schema"]["fields"]
    ] == ["m", "n"]
    for options, words in (
        ({"path": path, "colums": "n"}, "options are"),
        ({}, "load"),
        ({"paths": "x"}, "JSON"),
        ({"path": path, "columns": "no"}, "these files have"),
        ({"path": path, "piece": "much"}, "piece"),
    ):
        with pytest.raises(ConfigError, match=words):
            jvm.ask("scan_plan", options=options)
    with pytest.raises(NotFound, match="neither a table"):
        jvm.plan(key="nobody")
    with pytest.raises(ConfigError, match="has none for"):
        jvm.store.put("strange", pa.table({"i": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}), keep=True)
        jvm.plan(key="strange")
    planned = jvm.plan(["n"], path=path)
    opening = {"plan": planned["plan"], "columns": ["n"], "piece": planned["pieces"][0][0]}
    write(Path(path), pa.table({"n": range(7), "m": range(7)}), age_s=500)
    jvm.ask("scan_open", **opening)
    with pytest.raises(TierstoreError, match="not the file any more that was planned for"):
        jvm.ask("scan_next")
    os.unlink(path)
    jvm.ask("scan_open", **opening)
    with pytest.raises(TierstoreError, match="run the job again"):
        jvm.ask("scan_next")


def test_nanoseconds_that_are_not_microseconds_are_refused(jvm: Jvm) -> None:
    jvm.store.put("ns", pa.table({"t": pa.array([1001], pa.timestamp("ns"))}), keep=True)
    planned = jvm.plan(key="ns")
    jvm.ask("scan_open", plan=planned["plan"], columns=["t"], piece=planned["pieces"][0][0])
    with pytest.raises((ValueError, TierstoreError), match="lose data"):
        jvm.ask("scan_next")


def test_what_is_no_request_is_refused_and_nothing_breaks(jvm: Jvm, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"n": range(ROWS)}))
    planned = jvm.plan(path=path)
    piece = planned["pieces"][0][0]
    good = {
        "scan_plan": {"options": {"path": path}, "columns": ["n"], "filters": [["=", "n", 1]], "pieces": True},
        "scan_open": {"plan": planned["plan"], "columns": ["n"], "piece": piece, "skip": 0},
        "scan_next": {},
        "scan_end": {},
    }
    junk = [
        None,
        -1,
        1 << 70,
        "",
        "x",
        "[]",
        "{}",
        [],
        ["no"],
        [[]],
        [["=", "n"]],
        {},
        {"path": 1},
        1.5,
        [None],
        [1, 2, 3],
    ]
    junk += [
        piece[:-3],
        json.dumps([path, "x", [999], []]),
        json.dumps([path, 1, [0], []]),
        planned["plan"][:50],
        piece,
    ]
    chance, refused = random.Random(5), 0
    for _ in range(1500):
        op = chance.choice(list(good))
        head = dict(good[op])
        for name in [name for name in head if chance.random() < 0.4]:
            head[name] = chance.choice(junk)
        if chance.random() < 0.1:
            head[chance.choice(["extra", "skip", "op2"])] = chance.choice(junk)
        try:
            jvm.ask(op, **head)
        except (TierstoreError, ValueError, OSError):  # which an agent answers with; anything else would end it
            refused += 1
    assert refused > 300
    assert jvm.read(pa.schema({"n": pa.int64()}), path=path) == [(n,) for n in range(ROWS)]
