"""For packages above: bytes larger than a segment that are contiguous where they are read, without a copy.

They are cut into pieces, each an object of one block with its bytes on page boundaries. A reader maps the pieces one behind
the other, so an array of any size is one range of addresses over pages of the store.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import NotFound
from tierstore.ringbuf.region import HUGE_PAGE_BYTES, PAGE_BYTES, Pages, forget_pages, round_up

from .lean import Lean
from .placing import put_placed, room_for
from .reading import Found
from .record import payload_start
from .store import Store

UNUSED_PART = 8  # less than an eighth of a segment may stay unused for the sake of huge pages

_mapped: weakref.WeakSet[Pages] = weakref.WeakSet()


def piece_bytes(store: Store, key_bytes: int, pool: str, group: str) -> int:
    """How many bytes one piece holds at most.

    Whole huge pages where that leaves little of a segment unused: then all pieces can be mapped with them, one behind the other.
    """
    _, empty = room_for(store, key_bytes, pool, group)
    room = empty - PAGE_BYTES
    huge = room // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    return int(huge if huge > room - room // UNUSED_PART else room // PAGE_BYTES * PAGE_BYTES)


class Piece(NamedTuple):
    """One piece. lead: of its payload, before its bytes begin."""

    key: str
    lead: int
    size: int


def put_piece(store: Store, key: str, address: int, size: int, *, pool: str, group: str) -> Piece:
    """Store bytes that lie at an address as one piece, class KEEP. Cost: one copy. Raises Full."""
    payload_bytes = round_up(size, 64) + PAGE_BYTES
    lead = 0

    def fill(target: int) -> None:
        nonlocal lead
        lead = round_up(target, PAGE_BYTES) - target
        ctypes.memset(target, 0, lead)
        ctypes.memmove(target + lead, address, size)
        ctypes.memset(target + lead + size, 0, payload_bytes - lead - size)

    put_placed(store, key, layout.KIND_BYTES, 0, payload_bytes, 0, fill, pool=pool, group=group)
    return Piece(key, lead, size)


def get_pieces(lean: Lean, pieces: list[Piece]) -> pa.Buffer:
    """The bytes of pieces, one behind the other, all but the last of whole pages. In place in mapped tiers and on disk.

    A piece that was moved to where it does not begin with a page, or is compressed, is copied: that happens to pieces that
    share a segment with others, so to the last ones.
    Lives: until the last view is gone; until then the pieces stay where they are.  Raises NotFound.
    """
    found = [_piece(lean, piece.key) for piece in pieces]
    payloads = [one.payload(False) for one in found]
    if len(found) == 1:
        return pa.foreign_buffer(payloads[0].address + pieces[0].lead, pieces[0].size, payloads[0])
    places = [_place(lean, piece, one) for piece, one in zip(pieces, found, strict=True)]
    pages = Pages([(*place, piece.size) for place, piece in zip(places, pieces, strict=True)])
    _mapped.add(pages)
    held = [payload for payload, (fd, _) in zip(payloads, places, strict=True) if fd >= 0]
    return pa.foreign_buffer(pages.address, sum(piece.size for piece in pieces), (pages, held))


def _piece(lean: Lean, key: str) -> Found:
    found = lean.root(key)
    if found is None:
        raise NotFound(f"key {key!r:.200} is not in the store")
    return found


def _place(lean: Lean, piece: Piece, found: Found) -> tuple[int, int]:
    """Descriptor and offset of the arena pages that hold a piece's bytes; else -1 and their address."""
    session: Any = lean._session
    number = lean._reader.arena_number(found.segment)
    arena = session.grant.arenas[number]
    base = layout.ARENA_HEADER_BYTES + (found.segment - arena.first) * session.grant.segment_bytes
    record = base + (found.item & layout.GRANULE_MASK) * layout.GRANULE
    payload = record + payload_start(len(piece.key.encode()))
    if (payload + piece.lead) % PAGE_BYTES or not _same(found, payload, session, number, lean):
        return -1, found.payload(False).address + piece.lead
    return int(session.grant.arena_fds[number]), payload + piece.lead


def _same(found: Found, offset: int, session: Any, number: int, lean: Lean) -> bool:
    """Whether a block lies in the mapping of its arena, at this offset of the file."""
    arena, address = session.grant.arenas[number], found.payload(False).address
    if arena.mapped:
        within = offset - layout.ARENA_HEADER_BYTES - (found.segment - arena.first) * session.grant.segment_bytes
        return bool(address == int(session.addresses[found.segment]) + within)
    return bool(number in lean._mappings and address == lean._mappings[number].address + offset)


def forget_mapped(store: Store) -> None:
    """Take the store's pages out of this process's resident set. Nothing is lost: who touches them enters them again."""
    ranges = [(mapping.address, mapping.size) for mapping in store._session._maps]
    for address, size in [*ranges, *((pages.address, pages.size) for pages in list(_mapped))]:
        forget_pages(address, size)
