"""Suites that judge an implementation of an interface, ours or yours: call them from one line of your tests.

Each takes a maker and raises AssertionError with the promise that was broken. ``check_device`` and ``check_ring`` take under a
second, ``check_policy`` about one, ``check_tier`` a few: it also runs a store on the tier.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

import tierstore
from tierstore.cache.policy import Policy
from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import ConfigError
from tierstore.ringbuf.tier import Tier

from .device import LINE_BYTES, Device, ShadowDevice

PAGE_BYTES = 4096
STORE_ID, OTHER_ID = b"conformance test", b"another  store !"
SEGMENT_BYTES, SEGMENT_COUNT = 1 << 20, 24
PATIENCE_S = 3.0  # a producer whose ring stays full for so long gives up


class Ring(Protocol):
    """A bounded ring of one producer and one consumer, which may be different processes."""

    capacity: int

    def push(self, value: int) -> bool:
        """Append a value from 0 to 2**62; False, and nothing done, where the ring is full. Producer."""

    def pop(self) -> int | None:
        """The value pushed longest ago; None where the ring is empty. Consumer."""


# --- devices ------------------------------------------------------------------------------------------------------------------


def check_device(make: Callable[[int], Device], seed: int = 1) -> None:
    """A device holds what was stored, whatever the alignment, and touches nothing beside it.

    make: a device of so many bytes, all zero. One that records (``ShadowDevice``) is also asked what a power loss leaves.
    """
    size, generator = 64 * PAGE_BYTES, random.Random(seed)
    device, twin = make(size), bytearray(size)
    assert isinstance(device, Device), f"{type(device).__name__} lacks a method of Device"
    assert device.size == size and device.load(0, size) == bytes(twin), "a new device has its size and holds zeros"
    edges = (0, 1, 7, 8, LINE_BYTES - 1, LINE_BYTES, LINE_BYTES + 1, 3 * LINE_BYTES, PAGE_BYTES - 1, 5 * PAGE_BYTES + 3)
    for round_ in range(400):
        length = generator.choice(edges)
        offset = generator.choice((0, size - length, generator.randrange(0, size - length + 1)))
        data = generator.randbytes(length)
        (device.store if round_ % 2 else device.stream)(offset, data)
        twin[offset : offset + length] = data
        if round_ % 3 == 0:
            device.flush(offset, length)
            device.fence()
        before, after = max(0, offset - PAGE_BYTES), min(size, offset + length + PAGE_BYTES)
        what = f"{'store' if round_ % 2 else 'stream'} of {length} bytes at {offset}"
        assert device.load(before, after - before) == bytes(twin[before:after]), (
            f"{what}: other bytes are there (seed {seed})"
        )
    assert device.load(0, size) == bytes(twin), f"the whole device differs from its twin (seed {seed})"
    if isinstance(device, ShadowDevice):
        _check_power_loss(make, generator)
    device.close()


def _check_power_loss(make: Callable[[int], Device], generator: random.Random) -> None:
    """What was flushed and fenced, or streamed and fenced, is in every image; what was only stored is in some."""
    device = make(PAGE_BYTES)
    assert isinstance(device, ShadowDevice)
    device.store(100, b"flushed")
    device.flush(100, 7)
    device.stream(1000, b"streamed")
    device.fence()
    device.store(2000, b"stored")
    images = list(device.shadow.images(64, generator))
    assert all(image[100:107] == b"flushed" for image in images), "flushed and fenced, and lost"
    assert all(image[1000:1008] == b"streamed" for image in images), "streamed and fenced, and lost"
    assert any(image[2000:2006] == b"stored" for image in images), "stores may reach the medium at any time"


# --- rings --------------------------------------------------------------------------------------------------------------------


def check_ring(make: Callable[[], Ring], seed: int = 1, shared: bool = False) -> None:
    """First in, first out; full and empty are told; nothing is lost or doubled, also round the end many times.

    make: an empty ring. shared: the ring lies in memory that a forked child shares; then a child pushes while we pop.
    """
    generator = random.Random(seed)
    ring, twin, pushed = make(), list[int](), 0
    assert ring.pop() is None, "a new ring is empty"
    for _ in range(40):
        for _ in range(generator.choice((1, 2, ring.capacity // 2, ring.capacity + 2))):
            done = ring.push(pushed)
            assert done == (len(twin) < ring.capacity), (
                f"push {pushed} with {len(twin)} of {ring.capacity} (seed {seed})"
            )
            if done:
                twin.append(pushed)
                pushed += 1
        for _ in range(generator.choice((1, ring.capacity // 2, ring.capacity + 2))):
            assert ring.pop() == (twin.pop(0) if twin else None), f"pop out of order (seed {seed})"
    assert pushed > 3 * ring.capacity, "the ring did not go round"
    if shared:
        _check_two_processes(make())


def _check_two_processes(ring: Ring, count: int = 20_000) -> None:
    child = os.fork()
    if child == 0:
        sent, deadline = 0, time.monotonic() + PATIENCE_S
        while sent < count and time.monotonic() < deadline:
            if ring.push(sent):
                sent, deadline = sent + 1, time.monotonic() + PATIENCE_S
        os._exit(0)
    got: list[int] = []
    while len(got) < count:
        value = ring.pop()
        if value is not None:
            got.append(value)
            assert value == len(got) - 1, f"value {value} came at place {len(got) - 1}"
        elif os.waitpid(child, os.WNOHANG)[0]:
            child = 0
            got += iter(ring.pop, None)
            break
    if child:
        os.waitpid(child, 0)
    assert got == list(range(count)), f"{len(got)} of {count} values arrived"


# --- policies -----------------------------------------------------------------------------------------------------------------


def check_policy(make: Callable[[], Policy], seed: int = 1) -> None:
    """A policy names only members that may move, of the pool that is asked for; looks at heat; and comes to an end.

    make: a policy without members.
    """
    generator, policy = random.Random(seed), make()
    twin: dict[int, int] = {}
    heat: dict[int, float] = {}

    def cool(segment: int) -> None:
        heat[segment] = 0.0

    def never(segment: int) -> bool:
        return False

    assert policy.victim(0, heat.__getitem__, cool, lambda _: True) is None, "nobody is there to go"
    for _ in range(2000):
        segment, pool = generator.randrange(60), generator.randrange(3)
        action = generator.random()
        if action < 0.5:
            policy.add(segment, pool, warm=generator.random() < 0.2)
            twin[segment], heat[segment] = pool, 0.0
        elif action < 0.7:
            policy.discard(segment)
            twin.pop(segment, None)
        elif action < 0.8 and twin:
            heat[generator.choice(list(twin))] = 1.0
        else:
            held = {each for each in twin if generator.random() < 0.3}
            chosen = policy.victim(pool, heat.__getitem__, cool, lambda each: each not in held)  # noqa: B023
            members = {each for each, where in twin.items() if where == pool}
            assert chosen is None or chosen in members - held, (
                f"{chosen} is not a movable member of pool {pool} (seed {seed})"
            )
            assert (chosen is None) == (not members - held), f"somebody of pool {pool} could go (seed {seed})"
            assert policy.victim(pool, heat.__getitem__, cool, never) is None, "nobody may go"
        assert sorted(policy.members()) == sorted(twin) and len(policy) == len(twin), f"members differ (seed {seed})"
        assert (segment in policy) == (segment in twin)
    _check_heat(make())


def _check_heat(policy: Policy) -> None:
    """Of many that were never read and one that always is, the one goes last; all go in the end."""
    for segment in range(20):
        policy.add(segment, 0)
    gone = []
    while len(policy):
        chosen = policy.victim(0, lambda each: float(each == 7), lambda _: None, lambda _: True)
        assert chosen is not None, f"{len(policy)} members, and nobody goes"
        policy.discard(chosen)
        gone.append(chosen)
    assert sorted(gone) == list(range(20)) and gone[-1] == 7, f"segment 7 is read all the time; the order was {gone}"


# --- tiers --------------------------------------------------------------------------------------------------------------------


def check_tier(make: Callable[[int, int], Tier]) -> None:
    """A tier keeps segments apart, returns what was written, and takes part in a store below ``dram``.

    make: a tier of (segment bytes, segment count) of the kind pmem or disk, each time of the same place: a durable tier is made
    anew, and must have kept what was there.
    """
    tier = make(SEGMENT_BYTES, SEGMENT_COUNT)
    assert isinstance(tier, Tier), f"{type(tier).__name__} lacks an attribute of Tier"
    assert tier.kind in (layout.KIND_PMEM, layout.KIND_DISK), "the suite puts dram above the tier"
    assert tier.known_store() is None, "known_store() of a tier that was never created is None, and creates nothing"
    tier.first = 3  # as in a store with other tiers before this one
    tier.create(STORE_ID)
    assert not tier.warm, "a tier created for the first time is not warm"
    assert tier.mapped == (tier.mapping is not None), "mapped tiers have a mapping, others none"
    segments = [3, 4, 3 + SEGMENT_COUNT - 1]
    offsets = [tier.offset_of(segment) for segment in range(3, 3 + SEGMENT_COUNT)]
    steps = {after - before for before, after in zip(offsets, offsets[1:], strict=False)}
    assert steps == {SEGMENT_BYTES} and offsets[0] % PAGE_BYTES == 0, "segments lie side by side, from a page's start"
    written = _check_pages(tier, segments)
    _check_descriptors(tier, segments[0], written)
    durable = tier.durable
    tier.close(remove=not durable)
    if durable:
        _check_warm(make, segments, written)
    _check_in_store(make)


def _page_aligned(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


def _check_pages(tier: Tier, segments: list[int]) -> dict[int, bytes]:
    """The first and the last pages of segments are written and read back; neighbours stay as they are."""
    written = {}
    for segment in segments:
        tier.back(segment)
        tier.back(segment)  # again: nothing happens
        data = np.random.default_rng(segment).bytes(2 * PAGE_BYTES)
        page = _page_aligned(2 * PAGE_BYTES)
        page[:] = data
        tier.write(segment, 0, page)
        tier.write(segment, SEGMENT_BYTES - 2 * PAGE_BYTES, page)
        written[segment] = data
    tier.sync()
    for segment, data in written.items():
        page = _page_aligned(2 * PAGE_BYTES)
        for offset in (0, SEGMENT_BYTES - 2 * PAGE_BYTES):
            assert tier.read(segment, offset, page) == len(page), f"segment {segment} at {offset}: too few bytes"
            assert bytes(page) == data, f"segment {segment} at {offset}: other bytes than were written"
        through_fd = os.pread(tier.fd, len(data), tier.offset_of(segment))
        assert through_fd == data, f"segment {segment}: fd does not see what write() wrote"
    return written


def _check_descriptors(tier: Tier, segment: int, written: dict[int, bytes]) -> None:
    """Clients' descriptors are their own; a reader's cannot write."""
    reader, other, writer = tier.reader_fd(), tier.reader_fd(), tier.writer_fd()
    assert len({reader, other, tier.fd}) == 3, "each call gives a descriptor of its own"
    page = _page_aligned(PAGE_BYTES)
    assert os.preadv(reader, [page], tier.offset_of(segment)) == PAGE_BYTES
    assert bytes(page) == written[segment][:PAGE_BYTES], "a client reads other bytes than the daemon wrote"
    try:
        os.pwrite(reader, b"x", tier.offset_of(segment))
    except OSError:
        pass
    else:
        raise AssertionError("a reader's descriptor must not be able to write")
    for fd in (reader, other, writer):
        if fd >= 0:
            os.close(fd)


def _check_warm(make: Callable[[int, int], Tier], segments: list[int], written: dict[int, bytes]) -> None:
    """What was synced is there after a new start, for the same store and geometry only."""
    again = make(SEGMENT_BYTES, SEGMENT_COUNT)
    assert again.known_store() == STORE_ID, "a durable tier knows whose data it holds"
    for other, store_id in (
        (make(SEGMENT_BYTES, SEGMENT_COUNT + 1), STORE_ID),
        (make(SEGMENT_BYTES, SEGMENT_COUNT), OTHER_ID),
    ):
        try:
            other.create(store_id)
        except ConfigError:
            continue
        raise AssertionError("create() must refuse another geometry, and the data of another store")
    again.first = 3
    again.create(STORE_ID)
    assert again.warm, "a tier that was there before is warm"
    for segment in segments:
        page = _page_aligned(2 * PAGE_BYTES)
        again.read(segment, 0, page)
        assert bytes(page) == written[segment], f"segment {segment} lost what was synced"
    again.close(remove=True)
    assert make(SEGMENT_BYTES, SEGMENT_COUNT).known_store() is None, "close(remove=True) removes the data"


def _check_in_store(make: Callable[[int, int], Tier]) -> None:
    """A store whose data outgrow ``dram`` keeps all of them, and reads them back whole."""
    made = {f"key {number}": np.random.default_rng(number).bytes(300_000) for number in range(50)}
    options = {"dram": "6MiB", "segment": "1MiB"}
    with tierstore.open(tiers=[lambda size: make(size, SEGMENT_COUNT)], **options) as store:  # type: ignore[arg-type]
        for key, value in made.items():
            store.put_bytes(key, value, keep=True)
        for key, value in made.items():
            assert bytes(store.get_bytes(key)) == value, f"{key} came back changed"
        for key in list(made)[::2]:
            store.delete(key)
        assert sorted(store.keys()) == sorted(list(made)[1::2]), "deleted keys are gone, the others are there"
        report = store.verify(payloads=True)
        assert report["ok"], report["problems"]
