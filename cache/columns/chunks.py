"""Column chunks in the store: one object each, a table of one column, under a key that names the bytes it came from.

    columns/PATH?VERSION#ROWGROUP/COLUMN/FORM

Path, version and column are percent-encoded, so the separators are unique. A changed file has another version and so
other keys: what is cached of the old one is not found any more, and goes when room is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf.codes import MAPPED
from tierstore.ringbuf.errors import TierstoreError

from ..block import decode_batch, decode_stream
from ..keys import check_key
from .forms import FORM

PREFIX = "columns/"
_DIGEST = "columns/~"  # of a path too long for a key
# One piece fits a segment of any size but the smallest, and is what is copied or evicted in one step.
PIECE_BYTES = 8 << 20
_ROW_STEP = 64
# For room: longer than moving a segment to a slow disk takes, shorter than a user of a query notices once.
ADMIT_WAIT_S = 2.0
_NAME = "c"  # of the one column, so that all chunks of a type share a schema message


class Place(NamedTuple):
    """What a key says."""

    path: str
    version: str
    row_group: int
    column: str


def file_prefix(path: str, version: str) -> str:
    """What the keys of all chunks of one version of a file begin with."""
    prefix = f"{PREFIX}{quote(path, errors='surrogateescape')}?{quote(version, safe='')}#"
    if len(prefix) > layout.KEY_BYTES_MAX - 512:
        return f"{_DIGEST}{hashlib.blake2b(prefix.encode(), digest_size=32).hexdigest()}#"
    return prefix


@lru_cache(maxsize=4096)
def _column_name(column: str, form: str) -> str:
    return f"{quote(column, safe='')}/{form}"


def chunk_key(prefix: str, row_group: int, column: str, form: str = FORM) -> str:
    """The key of a chunk."""
    key = f"{prefix}{row_group}/{_column_name(column, form)}"
    if len(key) > layout.KEY_BYTES_MAX:
        key = f"{_DIGEST}{hashlib.blake2b(key.encode(), digest_size=32).hexdigest()}#{row_group}/~/{form}"
    return key


def place_of(key: str) -> Place | None:
    """What a key names; None for a key of another kind, or of a path that was too long to be kept."""
    if not key.startswith(PREFIX) or key.startswith(_DIGEST):
        return None
    path, mark, rest = key[len(PREFIX) :].partition("?")
    version, hash_mark, rest = rest.partition("#")
    parts = rest.split("/")
    if not (mark and hash_mark) or len(parts) != 3 or not parts[0].isdigit():
        return None
    return Place(unquote(path, errors="surrogateescape"), unquote(version), int(parts[0]), unquote(parts[1]))


class Chunks:
    """Reads and writes the column chunks of one store; nothing of the store is held here, so that it can close."""

    def __init__(self, store: Any):
        self._store = store

    def is_mapped(self, key: str) -> bool:
        """Whether a chunk lies where it is read in place. Cost: 0.2 us; counts as no access."""
        return bool(self._store._native.contains(self._store._x, key) == MAPPED)

    def is_there(self, key: str) -> bool:
        """Whether a chunk is cached anywhere."""
        return key in self._store

    def read(self, key: str) -> list[pa.Array] | None:
        """The arrays of a chunk, over the store's memory (or read from disk); None if it is not cached, or not any more."""
        try:
            root = self._store._reader.find(key, 0, 0)
            if root is None:
                return None
            if root.kind == layout.KIND_BATCH and root.block_count == 1:
                payload = root.payload(False)
                schema = self._store._schemas.parse(payload.slice(0, root.schema_bytes).to_pybytes())
                arrays = [decode_batch(payload, schema, root.schema_bytes).column(0)]
            elif root.kind == layout.KIND_STREAM and root.block_count == 1:
                arrays = decode_stream(root.payload(False)).column(0).chunks
            else:
                return list(self._store.get(key).column(0).chunks)
        except TierstoreError:  # gone meanwhile, damaged, or no table; or the daemon is another one
            if self._store._closed:
                raise
            return None
        if self._store._session.injecting and root.head:
            self._store._session.charge(root.segment, root.payload_bytes)
        return list(arrays)

    def read_bytes(self, key: str) -> memoryview | None:
        """The bytes of an encoded chunk; None if it is not cached, or not any more."""
        try:
            return self._store.get_bytes(key)  # type: ignore[no-any-return]
        except TierstoreError:
            if self._store._closed:
                raise
            return None

    def write(self, key: str, arrays: list[pa.Array] | bytes, pool: str) -> None:
        """Admit a chunk: its arrays, or its encoded bytes. Raises what put() raises."""
        check_key(key)
        with self._store._session.patience(ADMIT_WAIT_S):
            if isinstance(arrays, bytes):
                self._store.put_bytes(key, arrays, pool=pool)
                return
            pieces = [pa.record_batch([piece], [_NAME]) for array in arrays for piece in cut(array)]
            self._store.put(key, pieces[0] if len(pieces) == 1 else pa.Table.from_batches(pieces), pool=pool)


def cut(array: pa.Array) -> Iterable[pa.Array]:
    """An array in pieces of at most PIECE_BYTES or so, each with bytes of its own."""
    size = array.get_total_buffer_size()
    if size <= PIECE_BYTES or len(array) <= _ROW_STEP:
        return [array]
    rows = max(_ROW_STEP, len(array) * PIECE_BYTES // size // _ROW_STEP * _ROW_STEP)
    return [array.slice(start, rows) for start in range(0, len(array), rows)]
