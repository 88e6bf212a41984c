"""Power fails while one superblock is written over the older of the two: the other stays valid, whatever is torn."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tierstore.ringbuf import layout
from tierstore.ringbuf.arena import Arena, read_superblock

STORE_ID = b"superblock tests"
BOTH_BYTES = 2 * layout.SUPERBLOCK_BYTES


def switches(path: Path, count: int) -> Generator[tuple[bytes, bytes], None, None]:
    """Both superblocks before and after each of some switches; the first two are those of a new file."""
    arena = Arena(layout.KIND_DISK, str(path), 1 << 20, 4)
    arena.create(STORE_ID)
    try:
        for _ in range(count):
            before = path.read_bytes()[:BOTH_BYTES]
            arena.write_superblock(STORE_ID)
            yield before, path.read_bytes()[:BOTH_BYTES]
    finally:
        arena.close(remove=True)


def torn(before: bytes, after: bytes) -> Iterator[bytes]:
    """What a power loss may leave of a switch: any prefix, any suffix, each sector by itself."""
    changed = [at for at in range(BOTH_BYTES) if before[at] != after[at]]
    for at in range(changed[0], changed[-1] + 2):
        yield after[:at] + before[at:]
        yield before[:at] + after[at:]
    for at in range(0, BOTH_BYTES, 512):
        yield before[:at] + after[at : at + 512] + before[at + 512 :]


def sequences(images: Iterator[bytes], path: Path) -> set[int | None]:
    """The sequence numbers that a start would find; None where there is no valid superblock."""
    found = set()
    for image in images:
        path.write_bytes(image)
        fields = read_superblock(str(path))
        assert fields is None or fields["store_id"] == STORE_ID
        found.add(fields["sequence"] if fields is not None else None)
    return found


def test_a_torn_switch_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    for number, (before, after) in enumerate(switches(tmp_path / "arena", 4)):
        assert sequences(torn(before, after), tmp_path / "image") == {number + 2, number + 3}


def test_writing_over_the_newer_one_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: the place of the newer superblock is written. Torn, that one is lost, and an older one counts again."""
    made, write = switches(tmp_path / "arena", 2), os.pwrite
    next(made)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data, layout.SUPERBLOCK_BYTES - at))
    before, after = next(made)
    monkeypatch.undo()
    made.close()
    assert sequences(torn(before, after), tmp_path / "image") == {2, 3, 4}
