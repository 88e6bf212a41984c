"""Control groups: how a benchmark bounds all memory of some processes, page cache and shared memory included, or their disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class NotPermittedError(Exception):
    """This machine, container or user does not let us make such a control group."""


@contextlib.contextmanager
def memory_group(name: str, limit_bytes: int) -> Iterator[Path]:
    """A control group, of version 1 or 2, whose processes together may use so much memory. Raises NotPermittedError."""
    with _group("memory", name, {"memory.limit_in_bytes": str(limit_bytes)}, {"memory.max": str(limit_bytes)}) as group:
        yield group


@contextlib.contextmanager
def disk_group(name: str, path: Path, bytes_per_s: float) -> Iterator[Path]:
    """A control group whose processes together read so fast, and no faster, from the device that a path is on.

    Only reads past the page cache are sure to be counted. Raises NotPermittedError.
    """
    device = _whole_disk(os.stat(path).st_dev)
    v1, v2 = f"{device} {bytes_per_s:.0f}", f"{device} rbps={bytes_per_s:.0f}"
    with _group("blkio", name, {"blkio.throttle.read_bps_device": v1}, {"io.max": v2}) as group:
        yield group


def _whole_disk(device: int) -> str:
    """MAJOR:MINOR of the disk that a file system's device is, or is a partition of."""
    number = f"{os.major(device)}:{os.minor(device)}"
    place = Path(f"/sys/dev/block/{number}")
    if (place / "partition").exists():
        return (place.resolve().parent / "dev").read_text().strip()
    if not place.exists():
        raise NotPermittedError(f"the file system of device {number} is not on a disk of its own")
    return number


@contextlib.contextmanager
def _group(controller: str, name: str, v1: dict[str, str], v2: dict[str, str]) -> Iterator[Path]:
    """A new group with these limits, in the words of version 1 or of version 2."""
    old = ROOT / controller
    parent, limits = (old, v1) if old.is_dir() else (ROOT, v2)
    group = parent / f"tsbench-{os.getpid()}-{name}"
    try:
        group.mkdir()
    except OSError as error:
        raise NotPermittedError(f"no {controller} control group can be made in {parent} ({error.strerror})") from error
    try:
        for limit, value in limits.items():
            try:
                (group / limit).write_text(value)
            except OSError as error:
                raise NotPermittedError(f"{group / limit} cannot be set ({error.strerror})") from error
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a group; the kernel refuses for a moment after its last process is gone."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def peak_bytes(group: Path) -> int | None:
    """The most memory its processes ever used together, where the kernel says so."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        with contextlib.suppress(OSError, ValueError):
            return int((group / name).read_text())
    return None


def oom_kills(group: Path) -> int | None:
    """How many processes the kernel killed for want of memory in the group, where it says so."""
    for name in ("memory.oom_control", "memory.events"):
        with contextlib.suppress(OSError):
            for line in (group / name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None
