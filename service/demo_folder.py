"""Folders of one run of the demo, which a later start can tell from those of a run that died.

A folder is in use while the process that made it holds an exclusive lock (flock) on the ``owner`` file inside; the
kernel drops the lock with the process, however it ends. Removal takes the lock first, so of two starts that find the
same dead folder one removes it, and a folder is never removed between its creation and its locking for good:

    creator                    sweeper                       outcome
    mkdir                      opens (creates) owner, locks  creator finds the owner locked, or gone: it makes another
    mkdir, opens owner         locks it                      creator's lock fails: it makes another
    mkdir, opens, locks        opens owner, lock fails       sweeper leaves it
    opens owner before, locks  had removed it before         creator sees that the path is another file: makes another
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "tierstore-demo-"
OWNER = "owner"
FAST_ROOT = Path("/dev/shm")
IN_MEMORY = {"tmpfs", "ramfs"}


class RunFolder:
    """One folder of this run; removed on close."""

    def __init__(self, root: Path):
        self.path, self._owner = _create(root)

    def close(self) -> None:
        """Remove the folder with all in it, then let go of the lock."""
        if self._owner >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._owner)
            self._owner = -1


def _create(root: Path) -> tuple[Path, int]:
    root.mkdir(parents=True, exist_ok=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        try:
            owner = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT, 0o600)  # not inherited: children must not hold it
        except FileNotFoundError:
            continue
        if _lock(owner) and _is_same(owner, folder / OWNER):
            return folder, owner
        os.close(owner)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def sweep(roots: Sequence[Path] | None = None) -> list[Path]:
    """Remove this user's folders of runs that died; the folders removed."""
    return [folder for folder in _candidates(roots or (FAST_ROOT, disk_root())) if _remove_if_dead(folder)]


def _candidates(roots: Sequence[Path]) -> Iterator[Path]:
    for root in dict.fromkeys(roots):
        for folder in sorted(root.glob(f"{PREFIX}*")):
            try:
                status = folder.lstat()
            except FileNotFoundError:  # another start was faster
                continue
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                yield folder


def _remove_if_dead(folder: Path) -> bool:
    try:
        owner = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return False
    try:
        if not _lock(owner):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(owner)


def disk_root() -> Path:
    """The system's folder for temporary files, unless that is in memory: a disk tier must be on a disk."""
    usual = Path(tempfile.gettempdir())
    if file_system_of(usual) in IN_MEMORY and Path("/var/tmp").is_dir():
        return Path("/var/tmp")
    return usual


def file_system_of(path: Path) -> str:
    """Type of the file system that holds a path, as /proc/mounts names it; "" where that cannot be read."""
    real, best, kind = str(path.resolve()), "", ""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mounted, mounted_kind, *_ = line.split(" ")
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, mounted_kind
    return kind
