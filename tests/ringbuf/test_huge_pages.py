"""Memory in huge pages: what was asked for, what ranges of it are mapped with, and that contents stay."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

import tierstore
from tierstore.ringbuf import region
from tierstore.ringbuf.region import HUGE_PAGE_BYTES, PAGE_BYTES, Mapping, Pages

MEMORY = "/dev/shm"
KIB = 1 << 10

needs_collapse = pytest.mark.skipif(not region.collapse_works(MEMORY), reason="huge pages cannot be asked for here")


def in_huge_pages(address: int, size: int) -> int:
    """Bytes of a range that this process has mapped with huge pages."""
    found, inside = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            name, *rest = line.split()
            if not name.endswith(":"):
                start, end = (int(part, 16) for part in name.split("-"))
                inside = start < address + size and address < end
            elif inside and name == "ShmemPmdMapped:":
                found += int(rest[0]) * KIB
    return found


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.open(MEMORY, os.O_TMPFILE | os.O_RDWR)
    os.truncate(fd, 12 * HUGE_PAGE_BYTES)
    yield fd
    os.close(fd)


def fill(fd: int) -> np.ndarray:
    content = np.random.default_rng(1).integers(0, 256, 12 * HUGE_PAGE_BYTES, "u1")
    assert os.pwrite(fd, content, 0) == content.nbytes
    return content


def bytes_of(pages: Pages, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pages.address))


@needs_collapse
def test_collapse_keeps_contents(file: int) -> None:
    content = fill(file)
    mapping = Mapping(file, content.nbytes, writable=True, huge=True)
    with mmap.mmap(file, 0) as other:
        other[5], content[5] = 7, 7
        assert region.collapse(mapping.address, mapping.size)
        other[6], content[6] = 8, 8
        assert np.array_equal(np.frombuffer(other[:], "u1"), content)
    assert in_huge_pages(mapping.address, mapping.size) == mapping.size


@needs_collapse
def test_a_range_of_parts_is_mapped_with_huge_pages(file: int) -> None:
    content = fill(file)
    mapping = Mapping(file, content.nbytes, writable=True, huge=True)
    assert region.collapse(mapping.address, mapping.size)
    lead, size = 2 * PAGE_BYTES, 3 * HUGE_PAGE_BYTES
    places = [8 * HUGE_PAGE_BYTES + lead, 4 * HUGE_PAGE_BYTES + lead, lead]
    pages = Pages([(file, place, size) for place in places])
    expected = np.concatenate([content[place : place + size] for place in places])
    assert np.array_equal(bytes_of(pages, 3 * size), expected)
    assert in_huge_pages(pages.address, 3 * size) == 6 * HUGE_PAGE_BYTES  # each part begins and ends within one


@pytest.mark.parametrize("shift", [0, 1, 37, 511])
def test_ranges_of_parts_that_do_not_fit_each_other(file: int, shift: int) -> None:
    content = fill(file)
    parts = [(file, shift * PAGE_BYTES, 5 * PAGE_BYTES), (file, 3 * PAGE_BYTES, HUGE_PAGE_BYTES)]
    last = content[77 : 77 + 1000]
    pages = Pages([*parts, (-1, last.ctypes.data, last.nbytes)])
    expected = np.concatenate([*(content[place : place + size] for _, place, size in parts), last])
    assert np.array_equal(bytes_of(pages, len(expected)), expected)


@needs_collapse
@pytest.mark.parametrize("segment", ["1MiB", "4MiB"])
def test_a_store_in_memory_lies_in_huge_pages(segment: str) -> None:
    """Also where segments, which are larger than values by a sixteenth, do not begin on huge pages."""
    with tierstore.open(dram="24MiB", segment=segment) as store:
        [mapping, *_] = [one for one in store._session._maps if one.size > 20 << 20]
        value = os.urandom(900 * KIB)
        store.put_many([(f"{number}", value) for number in range(8)], keep=True)
        assert all(bytes(store.get_bytes(f"{number}")) == value for number in range(8))
        assert in_huge_pages(mapping.address, mapping.size) >= 4 * HUGE_PAGE_BYTES
