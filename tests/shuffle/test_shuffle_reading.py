"""Reading under trouble: nodes that lose some of what they have, slow readers, and windows of partitions."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.shuffle.nodes import Links, fetching, several
from tests.shuffle.rows import PARTITIONS, expected, read_all, run_of, write
from tests.shuffle.test_shuffle_nodes import Cluster
from tierstore.cache.buffers import Buffers
from tierstore.ringbuf.errors import (
    Closed,
    ConfigError,
    CorruptionError,
    Expired,
    Full,
    LostMaps,
    PeerLost,
    Refused,
    TierstoreError,
)
from tierstore.service.protocol import ProtocolError
from tierstore.shuffle.knowing import Known
from tierstore.shuffle.manifest import Manifest, Run, decode
from tierstore.shuffle.output import Piece
from tierstore.shuffle.reader import ShuffleReader
from tierstore.shuffle.slices import BYTES_SCHEMA
from tierstore.shuffle.windows import by_partition

# --- what one node has lost -----------------------------------------------------------------------------------------------


def test_a_lost_run_is_one_lost_map() -> None:
    with several(1) as nodes:
        receipts = [nodes.write(0, number) for number in range(5)]
        batches = nodes.mine.read(receipts=receipts)
        nodes.stores[0].delete(run_of(nodes.stores[0], receipts[2]))
        nodes.stores[0].delete(run_of(nodes.stores[0], receipts[4]))
        with pytest.raises(LostMaps, match="of map 2: n0: a part of the output") as lost:
            batches.read_all()
        assert lost.value.maps == [2, 4], "all that are lost, and nothing else"


def test_a_lost_run_comes_from_a_copy() -> None:
    with several(2) as nodes:
        receipts = [nodes.write(0, number, copies=[1]) for number in range(5)]
        batches = nodes.mine.read(receipts=receipts)
        nodes.stores[0].delete(run_of(nodes.stores[0], receipts[2]))
        assert batches.read_all().sort_by("n").equals(expected(range(5)))
        assert [entry[0] for asked in nodes.links["n1"].asked for entry in asked] == [2], (
            "the others came from where they are"
        )


def test_all_lost_maps_are_told_at_once() -> None:
    """Those that one node has not, and those that others would have had."""
    with several(2) as nodes:
        receipts = [nodes.write(0, number) for number in range(3)]
        receipts += [nodes.at(nodes.write(0, 3), 0, [1]), nodes.at(nodes.write(0, 4), 0, [1])]
        for receipt in receipts[1:4]:
            nodes.stores[0].delete(receipt.name.key)
        with pytest.raises(LostMaps) as lost:
            nodes.mine.read(receipts=receipts)
        assert lost.value.maps == [1, 2, 3]


# --- nodes that fail ------------------------------------------------------------------------------------------------------

FAILURES = (Closed, TierstoreError, ProtocolError, PeerLost, Refused, ConfigError)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("call", ["shuffle_describe", "shuffle_fetch"])
def test_whatever_a_node_answers_its_copies_are_asked(failure: type[TierstoreError], call: str) -> None:
    with several(2) as nodes:
        receipts = [nodes.write(0, number, copies=[1]) for number in range(3)]

        def fail(name: str, number: int) -> None:
            if name == call:
                raise failure(*(["token_file", None, "another"] if failure is ConfigError else ["what it says"]))

        nodes.links["n0"].before = fail
        assert read_all(nodes.mine, receipts).equals(expected(range(3)))
        nodes.links["n1"].before = lambda name, number: (_ for _ in ()).throw(PeerLost("gone"))
        with pytest.raises(
            LostMaps, match="cannot be used: another" if failure is ConfigError else "what it says"
        ) as lost:
            read_all(nodes.mine, receipts)
        assert lost.value.maps == [0, 1, 2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of some KiB."""
    monkeypatch.setattr("tierstore.shuffle.remote.ASK_BYTES", 128 << 10)
    monkeypatch.setattr("tierstore.shuffle.remote.AHEAD_BYTES", 256 << 10)
    monkeypatch.setattr("tierstore.shuffle.sending.FRAME_BYTES", 64 << 10)


def test_a_node_that_stumbles_is_asked_once_more(small: None) -> None:
    with several(1) as nodes:
        receipts = [nodes.write(0, number, 120_000) for number in range(2)]
        link = nodes.links["n0"]

        def fail(name: str, number: int) -> None:
            if name == "shuffle_fetch" and number % 3 == 2:
                raise PeerLost("silent")

        link.before = fail
        assert read_all(nodes.mine, receipts).equals(expected(range(2), 120_000))
        assert link.calls.count("shuffle_describe") == 1 and link.calls.count("shuffle_fetch") > 10
        link.calls.clear()
        link.before = lambda name, number: fail(name, 2 if number > 5 else 1)
        with pytest.raises(LostMaps, match="silent"):
            read_all(nodes.mine, receipts)
        assert link.calls.count("shuffle_fetch") == 7


def test_connections_in_use_say_nothing_about_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with several(1) as nodes:
        receipts = [nodes.write(0, 0)]

        def fail(name: str, number: int) -> None:
            if number <= 2:
                raise Full("all connections are in use")

        nodes.links["n0"].before = fail
        assert read_all(nodes.mine, receipts).equals(expected([0]))
        monkeypatch.setattr("tierstore.shuffle.elsewhere.FULL_S", 0.3)
        nodes.links["n0"].before = lambda name, number: fail(name, 1)
        with pytest.raises(LostMaps, match="in use"):
            read_all(nodes.mine, receipts)


# --- readers that pause ---------------------------------------------------------------------------------------------------


def test_nothing_is_held_while_nobody_reads(small: None) -> None:
    """A node is asked for what there is room for, and for nothing more until it is read."""
    with several(2) as nodes:
        receipts = [nodes.write(number % 2, number, 240_000) for number in range(4)]
        batches = nodes.mine.read(receipts=receipts)
        links = nodes.links.values()
        rows = [next(batches)]
        deadline = time.monotonic() + 10
        before = -1
        while before != (before := sum(link.received for link in links)) or any(link.active for link in links):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert all(link.received < 4 << 20 for link in links)
        assert pa.Table.from_batches([*rows, *batches]).sort_by("n").equals(expected(range(4), 240_000))


@pytest.mark.slow
def test_many_readers_of_one_thread(tmp_path: Path, small: None) -> None:
    """More readers than there are connections to a node, each read now and then."""
    made = Cluster(tmp_path, 2)
    try:
        made.start()
        with made.nodes[0].connect() as here, made.nodes[1].connect() as there:
            theirs = there.shuffle("app", 0, PARTITIONS)
            receipts = [write(theirs, number, 60_000) for number in range(3)]
            mine = here.shuffle("app", 0, PARTITIONS)
            began = time.monotonic()
            readers = [mine.read(receipts=receipts) for _ in range(12)]
            first = [next(reader) for reader in readers]
            assert time.monotonic() - began < 20
            for batch, reader in zip(first, readers, strict=True):
                assert batch.num_rows + sum(other.num_rows for other in reader) == 180_000
    finally:
        made.end()


def test_silent_nodes_are_not_waited_for() -> None:
    with several(3) as nodes:
        receipts = [write(nodes.mine, 9), *(nodes.write(number, number) for number in range(3))]
        silence = threading.Event()

        def wait(name: str, number: int) -> None:
            if name == "shuffle_fetch":
                silence.wait(30)

        for link in nodes.links.values():
            link.before = wait
        batches = ShuffleReader(nodes.mine, receipts).pieces(0, PARTITIONS)
        next(batches)
        began = time.monotonic()
        batches.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 4
        silence.set()
        for thread in fetching():
            thread.join(10)


# --- answers that are not what was asked for ------------------------------------------------------------------------------


def drop_second(head: dict[str, Any], _: bytearray) -> bool:
    return bool(head["slices"][0][1] != 1)


def change_starts(head: dict[str, Any], payload: bytearray) -> bool:
    payload[4:8] = (1 << 30).to_bytes(4, "little")
    return True


def repeat(head: dict[str, Any], _: bytearray) -> bool:
    head["slices"][0][1] = 0
    return True


def forget(head: dict[str, Any], _: bytearray) -> bool:
    head["ends"] = [[position, rows - 1] for position, rows in head["ends"]]
    return True


def say_no_ends(head: dict[str, Any], _: bytearray) -> bool:
    head["ends"] = []
    return True


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (drop_second, None),
        (change_starts, None),
        (repeat, None),
        (forget, None),
        (say_no_ends, None),
        (None, lambda result: {**result, "next": [0, 0]}),
        (None, lambda result: {}),
        (None, lambda result: None),
    ],
)
def test_rows_that_are_missing_or_misplaced(small: None, change: Any, answer: Any) -> None:
    with several(2) as nodes:
        receipts = [nodes.write(0, number, 60_000, copies=[1]) for number in range(2)]
        link = nodes.links["n0"]
        link.change, link.answer = change or link.change, answer or link.answer
        found = nodes.mine.read(receipts=receipts, verify=False).read_all()
        assert found.sort_by("n").equals(expected(range(2), 60_000))
        assert nodes.links["n1"].asked
        nodes.mine._network = Links({"n0": link})  # type: ignore[assignment]
        with pytest.raises(LostMaps):
            nodes.mine.read(receipts=receipts, verify=False).read_all()


def test_rows_that_look_like_bytes() -> None:
    with several(1) as nodes:
        numbers = pa.array(np.arange(200, dtype="u1"))
        with nodes.theirs[0].writer(0) as writer:
            writer.write_partition(3, pa.record_batch([numbers], schema=BYTES_SCHEMA))
        found = nodes.mine.read(receipts=[nodes.at(writer.receipt, 0)]).read_all()
        assert found.column(0).to_pylist() == numbers.to_pylist()


def test_no_paths_leave_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with several(1) as nodes:
        receipt = nodes.write(0, 0)

        def fail(*_: Any) -> Any:
            raise CorruptionError("/mnt/disk/arena-0", 5, "x", "y")

        monkeypatch.setattr("tierstore.shuffle.registry.Registry.authorize", fail)
        with pytest.raises(TierstoreError, match="damaged here") as told:
            nodes.links["n0"].call("shuffle_touch", app="app")
        assert "/mnt" not in str(told.value)
        monkeypatch.undo()
        monkeypatch.setattr("tierstore.cache.lean.Lean.table", fail)
        with pytest.raises(LostMaps) as lost:
            read_all(nodes.mine, [receipt])
        assert "/mnt" not in str(lost.value)


# --- windows, frames, manifests -------------------------------------------------------------------------------------------


def test_partitions_by_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other nodes' rows only a window is in memory."""
    monkeypatch.setattr("tierstore.shuffle.reader.REMOTE_BYTES", 1 << 20)
    with several(2, partitions=40) as nodes:
        receipts = [nodes.write(number % 2, number, 60_000) for number in range(4)] + [write(nodes.mine, 9, 60_000)]
        link = nodes.links["n0"]
        most, seen = 0, []
        for partition, table in nodes.mine.read_partitions(receipts=receipts):
            seen.append(table)
            assert partition == len(seen) - 1
            most, link.received = max(most, link.received), 0
        assert pa.concat_tables(seen).sort_by("n").equals(expected([0, 1, 2, 3, 9], 60_000))
        assert most < 3 << 20 and link.calls.count("shuffle_fetch") > 4
        nodes.links["n0"].before = lambda name, number: (_ for _ in ()).throw(PeerLost("gone"))
        with pytest.raises(LostMaps):
            list(nodes.mine.read_partitions(receipts=receipts))


def test_a_large_partition_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.shuffle.windows.WINDOW_BYTES", 100_000)
    counts = np.array([10] * 50 + [60_000] + [10] * 50)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype("u4")
    rows = pa.record_batch([np.arange(starts[-1])], ["n"])
    pieces = [Piece(0, rows, starts)] * 20
    buffers = Buffers()
    taken: list[int] = []
    monkeypatch.setattr(buffers, "take", lambda size: taken.append(size) or Buffers.take(buffers, size))
    for partition, batches in by_partition(pieces, 101, buffers):
        found = [number for batch in batches for number in batch.column(0).to_pylist()]
        assert found == list(range(starts[partition], starts[partition + 1])) * 20
        assert partition != 50 or len(batches) == 20
    assert taken and max(taken) < 200_000


def test_long_text_is_not_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the average row says nothing about a window's."""
    monkeypatch.setattr("tierstore.shuffle.windows.WINDOW_BYTES", 10_000)
    texts = ["x"] * 4000 + ["y" * 50_000] * 2 + ["x"] * 4000
    starts = np.array([0, 4000, 4001, 4002, 8002], "u4")
    pieces = [Piece(0, pa.record_batch([texts], ["t"]), starts)] * 2
    parts = dict(by_partition(pieces, 4, Buffers()))
    assert [sum(map(len, parts[p])) for p in range(4)] == [8000, 2, 2, 8000]
    assert [len(parts[p]) for p in (1, 2)] == [2, 2]


def test_frames_count_what_is_said_of_partitions() -> None:
    sizes: list[int] = []
    with several(1, partitions=10_000) as nodes:
        receipts = [nodes.write(0, number, 1000) for number in range(100)]
        nodes.links["n0"].change = lambda head, payload: sizes.append(len(payload)) or True  # type: ignore[func-returns-value]
        assert read_all(nodes.mine, receipts).num_rows == 100_000
    assert max(sizes) <= 9 << 20 and len(sizes) > 1


def test_manifests_are_read_once(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(raw: Any, what: str) -> Any:
        read.append(what)
        return decode(raw, what)

    monkeypatch.setattr("tierstore.shuffle.output.decode", counted)
    with several(1) as nodes:
        receipts = [nodes.write(0, number, 60_000) for number in range(3)]
        for _ in range(3):
            assert read_all(nodes.mine, receipts).num_rows == 180_000
        assert nodes.links["n0"].calls.count("shuffle_fetch") > 20
        assert len(read) == 3
        nodes.theirs[0].drop()
        with pytest.raises(Expired, match="dropped"):
            read_all(nodes.mine, receipts)


def test_manifests_are_kept_up_to_so_many_bytes() -> None:
    known: Known[int] = Known(100_000)
    run = Run(0, np.zeros(1001, "u4"), np.zeros(1000, "u8"))
    for number in range(20):
        known.put(number, Manifest(0, 1000, b"", 0, 0, [run]))
    assert len(known) == 7 and known.get(19) is not None and known.get(0) is None
    known.put(20, Manifest(0, 1000, b"", 0, 0, [run] * 10))
    assert known.get(20) is None and len(known) == 7
