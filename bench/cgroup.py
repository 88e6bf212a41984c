"""Memory control groups: how a benchmark bounds all memory of some processes, page cache and shared memory included."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class NotPermittedError(Exception):
    """This machine, container or user does not let us make a memory control group."""


@contextlib.contextmanager
def memory_group(name: str, limit_bytes: int) -> Iterator[Path]:
    """A control group, of version 1 or 2, whose processes together may use so much memory. Raises NotPermittedError."""
    v1 = ROOT / "memory"
    parent, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (ROOT, "memory.max")
    group = parent / f"tsbench-{os.getpid()}-{name}"
    try:
        group.mkdir()
    except OSError as error:
        raise NotPermittedError(f"no memory control group can be made in {parent} ({error.strerror})") from error
    try:
        try:
            (group / limit).write_text(str(limit_bytes))
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
