"""Does a file of sorted records hold just what another file holds? Records as gensort makes them, checked as valsort does.

A record is 100 bytes, of which the first 10 are the key, compared byte by byte:

    offset  bytes
         0     10  key, random
        10      2  00 11
        12     32  the record's number, hexadecimal
        44      4  88 99 AA BB
        48     48  filler: 12 random hexadecimal digits, each four times
        96      4  CC DD EE FF

The random bytes come from NumPy's SFC64, seeded by seed and chunk, not from gensort's own generator. The checksum is the sum of a
hash of each record modulo 2**64, where valsort adds CRC32s: any order of the same records gives the same sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

RECORD_BYTES = 100
KEY_BYTES = 10
CHUNK_RECORDS = 1 << 17
Records = npt.NDArray[np.uint8]  # (records, 100)
Words = npt.NDArray[np.uint64]
_DIGITS = np.frombuffer(b"0123456789ABCDEF", np.uint8)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)


def records_of(seed: int, first: int, count: int) -> Records:
    """Records first to first + count; first is the first of a chunk."""
    random = np.random.Generator(np.random.SFC64([seed, first // CHUNK_RECORDS]))
    found = np.empty((count, RECORD_BYTES), np.uint8)
    found[:, :10] = random.integers(0, 256, (count, 10), np.uint8)
    found[:, 10:12] = (0x00, 0x11)
    found[:, 12:28] = _DIGITS[0]  # numbers have 16 digits here
    numbers = np.arange(first, first + count, dtype=np.uint64)
    for digit in range(16):
        found[:, 43 - digit] = _DIGITS[(numbers >> np.uint64(4 * digit)) & np.uint64(15)]
    found[:, 44:48] = (0x88, 0x99, 0xAA, 0xBB)
    found[:, 48:96] = np.repeat(_DIGITS[random.integers(0, 16, (count, 12), np.uint8)], 4, axis=1)
    found[:, 96:] = (0xCC, 0xDD, 0xEE, 0xFF)
    return found


def generate(path: Path, count: int, seed: int = 1) -> None:
    """Write a file of so many records."""
    with open(path, "wb") as file:
        for first in range(0, count, CHUNK_RECORDS):
            file.write(records_of(seed, first, min(CHUNK_RECORDS, count - first)))


def opened(path: Path) -> Records:
    """The records of a file, mapped."""
    if not path.stat().st_size:
        return np.empty((0, RECORD_BYTES), np.uint8)
    return np.memmap(path, np.uint8, "r").reshape(-1, RECORD_BYTES)


def high_words(records: Records) -> Words:
    """The first eight bytes of each key as a number."""
    return np.ascontiguousarray(records[:, :8]).view(">u8").ravel().astype(np.uint64)


def low_words(records: Records) -> npt.NDArray[np.uint16]:
    """The last two bytes of each key as a number."""
    return np.ascontiguousarray(records[:, 8:KEY_BYTES]).view(">u2").ravel().astype(np.uint16)


def checksum(records: Records) -> int:
    """Of records in any order."""
    words = records.view(np.uint32).astype(np.uint64)
    hashed = np.zeros(len(records), np.uint64)
    for column in range(RECORD_BYTES // 4):
        hashed = (hashed ^ words[:, column]) * _ODD
        hashed ^= hashed >> np.uint64(29)
    hashed *= _MIX
    return int((hashed ^ (hashed >> np.uint64(32))).sum()) & (1 << 64) - 1


@dataclass(frozen=True)
class Summary:
    """What valsort says of records. unordered: how many lie before a smaller one."""

    records: int
    checksum: int
    unordered: int


def summary(paths: Iterable[Path]) -> Summary:
    """Of files, one behind the other."""
    count = total = unordered = 0
    last: tuple[int, int] | None = None
    for path in paths:
        records = opened(path)
        for first in range(0, len(records), CHUNK_RECORDS):
            chunk = records[first : first + CHUNK_RECORDS]
            high, low = high_words(chunk), low_words(chunk)
            falls = (high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))
            unordered += int(falls.sum())
            unordered += last is not None and (int(high[0]), int(low[0])) < last
            last = int(high[-1]), int(low[-1])
            count += len(chunk)
            total = (total + checksum(np.ascontiguousarray(chunk))) & (1 << 64) - 1
    return Summary(count, total, unordered)
