"""Applications in turns where the disk reads slowly and what was written there is not in the page cache when it is read."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .cgroup import NotPermittedError, disk_group
from .harness import Bench

DROP_S = 0.2
SPEED = 200e6  # bytes a second, of an old SSD


def slow_rounds(
    bench: Bench, what: str, place: Path, names: tuple[str, str], run: Callable[[str, Path], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """What run(name, control group) found, three times each, in the other order each round; at smoke size nothing.

    what: the figure that is skipped where this cannot be.  place: where the applications write.
    """
    speed = bench.parameter("slow disk, bytes a second", SPEED, SPEED)
    rounds = bench.parameter("slow disk rounds", 0, 3)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    if not rounds:
        bench.skip(what, "two more applications, which add nothing at smoke size")
        return {}
    try:
        with disk_group("spark", place.parent, speed) as group:
            for number in range(rounds):
                for name in names if number % 2 else reversed(names):
                    with _cold(place):
                        found[name].append(run(name, group))
    except NotPermittedError as error:
        bench.skip(what, str(error))
        return {}
    return found


@contextlib.contextmanager
def _cold(place: Path) -> Iterator[None]:
    """Have what is written below a folder go to the disk, and out of the page cache, again and again."""
    stop = threading.Event()

    def drop_all() -> None:
        while not stop.wait(DROP_S):
            for folder, _, names in os.walk(place):  # which passes over folders that go meanwhile
                for name in names:
                    with contextlib.suppress(OSError):
                        _drop(os.path.join(folder, name))

    thread = threading.Thread(target=drop_all, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _drop(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
