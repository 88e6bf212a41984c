"""Run Spark's tests with each line of Spark 4: python tests/spark_matrix.py [LINE ...] [PYTEST ARGUMENTS]; needs the extra dev,
and a network.

Each line's newest PySpark goes into a folder of its own (about 500 MB, kept in ~/.cache/tierstore/pyspark), which comes
before the installed one in PYTHONPATH. Exit code 1 if a line fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LINES = ("4.0", "4.1", "4.2", "4.3")
KEPT = Path("~/.cache/tierstore/pyspark").expanduser()
TESTS = Path(__file__).resolve().parent / "engines"


def install(line: str) -> Path:
    """The folder of a line's PySpark; what Spark itself needs of Python is installed already."""
    folder = KEPT / line
    if not (folder / "pyspark").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            f"pyspark=={line}.*",
        ]
        subprocess.run(command, check=True)
    return folder


def run(line: str, arguments: Sequence[str]) -> bool:
    """Whether all tests pass."""
    path = os.pathsep.join(filter(None, [str(install(line)), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-c", "import pyspark; print(pyspark.__version__)"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    print(f"--- Spark {found}", flush=True)
    if not found.startswith(line):
        raise SystemExit(f"PySpark {found} was imported where {line} was meant; is {KEPT / line} whole?")
    tests = [str(path) for path in sorted(TESTS.glob("test_spark*.py"))]
    return (
        subprocess.run([sys.executable, "-m", "pytest", *tests, *arguments], env=environment, check=False).returncode
        == 0
    )


def main() -> int:
    """0 if all lines pass."""
    chosen = [line for line in LINES if line in sys.argv[1:]]
    arguments = [argument for argument in sys.argv[1:] if argument not in LINES]
    passed = {line: run(line, arguments) for line in chosen or LINES}
    print(", ".join(f"Spark {line}: {'passed' if good else 'FAILED'}" for line, good in passed.items()))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
