"""Every shared layout, once: byte offsets of all fields in shared memory and in arenas, with their writers.

All fields are little-endian; a field without a width is 64 bits. "daemon" is the one thread that mutates the store.
docs/LAYOUT.md draws the same tables; a test compares the two. After creation no 64-byte line has two writers, except
where the table says how the hand-over works.
"""

from __future__ import annotations

LAYOUT_VERSION = 2

# --- Arena: superblock pages, then segments ---------------------------------------------------------------------------
ARENA_HEADER_BYTES = 2 << 20  # segments start on a huge-page boundary
SUPERBLOCK_BYTES = 4096  # two of them, A and B; the valid one with the higher sequence counts
SUPER_MAGIC = int.from_bytes(b"TSARENA1", "little")
SB_MAGIC = 0
SB_VERSION = 8
SB_SEQUENCE = 16
SB_SEGMENT_BYTES = 24
SB_SEGMENT_COUNT = 32
SB_KIND = 40  # tier kind, see KINDS
SB_STORE_ID = 48  # 16 bytes: which store this arena belongs to
SB_INCARNATION = 64  # life of the KEEP data
SB_INDEX = 72  # which disk directory of the tier this is
SB_HASH = 80  # XXH3-64 of bytes 0 to 79

# --- Segment header: the first page of each segment, writer: daemon -----------------------------------------------------
SEGMENT_HEADER_BYTES = 4096
# Each word changes at once and carries check bits of its own (checked()), so no power loss leaves half a header.
SH_MAGIC = 0
SH_LIFE = 8  # checked: generation:40 | pool:6 | class:2; flushed before any reuse: it makes older records invalid
SH_SEALED_BYTES = 16  # checked: bytes used when sealed, 0 while open
SH_SEQUENCE = 24  # checked: order of sealing
LIFE_POOL_SHIFT, LIFE_CLASS_SHIFT = 40, 46
SEGMENT_MAGIC = int.from_bytes(b"TSSEGMT1", "little")

# Segments are larger than the size they are configured with, by this share: so many blocks of a power of two bytes fit,
# although each has a header.
SEGMENT_SLACK = 16

# --- Record: header, key, payload, padded to 256 bytes -------------------------------------------------------------------
GRANULE = 256
RECORD_HEADER_BYTES = 128
# first line: the writing client until it stores a positive length, the commit word
R_LENGTH = 0  # whole record in bytes; negative while claimed, positive once sealed; stored last
R_GENERATION = 8  # checked: of the segment when written
R_KEY_HASH = 16  # of the key and the block index
R_VERSION = 24  # one put of one object; all its blocks carry it
R_PAYLOAD_HASH = 32  # XXH3-64 of the payload
R_PAYLOAD_BYTES = 40  # 32 bit; a multiple of 64
R_KEY_BYTES = 44  # 16 bit
R_KIND = 46  # 8 bit, see block kinds
R_CODEC = 47  # 8 bit, 0 raw, 1 LZ4 frame
R_BLOCK_INDEX = 48  # 32 bit; 0 is the root, which is published last
R_BLOCK_COUNT = 52  # 32 bit; root: blocks of the object (its rows come last); 0 in the others
R_HEADER_HASH = 56  # over bytes 16 to 55, 72 to 127 and the key
# second line
R_PUBLISHED = 64  # daemon: 0 unpublished; checked: the publish sequence; DEAD or DEAD_COPIED
R_EXPIRY = 72  # unix milliseconds, 0 never
R_VALUE_BYTES = 80  # payload without its padding, before any codec
R_ROWS = 88  # rows in this block
R_POOL = 96  # 16 bit
R_CLASS = 98  # 8 bit, see CLASS_*
R_SCHEMA_BYTES = 100  # 32 bit; schema message at the start of the payload
R_OBJECT_BYTES = 104  # root: value bytes of all blocks
R_OBJECT_ROWS = 112  # root: rows of all blocks
R_STORED_BYTES = 120  # payload bytes that carry data after the codec
# Far from every word with right check bits, and from each other. COPIED: deleted while a move was copying it, so that a copy
# which nobody linked before a death is dead too.
DEAD, DEAD_COPIED = 0x5EAD0BAD5EAD0BAD, 0x5EADF4525EADF452
# Check bits of words that no other checksum covers: value:48 | fold:15, where every bit of the value turns one bit of the fold.
CHECKED_BITS, FOLD_BITS = 48, 15

KEY_BYTES_MAX = 4096
CLASS_CACHE, CLASS_KEEP, CLASS_PINNED_CACHE, CLASS_PINNED_KEEP = 0, 1, 2, 3
# A mark beside the class of a KEEP record, and of no segment: acknowledged as durable, so it may not go to a volatile tier.
CLASS_DURABLE = 4
# block kinds: bytes; an IPC record batch message after the schema; a whole IPC stream; a piece of bytes or of a stream
KIND_BYTES, KIND_BATCH, KIND_STREAM, KIND_BYTES_PIECE, KIND_STREAM_PIECE = 0, 1, 2, 3, 4
CODEC_RAW, CODEC_LZ4 = 0, 1

# --- Segment table, one line a segment, writer: daemon --------------------------------------------------------------------
SEGMENT_ENTRY_BYTES = 64
S_WORD = 0  # state:3 | owner slot:13 | generation:48
S_LIVE_BYTES = 8
S_LIVE_COUNT = 16
S_TAIL = 24  # bytes used, known once sealed
S_POOL = 32
S_CLASS = 40
S_SEQUENCE = 48
S_EXPIRY = 56  # the earliest expiry among its records, 0 none
STATE_FREE, STATE_LEASED, STATE_SEALED, STATE_EVICTING, STATE_QUARANTINED, STATE_UNBACKED = 0, 1, 2, 3, 4, 5
STATE_NAMES = ("free", "leased", "sealed", "evicting", "quarantined", "unbacked")
STATE_SHIFT, OWNER_SHIFT = 61, 48
OWNER_MASK = (1 << 13) - 1
GENERATION_MASK = (1 << 48) - 1

# --- Control file (clients map it read-only), writer: daemon ----------------------------------------------------------------
CONTROL_MAGIC = int.from_bytes(b"TSCTRL01", "little")
C_MAGIC = 0
C_VERSION = 8
C_EPOCH = 16  # number of this index; changes when a daemon starts
C_SEGMENT_BYTES = 24
C_SEGMENT_COUNT = 32
C_TIER_COUNT = 40
C_BUCKET_MASK = 48
C_SLOT_COUNT = 56
C_STORE_ID = 64  # 16 bytes
C_PUBLISH_SEQUENCE = 128
C_INDEX_ITEMS = 136
C_FREE = 192  # per arena: free segments, 8 bytes each, 16 of them
C_COUNTERS = 320  # see counters.py, 8 bytes each, up to 88 of them
C_ARENAS = 1024  # up to 16 entries of 64 bytes
A_KIND = 0
A_FIRST = 8  # first segment id
A_COUNT = 16
A_MAPPED = 24  # 1: segments are addressable memory; 0: read by pread
A_READ_PS, A_WRITE_PS = 32, 40  # picoseconds a byte of the device that is played, 0 nothing added
A_READ_NS, A_WRITE_NS = 48, 56  # and what each access takes besides
CONTROL_HEADER_BYTES = 4096  # then the segment table
ARENA_MAX = 16
KIND_DRAM, KIND_PMEM, KIND_DISK = 0, 1, 2
KINDS = ("dram", "pmem", "disk")

# --- Clients file (clients map it writable) ----------------------------------------------------------------------------------
B_DOORBELL = 0  # 32-bit futex word: a client adds 1 after a push when the daemon sleeps
B_SLEEPING = 64  # daemon: 1 while it waits on the doorbell
B_BUSY = (
    128  # per arena, 64 bytes apart: until when the device that is played is busy; any process, by compare-and-swap
)
CLIENTS_HEADER_BYTES = 4096  # then the slots, then the access bytes
# One slot: page of words, ring of messages, row of pins
P_STATE = 0  # daemon: see SLOT_*
P_PID = 8
P_NONCE = 16
P_TAIL = 64  # client: messages pushed, counts up for ever
P_HEAD = 128  # daemon: messages done; also the futex word of a waiting client
P_WAITING = 192  # client: 1 while it waits on P_HEAD
P_BUSY = 256  # client: appends under way, so that an idle lease can be taken back
P_COUNTERS = 320  # client: see counters.py, 8 bytes each, up to 64 of them
SLOT_PAGE_BYTES = 4096
SLOT_FREE, SLOT_ACTIVE = 0, 1
MESSAGE_BYTES = 64
MESSAGE_COUNT = 256
RING_BYTES = MESSAGE_BYTES * MESSAGE_COUNT
PIN_BYTES = 4  # one cell of the hazard matrix: a 32-bit count

# --- Message -------------------------------------------------------------------------------------------------------------------
M_OP = 0
M_RESULT = 8  # daemon
M_SEGMENT = 16
M_OFFSET = 24
M_END = 32
M_ARG = 40
OP_LEASE, OP_PUBLISH, OP_DELETE, OP_SEAL = 1, 2, 3, 4
# only accepted from slot 0, the daemon's own
OP_RELINK, OP_DROP, OP_RETIRE, OP_BACKED, OP_REAP, OP_QUARANTINE, OP_MOVING = 16, 17, 18, 19, 20, 21, 22
RESULT_NONE_FREE, RESULT_QUOTA, RESULT_REFUSED, RESULT_INDEX_FULL = -1, -2, -3, -4

# --- Index: buckets of one line, writer: daemon -----------------------------------------------------------------------------------
BUCKET_BYTES = 64  # word 0: items that wanted this bucket or passed it and lie further on; words 1 to 7: items
ITEM_COUNT = 7
# item: tag:27 | segment:20 | offset in granules:17; 0 is empty (offset 0 is the segment header)
TAG_SHIFT, SEGMENT_SHIFT = 37, 17
TAG_MASK, SEGMENT_MASK, GRANULE_MASK = (1 << 27) - 1, (1 << 20) - 1, (1 << 17) - 1
RECORD_START_LIMIT = (GRANULE_MASK + 1) * GRANULE  # what an item can name; a record may end behind it
PROBE_MAX = 64
BYTES_PER_BUCKET = 8192  # capacity that one bucket of seven items is provided for

# --- Access bytes: how often a block was read lately (halved from time to time), 0 to 31, one per 4 KiB of segment ---------------
ACCESS_SHIFT = 12
ACCESS_MAX = 31


def checked(value: int) -> int:
    """A value of up to 48 bits with its check bits; the kernels' is records.checked()."""
    fold = 0
    for shift in range(0, CHECKED_BITS, FOLD_BITS):
        fold ^= value >> shift
    return value | (fold & (1 << FOLD_BITS) - 1) << CHECKED_BITS


def unchecked(word: int) -> int:
    """The value of a word, -1 if its check bits say that it is not what was written."""
    value = word & (1 << CHECKED_BITS) - 1
    return value if checked(value) == word else -1
