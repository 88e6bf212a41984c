"""Applications of Spark as processes of their own: how benchmarks start one, and how one ends."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .node import BenchError, child_environment, join_group

SAID_CHARACTERS = 4000


def run_application(
    module: str, local: Path, socket: str, *arguments: str, group: Path | None = None
) -> dict[str, Any]:
    """Run ``python -m bench.MODULE ARGUMENTS [SOCKET]``; the JSON in the last line it prints.

    local: Spark's local directory, which is there for as long.  group: a control group to run in.
    Raises: BenchError with the last it said, if it fails.
    """
    local.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{module}", *arguments, *filter(None, [socket])],
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            preexec_fn=join_group(group),
        )
    finally:
        shutil.rmtree(local, ignore_errors=True)
    if done.returncode:
        raise BenchError(f"{module} ended with {done.returncode}:\n{done.stderr[-SAID_CHARACTERS:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


@contextlib.contextmanager
def ending(spark: Any) -> Iterator[None]:
    """Within an application: stop the session at the end, and wait for its JVM."""
    try:
        yield
    finally:
        gateway = spark.sparkContext._gateway
        spark.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(30)
