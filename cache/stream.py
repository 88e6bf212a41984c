"""What is written to an object: tables as batches, all at once or one by one."""

from __future__ import annotations

import pyarrow as pa

from .appender import ObjectWriter

# Tables in many small chunks are combined: a block costs microseconds on every read.
SMALL_CHUNK_BYTES = 64 << 10


class StreamWriter:
    """The writer of Store.writer(): one thread, batches of one schema."""

    def __init__(self, inner: ObjectWriter, schema: pa.Schema):
        self._inner, self.schema = inner, schema

    def write(self, data: pa.RecordBatch | pa.Table) -> None:
        """Add rows. The schema must be the writer's."""
        if not data.schema.equals(self.schema):
            raise ValueError(f"the batch's schema is not the writer's:\n{data.schema}\nagainst\n{self.schema}")
        for batch in batches_of(data):
            self._inner.write_batch(batch)

    def close(self) -> None:
        """Publish."""
        self._inner.close_batches()

    def abort(self) -> None:
        """Give up."""
        self._inner.abort()


def batches_of(data: pa.Table | pa.RecordBatch) -> list[pa.RecordBatch]:
    """The batches to store; many small chunks become few."""
    if isinstance(data, pa.RecordBatch):
        return [data]
    if not isinstance(data, pa.Table):
        raise TypeError(
            f"put() takes a pyarrow Table or RecordBatch, not {type(data).__name__}; "
            "bytes go to put_bytes(), pandas frames through pyarrow.Table.from_pandas()"
        )
    batches = list(data.to_batches())
    if len(batches) > 1 and data.nbytes // len(batches) < SMALL_CHUNK_BYTES:
        batches = list(data.combine_chunks().to_batches())
    return batches
