"""Manifests: what a committed attempt holds, by run and partition. Immutable once published.

    offset  bytes            field
         0  8                magic "TSMANIF1"
         8  4                kind: 0 rows of Arrow columns, 1 opaque bytes
        12  4                partitions
        16  4                runs
        20  4                bytes of the schema message, 0 for opaque bytes
        24  8                rows (records, for opaque bytes) of the attempt
        32  8                bytes of the attempt's runs
        40  4                1 if the commit was to be durable
    44  4                zero
    48  8                the writer's nonce
        56  8                XXH3-64 of everything but this field
        64  …                schema message, padded to 8
         …  16 x runs        per run: XXH3-64 of its record's payload, and how many rows (bytes) it has
         …  4 x (partitions + 1) x runs   per run: where each partition starts, in rows (bytes)
         …                   padded to 8
         …  8 x partitions x runs         per run: the check of each partition, see checks.py

Little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from tierstore.ringbuf.errors import CorruptionError

from .names import PARTITIONS_MAX, RUNS_MAX

MAGIC = b"TSMANIF1"
HEADER = struct.Struct("<8sIIIIQQI4xQQ")
HASH_AT = HEADER.size - 8
ROWS, BYTES = 0, 1


@dataclass
class Run:
    """One run: rows ordered by partition. starts: uint32[partitions + 1]; checks: uint64[partitions]."""

    payload_hash: int
    starts: np.ndarray
    checks: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows (bytes) it has."""
        return int(self.starts[-1])


@dataclass
class Manifest:
    """What one attempt committed. schema_message: of Arrow's IPC; empty for opaque bytes."""

    kind: int
    partitions: int
    schema_message: bytes
    records: int
    total_bytes: int
    runs: list[Run]
    durable: bool = False
    nonce: str = "0" * 16
    hash: int = 0  # once it was encoded or decoded

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the rows. Raises what pyarrow raises for opaque bytes."""
        return pa.ipc.read_schema(pa.py_buffer(self.schema_message))

    @cached_property
    def partition_rows(self) -> np.ndarray:
        """Rows (bytes) of each partition over all runs: uint64[partitions]."""
        total = np.zeros(self.partitions, "u8")
        for run in self.runs:
            total += np.diff(run.starts.astype("u8"))
        return total

    def encode(self) -> bytes:
        """The manifest's bytes."""
        parts = [_padded(self.schema_message, 8)]
        for run in self.runs:
            parts.append(struct.pack("<QQ", run.payload_hash, run.rows))
        parts.append(_padded(b"".join(run.starts.astype("<u4").tobytes() for run in self.runs), 8))
        parts += [run.checks.astype("<u8").tobytes() for run in self.runs]
        body = b"".join(parts)
        fields = (MAGIC, self.kind, self.partitions, len(self.runs), len(self.schema_message))
        sums = (self.records, self.total_bytes, int(self.durable), int(self.nonce, 16))
        header = HEADER.pack(*fields, *sums, 0)[:HASH_AT]
        self.hash = hash_of(header, body)
        return header + struct.pack("<Q", self.hash) + body


def decode(raw: Any, what: str) -> Manifest:
    """A manifest from its bytes (any buffer, which is kept). Raises CorruptionError that names ``what`` it was read for."""
    view = memoryview(raw).cast("B")
    if len(view) < HEADER.size:
        raise CorruptionError(what, 0, f"a manifest of at least {HEADER.size} bytes", f"{len(view)} bytes")
    magic, kind, partitions, runs, schema_bytes, records, total_bytes, durable, nonce, expected = HEADER.unpack_from(
        view
    )
    if magic != MAGIC:
        raise CorruptionError(what, 0, f"a manifest, which begins with {MAGIC!r}", f"{bytes(magic)!r}")
    if kind not in (ROWS, BYTES) or not 0 < partitions <= PARTITIONS_MAX or runs > RUNS_MAX:
        raise CorruptionError(
            what, 8, "a kind, and possible numbers of partitions and runs", f"{kind}, {partitions}, {runs}"
        )
    infos_at = HEADER.size + _up(schema_bytes, 8)
    starts_at = infos_at + 16 * runs
    checks_at = starts_at + _up(4 * (partitions + 1) * runs, 8)
    end = checks_at + 8 * partitions * runs
    if len(view) != end:
        raise CorruptionError(what, HEADER.size, f"{end} bytes", f"{len(view)} bytes")
    found = hash_of(view[:HASH_AT], view[HEADER.size :])
    if found != expected:
        raise CorruptionError(what, HASH_AT, f"a hash of {expected:#x}", f"{found:#x}")
    infos = np.frombuffer(view, "<u8", 2 * runs, infos_at).reshape(runs, 2)
    starts = np.frombuffer(view, "<u4", (partitions + 1) * runs, starts_at).reshape(runs, partitions + 1)
    checks = np.frombuffer(view, "<u8", partitions * runs, checks_at).reshape(runs, partitions)
    made = [Run(int(infos[i, 0]), starts[i], checks[i]) for i in range(runs)]
    for run, (_, rows) in zip(made, infos.tolist(), strict=True):
        if run.starts[0] != 0 or run.rows != rows or (run.starts[1:] < run.starts[:-1]).any():
            raise CorruptionError(what, starts_at, "partitions one behind the other in each run", "others")
    message = bytes(view[HEADER.size : HEADER.size + schema_bytes])
    name = f"{nonce:016x}"
    return Manifest(kind, partitions, message, records, total_bytes, made, durable == 1, name, found)


def hash_of(*parts: Any) -> int:
    """XXH3-64 of parts, one behind the other."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return int(state.intdigest())


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _padded(raw: bytes, unit: int) -> bytes:
    return raw + bytes(_up(len(raw), unit) - len(raw))
