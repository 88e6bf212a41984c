"""The encoded form: a chunk's bytes as they are in the file, decoded anew by each scan.

It takes the room of the Parquet file, not that of the values: for tables that are read seldom, or from far away.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from .files import Source
from .footers import Footer

ENCODED = "e1"  # its name in keys
Packed = bytes | memoryview


def ranges(footer: Footer, row_group: int, column: str) -> list[tuple[int, int]]:
    """Where the leaves of a column lie in the file: offset and bytes of each."""
    group, found = footer.metadata.row_group(row_group), []
    for leaf in footer.leaves(column):
        chunk = group.column(leaf)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        found.append((start, chunk.total_compressed_size))
    return found


def read(source: Source, footer: Footer, row_group: int, columns: Sequence[str]) -> dict[str, bytes]:
    """The bytes of columns, the leaves of each one behind the other. Raises OSError if the file is shorter than it says."""
    found = {}
    with source.open_bytes() as opened:
        for name in columns:
            parts = []
            for offset, size in ranges(footer, row_group, name):
                opened.seek(offset)
                part = opened.read(size)
                if len(part) != size:
                    raise OSError(f"{source.path} ends at {offset + len(part)}, within column {name!r}")
                parts.append(part)
            found[name] = b"".join(parts)
    return found


class Pieces(io.RawIOBase):
    """A file of which only some columns are at hand. Whoever reads elsewhere gets an OSError."""

    def __init__(self, footer: Footer, row_group: int, columns: Mapping[str, Packed]):
        self._pieces: list[tuple[int, memoryview]] = []
        for name, packed in columns.items():
            view, position = memoryview(packed).cast("B"), 0
            for offset, size in ranges(footer, row_group, name):
                self._pieces.append((offset, view[position : position + size]))
                position += size
        self._size = max((offset + len(view) for offset, view in self._pieces), default=0)
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> Any:
        """Bytes of one column."""
        for offset, view in self._pieces:
            if offset <= self._at < offset + len(view):
                start = self._at - offset
                part = view[start : start + size if size >= 0 else None]
                self._at += len(part)
                return part
        raise OSError(f"no column at hand covers byte {self._at}")
