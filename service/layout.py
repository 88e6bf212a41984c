"""Where a store's files lie, from its configuration; and cleaning up after stores whose process died."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil

from tierstore.cache.engine import EngineConfig
from tierstore.ringbuf.arena import UNNAMED, Arena
from tierstore.ringbuf.errors import ConfigError
from tierstore.ringbuf.layout import KIND_DISK, KIND_DRAM, KIND_PMEM, SEGMENT_SLACK
from tierstore.ringbuf.mutator import DAEMON_LOCK
from tierstore.ringbuf.region import lock_holder, locked_here

from .config import SEGMENTS_PER_TIER_MIN, StoreConfig
from .emulated import emulated

FOLDER_PREFIX = "tierstore-"
EPHEMERAL_MARK = "ephemeral"


def store_folder(config: StoreConfig) -> str:
    """The folder in memory of the store behind a socket path (or of an embedded store: one per process and instance)."""
    name = (
        hashlib.sha256(os.path.abspath(config.socket).encode()).hexdigest()[:16]
        if config.socket
        else (f"embedded-{os.getpid()}-{os.urandom(4).hex()}")
    )
    return os.path.join(config.dram_dir, f"{FOLDER_PREFIX}{os.getuid()}-{name}")


def engine_config(config: StoreConfig) -> EngineConfig:
    """The engine of a checked configuration."""
    folder, size = store_folder(config), config.segment_bytes + config.segment_bytes // SEGMENT_SLACK
    pmem_cost, pmem_label = emulated(config.pmem_profile, "pmem_profile")
    disk_cost, disk_label = emulated(config.disk_profile, "disk_profile")
    arenas = [Arena(KIND_DRAM, os.path.join(folder, "dram.arena"), size, _count(config.dram_bytes, size))]
    if config.pmem_path:
        path = _arena_path(config.pmem_path, "pmem.arena")
        arenas.append(Arena(KIND_PMEM, path, size, _count(config.pmem_bytes, size), cost=pmem_cost))
    for index, disk in enumerate(config.disks):
        path = os.path.join(disk.path, f"tierstore-{index}.arena")
        count = _count(disk.bytes, size)
        arenas.append(Arena(KIND_DISK, path, size, count, index, compress=config.disk_lz4, cost=disk_cost))
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "dram_dir", config.dram_dir, f"a directory in memory (a tmpfs) that can be written in ({error.strerror})"
        ) from None
    if config.ephemeral:  # a file that is there already may be another store's: it is ours once the engine has it
        mark_ephemeral(folder, [arena.path for arena in arenas[1:] if not os.path.exists(arena.path)])
    pools = {"default": 0} | {pool.name: pool.quota_bytes for pool in config.pools}
    labels = {"pmem": pmem_label, "disk": disk_label}
    return EngineConfig(
        folder,
        size,
        arenas,
        config.client_slots,
        pools,
        config.ephemeral,
        labels,
        config.columns_allow,
        config.columns_deny,
    )


def _count(tier_bytes: int, size: int) -> int:
    """Segments of a tier; the smallest tiers may become a little larger than asked for."""
    return max(SEGMENTS_PER_TIER_MIN, tier_bytes // size)


def _arena_path(path: str, name: str) -> str:
    """A folder gets an arena file of its own; anything else is the arena."""
    return os.path.join(path, name) if os.path.isdir(path) else path


def mark_ephemeral(folder: str, arenas: list[str]) -> None:
    """Note which files go when this store does, so that a later start can remove them after a kill."""
    with open(os.path.join(folder, EPHEMERAL_MARK), "w") as mark:
        mark.write("\n".join([str(os.getpid()), *arenas]))


def remove_dead(config: StoreConfig) -> list[str]:
    """Remove what killed ephemeral stores of this user left in the memory folder; returns their folders."""
    removed = []
    prefix = f"{FOLDER_PREFIX}{os.getuid()}-"
    try:
        entries = os.listdir(config.dram_dir)
    except OSError as error:
        raise ConfigError("dram_dir", config.dram_dir, f"a directory that can be read ({error.strerror})") from None
    for entry in entries:
        folder = os.path.join(config.dram_dir, entry)
        mark = os.path.join(folder, EPHEMERAL_MARK)
        if not entry.startswith(prefix) or not os.path.exists(mark) or _alive(folder):
            continue
        with open(mark) as file:
            for path in filter(None, file.read().splitlines()[1:]):
                for name in (path, path + UNNAMED):
                    _unlink_unused(name)
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _unlink_unused(path: str) -> None:
    """Remove an arena file unless a running store has it: of two that started at once the refused one may have named it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


def _alive(folder: str) -> bool:
    """Whether a process runs the store in a folder: its lock is held, or it is only being set up."""
    path = os.path.join(folder, "locks")
    if os.path.exists(path) and locked_here(path):
        return True
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return _starting(folder)
    except OSError:
        return True
    try:
        return lock_holder(fd, DAEMON_LOCK) != 0 or _starting(folder)
    finally:
        os.close(fd)


def _starting(folder: str) -> bool:
    """Whether the process that made the store still lives: it may not have taken the lock yet."""
    try:
        with open(os.path.join(folder, EPHEMERAL_MARK)) as mark:
            return os.path.exists(f"/proc/{int(mark.readline())}")
    except (OSError, ValueError):
        return False
