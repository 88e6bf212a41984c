"""Dask's own tests of shuffle, merge and groupby that lie in its wheel, run with our method."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

dask = pytest.importorskip("dask")

FILES = [
    "dask_expr/tests/test_shuffle.py",
    "dask_expr/tests/test_merge.py",
    "tests/test_shuffle.py",
    "tests/test_multi.py",
    "tests/test_groupby.py",
    "tests/test_merge_column_and_index.py",
    "tests/test_categorical.py",
]
LIMIT_S = 3600
# All but one that asks for what no shuffle promises; docs/DASK.md says more.
CHOICE = "(shuffle or tierstore) and not test_groupby_shift_with_freq"


@pytest.mark.soak
def test_dasks_own_tests(tmp_path: Path) -> None:
    folder = Path(dask.__file__).parent / "dataframe"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(here)])}
    command = [sys.executable, "-m", "pytest", "-p", "dask_twist", "-p", "no:cacheprovider", "-q", "-c", "/dev/null"]
    command += ["-k", CHOICE, *(str(folder / name) for name in FILES)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-4000:]
    found = re.search(r"(\d+) passed", last)
    assert found is not None and int(found[1]) >= 1300, last
