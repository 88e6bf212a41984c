"""Shuffles by Arrow Flight: the same attempts and rows as by the Python API, in both directions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tierstore.service.store import Store
from tierstore.shuffle.receipt import Receipt

flight = pytest.importorskip("pyarrow.flight")
pytestmark = pytest.mark.slow

PARTITIONS = 5
Put = Callable[..., dict[str, Any]]

WRITER = """
import sys, time, pyarrow as pa
from pyarrow import flight
client = flight.FlightClient(sys.argv[1])
batch = pa.record_batch({"n": range(20000)})
writer, _ = client.do_put(flight.FlightDescriptor.for_command(sys.argv[2]), batch.schema)
for number in range(1000):
    writer.write_batch(batch)
    if number == 20:
        print("writing", flush=True)
    time.sleep(0.005)
"""


@pytest.fixture
def store(flight_node: Any) -> Iterator[Store]:
    with flight_node.daemon.connect() as made:
        yield made


@pytest.fixture
def app(talk: Any) -> Iterator[str]:
    """The name of an application, which ends with the test."""
    name = f"app-{uuid.uuid4().hex[:8]}"
    yield name
    try:
        talk.act("shuffle-end", app=name)
    except flight.FlightError as error:  # it was ended, or never begun
        assert json.loads(error.extra_info)["kind"] in ("NotFound", "Expired", "Refused")


@pytest.fixture
def command(app: str) -> Callable[..., dict[str, Any]]:
    """The command that writes an attempt; with other fields as told, without those that are told to be None."""

    def make(map_index: int = 0, attempt: str = "a", **more: Any) -> dict[str, Any]:
        fields = {"app": app, "number": 0, "partitions": PARTITIONS, "map_index": map_index, "attempt": attempt} | more
        return {"shuffle": {name: value for name, value in fields.items() if value is not None}}

    return make


def rows_of(map_index: int, count: int = 5000) -> pa.Table:
    numbers = np.arange(map_index * 1_000_000, map_index * 1_000_000 + count)
    coded = pa.array([f"c{number % 3}" for number in numbers]).dictionary_encode()
    lists = pa.array([[n, n] if n % 4 else None for n in numbers.tolist()])
    return pa.table({"k": numbers % 97, "n": numbers, "c": coded, "l": lists})


def ask(
    app: str, receipts: list[dict[str, Any]], first: int = 0, last: int = PARTITIONS, **more: Any
) -> dict[str, Any]:
    return {"shuffle": {"app": app, "number": 0, "partitions": [first, last], "receipts": receipts, **more}}


def test_attempts_equal_those_of_the_python_api(talk: Any, store: Store, app: str, command: Put) -> None:
    theirs = [talk.put(command(index, by=["k"]), rows_of(index), rows=700)["receipt"] for index in range(3)]
    assert [receipt["rows"] for receipt in theirs] == [5000] * 3
    with store.shuffle(app, 1, PARTITIONS) as shuffle:
        ours = []
        for index in range(3):
            with shuffle.writer(index) as writer:
                writer.write(rows_of(index), by=["k"])
            ours.append(writer.receipt)
        with store.shuffle(app, 0, PARTITIONS) as same:
            for partition in range(PARTITIONS):
                expected = shuffle.read(partition, ours).read_all()
                by_flight = talk.get(ask(app, theirs, partition, partition + 1))
                assert by_flight.num_rows and by_flight.to_pylist() == expected.to_pylist()
                assert (
                    same.read(partition, map(Receipt.from_dict, theirs)).read_all().to_pylist() == expected.to_pylist()
                )
        plain = ask(app, [receipt.to_dict() for receipt in ours])
        plain["shuffle"]["number"] = 1
        assert (
            talk.get(plain).sort_by("n").equals(pa.concat_tables([rows_of(i) for i in range(3)]).unify_dictionaries())
        )
    assert talk.get(ask(app, theirs[1:2])).sort_by("n")["n"].to_pylist() == rows_of(1)["n"].to_pylist()


def test_partitions_that_the_client_chooses(talk: Any, app: str, command: Put) -> None:
    table = pa.table({"n": range(100)})
    one = talk.put(command(0, partition=3), table)["receipt"]
    writer, answers = talk.client.do_put(talk.descriptor(command(1)), table.schema)
    for partition in (4, 0, 4):
        writer.write_with_metadata(
            table.to_batches()[0].slice(partition, 1), json.dumps({"partition": partition}).encode()
        )
    writer.done_writing()
    two = json.loads(answers.read().to_pybytes())["receipt"]
    writer.close()
    found = {p: talk.get(ask(app, [one, two], p, p + 1))["n"].to_pylist() for p in range(PARTITIONS)}
    assert found == {0: [0], 1: [], 2: [], 3: list(range(100)), 4: [4, 4]}
    talk.refused(talk.put, command(2), table, kind="BadCommand", words="rows need a partition")
    talk.refused(talk.put, command(2, partition=PARTITIONS), table, kind="ValueError", words="0 to 4")


def test_an_attempt_without_rows(talk: Any, app: str, command: Put) -> None:
    receipt = talk.put(command(0, by=["n"]), pa.table({"n": pa.array([], pa.int64())}))["receipt"]
    assert receipt["rows"] == 0
    assert talk.get(ask(app, [receipt])).equals(pa.table({"n": pa.array([], pa.int64())}))


def test_information_has_the_schema_and_the_ticket(talk: Any, app: str, command: Put) -> None:
    receipt = talk.put(command(0, by=["k"]), rows_of(0))["receipt"]
    info = talk.client.get_flight_info(talk.descriptor(ask(app, [receipt])))
    assert info.schema.equals(rows_of(0).schema)
    assert talk.get(info.endpoints[0].ticket.ticket).num_rows == 5000


def test_who_does_not_know_the_secret(talk: Any, app: str, command: Put) -> None:
    table = pa.table({"n": range(10)})
    receipt = talk.put(command(0, by=["n"], secret="s1"), table)["receipt"]
    calls: list[tuple[Any, ...]] = [
        (talk.put, command(1, by=["n"], secret="s2"), table),
        (talk.put, command(1, by=["n"]), table),
        (talk.get, ask(app, [receipt])),
        (talk.get, ask(app, [receipt], secret="s2")),
        (talk.get, ask(app, [receipt], secret="s2", partition_count=PARTITIONS)),
        (talk.client.get_flight_info, talk.descriptor(ask(app, [receipt]))),
    ]
    for call in calls:
        error = talk.refused(*call, kind="Refused", words="another secret")
        assert isinstance(error, flight.FlightUnauthorizedError)
    for name, more in (("shuffle-drop", {"number": 0}), ("shuffle-end", {}), ("shuffle-touch", {})):
        talk.refused(talk.act, name, app=app, **more, kind="Refused")
        talk.refused(talk.act, name, app=app, secret="s2", **more, kind="Refused")
    assert sorted(talk.get(ask(app, [receipt], secret="s1"))["n"].to_pylist()) == list(range(10))
    assert talk.act("shuffle-end", app=app, secret="s1") == {"shuffles": 1}


def test_the_life_of_an_application(talk: Any, app: str, command: Put) -> None:
    talk.refused(talk.get, ask(app, []), kind="NotFound", words="open a shuffle of it first")
    terms = talk.act("shuffle-open", app=app, number=0, partitions=PARTITIONS, lease_s=50)
    assert terms["lease_s"] == 50 and terms["store_id"] == talk.act("ping")["store_id"]
    assert talk.act("shuffle-touch", app=app)["lease_s"] == 50
    talk.refused(talk.act, "shuffle-open", app=app, number=0, partitions=9, kind="Conflict", words="has 5 partitions")
    receipt = talk.put(command(0, by=["k"]), rows_of(0))["receipt"]
    other = ask(app, [receipt])
    other["shuffle"]["number"] = 7
    talk.refused(talk.get, other, kind="NotFound", words="shuffle 7")
    assert talk.act("shuffle-drop", app=app, number=0) == {"attempts": 1}
    talk.refused(talk.get, ask(app, [receipt], partition_count=PARTITIONS), kind="LostMaps")
    assert talk.act("shuffle-end", app=app)["shuffles"] in (0, 1)
    talk.refused(talk.act, "shuffle-touch", app=app, kind="Expired", words="it ended")


def test_lost_maps_are_named(talk: Any, app: str, command: Put) -> None:
    receipt = talk.put(command(7, by=["k"]), rows_of(0))["receipt"]
    gone = [{**receipt, "map_index": index} for index in (1, 2, 3, 9)]
    error = talk.refused(talk.get, ask(app, [receipt, *gone]), kind="LostMaps", words="maps 1, 2, 3, 9 cannot be read")
    assert json.loads(error.extra_info) == {"kind": "LostMaps", "maps": [[1, 3], [9, 9]], "complete": True}
    many = [{**receipt, "map_index": index} for index in range(8, 20_000, 2)]
    error = talk.refused(talk.get, ask(app, many), kind="LostMaps")
    told = json.loads(error.extra_info)
    assert not told["complete"] and len(told["maps"]) > 50 and told["maps"][:2] == [[8, 8], [10, 10]]


def test_an_attempt_is_written_once(talk: Any, app: str, command: Put) -> None:
    receipt = talk.put(command(0, by=["k"]), rows_of(0))["receipt"]
    talk.refused(talk.put, command(0, by=["k"]), rows_of(0), kind="Conflict", words="is committed")
    assert talk.get(ask(app, [receipt])).num_rows == 5000
    writer, _ = talk.client.do_put(talk.descriptor(command(1, by=["k"])), rows_of(1).schema)
    writer.write_table(rows_of(1))
    time.sleep(0.1)
    talk.refused(talk.put, command(1, by=["k"]), rows_of(1), kind="Conflict", words="by another stream")
    writer.close()


def test_the_end_that_a_client_announced(talk: Any, store: Store, app: str, command: Put) -> None:
    table = pa.table({"n": range(10)})
    talk.refused(talk.put, command(0, by=["n"], rows=11), table, kind="BadCommand", words="11 were announced")
    talk.refused(talk.put, command(0, by=["n"], counted=True), table, kind="BadCommand", words="without the message")
    assert sorted(store.keys(f"shuffle/{app}")) == [f"shuffle/{app}", f"shuffle/{app}/0"]
    assert talk.put(command(0, by=["n"], rows=10), table)["receipt"]["rows"] == 10


def test_a_client_that_is_killed_leaves_no_attempt(
    flight_node: Any, talk: Any, store: Store, app: str, command: Put
) -> None:
    line = [sys.executable, "-c", WRITER, flight_node.location, json.dumps(command(0, by=["n"], rows=10**9))]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "writing\n"
        assert len(store.keys(f"shuffle/{app}/0/")) > 0, "runs are there while it writes"
        child.kill()
    flight_node.idle()
    assert store.keys(f"shuffle/{app}/0/") == []
    receipt = talk.put(command(0, by=["k"]), rows_of(0))["receipt"]
    assert talk.get(ask(app, [receipt])).num_rows == 5000


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no app": ({"app": None}, "needs 'app'"),
    "no number": ({"number": None}, "needs 'number'"),
    "no partitions": ({"partitions": None}, "needs 'partitions'"),
    "no map": ({"map_index": None}, "needs 'map_index'"),
    "no attempt": ({"attempt": None}, "needs 'attempt'"),
    "app of a path": ({"app": "../x"}, "app '../x' cannot be used"),
    "app with a slash": ({"app": "a/b"}, "app 'a/b' cannot be used"),
    "attempt of a path": ({"attempt": "a/0"}, "attempt 'a/0' cannot be used"),
    "app of a number": ({"app": 5}, "'app' of the command 'shuffle' has to be str"),
    "number below 0": ({"number": -1}, "number -1 cannot be used"),
    "number of text": ({"number": "0"}, "'number' of the command 'shuffle' has to be int"),
    "map of a truth": ({"map_index": True}, "'map_index' of the command 'shuffle' has to be int"),
    "too many partitions": ({"partitions": 1 << 30}, "partitions 1073741824 cannot be used"),
    "both": ({"by": ["n"], "partition": 0}, "cannot both be given"),
    "by nothing": ({"by": []}, "at least one column"),
    "by text": ({"by": "n"}, "has to be list"),
    "by twice the same": ({"by": ["n", "n"]}, "different names"),
    "unknown": ({"byy": ["n"]}, "has no 'byy'"),
    "for reading": ({"receipts": []}, "has no 'receipts'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_commands_to_write(name: str, talk: Any, store: Store, command: Put) -> None:
    before = store.keys()
    more, words = BAD[name]
    talk.refused(talk.put, command(**more), pa.table({"n": [1]}), kind="BadCommand", words=words)
    assert store.keys() == before


def test_what_cannot_be_partitioned(talk: Any, store: Store, app: str, command: Put) -> None:
    table = pa.table({"n": [1], "l": [[1]]})
    talk.refused(talk.put, command(by=["x"]), table, kind="ValueError", words="no column 'x'")
    talk.refused(talk.put, command(by=["l"]), table, kind="ValueError")
    talk.refused(talk.put, command(partitions=0, by=["n"]), table, kind="ValueError", words="at least 1")
    assert store.keys(f"shuffle/{app}/0/") == []


def test_bad_commands_to_read(talk: Any, app: str, command: Put) -> None:
    receipt = talk.put(command(0, by=["k"]), rows_of(0))["receipt"]
    for change, words in (
        ({"partitions": [0]}, "one behind the last"),
        ({"partitions": [2, 2]}, "below the second"),
        ({"partitions": [-1, 2]}, "below the second"),
        ({"partitions": [0, 1.5]}, "one behind the last"),
        ({"partitions": [0, 6]}, "the shuffle has 5"),
        ({"partitions": 3}, "has to be list"),
        ({"receipts": [5]}, "as they are"),
        ({"receipts": [{}]}, "a receipt needs"),
        ({"receipts": [receipt | {"app": "../x"}]}, "cannot be used"),
        ({"receipts": [receipt | {"replicas": [5]}]}, "names of nodes"),
        ({"receipts": [receipt | {"manifest_hash": "5"}]}, "a receipt needs 'manifest_hash'"),
        ({"receipts": [receipt | {"more": 5}]}, "a receipt has the fields"),
        ({"verify": 1}, "has to be bool"),
    ):
        asked = ask(app, [receipt])
        asked["shuffle"] |= change
        talk.refused(talk.get, asked, kind="BadCommand", words=words)
    other = ask(app, [receipt | {"app": "other"}])
    talk.refused(talk.get, other, kind="ValueError", words="another shuffle")
    talk.refused(talk.get, ask(app, [receipt, receipt]), kind="ValueError", words="several receipts")


def test_bad_actions(talk: Any, app: str) -> None:
    for name, body, words in (
        ("shuffle-open", {"app": app, "number": 0}, "needs 'partitions'"),
        ("shuffle-open", {"app": app, "number": 0, "partitions": 1, "extra": 1}, "has no 'extra'"),
        ("shuffle-drop", {"app": app}, "needs 'number'"),
        ("shuffle-end", {}, "needs 'app'"),
        ("ping", {"loud": True}, "has no 'loud'"),
        ("nothing", {}, "actions are ping"),
    ):
        talk.refused(talk.act, name, **body, kind="BadCommand", words=words)
    for body in ({"lease_s": 0}, {"app": "a/b"}, {"partitions": -1}, {"number": -1}, {"quota_bytes": -1}):
        asked = {"app": app, "number": 0, "partitions": 1} | body
        talk.refused(talk.act, "shuffle-open", **asked, kind="ValueError", words="cannot be used")
    assert [action.type for action in talk.client.list_actions()][:2] == ["ping", "object-delete"]
