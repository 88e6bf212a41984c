"""A tier that knows nothing of the store's own file arenas takes part in the cascade."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import tierstore
from tierstore.emulation import check_tier
from tierstore.ringbuf import layout
from tierstore.ringbuf.region import Mapping
from tierstore.ringbuf.tier import Tier


class Shelf:
    """A slow tier in an anonymous file, which notes what is asked of it."""

    kind, compress, dax, warm = layout.KIND_DISK, False, False, False
    cost = (0, 0, 0, 0)
    name, mapped, durable, needs_sync = "disk", False, False, False

    def __init__(self, segment_count: int, segment_bytes: int):
        self.path, self.segment_bytes, self.segment_count = "the shelf", segment_bytes, segment_count
        self.first, self.fd = 0, -1
        self.mapping: Mapping | None = None
        self.calls: list[str] = []

    def known_store(self) -> bytes | None:
        return None

    def create(self, store_id: bytes) -> None:
        self.fd = os.memfd_create("shelf", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, layout.ARENA_HEADER_BYTES + self.segment_count * self.segment_bytes)
        self.calls.append("create")

    def offset_of(self, segment: int) -> int:
        return layout.ARENA_HEADER_BYTES + (segment - self.first) * self.segment_bytes

    def back(self, segment: int, hurry: bool = False) -> None:
        self.calls.append("back")

    def read(self, segment: int, offset: int, view: memoryview) -> int:
        self.calls.append("read")
        return os.preadv(self.fd, [view], self.offset_of(segment) + offset)

    def write(self, segment: int, offset: int, view: memoryview) -> None:
        self.calls.append("write")
        assert os.pwritev(self.fd, [view], self.offset_of(segment) + offset) == len(view)

    def sync(self) -> None:
        self.calls.append("sync")

    def reader_fd(self) -> int:
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def writer_fd(self) -> int:
        return -1

    def close(self, remove: bool) -> None:
        os.close(self.fd)
        self.calls.append("close")


def test_blocks_go_to_a_tier_of_the_users_own_and_come_back(tmp_path: Path) -> None:
    made_tiers: list[Shelf] = []

    def shelf_of(segment_bytes: int) -> Tier:
        made_tiers.append(Shelf(40, segment_bytes))
        assert isinstance(made_tiers[0], Tier)
        return made_tiers[0]

    made = {number: np.random.default_rng(number).bytes(400_000) for number in range(60)}
    with tierstore.open(dram="8MiB", segment="1MiB", tiers=[shelf_of]) as store:
        for number, value in made.items():  # 24 MB into 8 MiB of memory
            store.put_bytes(f"{number}", value, keep=True)
        for number, value in made.items():
            assert bytes(store.get_bytes(f"{number}")) == value
        assert store.stats()["tiers"]["disk"]["paths"] == ["the shelf"] and store.verify(payloads=True)["ok"]
    (shelf,) = made_tiers
    assert shelf.calls[0] == "create" and shelf.calls[-1] == "close"
    assert {"back", "write", "sync", "read"} <= set(shelf.calls)


def test_it_passes_the_suite() -> None:
    check_tier(lambda segment_bytes, count: Shelf(count, segment_bytes))
