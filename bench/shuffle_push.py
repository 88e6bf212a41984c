"""Part of the shuffle benchmark: writing into mapped segments against pushing over a socket by Arrow Flight.

Pushing to the same daemon's own Flight endpoint, which checks, partitions, stores and commits; and, as the least that any push can
cost, to a process that only keeps what it gets, of runs that were partitioned before.
"""

from __future__ import annotations

import json
import mmap
import time
from typing import Any

import numpy as np
import pyarrow as pa

from tierstore.cache.block import decode_batch
from tierstore.shuffle.receipt import Receipt

from .data import GIB, MIB
from .harness import Bench, at_least, ratios
from .node import BenchError, clients, connected, serving
from .shuffle_rivals import HOST, digest, flight_client
from .shuffle_tasks import KEY, ROW_BYTES, RUN_BYTES, MapTask

PARTITIONS = 200
WARM = 2  # rounds before the first that counts: they go round the store's memory
BUFFERS = 4  # what was pushed may still be on its way


class Pusher(MapTask):
    """A map task that pushes its runs to a Flight server."""

    def __init__(self) -> None:
        super().__init__()
        self._client: Any = None
        self._ring: list[mmap.mmap] = []
        self.pushed: dict[str, Any] = {}

    def connect_flight(self, port: int) -> None:
        """Where to push to, and memory for runs on their way."""
        self._client = flight_client(port, None)
        self._ring = [mmap.mmap(-1, RUN_BYTES + MIB) for _ in range(BUFFERS)]
        for memory in self._ring:
            np.frombuffer(memory, "u1")[:] = 1

    def push(self, partitions: int, times: int, message_bytes: int) -> float:
        """The same rows as write_store() as one stream of messages; seconds until the server has them."""
        from pyarrow import flight

        began = time.perf_counter()
        schema = self._batches[0].schema
        writer, _ = self._client.do_put(flight.FlightDescriptor.for_path("bench"), schema)
        for number, plan in enumerate(self.runs(partitions, times)):
            memory = self._ring[number % BUFFERS]
            plan.fill(np.frombuffer(memory, "u1").ctypes.data)
            run = decode_batch(pa.py_buffer(memory)[: plan.payload_bytes], schema, plan.schema_bytes)
            step = max(1, run.num_rows * message_bytes // run.nbytes)
            writer.write_with_metadata(run.slice(0, step), pa.py_buffer(plan.starts))
            for first in range(step, run.num_rows, step):
                writer.write_batch(run.slice(first, step))
        writer.close()
        return time.perf_counter() - began

    def push_rows(self, address: str, number: int, partitions: int, map_index: int, times: int) -> float:
        """The same rows as write_store() to a daemon's Flight endpoint; seconds until it has committed them."""
        from pyarrow import flight

        place = {"app": "bench", "number": number, "partitions": partitions, "map_index": map_index}
        command = json.dumps({"shuffle": {**place, "attempt": f"pushed-{number}", "by": [KEY]}}).encode()
        with flight.connect(f"grpc://{address}") as client:
            began = time.perf_counter()
            writer, answers = client.do_put(flight.FlightDescriptor.for_command(command), self._batches[0].schema)
            for _ in range(times):
                for batch in self._batches:
                    writer.write_batch(batch)
            writer.done_writing()
            self.pushed = json.loads(answers.read().to_pybytes())["receipt"]
            ended = time.perf_counter()
            writer.close()
        return ended - began

    def receipt(self) -> dict[str, Any]:
        """Of what push_rows() pushed."""
        return self.pushed

    def fill(self, partitions: int, times: int) -> float:
        """Seconds of what both ways have in common."""
        began = time.perf_counter()
        for plan in self.runs(partitions, times):
            plan.fill(np.frombuffer(self._ring[0], "u1").ctypes.data)
        return time.perf_counter() - began


def time_push(bench: Bench, rounds: int) -> None:
    """One map task, in turns."""
    pool = bench.parameter("push_batches_bytes", 8 * MIB, 256 * MIB)
    times = bench.parameter("push_times", 2, 4)
    message = bench.parameter("push_message_bytes", 2 * MIB, 2 * MIB)
    dram = bench.parameter("push_dram_bytes", 64 * MIB, GIB + 512 * MIB)
    samples: dict[str, list[float]] = {"store": [], "daemon": [], "push": [], "fill": []}
    with (
        serving("--dram", str(dram), "--flight", f"{HOST}:0") as node,
        connected(node) as store,
        clients("shuffle_rivals.Rival", 1) as (rival,),
        clients("shuffle_push.Pusher", 1) as (task,),
    ):
        rows = times * task.call("prepare", seed=2, pool_bytes=pool, batch_bytes=4 * MIB)
        task.call("connect", socket=node.socket)
        task.call("connect_flight", port=rival.call("serve_flight", files=None))
        address = store.stats()["flight"]["address"]
        expected = {"rows": rows, "sum": task.call("expected", partitions=1, times=times)["sums"][0]}
        arguments = {"partitions": PARTITIONS, "map_index": 0, "times": times}
        shuffles = iter(range(1 << 30))
        for number in range(1 - WARM, rounds + 1):
            found, seconds = [], {}
            for name in ("store", "daemon"):
                place = {"number": next(shuffles), **arguments}
                with store.shuffle("bench", place["number"], PARTITIONS) as shuffle:
                    if name == "store":
                        one = task.call("write_store", socket=node.socket, **place)
                        receipt, seconds[name] = one["receipt"], one["end"] - one["begin"]
                    else:
                        seconds[name] = task.call("push_rows", address=address, **place)
                        receipt = task.call("receipt")
                    found.append(digest(list(shuffle.read(receipts=[Receipt.from_dict(receipt)]))))
                    shuffle.drop()
                node.settle(store)
            seconds["push"] = task.call("push", message_bytes=message, partitions=PARTITIONS, times=times)
            found.append(rival.call("kept"))
            seconds["fill"] = task.call("fill", partitions=PARTITIONS, times=times)
            if found != [expected] * 3:
                raise BenchError(f"{found} arrived, {expected} was written")
            if number > 0:
                for name, value in seconds.items():
                    samples[name].append(value)
        task.call("disconnect", socket=node.socket)
    report(bench, samples, rows)


def report(bench: Bench, samples: dict[str, list[float]], rows: int) -> None:
    """The store against both pushes."""
    baseline = "the same rows by Arrow Flight (do_put) to the same daemon, which partitions and commits them, in turns"
    what = f"local write and commit, one process, {PARTITIONS} partitions"
    found = ratios(samples["daemon"], samples["store"])
    bench.report(f"{what} / push to the same daemon", found, "x", at_least(3), baseline)
    baseline = "runs partitioned before, by Arrow Flight (do_put) to a process that only keeps them, in turns"
    found = ratios(samples["push"], samples["store"])
    bench.report(f"{what} / bare push of partitioned runs", found, "x", None, baseline)
    for name, label in (
        ("store", what),
        ("daemon", "push to the same daemon"),
        ("push", "bare push of partitioned runs"),
        ("fill", "numbers, plan and fill of all alone"),
    ):
        speed = [rows * ROW_BYTES / value / 1e9 for value in samples[name]]
        bench.report(f"{label}: speed", speed, "GB/s")
