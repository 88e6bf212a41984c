"""Part of the shuffle benchmark: writing into mapped segments against pushing to a process over a socket."""

from __future__ import annotations

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
from .shuffle_rivals import digest, flight_client
from .shuffle_tasks import ROW_BYTES, RUN_BYTES, MapTask

PARTITIONS = 200
WARM = 2  # rounds before the first that counts: they go round the store's memory
BUFFERS = 4  # what was pushed may still be on its way


class Pusher(MapTask):
    """A map task that pushes its runs to a Flight server."""

    def __init__(self) -> None:
        super().__init__()
        self._client: Any = None
        self._ring: list[mmap.mmap] = []

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
    samples: dict[str, list[float]] = {"store": [], "push": [], "fill": []}
    with (
        serving("--dram", str(dram)) as node,
        connected(node) as store,
        clients("shuffle_rivals.Rival", 1) as (rival,),
        clients("shuffle_push.Pusher", 1) as (task,),
    ):
        rows = times * task.call("prepare", seed=2, pool_bytes=pool, batch_bytes=4 * MIB)
        task.call("connect", socket=node.socket)
        task.call("connect_flight", port=rival.call("serve_flight", files=None))
        expected = {"rows": rows, "sum": task.call("expected", partitions=1, times=times)["sums"][0]}
        arguments = {"partitions": PARTITIONS, "map_index": 0, "times": times}
        for number in range(1 - WARM, rounds + 1):
            with store.shuffle("bench", number + WARM, PARTITIONS) as shuffle:
                one = task.call("write_store", socket=node.socket, number=number + WARM, **arguments)
                found = [digest(list(shuffle.read(receipts=[Receipt.from_dict(one["receipt"])])))]
                shuffle.drop()
            node.settle(store)
            pushed = task.call("push", message_bytes=message, partitions=PARTITIONS, times=times)
            found.append(rival.call("kept"))
            filled = task.call("fill", partitions=PARTITIONS, times=times)
            if found != [expected] * 2:
                raise BenchError(f"{found} arrived, {expected} was written")
            if number > 0:
                for name, value in (("store", one["end"] - one["begin"]), ("push", pushed), ("fill", filled)):
                    samples[name].append(value)
        task.call("disconnect", socket=node.socket)
    baseline = "the same runs pushed by Arrow Flight (do_put) to a process that keeps them, in turns"
    what = f"local write and commit, one process, {PARTITIONS} partitions"
    bench.report(f"{what} / push over a socket", ratios(samples["push"], samples["store"]), "x", at_least(3), baseline)
    for name, label in (
        ("store", what),
        ("push", "push over a socket"),
        ("fill", "numbers, plan and fill of both alone"),
    ):
        speed = [rows * ROW_BYTES / value / 1e9 for value in samples[name]]
        bench.report(f"{label}: speed", speed, "GB/s")
