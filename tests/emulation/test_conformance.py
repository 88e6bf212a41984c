"""Our own implementations pass the suites, and the suites refuse what is wrong."""

from __future__ import annotations

import ctypes
import mmap
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tierstore.cache.policy import Policy
from tierstore.emulation import check_device, check_policy, check_ring, check_tier
from tierstore.emulation.device import Device, KernelDevice, LibpmemDevice, ShadowDevice
from tierstore.ringbuf import layout, pmem
from tierstore.ringbuf.arena import Arena
from tierstore.ringbuf.native import batch_kernels
from tierstore.ringbuf.tier import Tier

# --- devices ------------------------------------------------------------------------------------------------------------------

LIBPMEM = pytest.mark.skipif(pmem.library() is None, reason="libpmem is not installed (package libpmem1)")


@pytest.fixture(params=[KernelDevice, pytest.param(LibpmemDevice, marks=LIBPMEM)])
def on_file(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Device]:
    return lambda size: request.param(str(tmp_path / uuid.uuid4().hex), size)


def test_devices_on_files(on_file: Callable[[int], Device]) -> None:
    check_device(on_file)


@pytest.mark.parametrize("eadr", [False, True])
def test_shadow_device(eadr: bool) -> None:
    check_device(lambda size: ShadowDevice(size, eadr))


@LIBPMEM
def test_kernels_flush_through_libpmem() -> None:
    from tierstore.ringbuf import jit

    assert jit.SYMBOLS[pmem.FLUSH] == pmem.flush_address() != 0
    assert "libpmem" in pmem.describe()


def test_without_libpmem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pmem, "library", lambda: None)
    assert pmem.flush_address() == 0 and "not installed" in pmem.describe()
    with pytest.raises(OSError, match="libpmem1"):
        LibpmemDevice(str(tmp_path / "device"), 4096)


class Overruns(KernelDevice):
    """Streams whole lines."""

    def stream(self, offset: int, data: bytes) -> None:
        super().stream(offset, data + bytes(-len(data) % 64)[: self.size - offset - len(data)])


class Forgets(ShadowDevice):
    """Its fence does nothing."""

    def fence(self) -> None:
        """Forgotten."""


def test_bad_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="other bytes are there"):
        check_device(lambda size: Overruns(str(tmp_path / "device"), size))
    with pytest.raises(AssertionError, match="and lost"):
        check_device(Forgets)


# --- rings --------------------------------------------------------------------------------------------------------------------


class MessageRing:
    """The ring of messages in a client's slot."""

    capacity = layout.MESSAGE_COUNT

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, layout.SLOT_PAGE_BYTES + layout.RING_BYTES)
        self._slot = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def push(self, value: int) -> bool:
        return bool(batch_kernels().ring_push(self._slot, value))

    def pop(self) -> int | None:
        value = batch_kernels().ring_pop(self._slot)
        return None if value < 0 else value


class ListRing:
    """A plain one; with a fault, if one is named."""

    capacity = 8

    def __init__(self, fault: str = "") -> None:
        self._items: list[int] = []
        self._fault = fault

    def push(self, value: int) -> bool:
        if len(self._items) == self.capacity - (self._fault == "one less"):
            if self._fault == "overwrites":
                self._items = [*self._items[1:], value]
                return True
            return False
        self._items.append(value)
        return True

    def pop(self) -> int | None:
        return self._items.pop(-1 if self._fault == "last out" else 0) if self._items else None


def test_message_ring() -> None:
    check_ring(MessageRing, shared=True)


def test_bad_rings_are_refused() -> None:
    check_ring(ListRing)
    for fault in ("one less", "overwrites", "last out"):
        with pytest.raises(AssertionError, match="push|pop out of order"):
            check_ring(lambda: ListRing(fault))  # noqa: B023
    with pytest.raises(AssertionError, match="0 of 20000 values arrived"):
        check_ring(ListRing, shared=True)  # the child pushes into a ring of its own


# --- policies -----------------------------------------------------------------------------------------------------------------


def test_policy() -> None:
    check_policy(Policy)


class Blind(Policy):
    """Does not ask whether a segment may move."""

    def victim(self, pool: int, warmth: Any, cool: Any, movable: Any) -> int | None:
        return super().victim(pool, warmth, cool, lambda _: True)


class Cold(Policy):
    """Does not look at heat."""

    def victim(self, pool: int, warmth: Any, cool: Any, movable: Any) -> int | None:
        return super().victim(pool, lambda _: 0.0, cool, movable)


def test_bad_policies_are_refused() -> None:
    with pytest.raises(AssertionError, match="movable member|nobody may go"):
        check_policy(Blind)
    with pytest.raises(AssertionError, match="read all the time"):
        check_policy(Cold)


# --- tiers --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_memory() -> Iterator[Path]:
    path = Path(f"/dev/shm/tierstore-test-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    yield path
    path.unlink(missing_ok=True)


def arenas(kind: int, path: Path) -> Callable[[int, int], Tier]:
    return lambda size, count: Arena(kind, str(path), size, count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [layout.KIND_PMEM, layout.KIND_DISK])
def test_arenas_on_disk(kind: int, tmp_path: Path) -> None:
    check_tier(arenas(kind, tmp_path / "arena"))


@pytest.mark.slow
def test_arena_in_memory(in_memory: Path) -> None:
    check_tier(arenas(layout.KIND_PMEM, in_memory))


class Shifted(Arena):
    """Reads a page too early."""

    def read(self, segment: int, offset: int, view: memoryview) -> int:
        return super().read(segment, max(0, offset - 4096), view)


class Amnesiac(Arena):
    """Takes anybody's data for its own."""

    def _check_existing(self, size: int, store_id: bytes) -> None:
        self.sequence = 1


@pytest.mark.parametrize(("wrong", "message"), [(Shifted, "other bytes than were written"), (Amnesiac, "must refuse")])
def test_bad_tiers_are_refused(wrong: type[Arena], message: str, tmp_path: Path) -> None:
    made: list[Arena] = []

    def make(size: int, count: int) -> Tier:
        made.append(wrong(layout.KIND_DISK, str(tmp_path / "arena"), size, count))
        return made[-1]

    with pytest.raises(AssertionError, match=message):
        check_tier(make)
    for arena in made:
        arena.close(remove=True)
