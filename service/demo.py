"""The main job: k-means over data several times the DRAM budget, for four placements of the data.

The same pieces, the same kernel and the same two executor processes each time; only where the pieces are differs. The
reference row is the same again over plain NumPy arrays. Run folders (demo_folder) hold everything that touches a file
system, so that whatever happens, this run or the next start removes it all.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tierstore.ringbuf.errors import ConfigError

from . import datagen, demo_input, kmeans
from .demo_check import Opinion
from .demo_folder import FAST_ROOT, IN_MEMORY, RunFolder, disk_root, file_system_of, sweep
from .demo_placement import MARGIN_BYTES, PLACEMENTS, REFERENCE, Job, Placement, Service, measure, serve_arguments
from .demo_process import Daemon, ProcessTeam, Team
from .demo_report import Check, DemoReport, Measured, compare, size_text

QUICK_BYTES = 128 << 20
QUICK_ITERATIONS = 3
DRIFT_NOTE_MIN = 1.1  # by so much the reference may change during the run without a word


@dataclass(frozen=True)
class DemoOptions:
    """What the user chose.

    size_bytes: of float64, generated or used at most of the input; dram_bytes: budget, None for a quarter of the data.
    inputs: Parquet files or patterns, none to generate; columns: of them, none for every numeric one.
    directory: where the disk tier and generated files go, None for the system's folder for temporary files.
    """

    size_bytes: int = 3 << 29
    dram_bytes: int | None = None
    iterations: int = 5
    inputs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    centroids: int = 10
    dimensions: int = 20
    executors: int = 2
    seed: int = 1
    quick: bool = False
    directory: Path | None = None

    def __post_init__(self) -> None:
        limits = {
            "iterations": 1_000,
            "centroids": kmeans.CENTROID_COUNT_MAX,
            "executors": 64,
            "dimensions": kmeans.DIMENSION_COUNT_MAX,
        }
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"--{name}", getattr(self, name), f"from 1 to {most}")
        if self.size_bytes < 1 << 20:
            raise ConfigError("--size", self.size_bytes, "at least 1 MiB")

    @property
    def effective_bytes(self) -> int:
        return min(self.size_bytes, QUICK_BYTES) if self.quick else self.size_bytes

    @property
    def effective_iterations(self) -> int:
        return min(self.iterations, QUICK_ITERATIONS) if self.quick else self.iterations


class _Stages:
    """Progress bars on a terminal, one line per stage elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Stages:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """A stage has come this far."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
            if not self._console.is_terminal:
                self._console.print(stage, highlight=False)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def run_demo(options: DemoOptions, console: Console) -> DemoReport:
    """Run all placements and compare them; progress goes to the console, the report is returned.

    Leaves nothing behind: no process, no file, also when interrupted (SIGINT, SIGTERM, SIGHUP).
    Raises: ConfigError, DemoError, KeyboardInterrupt; SystemExit after SIGTERM or SIGHUP.
    """
    slow_root = options.directory or disk_root()
    sweep([FAST_ROOT, slow_root])
    with _signals_raise():
        stack = ExitStack()
        try:
            stages = stack.enter_context(_Stages(console))
            fast = RunFolder(FAST_ROOT)
            stack.callback(fast.close)
            slow = RunFolder(slow_root)
            stack.callback(slow.close)
            team = ProcessTeam(options.executors, [FAST_ROOT, slow_root])
            stack.callback(team.close)
            return _run(options, team, (fast.path, slow.path), stages)
        finally:
            with _signals_wait():
                stack.close()


def _run(options: DemoOptions, team: Team, folders: tuple[Path, Path], stages: _Stages) -> DemoReport:
    fast, slow = folders
    stages.show("load the kernel", 0, 1)
    team.call("warm_up", [()])  # one compiles, if it must; the others find it ready
    team.call("warm_up", [()] * team.size)
    stages.show("load the kernel", 1, 1)
    data, start = prepare_input(options, team, slow, stages)
    _check_space(data, fast, slow)
    job = Job(data, start, options.effective_iterations)
    before = measure(REFERENCE, job, team, None, _named(stages, REFERENCE))
    rows = [_run_placement(placement, job, team, folders, stages) for placement in PLACEMENTS]
    after = measure(REFERENCE, job, team, None, _named(stages, REFERENCE, " again"))
    stages.show("compare with scikit-learn", 0, 1)
    (opinion,) = team.call("check", [(data, start, job.iterations)])
    stages.show("compare with scikit-learn", 1, 1)
    return make_report(options, job, rows, (before, after), opinion)


def _run_placement(placement: Placement, job: Job, team: Team, folders: tuple[Path, Path], stages: _Stages) -> Measured:
    """Measure one placement with a daemon of its own, and remove what the daemon kept."""
    progress = _named(stages, placement)
    if placement.kind != "store":
        return measure(placement, job, team, None, progress)
    with ExitStack() as stack:
        fast, slow = (Path(stack.enter_context(TemporaryDirectory(dir=folder))) for folder in folders)
        daemon = Daemon(serve_arguments(placement, job, fast, slow), fast)
        stack.callback(daemon.close)
        client = daemon.ready()
        stack.callback(client.close)
        return measure(placement, job, team, Service(client, daemon.socket, [daemon.pid], daemon), progress)


def _named(stages: _Stages, placement: Placement, suffix: str = "") -> Any:
    return lambda what, done, total: stages.show(f"{placement.label}: {what}{suffix}", done, total)


def prepare_input(
    options: DemoOptions, team: Team, folder: Path, stages: _Stages
) -> tuple[demo_input.Input, kmeans.Floats]:
    """The pieces of the user's files or of generated ones, and the centroids to start from."""
    if options.inputs:
        paths = demo_input.find_files(options.inputs)
    else:
        paths = _generate(options, team, folder, stages)
    planned = demo_input.plan(paths, options.columns, options.effective_bytes, options.dram_bytes)
    surveys: list[demo_input.Survey] = []
    for first in range(0, len(planned.groups), team.size):
        stages.show("read the input once", first, len(planned.groups))
        part = planned.groups[first : first + team.size]
        answers = team.call("survey", [([group], planned.columns, options.seed) for group in part])
        surveys += [survey for answer in answers for survey in answer]
    stages.show("read the input once", len(planned.groups), len(planned.groups))
    data = demo_input.number_pieces(planned, [survey.group for survey in surveys])
    return data, demo_input.choose_start([survey.candidates for survey in surveys], options.centroids, options.seed)


def _generate(options: DemoOptions, team: Team, folder: Path, stages: _Stages) -> list[str]:
    spec = datagen.spec_for(options.effective_bytes, options.dimensions, options.seed)
    _require(folder, spec.row_count * 8 * spec.dimension_count)
    paths: list[str] = []
    for first in range(0, spec.file_count, team.size):
        stages.show("write Gaussian clusters to Parquet", first, spec.file_count)
        files = range(first, min(first + team.size, spec.file_count))
        answers = team.call("write", [(str(folder), spec, [index]) for index in files])
        paths += [path for answer in answers for path in answer]
    stages.show("write Gaussian clusters to Parquet", spec.file_count, spec.file_count)
    return paths


def _check_space(data: demo_input.Input, fast: Path, slow: Path) -> None:
    """Refuse before the first daemon starts what could only fail, or be killed, in the middle."""
    _require(fast, data.data_bytes + data.data_bytes // 6 + MARGIN_BYTES)
    _require(slow, data.data_bytes + data.data_bytes // 6 + MARGIN_BYTES)


def _require(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        advice = f"{folder.parent} has {size_text(free)} free and {size_text(size)} are needed; use a smaller --size"
        if folder.parent == FAST_ROOT:
            advice += ", or give the container more shared memory (docker run --shm-size)"
        raise ConfigError("--size", size_text(size), advice)


def make_report(
    options: DemoOptions,
    job: Job,
    rows: Sequence[Measured],
    references: tuple[Measured, Measured],
    opinion: Opinion,
) -> DemoReport:
    """Put the measurements side by side; the reference is what was measured before and after all others, together."""
    data = job.data
    before, after = references
    reference = replace(before, seconds=before.seconds + after.seconds)
    title = (
        f"k-means, {job.iterations} iterations, {len(job.start)} centroids: {data.row_count:,} rows x "
        f"{len(data.columns)} float64 columns = {size_text(data.data_bytes)}, DRAM budget "
        f"{size_text(data.dram_bytes)}, {options.executors} executors"
    )
    settings = {
        "title": title,
        "data_bytes": data.data_bytes,
        "row_count": data.row_count,
        "columns": list(data.columns),
        "pieces": data.piece_count,
        "dram_bytes": data.dram_bytes,
        "iterations": job.iterations,
        "centroids": len(job.start),
        "executors": options.executors,
        "seed": options.seed,
        "input": list(options.inputs) or "generated",
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pmem": "emulated by a file on tmpfs, profile none",
    }
    checks = [compare(f"of {row.label} and {reference.label}", row.centroids, reference.centroids) for row in rows]
    checks.append(_check_opinion(opinion, job, reference))
    remarks = [*notes(options, data), *drift_note(before, after)]
    return DemoReport(settings, tuple(rows), reference, tuple(checks), tuple(remarks))


def _check_opinion(opinion: Opinion, job: Job, reference: Measured) -> Check:
    what = f"of {reference.label} and scikit-learn"
    if not opinion.version or opinion.centroids is None:
        return Check(what, None, False, "scikit-learn is not installed; pip install scikit-learn to compare")
    note = f"scikit-learn {opinion.version}, same start, {job.iterations} iterations"
    if opinion.ours is not None:
        note += f", over the first {opinion.row_count:,} of {job.data.row_count:,} rows only, by the same kernel"
    if reference.empty_centroids:
        return Check(what, None, False, "a centroid lost all its rows; scikit-learn moves it, this job leaves it")
    ours = reference.centroids if opinion.ours is None else opinion.ours
    return compare(what, ours, opinion.centroids, note)


def drift_note(before: Measured, after: Measured) -> Iterator[str]:
    first, last = before.seconds_per_iteration, after.seconds_per_iteration
    if max(first, last) > DRIFT_NOTE_MIN * min(first, last):
        yield (
            f"The machine was not steady: {before.label} took {first:.3f} s an iteration before the other rows and "
            f"{last:.3f} s after them. Differences of that size mean nothing."
        )


def notes(options: DemoOptions, data: demo_input.Input) -> Iterator[str]:
    yield (
        "PMem is emulated: a file on tmpfs without added latency (profile none). It shows the software's cost, "
        "not the speed of a device."
    )
    yield (
        "disk read, disk written: what daemon and executors moved to and from block devices during the iterations "
        "(/proc/PID/io). What the page cache answers is not in it: a row that reads files with disk read near 0 was "
        "served from memory, and is slower where that memory is needed for something else."
    )
    yield "from DRAM, PMem, disk: bytes the store served to executors from each tier during the iterations."
    slow_root = options.directory or disk_root()
    if file_system_of(slow_root) in IN_MEMORY:
        yield f"{slow_root} is in memory: the rows with disk and generated Parquet have no disk under them."
    dropped = sum(group.dropped_rows for group in data.groups)
    if dropped:
        yield f"{dropped:,} rows with a null, NaN or infinity were left out."
    if data.rows_left_out:
        yield (
            f"{data.rows_left_out:,} rows of the input beyond {size_text(options.effective_bytes)} were left out; "
            "--size takes more."
        )


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the run as Ctrl-C does; they would end it without removing anything."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """No second Ctrl-C in the middle of removing things; every wait in there has a limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
