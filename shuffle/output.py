"""The output of one attempt on this node: its manifest, and its runs read in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tierstore.cache.lean import Lean, Parts
from tierstore.ringbuf.errors import CorruptionError, NotFound

from .manifest import BYTES, HASH_AT, Manifest, decode
from .receipt import Receipt
from .slices import BYTES_SCHEMA, byte_batch, cut, first_damaged


class Piece(NamedTuple):
    """Rows of a range of partitions, of one run. starts: where in them each partition begins, and the end."""

    sequence: int
    rows: pa.RecordBatch
    starts: np.ndarray


class Output:
    """One attempt's output. Any thread."""

    def __init__(self, lean: Lean, receipt: Receipt, manifest: Manifest):
        self._lean, self.name, self.manifest = lean, receipt.name, manifest

    @property
    def schema(self) -> pa.Schema | None:
        """Of its rows; None if it has none and was not told."""
        if self.manifest.kind == BYTES:
            return BYTES_SCHEMA
        return self.manifest.schema if self.manifest.schema_message else None

    def schema_of(self, _: Receipt) -> pa.Schema | None:
        """Its schema."""
        return self.schema

    def pieces(self, first: int, last: int, begin: int = 0, verify: bool = True) -> Iterator[Piece]:
        """Partitions first to last (one behind the last), from run ``begin`` on. Raises NotFound, CorruptionError."""
        for sequence, run in enumerate(self.manifest.runs[begin:], begin):
            start, end = int(run.starts[first]), int(run.starts[last])
            if start == end:
                continue
            parts = self._open(sequence)
            rows = cut(parts.batches, start, end)
            parts.read(rows)
            if verify:
                wrong = first_damaged(rows, run.starts[first : last + 1], run.checks[first:last])
                if wrong is not None:
                    where = self.name.run(sequence)
                    raise CorruptionError(where, 0, f"the rows written to partition {first + wrong}", "others")
            yield Piece(sequence, rows, run.starts[first : last + 1] - run.starts[first])

    def _open(self, sequence: int) -> Parts:
        parts: Parts
        key, run = self.name.run(sequence), self.manifest.runs[sequence]
        if self.manifest.kind == BYTES:
            buffer, parts = self._lean.bytes(key)
            parts.batches.append(byte_batch(buffer.slice(0, run.rows)))
        else:
            parts = self._lean.table(key)
        rows = sum(batch.num_rows for batch in parts.batches)
        if rows != run.rows:
            raise CorruptionError(key, 0, f"{run.rows} rows", f"{rows}")
        return parts


def load_output(lean: Lean, receipt: Receipt, known: Manifest | None = None) -> Output:
    """The output that a receipt names, if all of it is there. Raises NotFound, CorruptionError.

    known: its manifest, if it was read before.
    """
    if known is None:
        raw = bytes(lean.bytes(receipt.name.key)[0])
        known = decode(raw, f"the manifest {receipt.name.key}")
        if known.hash != receipt.manifest_hash:
            raise CorruptionError(
                receipt.name.key, HASH_AT, f"the manifest {receipt.manifest_hash:#x}", f"{known.hash:#x}"
            )
    for sequence in range(len(known.runs)):
        if not lean.has(receipt.name.run(sequence)):
            raise NotFound(f"run {sequence} of {receipt.name.key!r} is not in the store")
    return Output(lean, receipt, known)
