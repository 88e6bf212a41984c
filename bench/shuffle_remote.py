"""Part of the shuffle benchmark: reading what another node holds, against Arrow Flight and a bare socket.

Two daemons on loopback: the data are written to one; the reader is a client of the other. See shuffle_rivals.py for what
it is compared with. What is timed is the receiving of all batches; the store's reader compares every partition with its
check meanwhile (shown without, too), the others look at nothing but the count. Before and after the timed rounds, all bits
of what each way gives are summed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from tierstore.shuffle.receipt import Receipt

from .data import GIB, MIB
from .harness import Bench, at_least, in_turns, ratios
from .node import BenchError, Client, Node, clients, folder, serving
from .shuffle_rivals import HOST, BareReceiver, bit_sum, certificates, flight_batches, flight_client
from .shuffle_tasks import ROW_BYTES, Task

PARTITIONS = 200


class Collector:
    """Counts batches; sums them too where that is asked for."""

    def __init__(self, add: bool):
        self.rows = self.sum = 0
        self._add = add

    def __call__(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        if self._add:
            self.sum = self.sum + bit_sum([batch]) & (1 << 64) - 1

    def result(self, began: float) -> dict[str, Any]:
        """Also the seconds since then."""
        return {"seconds": time.perf_counter() - began, "rows": self.rows, "sum": self.sum}


class RemoteReader(Task):
    """The process that reads in every way."""

    def __init__(self) -> None:
        super().__init__()
        self._flight: Any = None
        self._bare: BareReceiver | None = None

    def prepare(self, config: str, flight: int, bare: int, files: dict[str, str] | None) -> None:
        """Settings of the store's clients; connections to the others."""
        os.environ["TIERSTORE_CONFIG"] = config
        self._flight = flight_batches(flight_client(flight, files))
        self._bare = BareReceiver(bare, files)

    def store(
        self, socket: str, number: int, receipts: list[dict[str, Any]], verify: bool = True, add: bool = False
    ) -> dict[str, Any]:
        """Read a shuffle of another node."""
        began, found = time.perf_counter(), Collector(add)
        with self._stores[socket].shuffle("bench", number, PARTITIONS) as shuffle:
            chosen = [Receipt.from_dict(receipt) for receipt in receipts]
            for batch in shuffle.read(receipts=chosen, verify=verify):
                found(batch)
            return found.result(began)

    def flight(self, add: bool = False) -> dict[str, Any]:
        """Get the same batches by Flight."""
        began, found = time.perf_counter(), Collector(add)
        self._flight(found)
        return found.result(began)

    def bare(self, rows: int, add: bool = False) -> dict[str, Any]:
        """Receive the same bytes from a socket."""
        assert self._bare is not None
        began = time.perf_counter()
        total = self._bare.receive(rows * ROW_BYTES, add)
        return {"seconds": time.perf_counter() - began, "rows": rows, "sum": total}


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def two_nodes(dram: int, files: dict[str, str] | None) -> Iterator[tuple[Node, Node]]:
    """The reader's daemon and the one that holds the data."""
    names = [f"{HOST}:{free_port()}" for _ in range(2)]
    secured = ["--tls-cert", files["cert"], "--tls-key", files["key"], "--tls-ca", files["ca"]] if files else []
    secured += ["--token-file", files["token"]] if files else []
    options = [["--listen", own, "--node", other, *secured] for own, other in (names, names[::-1])]
    with serving("--dram", str(64 * MIB), *options[0]) as here, serving("--dram", str(dram), *options[1]) as there:
        for node in (here, there):
            node.connect().close()
        yield here, there


def time_remote(bench: Bench, rounds: int) -> None:
    """Plain, then under TLS."""
    with folder() as place:
        (place / "plain.toml").write_text("")
        files: dict[str, str] | None = None
        time_reads(bench, "plain", str(place / "plain.toml"), files, 2 * rounds)
        try:
            files = certificates(place)
        except ImportError:
            bench.skip("remote read, TLS", "trustme, which makes certificates, is not installed")
            return
        lines = [f'tls_ca = "{files["ca"]}"', f'token_file = "{files["token"]}"']
        (place / "tls.toml").write_text("\n".join(lines) + "\n")
        time_reads(bench, "TLS", str(place / "tls.toml"), files, 2 * rounds)


def time_reads(bench: Bench, kind: str, config: str, files: dict[str, str] | None, rounds: int) -> None:
    """Every way in turns."""
    pool = bench.parameter("remote_batches_bytes", 8 * MIB, 256 * MIB)
    times = bench.parameter("remote_times", 2, 4)
    dram = bench.parameter("remote_dram_bytes", 64 * MIB, GIB + 512 * MIB)
    with (
        two_nodes(dram, files) as (here, there),
        clients("shuffle_rivals.Rival", 1) as (rival,),
        clients("shuffle_tasks.MapTask", 1) as (task,),
        clients("shuffle_remote.RemoteReader", 1) as (reader,),
    ):
        rows = times * task.call("prepare", seed=3, pool_bytes=pool, batch_bytes=4 * MIB)
        task.call("connect", socket=there.socket)
        reader.call("connect", socket=here.socket)
        place = {"number": 0, "partitions": PARTITIONS}
        receipt = task.call("write_store", socket=there.socket, map_index=0, times=times, **place)["receipt"]
        held = rival.call("hold", socket=there.socket, receipts=[receipt], **place)
        expected = {"rows": rows, "sum": task.call("expected", partitions=1, times=times)["sums"][0]}
        ports = {name: rival.call(f"serve_{name}", files=files) for name in ("flight", "bare")}
        reader.call("prepare", config=config, files=files, **ports)
        named = {"socket": here.socket, "number": 0, "receipts": [receipt]}
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            "store": ("store", named),
            "bare": ("bare", {"rows": rows}),
            "flight": ("flight", {}),
            "unchecked": ("store", {**named, "verify": False}),
        }
        sums_agree(reader, ways, held, expected)
        samples = in_turns({name: lambda way=way: seconds_of(reader, *way, rows) for name, way in ways.items()}, rounds)
        sums_agree(reader, ways, held, expected)
        for member, node in ((task, there), (reader, here)):
            member.call("disconnect", socket=node.socket)
    report_reads(bench, kind, samples, rows)


def sums_agree(reader: Client, ways: dict[str, Any], held: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every way gives what was written, to the last bit."""
    found = [{key: value for key, value in held.items() if key in expected}]
    for command, arguments in ways.values():
        one = reader.call(command, add=True, **arguments)
        found.append({"rows": one["rows"], "sum": one["sum"]})
    if found != [expected] * len(found):
        raise BenchError(f"{found} arrived, {expected} was written")


def seconds_of(reader: Client, command: str, arguments: dict[str, Any], rows: int) -> float:
    """One timed pass."""
    found = reader.call(command, **arguments)
    if found["rows"] != rows:
        raise BenchError(f"{command}: {found['rows']} rows of {rows}")
    return float(found["seconds"])


def report_reads(bench: Bench, kind: str, samples: dict[str, list[float]], rows: int) -> None:
    """The store against both, with and without its checks."""
    what, ours = f"remote read, {kind}", samples["store"]
    flight = "pyarrow.flight do_get of equal batches, in turns"
    bare = ("ssl" if kind == "TLS" else "socket") + " sendall and recv_into of the same bytes, in turns"
    bench.report(f"{what} / Flight", ratios(samples["flight"], ours), "x", at_least(2), flight)
    bench.report(f"{what} / bare socket", ratios(samples["bare"], ours), "x", at_least(0.8), bare)
    bench.report(f"{what} without checks / bare socket", ratios(samples["bare"], samples["unchecked"]), "x", None, bare)
    for name, label in (("store", "the store"), ("bare", "the bare socket"), ("flight", "Flight")):
        bench.report(f"{what}: speed of {label}", [rows * ROW_BYTES / value / 1e9 for value in samples[name]], "GB/s")
