"""What another node has of some attempts, and how it is asked."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from tierstore.ringbuf.errors import Expired, Full, NotFound, PeerLost

from .network import Peer
from .physical import fixed_width
from .receipt import Receipt
from .slices import BYTES_SCHEMA

if TYPE_CHECKING:
    from .handle import Shuffle

LOST = {"NotFound": NotFound, "Expired": Expired}
SIZES_MAX = 1 << 16  # partitions whose sizes are told in one answer
FULL_S = 60.0  # how long connections that are all in use are no reason to give a node up
FULL_PAUSE_S = 0.1
T = TypeVar("T")


class CorruptionReported(NotFound):
    """Another node found damage."""


def reported(node: str, kind: str, reason: str) -> Exception:
    """The error for an attempt that a node cannot give."""
    return LOST.get(kind, CorruptionReported)(f"{node}: {reason}")


def patiently(call: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Make a call; again while all connections are in use, which says nothing about the node. Raises what the call raises."""
    deadline = time.monotonic() + FULL_S
    while True:
        try:
            return call()
        except Full:
            if time.monotonic() > deadline or (stopped or threading.Event()).wait(FULL_PAUSE_S):
                raise


class Remote:
    """What another node has of some attempts. lost: those it cannot give, and why. Raises any TierstoreError of the node."""

    def __init__(self, shuffle: Shuffle, node: str, receipts: Sequence[Receipt]):
        self.shuffle, self.node = shuffle, node
        self.peer: Peer = shuffle.peer(node)
        self.lost: dict[Receipt, Exception] = {}
        self._schemas: dict[Receipt, pa.Schema | None] = {}
        arguments = self.request([(receipt, 0) for receipt in receipts])
        answer = patiently(lambda: self.peer.call("shuffle_describe", **arguments))
        try:
            kinds = [_schema(kind, message) for kind, message in answer["schemas"]]
            for receipt, number in zip(receipts, answer["outputs"], strict=True):
                self._schemas[receipt] = kinds[number] if number >= 0 else None
            for position, kind, reason in answer["lost"]:
                self.lost[receipts[position]] = reported(node, kind, reason)
        except (KeyError, TypeError, ValueError, IndexError, pa.ArrowException, OSError) as error:
            raise self.confused(error) from None

    def confused(self, what: object) -> PeerLost:
        """The error for an answer that is none."""
        return PeerLost(f"{self.node} sent what is no answer ({what}); run the same tierstore on both sides")

    def request(self, outputs: Sequence[tuple[Receipt, int]]) -> dict[str, Any]:
        """Arguments that name attempts, each from one of its runs on."""
        shuffle = self.shuffle
        named = [[r.map_index, r.attempt, r.manifest_hash, begin] for r, begin in outputs]
        return {"app": shuffle.app, "shuffle": shuffle.number, "secret": shuffle.secret, "outputs": named}

    def is_flat(self, receipt: Receipt) -> bool:
        """Whether its rows are plain values of fixed width."""
        schema = self._schemas[receipt]
        return schema is None or all(fixed_width(f.type) >= 0 or pa.types.is_boolean(f.type) for f in schema)

    def schema_of(self, receipt: Receipt) -> pa.Schema | None:
        """The schema of an attempt's rows; None if it has none and was not told."""
        return self._schemas[receipt]

    def sizes(self, receipts: Sequence[Receipt], first: int, last: int) -> Iterator[np.ndarray]:
        """About how many bytes each partition has in some attempts, some partitions at a time. Raises TierstoreError."""
        named = self.request([(receipt, 0) for receipt in receipts])
        for begin in range(first, last, SIZES_MAX):
            end = min(last, begin + SIZES_MAX)
            arguments = {**named, "first": begin, "last": end, "sizes": True}
            answer = patiently(lambda a=arguments: self.peer.call("shuffle_describe", **a))  # type: ignore[misc]
            try:
                yield np.frombuffer(base64.b64decode(answer["sizes"]), "<u8", end - begin).astype("f8")
            except (KeyError, TypeError, ValueError) as error:
                raise self.confused(error) from None


def _schema(kind: int, message: str) -> pa.Schema | None:
    if kind == 1:
        return BYTES_SCHEMA
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(message))) if message else None
