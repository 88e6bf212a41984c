"""Re-laying an Arrow IPC message so that every buffer begins on a cache line.

Arrow's writer aligns buffers to 8 bytes; engines want 64, and so does the copy kernel. The message's metadata is a
flatbuffer in which a vector of (offset, length) pairs names the buffers of the body: the pairs are patched in place, and
the buffers themselves are copied once, straight from where they are, by the append that follows.

Source of the layout: https://arrow.apache.org/docs/format/Columnar.html (encapsulated message, Message.fbs).
"""

from __future__ import annotations

from tierstore.ringbuf.atomic import load, load8, load16, load32, store, store32
from tierstore.ringbuf.jit import helper, kernel
from tierstore.ringbuf.layout import KEY_BYTES_MAX, R_HEADER_HASH, R_KEY_BYTES
from tierstore.ringbuf.records import header_hash

FRAME_BYTES = 8  # continuation marker and metadata size
HEADER_DICTIONARY, HEADER_BATCH = 2, 3


@helper
def table_field(table, number):
    """Address of a flatbuffer table's field, 0 if it is absent (its default then holds)."""
    back = load32(table)
    if back >= 1 << 31:
        back -= 1 << 32
    vtable = table - back
    at = 4 + 2 * number
    if at >= load16(vtable):
        return 0
    offset = load16(vtable + at)
    return table + offset if offset != 0 else 0


@helper
def follow(address):
    """The table or vector that an offset field points to."""
    return address + load32(address)


@kernel()
def relayout(frame, body, parts, pieces):
    """Give the buffers of one framed message new offsets and list what to copy.

    frame:   address of the frame (8 bytes, then metadata), patched in place.
    body:    address of the body behind it, or 0 if ``parts`` lists the addresses of the buffers that are not empty.
    pieces:  out: pairs (address, bytes): the metadata, then the buffers; each will be padded to 64 bytes. Behind the
             last pair: 0 and the padded bytes of them all.
    Returns: the number of pieces; -1 if the metadata is not a record or dictionary batch.
    """
    size = load32(frame + 4)
    message = follow(frame + FRAME_BYTES)
    kind, header, length = table_field(message, 1), table_field(message, 2), table_field(message, 3)
    if kind == 0 or header == 0:
        return -1
    table = follow(header)
    if load8(kind) == HEADER_DICTIONARY:
        table = follow(table_field(table, 1))
    elif load8(kind) != HEADER_BATCH:
        return -1
    store(pieces, frame)
    store(pieces + 8, FRAME_BYTES + size)
    store32(frame + 4, ((FRAME_BYTES + size + 63) & ~63) - FRAME_BYTES)
    buffers = table_field(table, 2)
    count, given, position = 1, 0, 0
    if buffers != 0:
        vector = follow(buffers)
        for number in range(load32(vector)):
            pair = vector + 4 + 16 * number
            bytes_ = load(pair + 8)
            if bytes_ > 0:
                store(pieces + 16 * count, body + load(pair) if body != 0 else load(parts + 8 * given))
                store(pieces + 16 * count + 8, bytes_)
                given += 1
                count += 1
            store(pair, position)
            position += (bytes_ + 63) & ~63
    if length != 0:
        store(length, position)
    store(pieces + 16 * count, 0)
    store(pieces + 16 * count + 8, position + ((FRAME_BYTES + size + 63) & ~63))
    return count


@kernel()
def buffer_count(frame):
    """How many buffers a framed batch message has; -1 if it is another message."""
    message = follow(frame + FRAME_BYTES)
    kind, header = table_field(message, 1), table_field(message, 2)
    if kind == 0 or header == 0:
        return -1
    table = follow(header)
    if load8(kind) == HEADER_DICTIONARY:
        table = follow(table_field(table, 1))
    elif load8(kind) != HEADER_BATCH:
        return -1
    buffers = table_field(table, 2)
    return load32(follow(buffers)) if buffers != 0 else 0


@kernel()
def header_is_sound(head):
    """1 if a record's header and key are what was written. head: its address, with KEY_BYTES_MAX readable behind it."""
    if load16(head + R_KEY_BYTES) > KEY_BYTES_MAX:
        return 0
    return 1 if header_hash(head) == load(head + R_HEADER_HASH) else 0
