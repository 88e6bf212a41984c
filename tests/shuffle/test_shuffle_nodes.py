"""Several nodes: output read from where it is, copies, and what happens when nodes go."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.shuffle.rows import PARTITIONS, expected, read_all, rows_of, write
from tierstore.emulation.procs import Daemon
from tierstore.ringbuf.errors import Expired, Full, LostMaps, PeerLost, Refused
from tierstore.shuffle.names import CACHE_FIRST
from tierstore.shuffle.receipt import Receipt

pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [entry.getsockname()[1] for entry in sockets]
    for entry in sockets:
        entry.close()
    return ports


class Cluster:
    """Daemons that know each other."""

    def __init__(self, folder: Path, count: int, *arguments: str):
        names = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.nodes = []
        for name in names:
            (folder / name).mkdir()
            others = [part for other in names if other != name for part in ("--node", other)]
            place = ["--dram", "48MiB", "--listen", name, *others, *arguments]
            self.nodes.append(Daemon(folder / name, *place))

    def start(self) -> None:
        """Start all."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.answering()

    def end(self) -> None:
        """End all."""
        for node in self.nodes:
            node.end()


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Daemon]]:
    """Daemons; a mark ``cluster(count, *arguments)`` says how many and how."""
    mark = request.node.get_closest_marker("cluster")
    made = Cluster(tmp_path, *(mark.args if mark else (2,)))
    try:
        made.start()
        yield made.nodes
        for node in made.nodes:
            if node.running:
                with node.connect() as store:
                    report = store.verify(payloads=True)
                assert report["ok"], report["problems"]
    finally:
        made.end()


def test_read_from_another_node(cluster: list[Daemon]) -> None:
    with cluster[0].connect() as here, cluster[1].connect() as there:
        shuffles = [here.shuffle("app", 0, PARTITIONS), there.shuffle("app", 0, PARTITIONS)]
        receipts = [write(shuffles[number % 2], number, 60_000) for number in range(6)]
        assert len({receipt.node for receipt in receipts}) == 2
        for shuffle in shuffles:
            assert read_all(shuffle, receipts).equals(expected(range(6), 60_000))
        local = dict(shuffles[0].read_partitions(range(2, 5), receipts[::2]))
        remote = dict(shuffles[1].read_partitions(range(2, 5), receipts[::2]))
        assert local.keys() == remote.keys() and all(local[p].equals(remote[p]) for p in local)
        in_order = shuffles[0].read(receipts=receipts).read_all()
        free = shuffles[0].read(receipts=receipts, ordered=False).read_all()
        assert not in_order.equals(free) and in_order.sort_by("n").equals(free.sort_by("n"))
        shuffles[0].end_app()
        deadline = time.monotonic() + 10
        while there.keys("shuffle/app"):
            assert time.monotonic() < deadline, "the other node was not told of the end"
            time.sleep(0.05)
        with pytest.raises(Expired, match="ended"):
            shuffles[0].read(receipts=receipts)


def test_types_over_the_network(cluster: list[Daemon]) -> None:
    count = 700
    table = pa.table(
        {
            "k": np.arange(count) % 50,
            "flag": pa.array([None if i % 9 == 0 else bool(i % 2) for i in range(count)]),
            "word": pa.array([f"w{i % 12}" for i in range(count)]).dictionary_encode(),
            "view": pa.array([f"a longer text {i}" for i in range(count)], pa.string_view()),
            "list": pa.array([[i] * (i % 4) if i % 7 else None for i in range(count)], pa.list_(pa.int16())),
            "pair": pa.array([{"a": i, "b": None if i % 2 else str(i)} for i in range(count)]),
        }
    )
    with cluster[0].connect() as here, cluster[1].connect() as there:
        mine, theirs = here.shuffle("app", 0, PARTITIONS), there.shuffle("app", 0, PARTITIONS)
        with theirs.writer(0) as writer:
            writer.write(table, by=["k"])
        found = mine.read(receipts=[writer.receipt]).read_all()
        assert found.schema.equals(table.schema)
        assert sorted(found.to_pylist(), key=lambda row: row["view"]) == sorted(
            table.to_pylist(), key=lambda row: row["view"]
        )
        blobs = [np.random.default_rng(p).bytes(100_000 + p) for p in range(PARTITIONS)]
        with theirs.writer(1) as writer:
            for partition, blob in enumerate(blobs):
                writer.write_bytes(partition, blob)
        for partition, part in mine.read_partitions(receipts=[writer.receipt]):
            found_bytes = b"".join(c.to_numpy(zero_copy_only=False).tobytes() for c in part.column(0).chunks)
            assert found_bytes == blobs[partition]


def test_a_node_that_is_gone(cluster: list[Daemon]) -> None:
    with cluster[0].connect() as here:
        mine = here.shuffle("app", 0, PARTITIONS)
        with cluster[1].connect() as there:
            theirs = there.shuffle("app", 0, PARTITIONS)
            receipts = [write(mine, 0), write(theirs, 1), write(theirs, 2)]
        cluster[1].kill()
        with pytest.raises(LostMaps, match="nobody listens") as lost:
            mine.read(receipts=receipts)
        assert lost.value.maps == [1, 2]
        again = [receipts[0], write(mine, 1), write(mine, 2)]
        assert read_all(mine, again).equals(expected(range(3)))


@pytest.mark.cluster(3, "--replicas", "2")
def test_copies(cluster: list[Daemon]) -> None:
    """With two copies, one node lost costs nothing."""
    with cluster[0].connect() as first:
        shuffle = first.shuffle("app", 0, PARTITIONS)
        receipts = [write(shuffle, number, 60_000) for number in range(4)]
        assert all(len(receipt.replicas) == 1 for receipt in receipts)
    with cluster[1].connect() as second:
        reader = second.shuffle("app", 0, PARTITIONS)
        assert read_all(reader, receipts).equals(expected(range(4), 60_000))
        cluster[0].kill()
        assert read_all(reader, receipts).equals(expected(range(4), 60_000))


@pytest.mark.cluster(3, "--replicas", "2")
def test_a_node_lost_in_the_middle_of_a_read(cluster: list[Daemon]) -> None:
    with cluster[0].connect() as first:
        shuffle = first.shuffle("app", 0, PARTITIONS)
        receipts = [write(shuffle, number, 120_000) for number in range(4)]
    with cluster[1].connect() as second:
        reader = second.shuffle("app", 0, PARTITIONS)
        batches = reader.read(receipts=receipts)
        rows = [next(batches)]
        cluster[0].kill()
        rows += list(batches)
        assert pa.Table.from_batches(rows).sort_by("n").equals(expected(range(4), 120_000))


@pytest.mark.cluster(2, "--replicas", "3")
def test_too_few_nodes_for_the_copies(cluster: list[Daemon]) -> None:
    with cluster[0].connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS)
        with pytest.raises(PeerLost, match="2 of 3 replicas"):
            write(shuffle, 0)
        assert not any(key.count("/") == 5 for key in store.keys("shuffle/"))


@pytest.mark.cluster(3)
def test_drain(cluster: list[Daemon]) -> None:
    """What a node holds moves to others, and readers follow, also when it is gone."""
    import json
    import subprocess
    import sys

    command = [sys.executable, "-m", "tierstore.service.cli", "drain", "--json", "--socket", cluster[0].socket]
    with cluster[0].connect() as first:
        shuffle = first.shuffle("app", 0, PARTITIONS)
        receipts = [write(shuffle, number, 60_000) for number in range(12)]
        first.shuffle("app", CACHE_FIRST, 1)
        begun = {"app": "app", "map_index": 0, "attempt": "t1", "sequence": 0, "size": 10, "nonce": "0" * 16}
        for number in (0, CACHE_FIRST):
            assert first._control.call("shuffle_reserve", shuffle=number, **begun)
        done = subprocess.run([*command, "--wait", "0"], check=False, capture_output=True, text=True, timeout=60)
        told = json.loads(done.stdout)
        assert done.returncode == 1 and told["open"] == told["cached"] == 1, told
        first._control.call("shuffle_abort", app="app", shuffle=0, map_index=0, attempt="t1")
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["cached"] == 1
        moved = told["moved"]
        assert sum(moved.values()) == 12 and len(moved) == 2
        with pytest.raises(Full, match="drained"):
            write(shuffle, 12)
        again = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert json.loads(again.stdout)["moved"] == moved
    cluster[0].stop()
    with cluster[1].connect() as second:
        reader = second.shuffle("app", 0, PARTITIONS)
        assert read_all(reader, receipts).equals(expected(range(12), 60_000))


def test_secrets(cluster: list[Daemon]) -> None:
    with cluster[0].connect() as here, cluster[1].connect() as there:
        theirs = there.shuffle("app", 0, PARTITIONS, secret="right")
        receipt = write(theirs, 0)
        mine = here.shuffle("app", 0, PARTITIONS, secret="wrong")
        with pytest.raises(LostMaps, match="another secret"):
            mine.read(receipts=[receipt])
        with pytest.raises(Refused, match="another secret"):
            there.shuffle("app", 0, PARTITIONS)
        right = Receipt.from_dict(receipt.to_dict())
        assert here.shuffle("other", 0, PARTITIONS, secret="right") is not None
        assert read_all(theirs, [right]).equals(rows_of(0).sort_by("n"))
        peer = mine.peer(receipt.node)
        for call in ("shuffle_touch", "shuffle_end"):
            with pytest.raises(Refused):
                peer.call(call, app="app", secret="wrong")


def test_bad_requests_from_other_nodes(cluster: list[Daemon]) -> None:
    """What is asked for over the network is looked at before anything is done, and nothing is left of it."""
    with cluster[0].connect() as here, cluster[1].connect() as there:
        theirs = there.shuffle("app", 0, PARTITIONS)
        receipt = write(theirs, 0)
        peer = here.shuffle("app", 0, PARTITIONS).peer(receipt.node)
        before = there.keys("")
        good = {"app": "app", "shuffle": 0, "outputs": [[0, receipt.attempt, receipt.manifest_hash, 0]]}
        for change in (
            {"app": "../app"},
            {"app": "nobody"},
            {"shuffle": "0"},
            {"shuffle": -1},
            {"outputs": 5},
            {"outputs": [[0, "../../x", 1, 0]]},
            {"outputs": [[0]]},
            {"first": 3, "last": 99},
            {"first": 3, "last": 2},
            {"first": -1, "last": 2},
        ):
            arguments = {**good, "first": 0, "last": 2, **change}
            with pytest.raises(Exception) as refused:  # noqa: PT011
                peer.fetch("shuffle_fetch", arguments, lambda head, size: memoryview(bytearray(size)))
            assert "Traceback" not in str(refused.value) and "/" not in str(refused.value).replace("../", "")
        name = {"app": "app", "shuffle": 0, "map_index": 7, "attempt": "x", "partitions": PARTITIONS}
        terms = {"lease_s": 60.0, "quota_bytes": 0, "digest": "x", "durable": False}
        for items in ([], [({}, [b"junk"])], [({"runs": [[1, 5, 0, 64]]}, [bytes(there.get_bytes(receipt.name.key))])]):
            with pytest.raises(Exception):  # noqa: B017, PT011
                peer.push("shuffle_store", {**name, **terms}, items)
        assert there.keys("") == before
        assert there.verify()["ok"]


class Tampering:
    """Stands for a peer's fetch: changes one byte of each payload behind the checks of the connection."""

    def __init__(self, original):
        self._original, self.place, self.size = original, 0, 0
        self.checked: list[bool] = []

    def __call__(self, name, arguments, sink, arrived):
        self.checked.append(arguments["checked"])
        taken = []

        def keep(head, size):
            taken.append(sink(head, size))
            self.size = size
            return taken[-1]

        def damage(head):
            if self.checked[-1]:
                taken[-1][self.place] ^= 0x55
            arrived(head)

        return self._original(name, arguments, keep, damage)


def test_bytes_changed_on_the_way(cluster: list[Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in a frame a byte differs, the read fails or gives the same rows: some bytes mean nothing."""
    with cluster[0].connect() as here, cluster[1].connect() as there:
        theirs, mine = there.shuffle("app", 0, PARTITIONS), here.shuffle("app", 0, PARTITIONS)
        with theirs.writer(0) as writer:
            writer.write(rows_of(0, 3000).drop_columns(["w"]), by=["k"])
        receipt, words = writer.receipt, write(theirs, 1)
        whole = read_all(theirs, [receipt])
        peer = mine.peer(receipt.node)
        tampering = Tampering(peer.fetch)
        monkeypatch.setattr(peer, "fetch", tampering)
        failed = 0
        for tampering.place in [*range(0, 1200, 3), *range(1200, 60_000, 997)]:
            try:
                assert read_all(mine, [receipt]).equals(whole)
            except LostMaps:
                failed += 1
        assert failed > 300 and tampering.size > 60_000 and all(tampering.checked)
        assert read_all(mine, [words]).equals(rows_of(1).sort_by("n"))
        assert mine.read(receipts=[receipt], verify=False).read_all().num_rows == 3000
        assert tampering.checked[-2:] == [False, False]  # text, whose offsets lead on; and rows that nobody checks
