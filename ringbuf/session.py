"""Private words of one attached client: addresses a reader or writer kernel needs. Not shared, not persistent."""

from __future__ import annotations

from .counters import client_index

X_CONTROL = 0
X_INDEX = 8
X_MASK = 16
X_ROW = 24  # this client's row of the hazard matrix
X_ACCESS = 32
X_ACCESS_STRIDE = 40
X_ADDRESSES = 48  # address of a table: segment id -> read-only address, 0 where it is not mapped
X_TABLE = 56  # segment table
X_SLOT = 64
X_CLIENTS = 72
X_EPOCH = 80
X_PIN_TYPE = 88
X_OWNER = 96  # Python object that keeps the mappings alive; every pin holds a reference
X_NONE = 104
X_COUNTERS = 112
X_KINDS = 120  # address of a table: segment id -> tier kind, one byte each
X_FOUND_HEAD = 128
X_FOUND_ITEM = 136
X_SCRATCH = 144  # 112 bytes: sizes, a timespec, a Py_buffer
X_HASH_STATE = 256  # 72 bytes, then a stripe of 64 at 384
X_STRIPE = 384
X_SEGMENT_BYTES = 448
X_INJECT = 480  # 1: some tier plays a slower device, see inject.py
X_SLOT_NUMBER = 456
X_TRAP = 464  # step at which tests end this process (steps.py), then how many passes are left
X_PLACES = 512  # 16 words: hashes of the keys of one group
SESSION_BYTES = 640

COUNT_HITS = client_index("hits")
COUNT_MISSES = client_index("misses")
COUNT_READ = client_index("dram_bytes_read")  # then pmem, disk: in the order of tier kinds
COUNT_PUTS = client_index("puts")
COUNT_BYTES_PUT = client_index("bytes_put")
COUNT_COPIES = client_index("copies")
COUNT_CORRUPT = client_index("corrupt")
COUNT_WAITS = client_index("waits")

# A lease as the writer keeps it
L_SEGMENT = 0
L_BASE = 8  # writable address of the segment, 0: no lease
L_NEXT = 16  # offset of the next record
L_GENERATION = 24
L_FIRST = 32  # offset of the first record not yet published
L_WORD = 40  # the segment word while the lease holds
LEASE_BYTES = 64

# A request to append one record
Q_TARGET = 0
Q_LENGTH = 8
Q_GENERATION = 16
Q_PLACE = 24
Q_VERSION = 32
Q_KEY = 40
Q_KEY_BYTES = 48
Q_KIND = 56
Q_CODEC = 64
Q_BLOCK_INDEX = 72
Q_BLOCK_COUNT = 80
Q_EXPIRY = 88
Q_VALUE_BYTES = 96
Q_ROWS = 104
Q_POOL = 112
Q_CLASS = 120
Q_SCHEMA_BYTES = 128
Q_OBJECT_BYTES = 136
Q_OBJECT_ROWS = 144
Q_STORED_BYTES = 152
Q_PAYLOAD_BYTES = 160
Q_PIECES = 168  # address of pairs (source, bytes); each piece is padded to 64 bytes
Q_PIECE_COUNT = 176
Q_FLUSH = 184  # 1: flush the lines of the header too (persistent memory)
Q_STATE = 192  # 72 bytes of hash state
Q_TRAP = 272  # address of the trap words
Q_STRIPE = 320  # 64 bytes
REQUEST_BYTES = 384
