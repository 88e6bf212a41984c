"""A file of the store is truncated while it is mapped: an error in the reader, in the daemon too, and never SIGBUS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierstore.emulation.procs import Child, Daemon

pytestmark = pytest.mark.slow

EMBEDDED = """
import os, sys, tierstore
tier, pmem = sys.argv[1:]
store = tierstore.open(dram="8MiB", pmem=pmem + ":8MiB", segment="1MiB")
store.put_bytes("key", b"x" * 300_000, keep=True)
store.pin("key", tier)
view = store.get_bytes("key")
os.truncate(store.stats()["tiers"][tier]["paths"][0], 4096)
for call in (lambda: bytes(view), lambda: store.get_bytes("key")):
    try:
        call()
        print("nothing")
    except tierstore.CorruptionError as error:
        print("CorruptionError", os.path.basename(error.region))
"""


@pytest.fixture
def pmem() -> Iterator[str]:
    path = f"/dev/shm/tierstore-test-{uuid.uuid4().hex[:12]}"
    yield path
    Path(path).unlink(missing_ok=True)


@pytest.mark.parametrize("tier", ["dram", "pmem"])
def test_a_truncated_file_is_an_error_in_an_embedded_store(tier: str, pmem: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", EMBEDDED, tier, pmem], capture_output=True, text=True, timeout=60, check=False
    )
    name = "dram.arena" if tier == "dram" else os.path.basename(pmem)
    assert ended.stdout.split("\n")[:2] == [f"CorruptionError {name}"] * 2, ended.stderr
    assert ended.returncode != -signal.SIGBUS and "was truncated while it was in use" in ended.stderr


def test_a_truncated_file_is_an_error_in_client_and_daemon(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--dram", "16MiB", "--ephemeral")
    daemon.start()
    try:
        with daemon.connect() as store:
            store.put_bytes("key", b"value 01" * 40_000, keep=True)
            path = store.stats()["tiers"]["dram"]["paths"][0]
        with Child("truncated", daemon.socket) as child:
            assert child.line() == "read value 01"
            os.truncate(path, 4096)
            child.go()
            assert [child.line(), child.line()] == ["CorruptionError"] * 2
            assert child.wait() == 0
        assert daemon.process is not None and daemon.process.poll() != -signal.SIGBUS
    finally:
        daemon.end()
    assert daemon.process.returncode != -signal.SIGBUS
