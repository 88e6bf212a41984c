"""What a power loss may leave behind, by hand: each rule of the model, and each variant of it."""

from __future__ import annotations

import random

import pytest

from tierstore.emulation.shadow import FENCE, FLUSH, LINE_BYTES, PAGE_BYTES, STORE, STREAM, SYNC, WRITE, Event, Shadow

ONE, TWO = b"\1" * 8, b"\2" * 8


def after(*events: Event, eadr: bool = False, size: int = 256) -> set[bytes]:
    shadow = Shadow(bytearray(size), eadr)
    for event in events:
        shadow.apply(event)
    return set(shadow.images(10_000, random.Random(1)))


def words(images: set[bytes], *offsets: int) -> set[tuple[int, ...]]:
    return {tuple(image[offset] for offset in offsets) for image in images}


def test_stores_to_a_line_arrive_in_order_and_lines_in_any() -> None:
    same = after(Event(STORE, 0, ONE), Event(STORE, 8, TWO))
    assert words(same, 0, 8) == {(0, 0), (1, 0), (1, 2)}
    other = after(Event(STORE, 0, ONE), Event(STORE, LINE_BYTES, TWO))
    assert words(other, 0, LINE_BYTES) == {(0, 0), (1, 0), (0, 2), (1, 2)}


def test_a_flush_counts_with_the_fence_and_for_what_was_stored_before() -> None:
    flushed = [Event(STORE, 0, ONE), Event(FLUSH, 0)]
    assert words(after(*flushed), 0) == {(0,), (1,)}
    assert words(after(*flushed, Event(FENCE)), 0) == {(1,)}
    assert words(after(Event(STORE, 0, ONE), Event(FENCE)), 0) == {(0,), (1,)}
    assert words(after(*flushed, Event(STORE, 0, TWO), Event(FENCE)), 0) == {(1,), (2,)}


def test_a_fence_speaks_for_its_own_processor() -> None:
    flushed = [Event(STORE, 0, ONE, cpu=1), Event(FLUSH, 0, cpu=1)]
    assert words(after(*flushed, Event(FENCE, cpu=0)), 0) == {(0,), (1,)}
    assert words(after(*flushed, Event(FENCE, cpu=1)), 0) == {(1,)}


def test_streams_need_a_fence_only_and_may_be_torn() -> None:
    line = Event(STREAM, 0, b"\1" * LINE_BYTES)
    assert words(after(line), 0, 63) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert words(after(line, Event(FENCE)), 0, 63) == {(1, 1)}


def test_eadr_keeps_stores_and_not_streams() -> None:
    assert words(after(Event(STORE, 0, ONE), eadr=True), 0) == {(1,)}
    assert len(after(Event(STREAM, 0, b"\1" * LINE_BYTES), eadr=True)) > 1


def test_pages_of_a_file_arrive_in_any_order_until_sync() -> None:
    write = Event(WRITE, 100, b"\1" * PAGE_BYTES)
    images = after(write, size=2 * PAGE_BYTES)
    assert words(images, 100, PAGE_BYTES + 50) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert words(after(write, Event(SYNC), size=2 * PAGE_BYTES), 100, PAGE_BYTES + 50) == {(1, 1)}


@pytest.mark.parametrize("limit", [4, 30])
def test_samples_hold_the_extremes_and_keep_to_their_size(limit: int) -> None:
    shadow = Shadow(bytearray(40 * LINE_BYTES))
    for line in range(40):
        shadow.apply(Event(STORE, line * LINE_BYTES, ONE))
    images = list(shadow.images(limit, random.Random(2)))
    assert shadow.count() == 2**40 and len(images) == limit
    assert shadow.latest() == ONE.ljust(LINE_BYTES, b"\0") * 40
