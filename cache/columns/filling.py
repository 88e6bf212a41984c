"""Filling: what is not cached is read from its file once, however many ask for it at the same time.

Who fills a row group of a file holds a lock for it: a mutex against other threads, and a POSIX byte-range lock against
other processes, which ends with its holder. Nobody waits for a second lock while holding one, so there is no deadlock.
Filling never fails a query: what cannot be admitted is handed out all the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tierstore.ringbuf.errors import Closed, Full, PeerLost, TierstoreError

from . import encoded
from .chunks import Chunks, cut
from .files import Source, Version
from .footers import Footer
from .forms import WIDE, is_text, narrow, wide
from .statistics import Counters

if TYPE_CHECKING:
    from .tables import Unit

# Byte offsets on the store's lock file: those of client slots are far below.
_LOCKS_FROM = 1 << 32
STRIPES = 4096
# Who waited so long for another process to fill reads for itself.
TURN_WAIT_S = 10.0
# After the daemon did not answer, nothing is admitted for this long.
DOWN_S = 5.0
# After a pool was full of what may not be evicted, nothing is admitted to it for this long: finding out takes a wait.
FULL_S = 30.0


class FileChanged(TierstoreError):
    """A file was replaced or rewritten while it was read; what was read of it is not used."""


class Filler:
    """Fills the cache of one store. Callers: any thread."""

    def __init__(self, store: Any):
        self.chunks = Chunks(store)
        self._store = store
        self._mutexes = [threading.Lock() for _ in range(STRIPES)]
        self._down_until = 0.0
        self._full_until: dict[str, float] = {}  # by pool
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._closed = False

    def pool(self) -> ThreadPoolExecutor:
        """The threads that fill and read ahead: one a processor."""
        with self._pool_lock:
            if self._closed:
                raise Closed("the store of this dataset was closed; open or connect again")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="tierstore-fill")
            return self._pool

    def close(self) -> None:
        """End the threads; what they do is finished first."""
        with self._pool_lock:
            self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def fill(
        self, unit: Unit, keys: dict[str, str], pool: str | None, counters: Counters, form: str
    ) -> dict[str, list[pa.Array]]:
        """The arrays of columns of one row group, by name: from the cache what is there, else from the file.

        keys: by column.  pool: where to admit what was read; None: nowhere.  form: that of the cached chunks.
        Raises: FileChanged, and what pyarrow raises for a file that cannot be read.
        """
        fills = {encoded.ENCODED: self._fill_encoded, WIDE: self._fill_wide}
        return fills.get(form, self._fill_decoded)(unit, keys, pool, counters)

    def _fill_decoded(
        self, unit: Unit, keys: dict[str, str], pool: str | None, counters: Counters
    ) -> dict[str, list[pa.Array]]:
        with self._turn(unit):
            found = {name: arrays for name, key in keys.items() if (arrays := self.chunks.read(key)) is not None}
            counters.hit(found.values())
            missing = [name for name in keys if name not in found]
            if missing:
                filled = self.read_through(unit, missing, counters)
                for name, arrays in filled.items():
                    self._admit(keys[name], arrays, pool, counters)
                found |= filled
        return found

    def _fill_wide(
        self, unit: Unit, keys: dict[str, str], pool: str | None, counters: Counters
    ) -> dict[str, list[pa.Array]]:
        """What is cached in the stored form is widened, and kept so too; what is not cached is kept in the stored form first.

        So a table that is read once takes no more room than it must. Two at once may widen the same; they write the same.
        """
        chunks = self.chunks
        found = {name: arrays for name, key in keys.items() if (arrays := chunks.read(key)) is not None}
        counters.hit(found.values())
        stored = {name: unit.file.key(unit.row_group, name) for name in keys if name not in found}
        again = {name for name, key in stored.items() if key != keys[name] and chunks.is_there(key)}
        found |= self._fill_decoded(unit, stored, pool, counters) if stored else {}
        for name in again:
            pieces = [wide(piece) for array in found[name] for piece in cut(array)]
            if pieces and all(piece is not None for piece in pieces):
                found[name] = pieces
                self._admit(keys[name], pieces, pool, counters)
        return found

    def _fill_encoded(
        self, unit: Unit, keys: dict[str, str], pool: str | None, counters: Counters
    ) -> dict[str, list[pa.Array]]:
        """Chunks are kept as they are in the file, and all are decoded now."""
        source, footer, start = unit.file.source, unit.file.footer, time.perf_counter()
        with self._turn(unit):
            found = {name: view for name, key in keys.items() if (view := self.chunks.read_bytes(key)) is not None}
            missing = [name for name in keys if name not in found]
            with _unchanged(source, unit.file.version):
                fresh = encoded.read(source, footer, unit.row_group, missing) if missing else {}
            for name, packed in fresh.items():
                self._admit(keys[name], packed, pool, counters)
        counters.add(hits=len(found), hit_bytes=sum(view.nbytes for view in found.values()))
        try:
            pieces = encoded.Pieces(footer, unit.row_group, {**found, **fresh})
            arrays = decode(pa.PythonFile(pieces, mode="r"), footer, unit.row_group, list(keys), coalesce=False)
        except (pa.ArrowException, OSError):  # what was cached is damaged, or the file is: then that raises too
            return self.read_through(unit, list(keys), counters)
        counters.filled([one for name in missing for one in arrays[name]], time.perf_counter() - start)
        return arrays

    def read_through(self, unit: Unit, columns: Sequence[str], counters: Counters) -> dict[str, list[pa.Array]]:
        """As fill(), past the cache."""
        source, start = unit.file.source, time.perf_counter()
        with _unchanged(source, unit.file.version):
            opened = source.open()
            try:
                arrays = decode(opened, unit.file.footer, unit.row_group, columns)
            finally:
                if not isinstance(opened, str):
                    opened.close()
        counters.filled([array for pieces in arrays.values() for array in pieces], time.perf_counter() - start)
        return arrays

    def _admit(self, key: str, arrays: list[pa.Array] | bytes, pool: str | None, counters: Counters) -> None:
        if pool is None:
            return
        now = time.monotonic()
        try:
            if now >= self._down_until and now >= self._full_until.get(pool, 0.0) and self._store._control.answers():
                self.chunks.write(key, arrays, pool)
                counters.add(admitted=1)
                return
        except Full:
            self._full_until[pool] = time.monotonic() + FULL_S
        except PeerLost:
            self._down_until = time.monotonic() + DOWN_S
        except (TierstoreError, pa.ArrowException):  # closed meanwhile, or of a kind that cannot be stored
            pass
        counters.add(refused=1)

    @contextlib.contextmanager
    def _turn(self, unit: Unit) -> Iterator[None]:
        """One filler at a time for a row group. Two may share a turn, which costs a wait and nothing else."""
        stripe = zlib.crc32(f"{unit.file.source.path}#{unit.row_group}".encode(errors="surrogateescape")) % STRIPES
        with self._mutexes[stripe]:
            locks_fd = self._store._session.grant.locks_fd
            if locks_fd < 0:  # embedded: there is no other process
                yield
                return
            locked = _lock(locks_fd, _LOCKS_FROM + stripe)
            try:
                yield
            finally:
                if locked:
                    fcntl.lockf(locks_fd, fcntl.LOCK_UN, 1, _LOCKS_FROM + stripe)


def _lock(fd: int, at: int) -> bool:
    """Take a byte's lock, or give up after TURN_WAIT_S: who holds it may have been stopped, and must not stop others.

    By trying again and again: the kernel takes threads that wait for each other's processes for a deadlock.
    """
    deadline, pause_s = time.monotonic() + TURN_WAIT_S, 0.0002
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.01)


def _check_unchanged(source: Source, version: Version, cause: BaseException | None) -> None:
    try:
        changed = source.has_changed(version)
    except OSError as error:
        if cause is not None:
            return  # the reader's own error says more
        raise FileChanged(f"{source.path} was removed while it was read ({error}); run the query again") from None
    if changed:
        raise FileChanged(f"{source.path} was changed while it was read; run the query again") from cause


@contextlib.contextmanager
def _unchanged(source: Source, version: Version) -> Iterator[None]:
    """What is read within this counts only if the file was that version to the end; else FileChanged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        _check_unchanged(source, version, error)
        raise
    _check_unchanged(source, version, None)


def decode(
    opened: Any, footer: Footer, row_group: int, columns: Sequence[str], coalesce: bool = True
) -> dict[str, list[pa.Array]]:
    """Columns of one row group as they are stored, read and decoded now, in this thread.

    opened: a path or an open file.  coalesce: read neighbouring columns at once, and what is between them.
    """
    text = [name for name in columns if is_text(footer.schema.field(name).type)]
    codes = [name for name in text if footer.is_coded(name, row_group)]
    leaves = [leaf for name in columns for leaf in footer.leaves(name)]  # by name, "a" would also mean "a.b"
    with pq.ParquetFile(
        opened, metadata=footer.metadata, read_dictionary=codes, pre_buffer=coalesce, page_checksum_verification=True
    ) as file:
        table = file.reader.read_row_group(row_group, column_indices=sorted(leaves), use_threads=False)
    return {name: narrow(table.column(name)) for name in columns}
