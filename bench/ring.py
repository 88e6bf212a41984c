"""How many records can be appended to leased segments per second, by one process and by two?

The bare append of the writer's kernel: claim, copy, hash and commit records with 64 bytes of payload. Leases come from a
daemon and go back to it when their segment is full; nothing is published, so the segments are free at once. The time of
taking and giving back leases is part of the figure.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

import tierstore
from tierstore.ringbuf import session as words
from tierstore.ringbuf.native import batch_kernels

from .data import MIB
from .harness import Bench, at_least, in_turns, ratios
from .node import clients, rate, serving, together

PAYLOAD_BYTES = 64
RECORD_BYTES = 256  # header, key and payload


class RingWriter:
    """A process that appends."""

    def __init__(self) -> None:
        self._store: Any = None
        self._payload = np.arange(PAYLOAD_BYTES, dtype="u1")
        self._key = np.zeros(8, "u1")
        self._memory: Any = None

    def open(self, socket: str) -> None:
        """Connect, and prepare the request that all records share."""
        self._store = tierstore.connect(socket)
        request = self._store._session._request_memory
        request[: words.Q_PIECES // 8] = 0
        request[words.Q_BLOCK_COUNT // 8] = 1
        request[words.Q_KEY // 8] = self._key.ctypes.data

    def store(self, records: int) -> dict[str, float]:
        """As many bytes as so many records take, by plain stores of one value and no more: what memory gives."""
        if self._memory is None:
            self._memory = np.zeros(256 * MIB, "u1")
        begin, done = time.perf_counter(), 0
        while done < records:
            self._memory.fill(done & 0xFF)
            done += len(self._memory) // RECORD_BYTES
        return {"begin": begin, "end": time.perf_counter(), "count": done}

    def append(self, records: int) -> dict[str, float]:
        """Append so many records, through as many leases as they need."""
        session, alive = self._store._session, self._store._control.alive
        room, done, inside = session.grant.segment_bytes, 0, 0.0
        begin = time.perf_counter()
        while done < records:
            lease = session.take_lease(alive, 0, 0)
            generation = int(lease.words[words.L_GENERATION // 8])
            assert session.native.lease_enter(session.x, lease.address) == 1
            began = time.perf_counter()
            done += batch_kernels().append_ring(
                lease.address,
                room,
                self._payload.ctypes.data,
                PAYLOAD_BYTES,
                records - done,
                generation,
                session.request,
            )
            inside += time.perf_counter() - began
            self._check(lease)
            session.native.lease_leave(session.x)
            session.seal(alive, lease)
        return {"begin": begin, "end": time.perf_counter(), "count": done, "inside": inside}

    def _check(self, lease: Any) -> None:
        """The last record of a segment carries the payload."""
        end = int(lease.words[words.L_BASE // 8]) + lease.next
        assert ctypes.string_at(end - PAYLOAD_BYTES, PAYLOAD_BYTES) == self._payload.tobytes()


def run(bench: Bench) -> None:
    """One writer and two, in turns."""
    records = bench.parameter("records", 100_000, 20_000_000)
    rounds = bench.parameter("rounds", 2, 9)
    dram = bench.parameter("dram_bytes", 64 * MIB, 1024 * MIB)
    inside: list[float] = []
    with serving("--dram", str(dram)) as node:
        node.connect().close()
        with clients("ring.RingWriter", 2) as members:
            together(members, "open", socket=node.socket)
            together(members, "append", records=max(records, 4 * dram // 256))  # enters the segments into page tables

            def one() -> float:
                span = members[0].call("append", records=records)
                inside.append(span["count"] / span["inside"] / 1e6)
                return rate([span]) / 1e6

            samples = in_turns(
                {
                    "one": one,
                    "two": lambda: rate(together(members, "append", records=records)) / 1e6,
                    "one stores": lambda: rate([members[0].call("store", records=records)]),
                    "two store": lambda: rate(together(members, "store", records=records)),
                },
                rounds,
            )
    what = f"records of {PAYLOAD_BYTES} bytes appended"
    bench.report(f"{what}, one process", samples["one"], "million/s", at_least(10), note="with taking leases")
    bench.report(f"{what}, one process, the kernel alone", inside, "million/s")
    bench.report(
        f"{what}, two processes", ratios(samples["two"], samples["one"]), "x", at_least(1.7), "one process, in turns"
    )
    bench.report(
        "plain stores of as many bytes, two processes",
        ratios(samples["two store"], samples["one stores"]),
        "x",
        None,
        "one process, in turns: how far this machine's memory scales",
    )
