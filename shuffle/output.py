"""The output of one attempt on this node: its manifest, and its runs read in place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tierstore.cache.lean import Lean, Parts
from tierstore.ringbuf.errors import CorruptionError, NotFound, TierstoreError

from .manifest import BYTES, HASH_AT, Manifest, decode
from .names import Attempt
from .receipt import Receipt
from .slices import BYTES_SCHEMA, byte_batch, cut, first_damaged
from .sound import check_layout, pointing


class Piece(NamedTuple):
    """Rows of a range of partitions, of one run. starts: where in them each partition begins, and the end."""

    sequence: int
    rows: pa.RecordBatch
    starts: np.ndarray


class Output:
    """One attempt's output. Any thread."""

    def __init__(self, lean: Lean, name: Attempt, manifest: Manifest):
        self._lean, self.name, self.manifest = lean, name, manifest

    def check_there(self) -> None:
        """Raise NotFound if a run is not there. Cost: a look-up each."""
        for sequence in range(len(self.manifest.runs)):
            if not self._lean.has(self.name.run(sequence, self.manifest.nonce)):
                raise NotFound(f"run {sequence} of {self.name.key!r} is not in the store")

    @property
    def schema(self) -> pa.Schema | None:
        """Of its rows; None if it has none and was not told."""
        if self.manifest.kind == BYTES:
            return BYTES_SCHEMA
        return self.manifest.schema if self.manifest.schema_message else None

    def schema_of(self, _: Receipt) -> pa.Schema | None:
        """Its schema."""
        return self.schema

    def rows(self, first: int, last: int, end: int | None = None) -> int:
        """How many rows (bytes) it has in partitions first to last, of its runs before ``end``."""
        return sum(int(run.starts[last]) - int(run.starts[first]) for run in self.manifest.runs[:end])

    def sizes(self, first: int, last: int) -> np.ndarray:
        """About how many bytes each partition from first to last has."""
        if last > self.manifest.partitions:
            raise ValueError(f"partitions up to {last} of {self.manifest.partitions}")
        total = np.zeros(last - first, "f8")
        for run in self.manifest.runs:
            total += np.diff(run.starts[first : last + 1].astype("f8"))
        return total * (self.manifest.total_bytes / max(1, sum(run.rows for run in self.manifest.runs)))

    def pieces(self, first: int, last: int, begin: int = 0, verify: bool = True) -> Iterator[Piece]:
        """Partitions first to last (one behind the last), from run ``begin`` on. Raises NotFound, CorruptionError."""
        for sequence, run in enumerate(self.manifest.runs[begin:], begin):
            start, end = int(run.starts[first]), int(run.starts[last])
            if start == end:
                continue
            where = self.name.run(sequence, self.manifest.nonce)
            parts = self._open(sequence)
            rows = cut(parts.batches, start, end, self._pointing, where)
            parts.read(rows)
            if verify:
                wrong = first_damaged(rows, run.starts[first : last + 1], run.checks[first:last])
                if wrong is not None:
                    raise CorruptionError(where, 0, f"the rows written to partition {first + wrong}", "others")
            yield Piece(sequence, rows, run.starts[first : last + 1] - run.starts[first])

    @cached_property
    def _pointing(self) -> list[int]:
        return pointing(self.schema) if self.schema is not None else []

    def _open(self, sequence: int) -> Parts:
        """One run, of the right schema and number of rows; that is all that is known of it."""
        key, run = self.name.run(sequence, self.manifest.nonce), self.manifest.runs[sequence]
        try:
            parts = self._parts(key, run.rows)
        except TierstoreError:
            raise
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise CorruptionError(key, 0, "a run", f"{type(error).__name__}: {str(error):.100}") from None
        rows = sum(batch.num_rows for batch in parts.batches)
        if rows != run.rows:
            raise CorruptionError(key, 0, f"{run.rows} rows", f"{rows}")
        for batch in parts.batches:
            assert self.schema is not None
            check_layout(batch, self.schema, key)
        return parts

    def _parts(self, key: str, rows: int) -> Parts:
        if self.manifest.kind != BYTES:
            return self._lean.table(key)
        buffer, parts = self._lean.bytes(key)
        parts.batches.append(byte_batch(buffer.slice(0, rows)))
        return parts


def load_output(lean: Lean, receipt: Receipt, known: Manifest | None = None) -> Output:
    """The output that a receipt names, if all of it is there. Raises NotFound, CorruptionError.

    known: its manifest, if it was read before.
    """
    output = find_output(lean, receipt.name, receipt.manifest_hash, known)
    output.check_there()
    return output


def find_output(
    lean: Lean, name: Attempt, manifest_hash: int, known: Manifest | None = None, copied_max: int | None = None
) -> Output:
    """As load_output(), but its runs are not looked for.

    copied_max: a manifest that has more bytes stays in the store's memory, and keeps its segment; others are copied,
    so that they can be kept.
    """
    if known is not None:
        if not lean.has(name.key):
            raise NotFound(f"the manifest {name.key!r} is not in the store")
        return Output(lean, name, known)
    buffer = lean.bytes(name.key)[0]
    kept = copied_max is None or buffer.size <= copied_max
    found = decode(buffer.to_pybytes() if kept else buffer, f"the manifest {name.key}")
    if found.hash != manifest_hash:
        raise CorruptionError(name.key, HASH_AT, f"the manifest {manifest_hash:#x}", f"{found.hash:#x}")
    return Output(lean, name, found)
