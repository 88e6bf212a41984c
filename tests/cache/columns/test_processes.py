"""Several processes at one file: it is read once; who dies or stops meanwhile, client or daemon, holds nobody up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierstore.cache.columns import filling
from tierstore.emulation.procs import Daemon

ROWS, GROUP = 4000, 250
TABLE = pa.table({"a": range(ROWS), "b": [f"text {i}" for i in range(ROWS)], "c": [i / 7 for i in range(ROWS)]})
CHUNKS = TABLE.num_columns * ROWS // GROUP


@pytest.fixture
def path(tmp_path: Path, trusting: None) -> Path:
    pq.write_table(TABLE, tmp_path / "f.parquet", row_group_size=GROUP)
    return tmp_path / "f.parquet"


SCAN = """
import sys, tierstore
from tierstore.cache.columns import files, filling
files.DISTRUST_S = 0.0
decode = filling.decode
def stopping(*arguments):
    if "stop" in sys.argv:
        print("filling", flush=True)
        sys.stdin.readline()
    return decode(*arguments)
filling.decode = stopping
with tierstore.connect(sys.argv[1]) as store:
    dataset = store.dataset(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    table = dataset.to_table()
    print(dataset.stats()["misses"], table.num_rows, flush=True)
"""


class Scanner:
    """A process that scans a file at a word."""

    def __init__(self, node: Daemon, path: Path, *more: str):
        command = [sys.executable, "-c", SCAN, node.socket, str(path), *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        print("go", file=self.process.stdin, flush=True)

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_processes_fill_each_chunk_once(node: Daemon, path: Path) -> None:
    with Scanner(node, path) as a, Scanner(node, path) as b, Scanner(node, path) as c, Scanner(node, path) as d:
        scanners = [a, b, c, d]
        assert [scanner.line() for scanner in scanners] == ["ready"] * 4
        for scanner in scanners:
            scanner.go()
        lines = [scanner.line().split() for scanner in scanners]
    assert [int(rows) for _, rows in lines] == [ROWS] * 4
    assert sum(int(misses) for misses, _ in lines) == CHUNKS


@pytest.mark.slow
def test_a_filler_that_is_killed_blocks_nobody(node: Daemon, path: Path) -> None:
    with Scanner(node, path, "stop") as scanner, node.connect() as store:
        assert scanner.line() == "ready"
        scanner.go()
        assert scanner.line().startswith("filling")  # two threads may say so at once
        dataset, results = store.dataset(path), []
        thread = threading.Thread(target=lambda: results.append(dataset.to_table()))
        thread.start()
        time.sleep(0.2)
        assert not results, "it waits for who fills"
        scanner.process.kill()
        thread.join(20)
        assert results[0].equals(TABLE)
        assert dataset.stats()["misses"] == CHUNKS


@pytest.mark.slow
def test_a_filler_that_is_stopped_blocks_nobody(node: Daemon, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "TURN_WAIT_S", 0.05)
    with Scanner(node, path, "stop") as scanner, node.connect() as store:
        assert scanner.line() == "ready"
        scanner.go()
        assert scanner.line().startswith("filling")  # two threads may say so at once
        dataset = store.dataset(path)
        assert dataset.to_table().equals(TABLE)
        assert dataset.stats()["misses"] == CHUNKS


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that finds its data again when it is started again."""
    made = Daemon(tmp_path, "--dram", "32MiB")
    try:
        yield made.start()
    finally:
        made.end()


@pytest.mark.slow
def test_a_daemon_that_is_killed_during_a_scan(lasting: Daemon, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.cache.columns.scanning.GROUP_ROWS", 1)
    monkeypatch.setattr("tierstore.service.client.RESTART_WAIT_S", 0.2)
    node = lasting
    with node.connect() as store:
        dataset = store.dataset(path)
        dataset.preload(["a"])
        reader = dataset.scan()
        batches = [reader.read_next_batch()]
        node.kill()
        batches += list(reader)
        assert pa.Table.from_batches(batches).equals(TABLE)
        for _ in range(2):
            assert dataset.to_table().equals(TABLE)
        node.start()
        for _ in range(3):
            assert dataset.to_table().equals(TABLE)
        monkeypatch.setattr(dataset._filler, "_down_until", 0.0)
        dataset.preload()
        assert dataset.stats()["cached_chunks"] == CHUNKS
        assert store.verify(payloads=True)["ok"]
