"""LZ4 on disk: everything comes back, smaller on the medium, whatever moves where and however the store is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tierstore
from tierstore.cache.store import Store

ROWS = 60_000


def tables() -> dict[str, pa.Table]:
    generator = np.random.default_rng(5)
    words = pa.array(["alpha", "beta", None, "gamma"] * (ROWS // 4))
    return {
        "small": pa.table({"x": [1, 2, 3]}),
        "empty": pa.table({"x": pa.array([], "int64")}),
        "smooth": pa.table({"x": np.arange(ROWS), "w": words}),
        "noise": pa.table({"x": generator.random(ROWS)}),
        "dictionary": pa.table({"w": words.dictionary_encode(), "x": np.arange(ROWS) // 100}),
        "large": pa.table({"x": np.arange(8 * ROWS) // 1000}),
    }


def values() -> dict[str, bytes]:
    noise = np.random.default_rng(6).integers(0, 256, 300_000, "u1").tobytes()
    return {"nothing": b"", "few": b"few", "text": b"all work and no play " * 20_000, "noise bytes": noise} | {
        "pieces": (b"0123456789" * 300_000) + noise
    }


def fill(store: Store) -> None:
    for key, table in tables().items():
        store.put(key, table, keep=True)
    for key, value in values().items():
        store.put_bytes(key, value, keep=True)


def move_all(store: Store, tier: str) -> None:
    for key in [*tables(), *values()]:
        store.pin(key, tier)


def check(store: Store) -> None:
    for key, table in tables().items():
        found = store.get(key, verify=True)
        found.validate(full=True)
        assert found.equals(table), key
    for key, value in values().items():
        assert bytes(store.get_bytes(key)) == value, key
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


def options(folder: Path, compress: bool) -> dict[str, object]:
    return {"dram": "24MiB", "disk": f"{folder}:48MiB", "segment": "1MiB", "disk_lz4": compress}


def written(folder: Path, compress: bool) -> int:
    folder.mkdir()
    with tierstore.open(**options(folder, compress)) as store:  # type: ignore[arg-type]
        fill(store)
        move_all(store, "disk")
        check(store)
        size = store.stats()["daemon"]["disk_bytes_written"]
        move_all(store, "dram")
        assert all(store.info(key)["tiers"] == ["dram"] for key in tables())
        check(store)
        move_all(store, "disk")
    return int(size)


def test_compressed_blocks_come_back_and_are_smaller(tmp_path: Path) -> None:
    plain, packed = written(tmp_path / "plain", False), written(tmp_path / "packed", True)
    assert packed < plain / 2


@pytest.mark.parametrize("first", [True, False])
def test_compression_can_be_switched_between_openings(first: bool, tmp_path: Path) -> None:
    written(tmp_path / "disk", first)
    for compress in (not first, first):
        with tierstore.open(**options(tmp_path / "disk", compress)) as store:  # type: ignore[arg-type]
            check(store)
            move_all(store, "dram")
            check(store)
            move_all(store, "disk")
            check(store)


def test_a_flipped_byte_of_a_compressed_block_is_found(tmp_path: Path) -> None:
    written(tmp_path / "disk", True)
    path = tmp_path / "disk" / "tierstore-0.arena"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"all work and no play")  # the literal that LZ4 keeps
    data[at + 3] ^= 1
    path.write_bytes(data)
    with tierstore.open(**options(tmp_path / "disk", True)) as store:  # type: ignore[arg-type]
        with pytest.raises(tierstore.CorruptionError, match="tierstore-0.arena"):
            store.get_bytes("text")
        assert not store.verify(payloads=True)["ok"]
