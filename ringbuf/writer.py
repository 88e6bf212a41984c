"""Append into a leased segment.

A lease makes one process the only writer of a segment, so the position of the next record is a private number: no atomic
operation, no call. A record is claimed (negative length), filled with non-temporal stores, fenced, and committed (positive
length). Whoever walks the segment later skips what was never committed.
"""

from __future__ import annotations

from numba import types

from .atomic import (
    fetch_add,
    fetch_add32,
    flush_line,
    load,
    load8,
    load32,
    load_acquire,
    store,
    store8,
    store16,
    store32,
    store_fence,
    store_release,
)
from .cpython import as_int, from_int
from .jit import capi, helper, kernel
from .layout import (
    GRANULE,
    KEY_BYTES_MAX,
    P_BUSY,
    R_BLOCK_COUNT,
    R_BLOCK_INDEX,
    R_CLASS,
    R_CODEC,
    R_EXPIRY,
    R_GENERATION,
    R_HEADER_HASH,
    R_KEY_BYTES,
    R_KEY_HASH,
    R_KIND,
    R_LENGTH,
    R_OBJECT_BYTES,
    R_OBJECT_ROWS,
    R_PAYLOAD_BYTES,
    R_PAYLOAD_HASH,
    R_POOL,
    R_PUBLISHED,
    R_ROWS,
    R_SCHEMA_BYTES,
    R_STORED_BYTES,
    R_VALUE_BYTES,
    R_VERSION,
    RECORD_HEADER_BYTES,
    RECORD_START_LIMIT,
    S_WORD,
    SEGMENT_ENTRY_BYTES,
)
from .reader import count, list_item, list_size, utf8
from .records import checked, hash_bytes, header_hash, step
from .session import (
    COUNT_BYTES_PUT,
    COUNT_PUTS,
    L_BASE,
    L_GENERATION,
    L_NEXT,
    L_SEGMENT,
    L_WORD,
    Q_BLOCK_COUNT,
    Q_BLOCK_INDEX,
    Q_CLASS,
    Q_CODEC,
    Q_EXPIRY,
    Q_FLUSH,
    Q_KEY,
    Q_KEY_BYTES,
    Q_KIND,
    Q_LENGTH,
    Q_OBJECT_BYTES,
    Q_OBJECT_ROWS,
    Q_PAYLOAD_BYTES,
    Q_PIECE_COUNT,
    Q_PIECES,
    Q_PLACE,
    Q_POOL,
    Q_ROWS,
    Q_SCHEMA_BYTES,
    Q_STATE,
    Q_STORED_BYTES,
    Q_STRIPE,
    Q_TARGET,
    Q_TRAP,
    Q_VALUE_BYTES,
    Q_VERSION,
    X_SCRATCH,
    X_SEGMENT_BYTES,
    X_SLOT,
    X_TABLE,
)
from .steps import PUT_CLAIMED, PUT_COMMITTED, PUT_FILLED
from .xxh3 import COPY_NONE, COPY_STORE, COPY_STREAM, STRIPE_BYTES, hash_begin, hash_end, hash_piece, hash_stripes

# Below this a plain store is cheaper: the bytes are still in cache when the daemon or a reader looks at them.
STREAM_BYTES_MIN = 2048

buffer_of = types.ExternalFunction("PyObject_GetBuffer", types.int32(types.int64, types.int64, types.int32))
release_buffer = types.ExternalFunction("PyBuffer_Release", types.void(types.int64))
tuple_item = types.ExternalFunction("PyTuple_GetItem", types.int64(types.int64, types.int64))


@helper
def record_bytes(key_bytes, payload_bytes):
    """The length of a record: header, key and payload on cache lines, the whole on a granule."""
    start = (RECORD_HEADER_BYTES + key_bytes + 63) & ~63
    return (start + payload_bytes + GRANULE - 1) & ~(GRANULE - 1)


@helper
def claim(head, length, generation):
    """Mark room as taken, so that a walk finds its way over it whatever happens to the writer.

    Dies: before the length is stored, the walk ends here and later records of this client are lost, unpublished.
    """
    store(head + R_GENERATION, checked(generation))
    store(head + R_PUBLISHED, 0)
    store_release(head + R_LENGTH, -length)  # SYNC record.length: pairs with load_acquire in sound_length()


@helper
def flush_range(address, size):
    """Write the lines of a range back to memory, for arenas where that means durable."""
    line = address & ~63
    while line < address + size:
        flush_line(line)
        line += 64


@kernel()
def claim_record(target, length, generation):
    """Claim room for a record at an address; the caller holds the lease and the interpreter lock."""
    claim(target, length, generation)
    return 0


@helper
def write_header(q, head):
    """All of the header but the commit word."""
    store(head + R_KEY_HASH, load(q + Q_PLACE))
    store(head + R_VERSION, load(q + Q_VERSION))
    store32(head + R_PAYLOAD_BYTES, load(q + Q_PAYLOAD_BYTES))
    store16(head + R_KEY_BYTES, load(q + Q_KEY_BYTES))
    store8(head + R_KIND, load(q + Q_KIND))
    store8(head + R_CODEC, load(q + Q_CODEC))
    store32(head + R_BLOCK_INDEX, load(q + Q_BLOCK_INDEX))
    store32(head + R_BLOCK_COUNT, load(q + Q_BLOCK_COUNT))
    store(head + R_EXPIRY, load(q + Q_EXPIRY))
    store(head + R_VALUE_BYTES, load(q + Q_VALUE_BYTES))
    store(head + R_ROWS, load(q + Q_ROWS))
    store(head + R_POOL, 0)
    store16(head + R_POOL, load(q + Q_POOL))
    store8(head + R_CLASS, load(q + Q_CLASS))
    store32(head + R_SCHEMA_BYTES, load(q + Q_SCHEMA_BYTES))
    store(head + R_OBJECT_BYTES, load(q + Q_OBJECT_BYTES))
    store(head + R_OBJECT_ROWS, load(q + Q_OBJECT_ROWS))
    store(head + R_STORED_BYTES, load(q + Q_STORED_BYTES))


@helper
def fill_record(q):
    """Copy and hash the pieces, write the header, and commit. The room was claimed."""
    head, key_bytes = load(q + Q_TARGET), load(q + Q_KEY_BYTES)
    copy_key(head + RECORD_HEADER_BYTES, load(q + Q_KEY), key_bytes)
    target = head + ((RECORD_HEADER_BYTES + key_bytes + 63) & ~63)
    # Where a flush is durable, only streamed bytes are: they need no flush of their own.
    mode = COPY_STREAM if load(q + Q_PAYLOAD_BYTES) >= STREAM_BYTES_MIN or load(q + Q_FLUSH) != 0 else COPY_STORE
    state, pieces, total = q + Q_STATE, load(q + Q_PIECES), load(q + Q_PIECE_COUNT)
    hash_begin(state)
    for piece in range(total):
        source, size = load(pieces + 16 * piece), load(pieces + 16 * piece + 8)
        hash_piece(target, source, size, state, q + Q_STRIPE, mode, 1 if piece == total - 1 else 0)
        target += (size + 63) & ~63
    commit(q, head, hash_end(state))


@helper
def commit(q, head, payload_hash):
    """Write the header of a record whose payload is in place, and make it final."""
    key_bytes = load(q + Q_KEY_BYTES)
    step(load(q + Q_TRAP), PUT_CLAIMED)
    write_header(q, head)
    store(head + R_PAYLOAD_HASH, payload_hash)
    store(head + R_HEADER_HASH, header_hash(head))
    if load(q + Q_FLUSH) != 0:
        flush_range(head, RECORD_HEADER_BYTES + key_bytes)
    step(load(q + Q_TRAP), PUT_FILLED)
    store_fence()  # the payload's non-temporal stores are done before the commit word
    store_release(head + R_LENGTH, load(q + Q_LENGTH))  # SYNC record.length: pairs with load_acquire in sound_length()
    if load(q + Q_FLUSH) != 0:
        flush_line(head)
        store_fence()
    step(load(q + Q_TRAP), PUT_COMMITTED)


@helper
def copy_key(target, source, size):
    """A key, byte by byte past the last word: the source may end at a page's end."""
    done = 0
    while done + 8 <= size:
        store(target + done, load(source + done))
        done += 8
    while done < size:
        store8(target + done, load8(source + done))
        done += 1


@kernel(nogil=True)
def append(q):
    """Fill and commit one claimed record described by a request; for blocks, whose copy is worth dropping the lock."""
    fill_record(q)
    return 0


@kernel(nogil=True)
def commit_placed(q):
    """As append(), where the payload was put in place by its maker; it is hashed there."""
    head, key_bytes = load(q + Q_TARGET), load(q + Q_KEY_BYTES)
    copy_key(head + RECORD_HEADER_BYTES, load(q + Q_KEY), key_bytes)
    payload, size = head + ((RECORD_HEADER_BYTES + key_bytes + 63) & ~63), load(q + Q_PAYLOAD_BYTES)
    if load(q + Q_FLUSH) != 0:
        flush_range(payload, size)
    hash_begin(q + Q_STATE)
    hash_stripes(0, payload, size // STRIPE_BYTES, q + Q_STATE, COPY_NONE, 1)
    commit(q, head, hash_end(q + Q_STATE))
    return 0


@kernel()
def lease_enter(x, lease):
    """Begin an append: 1 while the lease holds, else 0 (it was taken back while idle).

    Order: busy, then the look at the segment word; the daemon takes a lease back in the reverse order.
    """
    fetch_add(load(x + X_SLOT) + P_BUSY, 1)
    word = load_acquire(load(x + X_TABLE) + load(lease + L_SEGMENT) * SEGMENT_ENTRY_BYTES + S_WORD)  # SYNC lease
    if word == load(lease + L_WORD):
        return 1
    fetch_add(load(x + X_SLOT) + P_BUSY, -1)
    return 0


@kernel()
def lease_leave(x):
    """End an append."""
    fetch_add(load(x + X_SLOT) + P_BUSY, -1)
    return 0


@capi("int64(int64, int64, int64)", method=True)
def put_values(self, arguments, _count):
    """(session, lease, request, items: list[tuple[str, buffer]], first) -> the first item not appended.

    Appends until the segment is full, an item does not fit a segment, or a key is bad (the caller tells these apart).
    The request is a template; interpreter lock held throughout, as the values are Python objects.
    """
    x, lease, q = as_int(load(arguments)), as_int(load(arguments + 8)), as_int(load(arguments + 16))
    items, position = load(arguments + 24), as_int(load(arguments + 32))
    total, room = list_size(items), load(x + X_SEGMENT_BYTES)
    written = 0
    while position < total:
        pair = list_item(items, position)
        key_object, value = tuple_item(pair, 0), tuple_item(pair, 1)
        if key_object == 0 or value == 0:
            return 0
        key = utf8(key_object, x + X_SCRATCH)
        if key == 0:
            return 0
        key_bytes = load(x + X_SCRATCH)
        if key_bytes == 0 or key_bytes > KEY_BYTES_MAX:
            break
        view = x + X_SCRATCH + 16
        if buffer_of(value, view, 0) != 0:
            return 0
        size = load(view + 16)
        payload_bytes = (size + 63) & ~63
        length = record_bytes(key_bytes, payload_bytes)
        offset = load(lease + L_NEXT)
        if offset + length > room or offset >= RECORD_START_LIMIT:
            release_buffer(view)
            break
        head = load(lease + L_BASE) + offset
        claim(head, length, load(lease + L_GENERATION))
        store(lease + L_NEXT, offset + length)
        store(q + Q_TARGET, head)
        store(q + Q_LENGTH, length)
        store(q + Q_PLACE, hash_bytes(key, key_bytes, 0))
        store(q + Q_KEY, key)
        store(q + Q_KEY_BYTES, key_bytes)
        store(q + Q_VALUE_BYTES, size)
        store(q + Q_OBJECT_BYTES, size)
        store(q + Q_STORED_BYTES, size)
        store(q + Q_PAYLOAD_BYTES, payload_bytes)
        store(q + Q_PIECE_COUNT, 1 if size > 0 else 0)
        store(load(q + Q_PIECES), load(view))
        store(load(q + Q_PIECES) + 8, size)
        fill_record(q)
        store(q + Q_VERSION, load(q + Q_VERSION) + 1)
        release_buffer(view)
        written += size
        position += 1
    count(x, COUNT_PUTS, position - as_int(load(arguments + 32)))
    count(x, COUNT_BYTES_PUT, written)
    return from_int(position)


@kernel()
def load_word(address):
    """One 64-bit word, for tests and slow paths."""
    return load_acquire(address)


@kernel()
def load_half(address):
    """One 32-bit word."""
    return load32(address)


@kernel()
def add_pin(row, segment, amount):
    """Add to one cell of a row; Python code pins through this where it has no Pin object."""
    return fetch_add32(row + segment * 4, amount)
