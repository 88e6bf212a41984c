"""The column cache on the command line, against a running daemon, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tierstore.cache.columns.files import DISTRUST_S
from tierstore.emulation.procs import Daemon

pytestmark = pytest.mark.slow
ROWS = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, old enough to be cached."""
    made = tmp_path_factory.mktemp("tables")
    for part in range(2):
        numbers = range(part * ROWS, (part + 1) * ROWS)
        table = pa.table({"k": numbers, "v": [f"text {k % 7}" for k in numbers]})
        parquet.write_table(table, made / f"p{part}.parquet", row_group_size=1000)
    time.sleep(DISTRUST_S + 0.1)
    return made


def run(node: Daemon, *words: str, code: int = 0) -> str:
    """The output of one command, which must end with ``code``."""
    command = [sys.executable, "-m", "tierstore.service.cli", *words, "--socket", node.socket]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer.stdout if code == 0 else answer.stderr


def as_json(node: Daemon, *words: str) -> Any:
    return json.loads(run(node, *words, "--json"))


def test_sql_fills_once_and_explains(node: Daemon, folder: Path) -> None:
    text = f"select v, count(*) as n, max(k) as top from '{folder}/*.parquet' group by v order by v limit 2"
    expected = [{"v": "text 0", "n": 858, "top": 5999}, {"v": "text 1", "n": 857, "top": 5993}]
    first = as_json(node, "sql", text, "--explain-cache")
    second = as_json(node, "sql", text, "--explain-cache")
    assert first["rows"] == second["rows"] == expected
    (cold,), (warm,) = first["cache"]["tables"], second["cache"]["tables"]
    assert (cold["misses"], cold["hits"], warm["misses"], warm["hits"]) == (12, 0, 0, 12)
    assert second["cache"]["bytes_read"]["dram"] > 0
    (table,) = as_json(node, "status", "--tables")
    assert (table["scans"], table["misses"], table["hits"]) == (2, 12, 12)
    shown = run(node, "sql", text, "--explain-cache", "--threads", "1")
    assert "text 1" in shown and "read from dram" in shown and "decoded" in shown


def test_load_status_and_evict(node: Daemon, folder: Path) -> None:
    loaded = as_json(node, "load", str(folder), "--columns", "k")
    assert (loaded["cached_chunks"], loaded["chunks"], loaded["rows"]) == (6, 12, 2 * ROWS)
    assert "6 were there" in run(node, "load", str(folder), "--columns", "k")
    (row,) = as_json(node, "status", "--tables")
    assert row["table"] == str(folder) and row["chunks"] == 6 and row["bytes"]["dram"] > 6 * 8000
    assert str(folder) in run(node, "status", "--tables")
    assert run(node, "evict", str(folder / "p0.parquet")) == "3 column chunks dropped\n"
    assert as_json(node, "status", "--tables")[0]["chunks"] == 3
    pinned = as_json(node, "load", str(folder), "--pin", "dram")
    assert pinned["cached_chunks"] == 12
    assert all(entry["pinned"] for entry in (as_json(node, "info", key) for key in _keys(node)))


def test_columns_are_pinned_and_unpinned(node: Daemon, folder: Path) -> None:
    def pinned() -> list[bool]:
        return [entry["class"] == "CACHE" and as_json(node, "info", entry["key"])["pinned"] for entry in listed()]

    def listed() -> Any:
        return as_json(node, "ls", "columns/", "-l")

    pattern = f"{folder}/p0*.parquet"
    run(node, "pin", pattern, "--columns", "k", "--tier", "dram")
    assert len(listed()) == 3 and all(pinned())
    run(node, "unpin", pattern, "--table")
    assert len(listed()) == 3 and not any(pinned())


def _keys(node: Daemon) -> list[str]:
    return [entry["key"] for entry in as_json(node, "ls", "columns/")][:2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sql", "select nope from '{}/*.parquet'"), '"nope" not found'),
        (("sql", "select 1 from '{}/none/*.parquet'"), "no Parquet file is found under"),
        (("sql", "selec 1"), "syntax error"),
        (("load", "{}/none"), "there is no file"),
        (("load", "{}", "--columns", "x"), "columns = 'x' cannot be used: this dataset has k, v"),
        (("load", "{}", "--pin", "tape"), "tier = 'tape' cannot be used: this store has dram"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(
    words: tuple[str, ...], said: str, node: Daemon, folder: Path
) -> None:
    assert said in run(node, *[word.format(folder) for word in words], code=1)


def test_a_young_file_is_read_but_not_kept(node: Daemon, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [1, 2]}), tmp_path / "new.parquet")
    os.utime(tmp_path / "new.parquet", (1, 1))  # its change time tells
    found = as_json(node, "sql", f"select sum(a) as s from '{tmp_path}/new.parquet'", "--explain-cache")
    assert found["rows"] == [{"s": 3}] and found["cache"]["tables"][0]["untrusted"] == 1
