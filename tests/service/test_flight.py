"""Objects by Arrow Flight: what a plain pyarrow.flight client puts, gets, lists, and may not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from tierstore.service.store import Store

flight = pytest.importorskip("pyarrow.flight")
pytestmark = pytest.mark.slow

# Writes batches, not fast enough to fill the store, until it is killed; says when the first is on its way.
WRITER = """
import sys, time, pyarrow as pa
from pyarrow import flight
client = flight.FlightClient(sys.argv[1])
batch = pa.record_batch({"n": range(int(sys.argv[3]))})
writer, _ = client.do_put(flight.FlightDescriptor.for_command(sys.argv[2]), batch.schema)
writer.write_batch(batch)
print("writing", flush=True)
while True:
    writer.write_batch(batch)
    time.sleep(0.01)
"""


@pytest.fixture
def store(flight_node: Any) -> Iterator[Store]:
    """The same store, as local clients see it; empty again after the test."""
    with flight_node.daemon.connect() as made:
        yield made
        for key in made.keys():
            if not key.startswith("shuffle"):
                made.delete(key)


def columns() -> dict[str, pa.Array]:
    """Arrays of 40 rows, of all sorts."""
    words = [None if i % 5 == 0 else f"word {i % 4} {'long ' * (i % 3)}" for i in range(40)]
    lists = [None if i % 7 == 0 else list(range(i % 4)) for i in range(40)]
    structs = [None if i % 9 == 0 else {"a": i, "b": words[i]} for i in range(40)]
    coded = pa.array(words).dictionary_encode()
    return {
        "int": pa.array(range(40), pa.int16()),
        "nulls": pa.nulls(40),
        "bool": pa.array([None, True, False, True] * 10),
        "text": pa.array(words),
        "large": pa.array(words, pa.large_string()),
        "view": pa.array(words, pa.string_view()),
        "bytes view": pa.array([None if w is None else w.encode() for w in words], pa.binary_view()),
        "list": pa.array(lists, pa.list_(pa.int8())),
        "list view": pa.array(lists, pa.list_view(pa.int64())),
        "fixed list": pa.array([[i, i] for i in range(40)], pa.list_(pa.int32(), 2)),
        "struct": pa.array(structs),
        "map": pa.array([[("k", i)] for i in range(40)], pa.map_(pa.string(), pa.int32())),
        "dictionary": coded,
        "list of dictionary": pa.ListArray.from_arrays(pa.array(range(41), pa.int32()), coded),
        "decimal": pa.array([Decimal(i) / 4 for i in range(40)], pa.decimal128(9, 2)),
        "time": pa.array(range(40), pa.timestamp("us", "Europe/Oslo")),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([15, 40], pa.int32()), pa.array(["x", None])),
        "union": pa.UnionArray.from_sparse(
            pa.array([0, 1] * 20, pa.int8()), [pa.array(range(40)), pa.array(list(map(str, range(40))))]
        ),
    }


@pytest.mark.parametrize("name", columns())
def test_a_type_survives_both_ways(name: str, talk: Any, store: Store) -> None:
    column = columns()[name]
    table = pa.table({"n": range(37), name: column.slice(3)}).replace_schema_metadata({"made": "here"})
    assert talk.put("types/one", table, rows=10)["object"]["rows"] == 37
    for found in (store.get("types/one"), talk.get("types/one")):
        found.validate(full=True)
        assert found.equals(table, check_metadata=True), name
    store.put("types/two", table)
    assert talk.get("types/two").equals(table, check_metadata=True)


def test_dictionaries_that_change_between_batches(talk: Any, store: Store) -> None:
    parts = [pa.array(values).dictionary_encode() for values in (["a", "b"], ["c", "b", "c"], ["b"])]
    schema = pa.schema({"d": parts[0].type})
    with store.writer("k", schema) as writer:
        for part in parts:
            writer.write(pa.record_batch([part], schema=schema))
    assert talk.get("k")["d"].to_pylist() == ["a", "b", "c", "b", "c", "b"]
    talk.put("again", talk.get("k"))
    assert store.get("again")["d"].to_pylist() == ["a", "b", "c", "b", "c", "b"]


def test_nothing_is_visible_before_the_end(talk: Any, store: Store, table: pa.Table) -> None:
    store.put("k", table.slice(0, 1))
    writer, answers = talk.client.do_put(talk.descriptor("k"), table.schema)
    for batch in table.to_batches(500):
        writer.write_batch(batch)
    time.sleep(0.1)
    assert store.get("k").num_rows == 1 and store.keys() == ["k"]
    writer.done_writing()
    assert json.loads(answers.read().to_pybytes()) == {"object": {"key": "k", "rows": 3000, "durability": "volatile"}}
    writer.close()
    assert store.get("k").equals(table)


def test_a_table_of_many_segments(talk: Any, store: Store) -> None:
    table = pa.table({"n": range(1_000_000), "m": [1.5] * 1_000_000})
    talk.put("big", table)
    assert store.info("big")["blocks"] > 10 and store.get("big").equals(table)
    small = {"object": {"key": "big", "message_bytes": 65536}}
    reader = talk.client.do_get(flight.Ticket(json.dumps(small)))
    sizes = [chunk.data.nbytes for chunk in reader]
    assert max(sizes) <= 65536 + 32 and sum(sizes) >= table.nbytes
    assert talk.get(small).equals(table) and talk.get("big").equals(table)


def test_a_table_on_disk(talk: Any, store: Store) -> None:
    table = pa.table({"n": range(400_000)})
    store.put("k", table, keep=True)
    store.pin("k", "disk")
    assert store.info("k")["tiers"] == ["disk"]
    assert talk.get("k").equals(table)
    (listed,) = talk.client.list_flights(b"k")
    assert listed.schema == table.schema and listed.total_records == 400_000


def test_an_empty_table(talk: Any, store: Store) -> None:
    empty = pa.table({"n": pa.array([], pa.int64()), "d": pa.array([], pa.dictionary(pa.int8(), pa.string()))})
    talk.put("k", empty)
    assert store.get("k").equals(empty) and talk.get("k").equals(empty)


def test_columns(talk: Any, store: Store, table: pa.Table) -> None:
    store.put("k", pa.table({"a": [1], "b": [2], "c": [3]}))
    command = {"object": {"key": "k", "columns": ["c", "a"]}}
    assert talk.get(command).to_pydict() == {"c": [3], "a": [1]}
    info = talk.client.get_flight_info(talk.descriptor(command))
    assert info.schema.names == ["c", "a"] and talk.get(info.endpoints[0].ticket.ticket).column_names == ["c", "a"]
    assert talk.get({"object": {"key": "k", "columns": []}}).num_columns == 0
    talk.refused(talk.get, {"object": {"key": "k", "columns": ["x"]}}, kind="ValueError", words="no column 'x'")


def test_listing_by_prefix(talk: Any, store: Store, table: pa.Table) -> None:
    for key in ("a/1", "a/2", "b/1"):
        store.put(key, table)
    store.put_bytes("a/bytes", b"raw")
    store.put("columns/pretended", table)
    found = {info.descriptor.path[1].decode(): info for info in talk.client.list_flights(b"a/")}
    assert sorted(found) == ["a/1", "a/2", "a/bytes"]
    assert {info.descriptor.path[1] for info in talk.client.list_flights()} == {b"a/1", b"a/2", b"a/bytes", b"b/1"}
    assert list(talk.client.list_flights(b"nothing")) == []
    one = found["a/1"]
    assert (
        one.schema.equals(table.schema) and one.total_records == 3000 and one.total_bytes == store.info("a/1")["bytes"]
    )
    assert (
        json.loads(one.app_metadata)["kind"] == "table" and json.loads(found["a/bytes"].app_metadata)["kind"] == "bytes"
    )
    assert talk.get(one.endpoints[0].ticket.ticket).equals(table)


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_bytes_come_as_rows_of_one_column(size: int, talk: Any, store: Store) -> None:
    value = bytes(range(251)) * (size // 251 + 1)
    store.put_bytes("k", value[:size])
    found = talk.get("k")
    assert found.schema == pa.schema([pa.field("value", pa.large_binary(), nullable=False)])
    assert b"".join(found["value"].to_pylist()) == value[:size]


def test_options(talk: Any, store: Store, table: pa.Table) -> None:
    talk.put({"object": {"key": "kept", "keep": True, "ttl": 500}}, table)
    info = store.info("kept")
    assert info["class"] == "KEEP" and 0 < info["expires_unix_s"] - time.time() <= 500
    assert talk.put({"object": {"key": "durable", "durable": True}}, table)["object"]["durability"] == "durable"
    assert store.info("durable")["durability"] == "durable"
    talk.put("plain", table)
    assert store.info("plain")["class"] == "CACHE" and store.info("plain")["expires_unix_s"] is None
    command = {"object": {"key": "k", "pool": "none"}}
    talk.refused(talk.put, command, table, kind="ConfigError", words="configured pools")
    talk.act("object-delete", key="kept")
    assert "kept" not in store
    talk.refused(talk.act, "object-delete", key="kept", kind="NotFound")


def test_announced_rows(talk: Any, store: Store, table: pa.Table) -> None:
    assert talk.put({"object": {"key": "k", "rows": 3000}}, table)["object"]["rows"] == 3000
    talk.refused(
        talk.put, {"object": {"key": "x", "rows": 3001}}, table, kind="BadCommand", words="3001 were announced"
    )
    talk.refused(
        talk.put, {"object": {"key": "x", "counted": True}}, table, kind="BadCommand", words="without the message"
    )
    for told, sound in ((3000, True), (2999, False)):
        writer, _ = talk.client.do_put(talk.descriptor({"object": {"key": "y", "counted": True}}), table.schema)
        writer.write_table(table)
        writer.write_metadata(json.dumps({"rows": told}).encode())
        if sound:
            writer.close()
            store.delete("y")
        else:
            talk.refused(writer.close, kind="BadCommand", words="2999 were announced")
    assert store.keys() == ["k"]


BAD = {
    b"": "not JSON",
    b"{": "not JSON",
    b"[" * 100_000: "not JSON",
    b"\xff\xfe": "not JSON",
    b"5": "not a JSON object",
    b"{}": "has to be",
    b'{"object": 5}': "has to be dict",
    b'{"object": {}}': "needs 'key'",
    b'{"object": {"key": 5}}': "'key' of the command 'object' has to be str",
    b'{"object": {"key": ""}}': "1 to 4096",
    b'{"object": {"key": "\\ud800"}}': "surrogates",
    b'{"object": {"key": "k", "colums": []}}': "has no 'colums'",
    b'{"object": {"key": "k"}, "shuffle": {}}': "has to be",
    b'{"objects": {"key": "k"}}': "has no 'objects'",
    b'{"object": {"key": "k", "columns": "ab"}}': "has to be list",
    b'{"object": {"key": "k", "columns": [5]}}': "names of columns",
    b'{"object": {"key": "k", "message_bytes": true}}': "has to be int",
    b'{"object": {"key": "k", "message_bytes": 1}}': "message_bytes 1",
    b'{"object": {"key": "shuffle/app"}}': "are the store's",
    b'{"object": {"key": "shuffle"}}': "are the store's",
    b'{"object": {"key": "columns/x"}}': "are the store's",
}


@pytest.mark.parametrize("raw", BAD, ids=lambda raw: repr(raw[:40]))
def test_bad_commands(raw: bytes, talk: Any, store: Store) -> None:
    kind = "InvalidKey" if BAD[raw] in ("1 to 4096", "surrogates") else "BadCommand"
    talk.refused(talk.get, raw, kind=kind, words=BAD[raw])
    if raw:  # an empty command is none
        talk.refused(talk.client.get_flight_info, talk.descriptor(raw), kind=kind, words=BAD[raw])


@pytest.mark.parametrize(
    "command",
    [
        {"ttl": -1},
        {"ttl": "5"},
        {"keep": 1},
        {"durable": "yes"},
        {"rows": -1},
        {"rows": 1.5},
        {"columns": ["n"]},
        {"pool": 5},
    ],
    ids=str,
)
def test_bad_options(command: dict[str, Any], talk: Any, store: Store, table: pa.Table) -> None:
    talk.refused(talk.put, {"object": {"key": "k", **command}}, table, kind="BadCommand", words=next(iter(command)))
    assert "k" not in store


@pytest.mark.parametrize(
    "path",
    [["objects"], ["k"], ["objects", "a", "b"], ["Objects", "k"], ["..", "objects", "k"], ["objects", "shuffle/x"]],
    ids=str,
)
def test_paths_that_are_none(path: list[str], talk: Any, store: Store, table: pa.Table) -> None:
    talk.refused(talk.put, path, table, kind="BadCommand")
    talk.refused(talk.client.get_flight_info, talk.descriptor(path), kind="BadCommand")
    assert store.keys() == []


def test_keys_are_text_and_nothing_else(talk: Any, store: Store, table: pa.Table) -> None:
    keys = ["../../etc/passwd", "a//b", "objects/x", "%2e%2e", "k\0k", "Ключ 🗝"]
    for key in keys:
        talk.put(key, table)
        assert talk.get(key).equals(table)
    assert store.keys() == sorted(keys)


def test_absent_keys(talk: Any) -> None:
    talk.refused(talk.get, "absent", kind="NotFound", words="'absent' is not in the store")
    talk.refused(talk.client.get_flight_info, talk.descriptor("absent"), kind="NotFound")


def unsound() -> dict[str, pa.RecordBatch]:
    """Batches that Arrow sends, and that must not be read in place."""
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    index = pa.DictionaryArray.from_arrays(pa.array([7], pa.int32()), pa.array(["a"]), safe=False)
    ends = pa.array([0, 1_000_000, 1], pa.int32()).buffers()[1]
    lists = pa.Array.from_buffers(pa.list_(pa.int8()), 2, [None, ends], children=[pa.array([1], pa.int8())])
    return {
        name: pa.record_batch([array], ["c"]) for name, array in (("utf-8", text), ("index", index), ("list", lists))
    }


@pytest.mark.parametrize("name", unsound())
def test_unsound_data_is_refused(name: str, talk: Any, store: Store) -> None:
    table = pa.Table.from_batches([unsound()[name]])
    with pytest.raises((flight.FlightError, pa.ArrowInvalid)) as caught:  # the client may find it by itself
        talk.put("k", table)
    assert "Traceback" not in str(caught.value)
    assert store.keys() == []


@pytest.mark.parametrize("rows", [100, 100_000])
def test_a_writer_that_is_killed_leaves_nothing(rows: int, flight_node: Any, talk: Any, store: Store) -> None:
    command = json.dumps({"object": {"key": "k", "keep": True}})
    for _ in range(3):
        line = [sys.executable, "-c", WRITER, flight_node.location, command, str(rows)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "writing\n"
            time.sleep(0.02)
            child.kill()
        flight_node.idle()
        assert store.keys() == []
    assert store.verify(payloads=True)["ok"]
    talk.put("k", pa.table({"n": [1]}))
    assert store.keys() == ["k"]


def test_a_reader_that_stops_gives_its_place_back(flight_node: Any, talk: Any, store: Store) -> None:
    store.put("k", pa.table({"n": range(2_000_000)}))
    reader = talk.client.do_get(flight.Ticket(b'{"object": {"key": "k", "message_bytes": 65536}}'))
    reader.read_chunk()
    assert flight_node.stats()["calls_now"] == 1
    reader.cancel()
    del reader
    flight_node.idle()


def test_eight_clients_at_once(flight_node: Any, talk: Any, store: Store) -> None:
    trouble: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with flight_node.client() as client:
                mine = type(talk)(client)
                for turn in range(5):
                    table = pa.table(
                        {"n": range(number, 20_000 + turn), "t": [f"{number} {turn}"] * (20_000 + turn - number)}
                    )
                    mine.put(f"{number}", table, rows=3000)
                    assert mine.get(f"{number}").equals(table)
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not trouble and store.keys() == sorted(map(str, range(8)))


def test_what_it_counts(flight_node: Any, talk: Any, store: Store, table: pa.Table) -> None:
    before = flight_node.stats()
    talk.put("k", table)
    talk.get("k")
    talk.refused(talk.get, "absent", kind="NotFound")
    flight_node.idle()
    after = flight_node.stats()
    grown = {name: after[name] - before[name] for name in ("calls", "failed_calls", "refused", "bytes_in", "bytes_out")}
    assert grown == {"calls": 3, "failed_calls": 1, "refused": 0, "bytes_in": table.nbytes, "bytes_out": table.nbytes}
    line = [sys.executable, "-m", "tierstore.service.cli", "status", "--socket", flight_node.daemon.socket]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (
        f"serving Arrow Flight at {flight_node.address} (open to every process of this machine): 0 calls now" in shown
    )
