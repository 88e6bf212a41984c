"""examples/spark_jobs.py: the same results with shuffles in the store and in Spark's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyspark")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK to build the jar with"),
]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "spark_jobs.py"


def results(folder: Path, *arguments: str) -> list[str]:
    """What a job prints, but for the times."""
    environment = os.environ | {"TIERSTORE_SOCKET": str(folder / "s"), "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        line.rpartition(" rows")[0] or line for line in done.stdout.splitlines() if not line.startswith("iteration")
    ]


@pytest.mark.parametrize(
    "job",
    [
        ["pagerank", "--nodes", "2000", "--edges", "20000", "--partitions", "4", "--iterations", "2"],
        ["tpcds", "--scale", "0.01", "--numbers", "3", "52", "--partitions", "4"],
    ],
)
def test_a_job_gives_the_same_without_the_store(job: list[str], tmp_path: Path) -> None:
    found = results(tmp_path, *job)
    assert len(found) >= 2 and found == results(tmp_path, *job, "--without")
