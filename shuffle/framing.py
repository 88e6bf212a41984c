"""The Arrow IPC frame of a record batch that does not exist yet: made from a batch of one row, with its numbers patched.

The metadata of a record batch message depends on the schema only, except for the number of rows, the (rows, nulls) pair of
each node and the (offset, bytes) pair of each buffer. Offsets are laid out as cache/block.py lays them out: every buffer
begins on a cache line.

Source of the layout: https://arrow.apache.org/docs/format/Columnar.html (encapsulated message, Message.fbs).
"""

from __future__ import annotations

import ctypes
import struct
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa

from tierstore.cache.block import Payload, encoder_of

from .physical import storage_type

FRAME_BYTES = 8  # continuation marker and metadata size
_MESSAGE_HEADER, _MESSAGE_BODY = 2, 3
_BATCH_ROWS, _BATCH_NODES, _BATCH_BUFFERS = 0, 1, 2


def padded(size: int) -> int:
    """Up to whole cache lines."""
    return (size + 63) & ~63


class Frame:
    """One framed record batch message, as bytes that can be patched.

    nodes:   (rows, nulls) of each node, depth first.
    buffers: (offset in the body, bytes) of each buffer.
    """

    def __init__(self, data: bytes):
        self.data = bytearray(data)
        message = self._follow(FRAME_BYTES)
        self._body_at = self._field(message, _MESSAGE_BODY)
        batch = self._follow(self._field(message, _MESSAGE_HEADER))
        self._rows_at = self._field(batch, _BATCH_ROWS)
        self._nodes_at, self.node_count = self._vector(batch, _BATCH_NODES)
        self._buffers_at, self.buffer_count = self._vector(batch, _BATCH_BUFFERS)

    def _follow(self, at: int) -> int:
        return at + int(struct.unpack_from("<I", self.data, at)[0])

    def _field(self, table: int, number: int) -> int:
        """Where a field of a flatbuffer table lies, 0 if it has its default."""
        vtable = table - struct.unpack_from("<i", self.data, table)[0]
        place = 4 + 2 * number
        if place >= struct.unpack_from("<H", self.data, vtable)[0]:
            return 0
        offset = int(struct.unpack_from("<H", self.data, vtable + place)[0])
        return table + offset if offset else 0

    def _vector(self, table: int, number: int) -> tuple[int, int]:
        field = self._field(table, number)
        if not field:
            return 0, 0
        at = self._follow(field)
        return at + 4, int(struct.unpack_from("<I", self.data, at)[0])

    def nodes(self) -> list[tuple[int, int]]:
        """The nodes as they are."""
        return [struct.unpack_from("<qq", self.data, self._nodes_at + 16 * i) for i in range(self.node_count)]

    def sizes(self) -> list[int]:
        """The bytes of each buffer."""
        return [struct.unpack_from("<q", self.data, self._buffers_at + 16 * i + 8)[0] for i in range(self.buffer_count)]

    def patch(self, rows: int, nodes: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[int]:
        """Make it the frame of another batch of the same schema; the offset of each buffer in the body, and its end."""
        if len(nodes) != self.node_count or len(sizes) != self.buffer_count:
            raise ValueError(
                f"{len(nodes)} nodes and {len(sizes)} buffers for a schema with {self.node_count} and {self.buffer_count}"
            )
        struct.pack_into("<q", self.data, self._rows_at, rows)
        for i, node in enumerate(nodes):
            struct.pack_into("<qq", self.data, self._nodes_at + 16 * i, *node)
        offsets, position = [], 0
        for i, size in enumerate(sizes):
            struct.pack_into("<qq", self.data, self._buffers_at + 16 * i, position, size)
            offsets.append(position)
            position += padded(size)
        struct.pack_into("<q", self.data, self._body_at, position)
        return [*offsets, position]


def piece(payload: Payload, number: int) -> bytes:
    """The bytes of one piece of a payload."""
    return ctypes.string_at(int(payload.pieces[2 * number]), int(payload.pieces[2 * number + 1]))


TEMPLATES_MAX = 256
_templates: OrderedDict[bytes, bytes] = OrderedDict()


def template(schema: pa.Schema) -> tuple[bytes, Frame]:
    """The schema message and a frame to patch, for a schema without dictionaries, views, unions and run ends."""
    message = schema.serialize().to_pybytes()
    frame = _templates.get(message)
    if frame is None:
        row = pa.RecordBatch.from_arrays([_one_null(field.type) for field in schema], schema=schema)
        frame = _templates[message] = piece(encoder_of(schema).encode(row, root=False), 0)
        if len(_templates) > TEMPLATES_MAX:
            _templates.popitem(last=False)
    return message, Frame(frame)


def _one_null(kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(1, storage_type(kind)))
    return pa.nulls(1, kind)


def encoded(field: pa.Field, array: pa.Array) -> tuple[Frame, list[tuple[int, int]], object]:
    """One column as Arrow's own writer writes it: its frame, (address, bytes) of each buffer, and what keeps them alive."""
    schema = pa.schema([field])
    payload = encoder_of(schema).encode(pa.RecordBatch.from_arrays([array], schema=schema), root=False)
    frame = Frame(piece(payload, 0))
    pieces = iter(range(1, payload.piece_count))
    buffers = []
    for size in frame.sizes():
        if size == 0:
            buffers.append((0, 0))
            continue
        number = next(pieces)
        buffers.append((int(payload.pieces[2 * number]), int(payload.pieces[2 * number + 1])))
    return frame, buffers, payload
