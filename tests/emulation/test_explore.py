"""Power loss at every point of every protocol, and one flipped bit anywhere."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator

import pytest

from tierstore.emulation.explore import explore_in_children
from tierstore.emulation.still import DISK, DRAM, PMEM, StillStore, Violation
from tierstore.ringbuf import layout

STATES_MIN = 50_000
FLIPS = 10_000


@pytest.mark.slow
def test_no_power_loss_breaks_a_promise_and_every_missing_fence_is_noticed() -> None:
    report = explore_in_children()
    print(json.dumps({name: report[name] for name in ("states", "points", "exhaustive_points", "seconds", "seed")}))
    assert not report["violations"], "\n".join(report["violations"])
    assert report["mutants"] and not report["missed"], f"nothing notices when these are missing: {report['missed']}"
    assert report["states"] >= STATES_MIN


@pytest.mark.soak
def test_other_samples_of_power_losses() -> None:
    seed = int(os.environ.get("TEST_SEED", "2"))
    report = explore_in_children(limit=60, seed=seed, mutants=False)
    assert not report["violations"], "\n".join(report["violations"])


@pytest.fixture(scope="module")
def still() -> Iterator[StillStore]:
    store = StillStore()
    yield store
    store.close()


def filled(store: StillStore) -> dict[str, bytes]:
    """Blocks of several sizes in both persistent tiers, sealed; some were deleted."""
    store.reset(bytes(2 * store.part_bytes))
    generator, values = random.Random(3), dict[str, bytes]()
    for number in range(12):
        values[f"pmem {number}"] = generator.randbytes(generator.choice([1, 64, 300, 5000]))
        store.put(PMEM, f"pmem {number}", values[f"pmem {number}"])
    store.seal(PMEM)
    for number in range(8):
        values[f"disk {number}"] = generator.randbytes(generator.choice([10, 700, 6000]))
        store.put(DRAM, f"disk {number}", values[f"disk {number}"])
        if number in (3, 7):
            segment = store.seal(DRAM)
            store.move(segment, DISK)
    store.mover.finish_all()
    for key in ("pmem 3", "disk 2"):
        store.delete(key)
        del values[key]
    return values


def covered(store: StillStore) -> list[tuple[int, int]]:
    """Ranges of the device that blocks, their headers and those of their segments take: (offset, bytes)."""
    ranges = []
    for segment, row in store._rows():
        base = (segment - store.arenas[PMEM].first) * store.mutator.segment_bytes
        ranges.append((base, 32))
        record = store._head(segment, row)
        size = int.from_bytes(record[layout.R_PAYLOAD_BYTES : layout.R_PAYLOAD_BYTES + 4], "little")
        key_bytes = int.from_bytes(record[layout.R_KEY_BYTES : layout.R_KEY_BYTES + 2], "little")
        ranges.append((base + int(row[2]), layout.RECORD_HEADER_BYTES + key_bytes))
        ranges.append((base + int(row[2]) + (layout.RECORD_HEADER_BYTES + key_bytes + 63 & ~63), size))
    return ranges


def test_any_flipped_bit_is_noticed(still: StillStore) -> None:
    """In a payload, a header, a key or a segment's header: nothing wrong is handed out, and no loss goes unreported."""
    values, generator = filled(still), random.Random(4)
    device, ranges = still.device(), covered(still)
    places = [offset + byte for offset, size in ranges for byte in range(size)]
    for _ in range(FLIPS):
        place, bit = generator.choice(places), generator.randrange(8)
        flipped = bytearray(device)
        flipped[place] ^= 1 << bit
        still.reset(bytes(flipped))
        try:
            found = still.contents()
        except Violation as problem:
            assert "torn" in str(problem), f"byte {place}, bit {bit}: {problem}"
            continue  # the payload's checksum, which every read from disk and every verified read compares
        assert all(values.get(key) == value for key, value in found.items()), f"byte {place}, bit {bit}: wrong bytes"
        reported = still.mutator.found.damaged or still.mutator.found.lost_keep
        assert reported, f"byte {place}, bit {bit}: not noticed"
