"""Slices on their way to another node, put together into frames; see remote.py for their form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from tierstore.cache.block import encoder_of

from .manifest import BYTES
from .output import Output, Piece
from .remote import checks_at, frame_meta_bytes

# Slices are sent together until they are so many bytes, or so many slices.
FRAME_BYTES = 8 << 20
FRAME_SLICES = 1024
# A slice below this is copied into a frame with others; larger ones are sent from where they are, in frames of their own.
JOINED_BYTES = 1 << 20


class Call(Protocol):
    """What is needed of a call from another node; see service/wire/call.py."""

    def argument(self, name: str, kind: Callable[..., Any], default: Any = ...) -> Any:
        """One argument, of a type."""

    def send(self, head: dict[str, Any], parts: Any, check: int | None = None) -> None:
        """Send data."""


class Slice(NamedTuple):
    """A piece of the attempt at a position of the request. before: rows of its earlier runs."""

    position: int
    before: int
    output: Output
    first: int
    last: int
    piece: Piece


class Sending:
    """The answer to one request. ends: what is to be said of attempts that are over. bytes: sent or held, of this request.

    check: of payloads, see Call.send().
    """

    def __init__(self, call: Call, check: int | None = None):
        self._call, self._check = call, check
        self.ends: list[list[Any]] = []
        self.bytes = 0
        self._held: list[Slice] = []
        self._size = 0

    def add(self, item: Slice) -> None:
        """Send a slice, now or with others."""
        rows = item.piece.rows.nbytes
        own = rows + frame_meta_bytes(1, item.last - item.first)
        held = self._held
        if held and (self._size + own > FRAME_BYTES or len(held) == FRAME_SLICES or not _can_join(held[0], item)):
            self._flush()
        self._held.append(item)
        self._size += own
        self.bytes += own
        if rows >= JOINED_BYTES:
            self._flush()

    def result(self, following: list[int] | None) -> dict[str, Any]:
        """Send what is held; the result of the call. following: where to go on."""
        self._flush()
        return {"ends": self.ends, "next": following}

    def _flush(self) -> None:
        if self._held:
            _send(self._call, self._held, self.ends, self._check)
            self._held, self._size, self.ends = [], 0, []


def _can_join(one: Slice, other: Slice) -> bool:
    """Whether rows can be sent in one batch; those with dictionaries, which may differ, are sent alone."""
    mine, its = one.output.manifest, other.output.manifest
    same = mine.kind == its.kind and mine.schema_message == its.schema_message
    return same and (mine.kind == BYTES or not encoder_of(one.piece.rows.schema).stream)


def _send(call: Call, slices: list[Slice], ends: list[list[Any]], check: int | None) -> None:
    """One frame."""
    count = slices[0].last - slices[0].first
    each = frame_meta_bytes(1, count)
    total = frame_meta_bytes(len(slices), count)
    meta = bytearray(-(-total // 64) * 64)
    for number, item in enumerate(slices):
        at, run = number * each, item.output.manifest.runs[item.piece.sequence]
        meta[at : at + 4 * (count + 1)] = item.piece.starts.astype("<u4").tobytes()
        checks = np.ascontiguousarray(run.checks[item.first : item.last], "<u8").tobytes()
        meta[at + checks_at(count) : at + checks_at(count) + len(checks)] = checks
    batches = [item.piece.rows for item in slices]
    rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    plain = slices[0].output.manifest.kind == BYTES
    told = [[item.position, item.piece.sequence, item.before, item.piece.rows.num_rows] for item in slices]
    head = {"slices": told, "bytes": plain, "ends": ends}
    if plain:
        data = rows.column(0)
        parts: list[Any] = [data.buffers()[1].slice(data.offset, len(data))]
        call.send(head, [meta, *parts], check)
        return
    payload = encoder_of(rows.schema).encode(rows, root=False)
    pairs = list(payload.pieces[: 2 * payload.piece_count])
    parts = []
    for address, size in zip(pairs[::2], pairs[1::2], strict=True):
        parts.append(pa.foreign_buffer(address, size))
        if size % 64:
            parts.append(bytes(64 - size % 64))
    call.send(head, [meta, *parts], check)
