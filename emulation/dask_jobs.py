"""What Dask's workers run in tests, and who notes what each of them begins and ends.

It lies here because workers are processes of their own: they import what their tasks name, and a test's module cannot be
imported everywhere. (A worker that cannot import it ends, with its nanny; the task then waits for workers for ever.)

A folder is all that the test and its workers share: ``notes`` has a line for each thing that happened, and a file named
as a step says that the next worker to come to this step is to be killed there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from distributed import WorkerPlugin

from tierstore.engines import dask_tasks

PARTS, ROWS, OUTPUTS = 6, 400, 4
TOLD_S = 0.1  # what a worker has finished is known to the scheduler after this
OUTPUT_S = 0.05
KEPT = ("transfer", "gather")  # tasks whose results the scheduler keeps


# --- tasks ------------------------------------------------------------------------------------------------------------------


def rows_of(number: int) -> pd.DataFrame:
    """An input partition."""
    n = np.arange(number * ROWS, (number + 1) * ROWS)
    return pd.DataFrame({"k": n * 7919 % 101, "x": n * 3})


def input_of(number: int, folder: str) -> pd.DataFrame:
    """An input partition, which may be the end of its worker."""
    step(folder, f"input {number}")
    return rows_of(number)


def output_of(part: pd.DataFrame, folder: str) -> pd.DataFrame:
    """What is done with an output partition."""
    step(folder, "output")
    time.sleep(OUTPUT_S)
    return part


def shuffled(folder: Path, parts: int = PARTS) -> Any:
    """A frame of Dask: inputs, a shuffle by "k" by the configured method, outputs."""
    import dask.dataframe as dd

    meta = rows_of(0)[:0]
    frame = dd.from_map(input_of, range(parts), folder=str(folder), meta=meta)
    return frame.shuffle("k", npartitions=OUTPUTS).map_partitions(output_of, str(folder), meta=meta)


def check(found: pd.DataFrame, parts: int = PARTS) -> None:
    """The oracle: the number of rows and their checksum, then every row."""
    whole = pd.concat([rows_of(number) for number in range(parts)])
    assert len(found) == len(whole) and found["x"].sum() == whole["x"].sum()
    pd.testing.assert_frame_equal(found.sort_values("x").reset_index(drop=True), whole.reset_index(drop=True))


def step(folder: str, name: str) -> None:
    """Where a worker may be killed, once, or wait: by the files ``kill NAME`` and ``hold NAME``."""
    if (Path(folder) / f"hold {name}").exists():
        note(Path(folder), "held", name)
        while (Path(folder) / f"hold {name}").exists():
            time.sleep(0.01)
    try:
        (Path(folder) / f"kill {name}").unlink()
    except FileNotFoundError:
        return
    time.sleep(TOLD_S)
    note(Path(folder), "killed", name)
    os.kill(os.getpid(), signal.SIGKILL)


STEPS = {"_write": "write", "gather": "gather", "_read": "read"}


def stepping(folder: str, names: Iterable[str] = STEPS) -> dict[str, Callable[..., Any]]:
    """Functions of dask_tasks by their names, with a step before and after: ``write`` and ``write done``, ..."""

    def wrapped(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def stepped(*arguments: Any) -> Any:
            step(folder, label)
            found = list(function(*arguments)) if label == "read" else function(*arguments)
            step(folder, f"{label} done")
            return found

        return stepped

    return {name: wrapped(STEPS[name], getattr(dask_tasks, name)) for name in names}


# --- notes ------------------------------------------------------------------------------------------------------------------


class Note(NamedTuple):
    """A line. needs: the keys of the task's dependencies."""

    pid: int
    what: str
    function: str
    key: str
    needs: tuple[str, ...]


def note(folder: Path, what: str, function: str = "", key: str = "", needs: tuple[str, ...] = ()) -> None:
    """Append a line, whole, whoever else does."""
    line = "\t".join([str(os.getpid()), what, function, key, *needs])
    with open(folder / "notes", "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def notes(folder: Path) -> list[Note]:
    """All lines so far."""
    if not (folder / "notes").exists():
        return []
    lines = [line.split("\t") for line in (folder / "notes").read_text().splitlines()]
    return [Note(int(pid), what, function, key, tuple(needs)) for pid, what, function, key, *needs in lines]


class Witness(WorkerPlugin):  # type: ignore[misc]
    """In each worker: notes which tasks begin and end there, what comes and goes, and makes steps of the shuffle's parts."""

    name = "witness"

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self._worker: Any = None

    def setup(self, worker: Any) -> None:
        """The worker begins. Where it is a process of its own, nobody else sees what is replaced here."""
        self._worker = worker
        if worker.address.startswith("inproc://"):
            return
        for name, function in stepping(str(self._folder)).items():
            setattr(dask_tasks, name, function)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """A task changed its state in this worker."""
        if finish == "executing":
            what = "begin"
        elif finish == "memory":
            what = "end" if start in ("executing", "long-running") else "copy"
        elif start == "memory":
            what = "gone"
        else:
            return
        task = self._worker.state.tasks.get(key)
        function = getattr(getattr(task, "run_spec", None), "func", None)
        needs = tuple(str(other.key) for other in task.dependencies) if task is not None else ()
        with contextlib.suppress(FileNotFoundError):  # the test has ended, and its folder is gone
            note(self._folder, what, getattr(function, "__name__", ""), str(key), needs)


# --- what must run again ----------------------------------------------------------------------------------------------------


def begun(found: list[Note]) -> Counter[str]:
    """How often each task was begun, without those that only return what the scheduler had kept."""
    return Counter(line.key for line in found if line.what == "begin" and line.function != "revive")


def again(found: list[Note]) -> set[str]:
    """The tasks that were run again; none may be run three times."""
    counts = begun(found)
    assert max(counts.values()) <= 2, counts
    return {key for key, count in counts.items() if count == 2}


def must_run_again(found: list[Note]) -> set[str]:
    """The tasks that were begun before the one kill, and whose results are not to be had without running them.

    A result is there if a worker that lives has it or is about to, or the scheduler kept it. A task must run if its result is
    wanted and not there. It is wanted if a task that must run needs it, or if nothing needs it: then it was asked for.
    """
    at = next(number for number, line in enumerate(found) if line.what == "killed")
    holders: defaultdict[str, set[int]] = defaultdict(set)
    kept: set[str] = set()
    for line in found[:at]:
        if line.what in ("begin", "end", "copy"):
            holders[line.key].add(line.pid)
        elif line.what == "gone":
            holders[line.key].discard(line.pid)
        if line.what == "end" and line.function in KEPT:
            kept.add(line.key)
    there = kept | {key for key, pids in holders.items() if pids - {found[at].pid}}
    dependents: defaultdict[str, set[str]] = defaultdict(set)
    for line in found:
        for need in line.needs if line.function != "revive" else ():
            dependents[need].add(line.key)

    @functools.cache
    def must(key: str) -> bool:
        wanted = not dependents[key] or any(must(other) for other in dependents[key])
        return wanted and key not in there

    return {line.key for line in found[:at] if line.what == "begin" and must(line.key)}
