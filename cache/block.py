"""Blocks: how a record batch becomes the payload of a record, and back, without copying on the way out.

Three forms. BATCH: the schema message (root block only) and one record batch message, for every schema without
dictionaries; reading it costs one parse of the message. STREAM: a whole IPC stream, where the schema has dictionaries or
there are no rows at all. Pieces: a payload that no row split makes small enough, cut into bytes.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import TierstoreError
from tierstore.ringbuf.jit import load, once

# Up to here one more copy (Arrow's own serializer) is cheaper than a Python call per buffer.
SERIALIZE_BYTES_MAX = 512 << 10
SCHEMA_CACHE_MAX = 1024


@once
def kernels() -> Any:
    """This package's compiled kernels."""
    return load(["tierstore.cache.ipc_kernels"])


@dataclass
class Payload:
    """What append() needs: pieces to copy in order, each padded to 64 bytes, and what keeps their memory alive."""

    kind: int
    rows: int
    pieces: Any  # ctypes array of uint64: pairs (address, bytes)
    piece_count: int
    padded_bytes: int  # the payload in the record
    schema_bytes: int = 0
    alive: list[Any] = field(default_factory=list)
    # Instead of pieces: puts the payload at an address itself, all padded_bytes of it.
    fill: Callable[[int], None] | None = None

    @property
    def value_bytes(self) -> int:
        """Payload size without the padding behind the last piece."""
        if self.piece_count == 0:
            return self.padded_bytes
        last = int(self.pieces[2 * self.piece_count - 1])
        return self.padded_bytes - _padded(last) + last


def one_piece(kind: int, rows: int, address: int, size: int, alive: list[Any]) -> Payload:
    """A payload that is one range of memory."""
    return Payload(kind, rows, (ctypes.c_uint64 * 2)(address, size), 1 if size else 0, _padded(size), 0, alive)


class _Sink:
    """A file object that keeps what Arrow writes: metadata as bytes, buffers as they are."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.closed = False
        self._written = 0

    def write(self, part: Any) -> int:
        self.parts.append(part)
        self._written += len(part)
        return len(part)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def placed(kind: int, rows: int, padded_bytes: int, schema_bytes: int, fill: Callable[[int], None]) -> Payload:
    """A payload that its maker puts into the segment itself; ``padded_bytes``: a multiple of 64."""
    return Payload(kind, rows, (ctypes.c_uint64 * 2)(), 0, padded_bytes, schema_bytes, [], fill)


def has_dictionary(kind: pa.DataType) -> bool:
    """Whether a type holds a dictionary at any depth (its IPC form then needs messages of its own)."""
    if pa.types.is_dictionary(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return has_dictionary(kind.storage_type)
    return any(has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


class SchemaCache:
    """Parsed schemas by their serialized bytes; the least recently used one goes first."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, pa.Schema] = OrderedDict()

    def parse(self, message: bytes) -> pa.Schema:
        """The schema of a message."""
        schema = self._known.get(message)
        if schema is None:
            schema = pa.ipc.read_schema(pa.py_buffer(message))
            if b"ARROW:extension:name" in message:  # what it means depends on the types registered now
                return schema
            self._known[message] = schema
            if len(self._known) > SCHEMA_CACHE_MAX:
                self._known.popitem(last=False)
        return schema


class Encoder:
    """Turns record batches of one schema into payloads."""

    def __init__(self, schema: pa.Schema, message: pa.Buffer):
        self.schema = schema
        self.stream = any(has_dictionary(entry.type) for entry in schema)
        self.message = message
        self._message_at, self.message_bytes = message.address, message.size

    def encode(self, batch: pa.RecordBatch, root: bool) -> Payload:
        """The payload of one block. Cost: about 20 us and no copy, or 5 us and one copy of a small batch."""
        if self.stream:
            return self.whole([batch])
        # Not nbytes: that walks every buffer of every column and costs more than the copy.
        if batch.get_total_buffer_size() <= SERIALIZE_BYTES_MAX:
            return self._small(batch, root)
        return self._large(batch, root)

    def whole(self, batches: list[pa.RecordBatch]) -> Payload:
        """A stream of messages as one payload: schema, dictionaries, batches, and the end mark. Without batches, empty."""
        frames = _messages(_written(self.schema, batches))
        pieces = (ctypes.c_uint64 * (2 * sum(len(frame.buffers) + 2 for frame in frames) + 4))()
        count = size = 0
        for frame in frames:
            count += frame.relayout(ctypes.addressof(pieces) + 16 * count)
            size += pieces[2 * count + 1]
        pieces[2 * count], pieces[2 * count + 1] = _END_OF_STREAM.address, _END_OF_STREAM.size
        return Payload(
            layout.KIND_STREAM,
            sum(batch.num_rows for batch in batches),
            pieces,
            count + 1,
            size + _padded(_END_OF_STREAM.size),
            0,
            [frames, batches],
        )

    def _begin(self, root: bool, buffers: int) -> tuple[Any, int]:
        """Room for the pieces; a root's begin with the schema."""
        pieces = (ctypes.c_uint64 * (2 * (buffers + 3)))()
        if root:
            pieces[0], pieces[1] = self._message_at, self.message_bytes
        return pieces, 1 if root else 0

    def _payload(
        self, batch: pa.RecordBatch, root: bool, pieces: Any, first: int, count: int, alive: list[Any]
    ) -> Payload:
        schema_bytes = _padded(self.message_bytes) if root else 0
        size = pieces[2 * (first + count) + 1] + schema_bytes
        return Payload(layout.KIND_BATCH, batch.num_rows, pieces, first + count, size, schema_bytes, alive)

    def _small(self, batch: pa.RecordBatch, root: bool) -> Payload:
        message = batch.serialize()
        frame = message.address
        body = frame + 8 + ctypes.c_uint32.from_address(frame + 4).value
        pieces, first = self._begin(root, kernels().buffer_count(frame))
        count = kernels().relayout(frame, body, 0, ctypes.addressof(pieces) + 16 * first)
        return self._payload(batch, root, pieces, first, count, [message, self.message])

    def _large(self, batch: pa.RecordBatch, root: bool) -> Payload:
        frame = [part for part in _messages(_written(batch.schema, [batch])) if part.is_batch][-1]
        pieces, first = self._begin(root, len(frame.buffers))
        count = frame.relayout(ctypes.addressof(pieces) + 16 * first)
        return self._payload(batch, root, pieces, first, count, [frame, batch, self.message])


ENCODERS_MAX = 256
_encoders: OrderedDict[bytes, Encoder] = OrderedDict()


def encoder_of(schema: pa.Schema) -> Encoder:
    """The encoder of a schema (told apart by its serialized form, which has the metadata that equality ignores)."""
    message = schema.serialize()
    name = message.to_pybytes()
    encoder = _encoders.get(name)
    if encoder is None or not encoder.schema.equals(schema):  # a type may have been registered meanwhile
        encoder = _encoders[name] = Encoder(schema, message)
        if len(_encoders) > ENCODERS_MAX:
            _encoders.popitem(last=False)
    return encoder


_END_OF_STREAM = pa.py_buffer(b"\xff\xff\xff\xff\0\0\0\0")


def _padded(size: int) -> int:
    return (size + 63) & ~63


def _written(schema: pa.Schema, batches: list[pa.RecordBatch]) -> list[Any]:
    """Everything Arrow's stream writer writes for these batches."""
    sink = _Sink()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.parts


class _Frame:
    """One message as written: its frame with metadata, and the buffers of its body."""

    def __init__(self, metadata: bytes):
        size = len(metadata)
        self._frame = ctypes.create_string_buffer(
            b"\xff\xff\xff\xff" + size.to_bytes(4, "little") + metadata, _padded(8 + size)
        )
        self.buffers: list[pa.Buffer] = []
        self._size = 8 + size
        self.is_batch = kernels().buffer_count(ctypes.addressof(self._frame)) >= 0

    def relayout(self, pieces: int) -> int:
        """List the frame and its buffers as pieces, aligned; how many."""
        at = ctypes.addressof(self._frame)
        if not self.is_batch:  # a schema: nothing to move, only the frame grows to whole lines
            ctypes.c_uint32.from_address(at + 4).value = _padded(self._size) - 8
            pair = (ctypes.c_uint64 * 4).from_address(pieces)
            pair[0], pair[1], pair[3] = at, _padded(self._size), _padded(self._size)
            return 1
        parts = (ctypes.c_uint64 * max(1, len(self.buffers)))(*[part.address for part in self.buffers])
        count = int(kernels().relayout(at, 0, ctypes.addressof(parts), pieces))
        if count - 1 != len(self.buffers):
            raise TierstoreError(f"Arrow wrote {len(self.buffers)} buffers and announced {count - 1}: please report it")
        return count


def _messages(parts: list[Any]) -> list[_Frame]:
    """Group what the writer wrote: marker, size and metadata come as bytes, buffers of a body as Arrow buffers."""
    frames: list[_Frame] = []
    position = 0
    while position < len(parts):
        part = parts[position]
        if isinstance(part, bytes) and part == b"\xff\xff\xff\xff" and position + 1 < len(parts):
            size, metadata = int.from_bytes(parts[position + 1], "little"), b""
            position += 2
            while len(metadata) < size:  # its padding may come as a part of its own
                metadata += parts[position]
                position += 1
            if size:
                frames.append(_Frame(metadata))
            continue
        if isinstance(part, pa.Buffer) and part.size > 0:
            frames[-1].buffers.append(part)
        position += 1
    return frames


def decode_batch(payload: pa.Buffer, schema: pa.Schema, schema_bytes: int) -> pa.RecordBatch:
    """The batch of a BATCH payload, over the payload's own memory."""
    return pa.ipc.read_record_batch(payload.slice(schema_bytes) if schema_bytes else payload, schema)


def decode_stream(payload: pa.Buffer) -> pa.Table:
    """The table of a STREAM payload, over the payload's own memory."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def cut(payload: Payload) -> bytearray:
    """A payload as one byte string, padding included; for payloads that must be cut into pieces."""
    out = bytearray(payload.padded_bytes)
    position = 0
    for piece in range(payload.piece_count):
        address, size = payload.pieces[2 * piece], payload.pieces[2 * piece + 1]
        out[position : position + size] = ctypes.string_at(address, size)
        position += _padded(size)
    return out
