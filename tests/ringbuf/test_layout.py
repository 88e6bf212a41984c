"""Fields of shared layouts do not overlap and lie inside their tables."""

from __future__ import annotations

import pytest

from tierstore.ringbuf import counters, layout

NARROW = {"R_PAYLOAD_BYTES": 4, "R_KEY_BYTES": 2, "R_KIND": 1, "R_CODEC": 1, "R_BLOCK_INDEX": 4, "R_BLOCK_COUNT": 4}
NARROW |= {"R_POOL": 2, "R_CLASS": 1, "R_SCHEMA_BYTES": 4, "SB_STORE_ID": 16, "C_STORE_ID": 16, "B_DOORBELL": 4}
WIDE = {"C_FREE": 8 * layout.ARENA_MAX, "C_COUNTERS": 8 * 88, "C_ARENAS": 64 * layout.ARENA_MAX, "P_COUNTERS": 8 * 64}
TABLES = {
    "SB_": layout.SUPERBLOCK_BYTES,
    "SH_": layout.SEGMENT_HEADER_BYTES,
    "R_": layout.RECORD_HEADER_BYTES,
    "S_": layout.SEGMENT_ENTRY_BYTES,
    "C_": layout.CONTROL_HEADER_BYTES,
    "A_": 64,
    "B_": layout.CLIENTS_HEADER_BYTES,
    "P_": layout.SLOT_PAGE_BYTES,
    "M_": layout.MESSAGE_BYTES,
}


def fields(prefix: str) -> list[tuple[int, int, str]]:
    """(offset, width, name) of a table, in order."""
    names = [name for name in vars(layout) if name.startswith(prefix)]
    widths = NARROW | WIDE
    return sorted((getattr(layout, name), widths.get(name, 8), name) for name in names)


@pytest.mark.parametrize("prefix", TABLES)
def test_fields_do_not_overlap(prefix: str) -> None:
    found, end, last = fields(prefix), 0, "the beginning"
    assert len(found) >= 2
    for offset, width, name in found:
        assert offset >= end, f"{name} at {offset} overlaps {last}, which ends at {end}"
        assert width > 8 or offset % width == 0, f"{name} at {offset} is not aligned to its {width} bytes"
        end, last = offset + width, name
    assert end <= TABLES[prefix], f"{last} ends at {end}, behind its table"


def test_counters_fit() -> None:
    assert len(counters.DAEMON) <= 88 and len(counters.CLIENT) <= 64
    for table in (counters.DAEMON, counters.CLIENT):
        assert len({counter.name for counter in table}) == len(table)


def test_packed_words_add_up() -> None:
    assert layout.STATE_SHIFT + 3 == 64 and layout.OWNER_SHIFT + 13 == layout.STATE_SHIFT
    assert layout.GENERATION_MASK == (1 << layout.OWNER_SHIFT) - 1 and max(range(len(layout.STATE_NAMES))) < 8
    assert layout.TAG_MASK.bit_length() + layout.TAG_SHIFT == 64
    assert layout.SEGMENT_MASK.bit_length() + layout.SEGMENT_SHIFT == layout.TAG_SHIFT
    assert layout.GRANULE_MASK.bit_length() == layout.SEGMENT_SHIFT


def test_limits_follow_from_the_fields() -> None:
    from tierstore.service import config

    assert config.SEGMENT_BYTES_MAX // layout.GRANULE <= layout.GRANULE_MASK + 1
    assert config.SEGMENTS_MAX <= layout.SEGMENT_MASK + 1
    assert layout.KEY_BYTES_MAX < 1 << 16 and config.POOLS_MAX <= 64
    assert layout.KEY_BYTES_MAX + layout.RECORD_HEADER_BYTES < config.SEGMENT_BYTES_MIN - layout.SEGMENT_HEADER_BYTES
    assert 8 * (1 + layout.ITEM_COUNT) == layout.BUCKET_BYTES == 64
    assert layout.SEGMENT_HEADER_BYTES % layout.GRANULE == 0 and layout.RECORD_HEADER_BYTES % 64 == 0
    assert layout.MESSAGE_COUNT & (layout.MESSAGE_COUNT - 1) == 0
