"""Manifests: what is encoded comes back; other bytes are refused."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from tierstore.ringbuf.errors import CorruptionError
from tierstore.shuffle.manifest import BYTES, ROWS, Manifest, Run, decode
from tierstore.shuffle.names import Attempt, check_attempt, parse
from tierstore.shuffle.receipt import Receipt

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])


def manifest(partitions: int = 3, runs: int = 2, kind: int = ROWS) -> Manifest:
    made = []
    for number in range(runs):
        sizes = np.arange(partitions, dtype="u4") + number
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype("u4")
        made.append(Run(2**63 + number, starts, np.arange(partitions, dtype="u8") * 7919))
    message = SCHEMA.serialize().to_pybytes() if kind == ROWS else b""
    return Manifest(kind, partitions, message, 100, 12345, made)


@pytest.mark.parametrize("form", [ROWS, BYTES])
@pytest.mark.parametrize("partitions,runs", [(1, 0), (1, 1), (3, 2), (1000, 5)])
def test_round_trip(form: int, partitions: int, runs: int) -> None:
    given = manifest(partitions, runs, form)
    found = decode(given.encode(), "a test")
    assert (found.kind, found.partitions, found.records, found.total_bytes) == (form, partitions, 100, 12345)
    assert len(found.runs) == runs
    for mine, theirs in zip(given.runs, found.runs, strict=True):
        assert mine.payload_hash == theirs.payload_hash
        assert (mine.starts == theirs.starts).all() and (mine.checks == theirs.checks).all()
    if form == ROWS:
        assert found.schema == SCHEMA
    assert found.partition_rows.sum() == sum(run.rows for run in given.runs)


def test_every_flipped_bit_is_found() -> None:
    raw = bytearray(manifest().encode())
    for position in range(len(raw)):
        for bit in (1, 128):
            raw[position] ^= bit
            with pytest.raises(CorruptionError):
                decode(bytes(raw), "a test")
            raw[position] ^= bit


def test_any_length_and_any_bytes() -> None:
    raw = manifest().encode()
    for length in range(len(raw)):
        with pytest.raises(CorruptionError, match="a test"):
            decode(raw[:length], "a test")
    chance = random.Random(1)
    for _ in range(2000):
        head = chance.choice([b"", b"TSMANIF1", raw[:48]])
        with pytest.raises(CorruptionError):
            decode(head + chance.randbytes(chance.randrange(300)), "a test")


def test_starts_must_rise() -> None:
    bad = manifest(3, 1)
    bad.runs[0].starts = np.array([0, 5, 4, 9], "u4")
    with pytest.raises(CorruptionError, match="one behind the other"):
        decode(bad.encode(), "a test")


@pytest.mark.parametrize("app", ["", "a/b", "../x", "a b", "é", "a" * 201, ".x", 5, None, "a\0"])
def test_names_that_keys_cannot_hold(app: object) -> None:
    with pytest.raises(ValueError, match="app"):
        check_attempt(app, 0, 0, "x")
    with pytest.raises(ValueError, match="attempt"):
        check_attempt("app", 0, 0, app)


@pytest.mark.parametrize("number", [-1, 2**31, 1.0, "1", True, None])
def test_numbers_that_cannot_be(number: object) -> None:
    with pytest.raises(ValueError, match="shuffle"):
        check_attempt("app", number, 0, "x")
    with pytest.raises(ValueError, match="map_index"):
        check_attempt("app", 0, number, "x")


def test_keys_are_parsed() -> None:
    name = Attempt("app-1", 3, 17, "b7")
    assert parse(name.key) == ("app-1", 3, 17, "b7", None, None)
    assert parse(name.run(5, "0" * 16)) == ("app-1", 3, 17, "b7", 5, "0" * 16)
    assert parse("shuffle/app-1/3") == ("app-1", 3, None, None, None, None)
    assert parse("shuffle/app-1") == ("app-1", None, None, None, None, None)
    for other in ("shuffle/a/b", "shuffle/a/1/2", "other/a", "shuffle/a/1/2/x/y", "shuffle/a/1/2/x/1/2"):
        assert parse(other) is None


def test_receipts_as_plain_values() -> None:
    receipt = Receipt("app", 1, 2, "x", 10, 100, 2**64 - 1, "volatile", "s", "i", "h:1", ("h:2",))
    assert Receipt.from_dict(receipt.to_dict()) == receipt
    with pytest.raises(ValueError, match="fields"):
        Receipt.from_dict({**receipt.to_dict(), "more": 1})
    with pytest.raises(ValueError, match="app"):
        Receipt.from_dict({**receipt.to_dict(), "app": "../other"})
