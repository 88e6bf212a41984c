"""Bad ground for a store to stand on, and processes that try it: small file systems, full ones, refused starts."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from .procs import Daemon

NOBODY = 65534


class CannotMount(Exception):
    """No tmpfs can be mounted here: it takes root."""


@contextlib.contextmanager
def mounted(point: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size at a new folder, gone afterwards whatever happened. Raises CannotMount."""
    point.mkdir()
    answer = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(point)],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise CannotMount(answer.stderr.strip())
    try:
        yield point
    finally:
        gc.collect()  # mappings of closed stores would keep it busy; -l lets go of it even so
        subprocess.run(["umount", "-l", str(point)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that takes all room of a file system but ``leave`` bytes."""
    path, size = folder / f"filler-{uuid.uuid4().hex[:6]}", 0
    with open(path, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                size += file.write(bytes(16384))
        file.truncate(max(0, size - leave))
    return path


def left_in(folder: Path) -> list[str]:
    """Every file and folder below, fillers aside."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("filler"))


def run(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A process to its end, which must not be a signal's doing; killed and failed if it hangs."""
    answer = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=timeout, check=False)
    assert answer.returncode >= 0, f"ended by signal {-answer.returncode}: {answer.stdout} {answer.stderr}"
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def body(name: str, *words: str, timeout: float = 60) -> str:
    """What a body of emulation/bodies.py says in all."""
    answer = run("-m", "tierstore.emulation.bodies", name, *words, timeout=timeout)
    return answer.stdout + answer.stderr


def opened(timeout: float = 60, **options: str) -> str:
    """What comes of an open() in another process."""
    return body("opened", *[f"{name}={text}" for name, text in options.items()], timeout=timeout)


def refused(folder: Path, *arguments: str, timeout: float = 60) -> str:
    """The one line with which `tierstore serve` refuses to start (warnings aside)."""
    words = ["serve", "--socket", str(folder / "s"), "--segment", "1MiB", *arguments]
    answer = run("-m", "tierstore.service.cli", *words, timeout=timeout)
    lines = [line for line in answer.stderr.splitlines() if "WARNING" not in line]
    assert answer.returncode == 1 and len(lines) == 1 and lines[0].startswith("tierstore: "), answer.stderr
    return lines[0]


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Daemon]:
    """A daemon, ended afterwards; its data in memory go too."""
    made = Daemon(folder, *arguments)
    try:
        yield made.start()
    finally:
        made.end()


def as_nobody(what: str, *words: str) -> str:
    """What another user is told."""
    answer = run("-m", "tierstore.emulation.bodies", "stranger", str(NOBODY), what, *words, timeout=30)
    assert answer.stdout.startswith("now\n"), answer.stdout + answer.stderr
    return (answer.stdout.removeprefix("now\n") + answer.stderr).strip()
