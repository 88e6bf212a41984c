"""What an agent does for cached data of Spark: batches that tasks put into the store, map again, and let go.

A cache is kept as a shuffle numbered from CACHE_FIRST (shuffle/names.py) whose attempts are never committed: so its bytes count
towards the application's quota, and go when it is dropped, when the application ends, and when the application's lease ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tierstore.cache.placing import Placing, arena_of, end_group, put_large_bytes
from tierstore.cache.reading import Found, corrupt
from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import Full, NotFound
from tierstore.shuffle.names import check_attempt, parse

if TYPE_CHECKING:
    from tierstore.service.store import Store

    from .spark_agent_calls import Answer, Calls

MAPPED_BYTES = 16 << 20  # of one answer that has to be sent; a larger batch comes alone
ABSENT = -2  # in place of an arena: there is no such key
ROOM_WAIT_S = 2.0  # that a task waits for room: cached data can be Spark's to keep
ROOM_SHARE = 16  # of so many segments one is left to shuffles and other data that must be kept
OPEN_SEGMENTS = 2  # that are not counted: what is being filled, and what moves need
GROUP_IDLE_S = 30.0  # then the open segment of a cache is given back: most are filled once


def block(
    calls: Calls,
    _: bytearray,
    app: str,
    shuffle: int,
    map: int,
    attempt: str,
    sequence: int,
    nonce: str,
    size: int,
    pool: str = "default",
) -> Answer:
    """Room for one batch of a cache; then seal or cancel. Raises Full, Expired, NotFound, ValueError."""
    key = _reserved(calls, app, shuffle, map, attempt, sequence, nonce, size)
    with calls._store._session.patience(ROOM_WAIT_S):
        placing = Placing(calls._store, key, size, pool=pool, group=_group(calls, app, shuffle))
    number = calls._number()
    calls._placings[number] = placing
    return {"id": number, "key": key, "arena": placing.arena, "offset": placing.offset}, []


def block_put(
    calls: Calls,
    body: bytearray,
    app: str,
    shuffle: int,
    map: int,
    attempt: str,
    sequence: int,
    nonce: str,
    pool: str = "default",
) -> Answer:
    """As block() and seal, for a batch of any size."""
    key = _reserved(calls, app, shuffle, map, attempt, sequence, nonce, len(body))
    with calls._store._session.patience(ROOM_WAIT_S):
        hashed = put_large_bytes(calls._store, key, body, pool=pool, group=_group(calls, app, shuffle))
    return {"key": key, "hash": f"{hashed:016x}"}, []


def _reserved(
    calls: Calls, app: str, shuffle: int, map: int, attempt: str, sequence: int, nonce: str, size: int
) -> str:
    """The key of a batch, which the registry now knows to belong to the application."""
    if not has_room(calls._store):
        raise Full(
            f"the last {ROOM_SHARE}th of the store is not for cached data of Spark, but for its shuffles and for others"
        )
    name = check_attempt(app, shuffle, map, attempt)
    asked = {"app": app, "shuffle": shuffle, "map_index": map, "attempt": attempt}
    if not calls._store._control.call("shuffle_reserve", **asked, sequence=sequence, size=size, nonce=nonce):
        raise Full(f"{size} bytes more are not within the quota of application {app!r}")
    return name.run(sequence, nonce)


def has_room(store: Store) -> bool:
    """Whether what must be kept leaves more than a share of all segments. Cost: some microseconds.

    Segments that are less than half full count by what is live in them, doubled: the store takes idle leases back, and moves
    what several segments hold into one, where there is no other room.
    """
    session = store._session
    count, width = session.grant.segment_count, layout.SEGMENT_ENTRY_BYTES // 8
    words = (ctypes.c_uint64 * (count * width)).from_address(session.control.address + layout.CONTROL_HEADER_BYTES)
    table = np.ctypeslib.as_array(words).reshape(count, width)
    states, classes = table[:, layout.S_WORD // 8] >> layout.STATE_SHIFT, table[:, layout.S_CLASS // 8]
    usable = (states != layout.STATE_UNBACKED) & (states != layout.STATE_QUARANTINED)
    kept = usable & (states != layout.STATE_FREE) & (classes != layout.CLASS_CACHE)
    live = table[kept, layout.S_LIVE_BYTES // 8] / session.grant.segment_bytes
    sparse = live < 0.5
    taken = float((~sparse).sum() + live[sparse].sum() * 2)
    return taken + OPEN_SEGMENTS < float(usable.sum()) * (1 - 1 / ROOM_SHARE)


def _group(calls: Calls, app: str, shuffle: int) -> str:
    """The group of a cache. Segments of caches that nobody writes to any more are given back meanwhile."""
    group, now, used = f"{app}/{shuffle}", time.monotonic(), calls._shared.groups
    for other in [other for other, last in list(used.items()) if now - last > GROUP_IDLE_S and other != group]:
        used.pop(other, None)
        end_group(calls._store, other)
    used[group] = now
    return group


def map_blocks(calls: Calls, _: bytearray, keys: list[str], hashes: list[str], release: list[int]) -> Answer:
    """Give up pins, and pin batches: for each key id, arena, offset, size. Not all of them if they have to be sent.

    hashes: what seal said; compared where a batch lies on disk.
    """
    for number in release:
        calls._pins.pop(number, None)
    told: list[list[int]] = []
    parts: list[Any] = []
    sent, session = 0, calls._store._session
    for key, hashed in zip(keys, hashes, strict=True):
        root = calls._shared.lean.root(key)
        if root is not None and not root.head:
            _check(calls, root, hashed)
        if root is None:
            told.append([0, ABSENT, 0, 0])
            continue
        buffer, _parts = calls._shared.lean.bytes(key)
        if session.injecting and root.head:
            session.charge(root.segment, buffer.size)  # the JVM reads it at the speed of memory
        place = arena_of(calls._store, calls._shared.lean, buffer.address, buffer.size)
        if place is None:
            if told and sent + buffer.size > MAPPED_BYTES:
                break
            sent += buffer.size
            parts.append(buffer)
            told.append([0, -1, 0, buffer.size])
            continue
        number = calls._number()
        calls._pins[number] = buffer
        told.append([number, *place, buffer.size])
    return {"blocks": told}, parts


def _check(calls: Calls, root: Found, expected: str) -> None:
    """A batch on disk is what was written. Raises CorruptionError."""
    if root.block_count > 1 or not root.payload_bytes:
        return
    session, payload, state = calls._store._session, root.payload(False), (ctypes.c_uint64 * 9)()
    found = session.native.hash_payload(payload.address, payload.size, ctypes.addressof(state)) & ((1 << 64) - 1)
    if f"{found:016x}" != expected:
        corrupt(session, root.item, f"payload hash {expected}", f"{found:016x}")


def forget(calls: Calls, _: bytearray, key: str) -> Answer:
    """A batch is lost, and with it the use of the others of its attempt: delete them."""
    name = parse(key)
    if name is not None and name.attempt is not None:
        with contextlib.suppress(NotFound):
            calls._store._control.call(
                "shuffle_abort", app=name.app, shuffle=name.shuffle, map_index=name.map_index, attempt=name.attempt
            )
    return {}, []


def uncache(calls: Calls, body: bytearray, app: str, shuffle: int) -> Answer:
    """A cache is not wanted any more."""
    group = f"{app}/{shuffle}"
    if calls._shared.groups.pop(group, None) is not None:
        end_group(calls._store, group)
    return calls.drop(body, app, shuffle)


TABLE = {"block": block, "block_put": block_put, "map": map_blocks, "forget": forget, "uncache": uncache}
