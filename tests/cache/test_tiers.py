"""Three small tiers: what moves where under pressure, what survives a reopening, and what damage does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tierstore
from tierstore.cache.store import Store
from tierstore.emulation.procs import Child
from tierstore.ringbuf import layout
from tierstore.service.config import parse_path_size

MIB = 1 << 20


def value(number: int, size: int = 400_000) -> bytes:
    return np.random.default_rng(number).integers(0, 256, size, "u1").tobytes()


def fill(store: Store, count: int, keep: bool = True) -> None:
    for number in range(count):
        store.put_bytes(f"{number}", value(number), keep=keep)


def tiers_of(store: Store, count: int) -> set[str]:
    return {tier for number in range(count) for tier in store.info(f"{number}")["tiers"]}


def arena_paths(options: dict[str, str]) -> dict[str, str]:
    disk = parse_path_size(options["disk"], "disk")[0]
    return {"pmem": parse_path_size(options["pmem"], "pmem")[0], "disk": os.path.join(disk, "tierstore-0.arena")}


@pytest.mark.slow
def test_keep_cascades_and_nothing_is_lost(tiered: Store) -> None:
    fill(tiered, 100)  # 40 MB into 8 + 16 + 32 MiB
    assert tiers_of(tiered, 100) == {"dram", "pmem", "disk"}
    for number in range(100):
        assert bytes(tiered.get_bytes(f"{number}")) == value(number)
    stats = tiered.stats()
    assert stats["daemon"]["demoted_bytes"] > 0 and stats["clients"]["disk_bytes_read"] > 0
    assert stats["daemon"]["dropped_blocks"] == 0


@pytest.mark.slow
def test_cache_falls_off_the_end(tiered: Store) -> None:
    fill(tiered, 30)
    for number in range(200):
        tiered.put_bytes(f"cache/{number}", value(number))
    assert len(tiered.keys("cache/")) < 200 and tiered.stats()["daemon"]["dropped_blocks"] > 0
    for number in range(30):
        assert bytes(tiered.get_bytes(f"{number}")) == value(number)
    for key in tiered.keys("cache/"):
        assert bytes(tiered.get_bytes(key)) == value(int(key[6:]))


@pytest.mark.slow
def test_keep_beyond_everything_is_full_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.ringbuf.client.LEASE_WAIT_S", 1.0)
    with tierstore.open(dram="8MiB", segment="1MiB") as store:
        put = 0
        with pytest.raises(tierstore.Full, match="delete some|more room"):
            for number in range(50):
                store.put_bytes(f"{number}", value(number), keep=True)
                put += 1
        assert 10 <= put < 20 and store.verify(payloads=True)["ok"]
        for number in range(put):
            assert bytes(store.get_bytes(f"{number}")) == value(number)
        table = pa.table({"x": np.arange(300_000)})
        with pytest.raises(tierstore.Full):
            store.put("t", table, keep=True)
        assert "t" not in store
        for number in range(put):
            store.delete(f"{number}")
        store.put("t", table, keep=True)
        assert store.get("t").equals(table) and store.verify(payloads=True)["ok"]


@pytest.mark.slow
def test_an_object_larger_than_the_store_is_full_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.ringbuf.client.LEASE_WAIT_S", 1.0)
    with tierstore.open(dram="8MiB", segment="1MiB") as store:
        for _ in range(2):
            with pytest.raises(tierstore.Full):
                store.put("t", pa.table({"x": np.arange(2_000_000)}))
            with pytest.raises(tierstore.Full):
                store.put_bytes("b", bytes(20 * MIB))
        assert store.keys() == []
        store.put("t", pa.table({"x": np.arange(500_000)}))
        assert store.get("t").num_rows == 500_000 and store.verify()["ok"]


@pytest.mark.slow
def test_hot_blocks_come_up(tiered: Store) -> None:
    fill(tiered, 60)
    down = next(f"{number}" for number in range(60) if "dram" not in tiered.info(f"{number}")["tiers"])
    deadline = time.monotonic() + 15
    while tiered.info(down)["tiers"] != ["dram"]:
        assert time.monotonic() < deadline, tiered.info(down)
        for _ in range(50):
            assert bytes(tiered.get_bytes(down))[:10] == value(int(down))[:10]
        time.sleep(0.01)
    assert bytes(tiered.get_bytes(down)) == value(int(down))


@pytest.mark.slow
def test_pins_hold_against_pressure(tiered: Store) -> None:
    tiered.put_bytes("up", value(1000), keep=True)
    tiered.put_bytes("down", value(1001))
    tiered.pin("up", "dram")
    tiered.pin("down", "disk")
    fill(tiered, 80)
    for _ in range(20):
        tiered.get_bytes("down")
    assert tiered.info("up")["tiers"] == ["dram"] and tiered.info("down")["tiers"] == ["disk"]
    assert bytes(tiered.get_bytes("up")) == value(1000) and bytes(tiered.get_bytes("down")) == value(1001)
    tiered.pin("up", "pmem")
    assert tiered.info("up")["tiers"] == ["pmem"] and tiered.info("up")["class"] == "KEEP"
    for key in ("up", "down"):
        tiered.unpin(key)
        assert not tiered.info(key)["pinned"]


@pytest.mark.slow
def test_pinning_more_than_a_tier_holds_is_full(tiered: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.cache.requests.MOVE_WAIT_S", 1.0)
    fill(tiered, 40)
    with pytest.raises(tierstore.Full, match="unpin"):
        for number in range(40):
            tiered.pin(f"{number}", "dram")
    for number in range(40):
        assert bytes(tiered.get_bytes(f"{number}")) == value(number)
        tiered.unpin(f"{number}")
    tiered.put_bytes("more", b"works", keep=True)


def test_durable_means_on_disk(tiered: Store) -> None:
    assert tiered.put_bytes("d", b"x" * 5000, keep=True, durable=True) == "durable"
    assert tiered.put("t", pa.table({"x": np.arange(300_000)}), keep=True, durable=True) == "durable"
    for key in ("d", "t"):
        assert tiered.info(key)["tiers"] == ["disk"] and tiered.info(key)["durability"] == "durable"
    assert bytes(tiered.get_bytes("d")) == b"x" * 5000 and tiered.get("t").num_rows == 300_000


@pytest.mark.slow
def test_time_to_live_holds_in_every_tier(tiered: Store) -> None:
    for tier in ("dram", "pmem", "disk"):
        tiered.put_bytes(tier, b"x", ttl=0.4)
        tiered.pin(tier, tier)
        assert bytes(tiered.get_bytes(tier)) == b"x"
    time.sleep(0.45)
    for tier in ("dram", "pmem", "disk"):
        assert tier not in tiered and tiered.get_many([tier]) == [None]
        with pytest.raises(KeyError):
            tiered.get(tier)
    assert tiered.keys() == []


def test_get_many_and_delete_across_tiers(tiered: Store) -> None:
    for tier in ("dram", "pmem", "disk"):
        tiered.put_bytes(tier, tier.encode() * 1000, keep=True)
        tiered.pin(tier, tier)
    views = tiered.get_many(["disk", "dram", "absent", "pmem"])
    assert [view and bytes(view)[:4] for view in views] == [b"disk", b"dram", None, b"pmem"]
    for tier in ("dram", "pmem", "disk"):
        assert tier in tiered
        tiered.delete(tier)
        assert tier not in tiered
        tiered.put_bytes(tier, b"again")
        assert bytes(tiered.get_bytes(tier)) == b"again"


def test_overwriting_a_block_on_disk(tiered: Store) -> None:
    for number in range(5):
        tiered.put_bytes("k", value(number), keep=True)
        tiered.pin("k", "disk")
        tiered.put_bytes("k", value(number + 100), keep=True)
        assert bytes(tiered.get_bytes("k")) == value(number + 100)
    assert tiered.verify()["blocks"] == 1


# --- reopening ------------------------------------------------------------------------------------------------------------


def prepare(options: dict[str, str]) -> dict[str, bytes]:
    """A store with KEEP and CACHE values, and one large table, in pmem and disk; closed again."""
    values = {}
    with tierstore.open(**options) as store:
        for tier in ("pmem", "disk"):
            for kind in ("keep", "cache"):
                key = f"{tier}/{kind}"
                values[key] = value(len(values), 50_000)
                store.put_bytes(key, values[key], keep=kind == "keep")
                store.pin(key, tier)
            store.put(f"{tier}/table", pa.table({"x": np.arange(200_000)}), keep=True)
            store.pin(f"{tier}/table", tier)
        assert store.verify(payloads=True)["ok"]
    return values


def test_pmem_and_disk_are_found_again(tier_options: dict[str, str]) -> None:
    values = prepare(tier_options)
    for _ in range(2):
        with tierstore.open(**tier_options) as store:
            assert {key: bytes(store.get_bytes(key)) for key in values} == values
            for tier in ("pmem", "disk"):
                assert store.get(f"{tier}/table", verify=True)["x"].to_numpy().sum() == 200_000 * 199_999 // 2
            assert store.info("pmem/keep")["class"] == "KEEP" and store.info("disk/cache")["class"] == "CACHE"
            assert store.verify(payloads=True)["ok"] and store.stats()["lost_keep_blocks"] == 0
            store.put_bytes("new", b"x", keep=True)
    with tierstore.open(**tier_options) as store:
        store.delete("disk/keep")
        store.put_bytes("pmem/keep", b"replaced", keep=True)
        store.pin("pmem/keep", "disk")
    with tierstore.open(**tier_options) as store:
        assert "disk/keep" not in store and bytes(store.get_bytes("pmem/keep")) == b"replaced"


def flip(path: str, content: bytes) -> int:
    """Change one byte in the middle of a payload that begins with ``content``; its place in the file."""
    with open(path, "r+b") as file:
        data = file.read()
        place = data.index(content[:64]) + 20_000
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    return place


def test_a_flipped_byte_on_disk(tier_options: dict[str, str]) -> None:
    values, path = prepare(tier_options), arena_paths(tier_options)["disk"]
    for kind in ("keep", "cache"):
        flip(path, values[f"disk/{kind}"])
    with tierstore.open(**tier_options) as store:
        with pytest.raises(tierstore.CorruptionError, match="tierstore-0.arena") as caught:
            store.get_bytes("disk/keep")
        assert caught.value.region == path and caught.value.offset >= layout.ARENA_HEADER_BYTES
        with pytest.raises(KeyError):
            store.get_bytes("disk/cache")
        assert store.get_many(["disk/cache"]) == [None] and "disk/cache" not in store
        assert store.stats()["clients"]["corrupt"] >= 3
        report = store.verify(payloads=True)
        assert not report["ok"] and len(report["problems"]) == 2 and "disk/keep" in str(report["problems"])
        assert bytes(store.get_bytes("pmem/keep")) == values["pmem/keep"]


def test_a_flipped_byte_in_pmem(tier_options: dict[str, str]) -> None:
    prepare(tier_options)
    tables = {kind: pa.table({"x": np.arange(9000) * 7 + (kind == "keep")}) for kind in ("keep", "cache")}
    with tierstore.open(**tier_options) as store:
        for kind, table in tables.items():
            store.put(f"t/{kind}", table, keep=kind == "keep")
            store.pin(f"t/{kind}", "pmem")
    path = arena_paths(tier_options)["pmem"]
    for table in tables.values():
        flip(path, table["x"].chunk(0).to_numpy().tobytes())
    with tierstore.open(**tier_options) as store:
        with pytest.raises(tierstore.CorruptionError) as caught:
            store.get("t/keep", verify=True)
        assert caught.value.region == path
        with pytest.raises(KeyError):
            store.get("t/cache", verify=True)
        assert not store.verify(payloads=True)["ok"] and store.stats()["clients"]["corrupt"] == 2


@pytest.mark.slow
def test_files_that_cannot_be_used_are_refused(tier_options: dict[str, str]) -> None:
    """In processes of their own: a failed open() may not clean up its descriptors until it ends."""
    prepare(tier_options)
    paths = arena_paths(tier_options)
    originals = {path: Path(path).read_bytes() for path in paths.values()}

    def refusal(**changed: str) -> str:
        with Child("opened", *[f"{name}={text}" for name, text in (tier_options | changed).items()]) as child:
            return child.line()

    assert refusal() == "opened True"
    for path in paths.values():
        with open(path, "r+b") as file:  # both superblocks damaged
            for copy in range(2):
                file.seek(copy * layout.SUPERBLOCK_BYTES + layout.SB_VERSION)
                file.write(b"\x07")
        assert refusal().startswith(("CorruptionError", "ConfigError")) and path in refusal()
        os.truncate(path, len(originals[path]) // 2)
        Path(path).write_bytes(originals[path])
        os.truncate(path, len(originals[path]) - MIB)
        answer = refusal()
        assert answer.startswith("CorruptionError") and path in answer and "truncated" in answer
        Path(path).write_bytes(b"something else entirely" * 1000)
        answer = refusal()
        assert answer.startswith("CorruptionError") and path in answer and "superblock" in answer
        Path(path).write_bytes(originals[path])
    answer = refusal(pmem=tier_options["pmem"].replace("16MiB", "12MiB"))
    assert answer.startswith("ConfigError") and "11 of" in answer and "15 segments" in answer
    assert refusal() == "opened True"


@pytest.mark.slow
def test_files_of_two_stores_do_not_mix(tier_options: dict[str, str], tmp_path: Path) -> None:
    prepare(tier_options)
    (tmp_path / "other").mkdir()
    other = f"{tmp_path / 'other'}:32MiB"
    tierstore.open(dram="8MiB", segment="1MiB", disk=other).close()
    with Child("opened", *[f"{name}={text}" for name, text in (tier_options | {"disk": other}).items()]) as child:
        answer = child.line()
    assert answer.startswith("ConfigError") and "another store" in answer and "other" in answer
