"""Files of a store that were damaged, cut off, or written by another version: refused by name, or found again whole."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.emulation.ground import left_in, opened, serving
from tierstore.ringbuf import arena, layout

pytestmark = pytest.mark.slow
MIB = 1 << 20
SEED = int(os.environ.get("TIERSTORE_TEST_SEED", "1"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root: it mounts a tmpfs, or becomes another user")
SMALL = {"dram": "8MiB", "segment": "1MiB"}


def sound(store: tierstore.Store) -> None:
    """Everything in the store adds up."""
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


# --- superblocks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_tiers(memory: Path, tmp_path: Path) -> dict[str, str]:
    """Options of a closed store that holds a KEEP value in pmem and in disk."""
    (tmp_path / "disk").mkdir()
    options = {**SMALL, "pmem": f"{tmp_path / 'pmem'}:8MiB", "disk": f"{tmp_path / 'disk'}:8MiB"}
    with tierstore.open(**options) as store:
        for tier in ("pmem", "disk"):
            store.put_bytes(tier, tier.encode() * 1000, keep=True)
            store.pin(tier, tier)
    return options


def path_of(options: dict[str, str], tier: str) -> Path:
    """The arena file of a tier."""
    path = Path(options[tier].rpartition(":")[0])
    return path / "tierstore-0.arena" if tier == "disk" else path


def write_superblock(path: Path, monkeypatch: pytest.MonkeyPatch, version: int = layout.LAYOUT_VERSION) -> None:
    """Write the next superblock, of some layout version, with a valid checksum."""
    found = arena.read_superblock(str(path))
    assert found is not None
    made = arena.Arena(found["kind"], str(path), found["segment_bytes"], found["segment_count"], found["index"])
    made.sequence, made.incarnation = found["sequence"], found["incarnation"]
    with monkeypatch.context() as patch, open(path, "r+b") as file:
        patch.setattr(arena, "LAYOUT_VERSION", version)
        made.fd = file.fileno()
        made.write_superblock(found["store_id"])


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        before = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([before ^ mask]))


def assert_all_there(options: dict[str, str]) -> None:
    with tierstore.open(**options) as store:
        for tier in ("pmem", "disk"):
            assert bytes(store.get_bytes(tier)) == tier.encode() * 1000
        sound(store)


@pytest.mark.parametrize("version", [0, layout.LAYOUT_VERSION + 1, 1 << 40])
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_superblock_of_another_version(
    tier: str, version: int, slow_tiers: dict[str, str], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(slow_tiers, tier)
    write_superblock(path, monkeypatch, version)
    before = path.read_bytes()
    answer = opened(**slow_tiers)
    assert answer.startswith("ConfigError") and str(path) in answer and f"version {version}" in answer
    assert f"reads version {layout.LAYOUT_VERSION}" in answer and "remove the file" in answer
    assert path.read_bytes() == before and left_in(memory) == []
    write_superblock(path, monkeypatch)  # as the tierstore that wrote it would
    assert_all_there(slow_tiers)


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_one_damaged_superblock_of_two(
    tier: str, copy: int, slow_tiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, generator = path_of(slow_tiers, tier), random.Random(f"{SEED}/{tier}/{copy}")
    for _ in range(4):
        write_superblock(path, monkeypatch)
        write_superblock(path, monkeypatch)
        flip(
            path, copy * layout.SUPERBLOCK_BYTES + generator.randrange(layout.SB_HASH + 8), 1 << generator.randrange(8)
        )
        assert_all_there(slow_tiers)


@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_both_superblocks_damaged(
    tier: str, slow_tiers: dict[str, str], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, generator = path_of(slow_tiers, tier), random.Random(f"{SEED}/{tier}")
    write_superblock(path, monkeypatch)
    places = [generator.randrange(layout.SB_HASH + 8) for _ in range(2)]
    for copy in range(2):
        flip(path, copy * layout.SUPERBLOCK_BYTES + places[copy])
    before = path.read_bytes()
    answer = opened(**slow_tiers)
    assert answer.startswith("CorruptionError") and str(path) in answer and "superblock" in answer
    assert path.read_bytes() == before and left_in(memory) == []
    for copy in range(2):
        flip(path, copy * layout.SUPERBLOCK_BYTES + places[copy])
    assert_all_there(slow_tiers)


@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_flipped_bit_in_either_superblock_costs_nothing(tier: str, slow_tiers: dict[str, str]) -> None:
    for copy in range(2):
        flip(path_of(slow_tiers, tier), copy * layout.SUPERBLOCK_BYTES + layout.SB_STORE_ID)
        answer = opened(**slow_tiers)
        flip(path_of(slow_tiers, tier), copy * layout.SUPERBLOCK_BYTES + layout.SB_STORE_ID)
        assert answer.startswith("opened True"), answer


@pytest.mark.parametrize("size", [1, layout.SUPERBLOCK_BYTES + 87, layout.ARENA_HEADER_BYTES, 5 * MIB])
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_file_cut_off_before_the_start(tier: str, size: int, slow_tiers: dict[str, str], memory: Path) -> None:
    path = path_of(slow_tiers, tier)
    os.truncate(path, size)
    answer = opened(**slow_tiers)
    assert answer.startswith("CorruptionError") and str(path) in answer and ("truncated" in answer or "none" in answer)
    assert path.stat().st_size == size and left_in(memory) == []


@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_an_empty_file_is_a_new_arena(tier: str, slow_tiers: dict[str, str]) -> None:
    path = path_of(slow_tiers, tier)
    os.truncate(path, 0)
    other = {"pmem": "disk", "disk": "pmem"}[tier]
    for _ in range(2):
        with tierstore.open(**slow_tiers) as store:
            assert tier not in store and bytes(store.get_bytes(other)) == other.encode() * 1000
            store.put_bytes("new", b"x", keep=True)
            store.pin("new", tier)
            sound(store)


# --- the control file of another life -------------------------------------------------------------------------------------------


def spoil_version(path: Path) -> None:
    flip(path, layout.C_VERSION, 3)


def spoil_magic(path: Path) -> None:
    flip(path, layout.C_MAGIC, 0x80)


def spoil_boot(path: Path) -> None:
    flip(path, 80)


def cut_in_half(path: Path) -> None:
    os.truncate(path, 2048)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def randomize(path: Path) -> None:
    path.write_bytes(np.random.default_rng(SEED).bytes(path.stat().st_size))


@pytest.mark.parametrize("spoil", [spoil_version, spoil_magic, spoil_boot, cut_in_half, empty, randomize, os.unlink])
def test_a_control_file_that_does_not_fit(spoil: Callable[[Path], None], memory: Path, tmp_path: Path) -> None:
    """Memory begins empty, without a word; slower tiers are found again."""
    (tmp_path / "disk").mkdir()
    with serving(tmp_path, "--dram", "8MiB", "--disk", f"{tmp_path / 'disk'}:8MiB") as node:
        with node.connect() as store:
            store.put_bytes("dram", b"d" * 100_000, keep=True)
            store.put_bytes("disk", b"k" * 100_000, keep=True)
            store.pin("disk", "disk")
        node.kill()
        spoil(next(memory.glob("tierstore-*/control")))
        node.start()
        with node.connect() as store:
            assert store.keys() == ["disk"] and bytes(store.get_bytes("disk")) == b"k" * 100_000
            store.put_bytes("new", b"n" * 100_000, keep=True)
            sound(store)
        node.kill()
        node.start()
        with node.connect() as store:
            assert store.keys() == ["disk", "new"]


def test_a_client_of_the_store_before_is_told(memory: Path, tmp_path: Path) -> None:
    """A client that maps the old control file must not go on with it when a daemon starts empty in its place."""
    with serving(tmp_path, "--dram", "8MiB") as node:
        store = node.connect()
        store.put_bytes("k", b"old", keep=True)
        view = store.get_bytes("k")
        node.kill()
        spoil_version(next(memory.glob("tierstore-*/control")))
        node.start()
        with pytest.raises((tierstore.PeerLost, tierstore.NotFound)):
            store.get_bytes("k")
        assert bytes(view) == b"old"
        with contextlib.suppress(tierstore.TierstoreError):
            store.close()
        with node.connect() as other:
            assert other.keys() == []
            other.put_bytes("k", b"new", keep=True)
            sound(other)


# --- flipped bits --------------------------------------------------------------------------------------------------------------


def test_flips_under_a_running_store(slow_tiers: dict[str, str]) -> None:
    """Every byte of a record's header on disk changes under an open store: what is read is right, a miss, or an error."""
    values = {kind: kind.encode() * 5000 for kind in ("keep", "cache")}
    with tierstore.open(**slow_tiers) as store:
        for kind, value in values.items():
            store.put_bytes(kind, value, keep=kind == "keep")
            store.pin(kind, "disk")
        path, generator = path_of(slow_tiers, "disk"), random.Random(SEED)
        for kind, value in values.items():
            image = path.read_bytes()
            key_at = image.rindex(kind.encode(), 0, image.index(value[:4000]))
            for offset in range(key_at - layout.RECORD_HEADER_BYTES, key_at + len(kind)):
                mask = 1 << generator.randrange(8)
                flip(path, offset, mask)
                try:
                    assert bytes(store.get_bytes(kind)) == value, offset
                except tierstore.CorruptionError as error:
                    assert kind == "keep" and error.region == str(path)
                except tierstore.NotFound:
                    pass
                flip(path, offset, mask)
            assert bytes(store.get_bytes(kind)) == value
        sound(store)
