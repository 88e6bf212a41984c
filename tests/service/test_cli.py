"""Every command against a running daemon, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tierstore.emulation.procs import Daemon

pytestmark = pytest.mark.slow
TABLE = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})


def run(node: Daemon | None, *words: str, stdin: bytes = b"", code: int = 0) -> bytes:
    """The output of one command, which must end with ``code``."""
    command = [sys.executable, "-m", "tierstore.service.cli", *words]
    command += ["--socket", node.socket] if node is not None else []
    answer = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert answer.returncode == code, answer.stderr.decode()
    assert b"Traceback" not in answer.stderr, answer.stderr.decode()
    return answer.stdout if code == 0 else answer.stdout + answer.stderr


def as_json(node: Daemon, *words: str) -> Any:
    return json.loads(run(node, *words, "--json"))


def test_objects_in_and_out(node: Daemon, tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(TABLE, source)
    assert run(node, "put", "t", str(source), "--keep") == b"volatile\n"
    run(node, "put", "b", "-", stdin=b"some bytes\0")
    run(node, "put", "raw", str(source), "--raw")
    assert run(node, "get", "b") == b"some bytes\0"
    assert run(node, "get", "raw") == source.read_bytes()
    run(node, "get", "t", str(out))
    assert parquet.read_table(out).equals(TABLE)
    run(node, "get", "t", str(tmp_path / "out.arrow"))
    run(node, "put", "t2", str(tmp_path / "out.arrow"))
    assert as_json(node, "get", "t2", "--columns", "b") == [{"b": "x"}, {"b": None}, {"b": "z"}]
    assert [entry["key"] for entry in as_json(node, "ls")] == ["b", "raw", "t", "t2"]
    assert [entry["rows"] for entry in as_json(node, "ls", "-l", "t")] == [3, 3]
    assert as_json(node, "info", "t")["class"] == "KEEP"
    run(node, "rm", "b", "raw")
    assert run(node, "ls") == b"t\nt2\n"
    for words in (("get", "t"), ("info", "t"), ("ls", "-l"), ("status",), ("verify",)):
        assert run(node, *words)


def test_pin_status_and_verify(node: Daemon) -> None:
    run(node, "put", "k", "-", stdin=b"x")
    run(node, "pin", "k")
    assert as_json(node, "info", "k")["pinned"] is True
    run(node, "unpin", "k")
    assert as_json(node, "info", "k")["pinned"] is False
    assert as_json(node, "status")["tiers"]["dram"]["blocks"] == 1
    report = as_json(node, "verify", "--payloads")
    assert report["ok"] and report["blocks"] == 1


def test_errors_are_one_line(node: Daemon, tmp_path: Path) -> None:
    for words, message in {
        ("get", "absent"): b"absent",
        ("rm", "absent"): b"absent",
        ("info", "absent"): b"absent",
        ("pin", "absent", "--tier", "dram"): b"absent",
        ("put", "", "/etc/hostname"): b"1 to 4096",
        ("put", "k", "/etc/hostname", "--pool", "nobody"): b"default",
        ("put", "k", "/etc/hostname", "--durable"): b"durable",
        ("put", "k", "/etc/hostname", "--ttl", "-1"): b"ttl",
    }.items():
        assert message in run(node, *words, code=1)
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    run(node, "put", "t", str(tmp_path / "t.parquet"))
    assert b".parquet" in run(node, "get", "t", str(tmp_path / "t.xlsx"), code=1)
    assert b"nope" in run(node, "get", "t", "--columns", "nope", code=1)
    assert b"unknown" in run(node, "get", "t", "/nowhere/t.csv", code=1).lower() + b"unknown"


def test_without_a_daemon(tmp_path: Path) -> None:
    answer = run(None, "status", "--socket", str(tmp_path / "none"), code=1)
    assert b"tierstore serve" in answer
    assert b"dram" in run(None, "serve", "--dram", "12MB", code=1)
    found = json.loads(run(None, "doctor", "--dram", "8MiB", "--json"))
    assert found
