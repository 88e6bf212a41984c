"""The agent and the Java client of it, without Spark: a JVM that does as it is told, and that tests may kill."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tierstore
from tierstore.emulation.procs import Daemon

pytest.importorskip("pyspark", reason="PySpark is not installed: pip install 'tierstore[spark]'")

from tierstore.engines import spark_jar, spark_settings
from tierstore.shuffle.checks import partition_checks
from tierstore.shuffle.slices import byte_batch

pytestmark = pytest.mark.slow
SIZE = 300_000
if shutil.which("javac") is None:
    pytest.skip("there is no JDK: apt install openjdk-17-jdk-headless", allow_module_level=True)


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of a Holder."""
    path = f"{spark_jar.jar()}{os.pathsep}{spark_jar._pyspark_jars()}/*"
    made = tmp_path_factory.mktemp("holder")
    source = Path(__file__).with_name("java") / "Holder.java"
    subprocess.run(["javac", "--release", "17", "-nowarn", "-cp", path, "-d", str(made), str(source)], check=True)
    return f"{made}{os.pathsep}{path}"


class Holder:
    """One such JVM."""

    def __init__(self, classes: str, socket: str, **settings: str):
        """settings: below spark.tierstore."""
        told = {
            name: value for name, value in spark_settings.plugin_settings("", socket).items() if "tierstore." in name
        }
        told |= {f"spark.tierstore.{name}": value for name, value in settings.items()}
        command = ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", classes, "io.tierstore.spark.Holder"]
        pairs = [f"{name}={value}" for name, value in told.items() if name.startswith("spark.tierstore.")]
        self.process = subprocess.Popen(
            [*command, *pairs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def say(self, line: str) -> str:
        """Have it do something; what it says to that."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def agent(self) -> tuple[int, int]:
        pid, slot = self.say("agent").split()
        return int(pid), int(slot)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def holder(classes: str, node: Daemon) -> Iterator[Holder]:
    made = Holder(classes, node.socket)
    try:
        yield made
    finally:
        made.end()


def soon(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def leased(store: Any) -> int:
    return int(store.stats()["tiers"]["dram"]["segments"]["leased"])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_checks_are_those_of_the_store(holder: Holder) -> None:
    for size in (0, 1, 3, 4, 7, 8, 16, 17, 63, 64, 65, 80, 128, 4095, 4096, 4097, 4160, 4161, 12289, 1_000_003):
        data = java_random(7, size)
        expected = partition_checks(byte_batch(pa.py_buffer(data)), np.array([0, size], "u4"))
        assert holder.say(f"check {size}").split() == [f"{int(expected[0]):x}"] * 2, size


def java_random(seed: int, size: int) -> bytes:
    """What java.util.Random(seed).nextBytes() gives."""
    state, made = (seed ^ 0x5DEECE66D) & (1 << 48) - 1, bytearray()
    while len(made) < size:
        state = (state * 0x5DEECE66D + 0xB) & (1 << 48) - 1
        made += (state >> 16 & 0xFFFFFFFF).to_bytes(4, "little")
    return bytes(made[:size])


def test_impossible_settings_are_refused_with_what_is_allowed(holder: Holder) -> None:
    for name, value, remedy in [
        ("shufle", "true", "no such setting, but .*shuffle"),
        ("fallback", "yes", "auto .* or never"),
        ("lease", "5s", "at least 20s"),
        ("lease", "soon", "a time such as 120s"),
        ("timeout", "1s", "at least 5s"),
        ("buffer", "2g", "from 1m to 1g"),
        ("quota", "-1", "a size"),
    ]:
        said = holder.say(f"setting spark.tierstore.{name} {value}")
        assert said.startswith("IllegalArgumentException") and f"{name} = {value}" in said, said
        assert re.search(remedy, said), said
    assert holder.say("setting spark.tierstore.fallback never") == "fine"


def test_an_object_filled_by_a_jvm_is_an_ordinary_one(holder: Holder, node: Daemon) -> None:
    holder.agent()
    assert holder.say(f"begin k {SIZE}") == "begun"
    with node.connect() as store:
        assert holder.say(f"enter {SIZE}") == "inside" and "k" not in store
        assert [holder.say("exit"), holder.say("seal")] == ["outside", "sealed"]
        assert bytes(store.get_bytes("k")) == b"x" * SIZE
        assert holder.say("seal") == "IOException this connection was given back"
        assert holder.say("pin k").split() == ["0", str(SIZE)]


def test_memory_of_a_killed_agent_is_not_given_away_while_the_jvm_writes_there(holder: Holder, node: Daemon) -> None:
    pid, slot = holder.agent()
    assert holder.say(f"begin k {SIZE}") == "begun" and holder.say(f"enter {SIZE}") == "inside"
    with node.connect() as store:
        os.kill(pid, signal.SIGKILL)
        soon(lambda: gone(pid))
        for number in range(20):  # would take the segment, if it were free
            store.put_bytes(f"other-{number}", bytes(1 << 20))
        assert holder.say("write") == "written"
        assert store.verify(payloads=True)["ok"] and "k" not in store
        held = leased(store)
        assert holder.say("begin z 10").startswith(("AgentLost", "ConnectException", "SocketException", "EOF"))
        assert holder.say("exit") == "outside"
        soon(lambda: leased(store) < held)
        again, _ = holder.agent()
        assert again != pid
        assert holder.say(f"begin k {SIZE}") == "begun" and holder.say(f"enter {SIZE}") == "inside"
        assert [holder.say("exit"), holder.say("seal")] == ["outside", "sealed"]
        assert bytes(store.get_bytes("k")) == b"x" * SIZE


ENDING = f"""#!{sys.executable}
import sys
from tierstore.engines.spark_agent_calls import Calls
from tierstore.ringbuf.errors import Closed

def handle(self, head, body, handle=Calls.handle):
    if head["op"] == "keys":
        raise Closed("this connection was closed")
    return handle(self, head, body)

Calls.handle = handle
del sys.argv[:2]
exec(sys.argv[0])
"""


def test_an_agent_whose_store_is_gone_counts_as_lost(classes: str, node: Daemon, tmp_path: Path) -> None:
    """It ends; a thread of it that was not the first to be told is asked once more before it does."""
    python = tmp_path / "python"
    python.write_text(ENDING)
    python.chmod(0o755)
    holder = Holder(classes, node.socket, python=str(python))
    try:
        holder.agent()
        assert holder.say("keys k").startswith("AgentLost the agent is ending")
        assert holder.say("begin k 10") == "begun"
    finally:
        holder.end()


def test_a_killed_jvm_takes_its_agent_along(holder: Holder, node: Daemon) -> None:
    pid, _ = holder.agent()
    with node.connect() as store:
        before = leased(store)
        assert holder.say(f"begin k {SIZE}") == "begun" and holder.say(f"enter {SIZE}") == "inside"
        assert leased(store) > before
        holder.process.kill()
        soon(lambda: gone(pid))
        soon(lambda: leased(store) == before)
        assert store.verify(payloads=True)["ok"] and "k" not in store


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T"


def test_an_agent_that_hangs_is_killed_and_its_memory_kept_until_the_jvm_is_done(classes: str, node: Daemon) -> None:
    made = Holder(classes, node.socket, timeout="5s")
    try:
        pid, _ = made.agent()
        assert made.say(f"begin k {SIZE}") == "begun" and made.say(f"enter {SIZE}") == "inside"
        os.kill(pid, signal.SIGSTOP)
        soon(lambda: stopped(pid))
        said = made.say("keys k")
        assert said.startswith("AgentLost") and re.search("`keys` for 5 s .*timeout.*killed", said), said
        soon(lambda: gone(pid))
        with node.connect() as store:
            held = leased(store)
            assert made.say("write") == "written"
            assert store.verify(payloads=True)["ok"] and leased(store) == held
            assert made.say("exit") == "outside"
            soon(lambda: leased(store) < held)
        again, _ = made.agent()
        assert again != pid and made.say("keys k") == "keys 0"
    finally:
        made.end()


def test_an_agent_that_hangs_at_its_start_is_killed(classes: str, node: Daemon, tmp_path: Path) -> None:
    python, mark = tmp_path / "python", tmp_path / "mark"
    python.write_text(f'#!/bin/sh\nmkdir {mark} 2>/dev/null && kill -STOP $$\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    made = Holder(classes, node.socket, timeout="5s", python=str(python))
    try:
        assert re.search("AgentLost.*did not start within 5 s", made.say("agent at once"))
        pid, _ = made.agent()
        assert not gone(pid)
    finally:
        made.end()


def test_an_agent_that_works_on_a_request_for_long_is_not_killed(classes: str, node: Daemon) -> None:
    """What takes longer than the timeout here: a daemon that is stopped."""
    made = Holder(classes, node.socket, timeout="5s")
    try:
        pid, _ = made.agent()
        assert node.process is not None
        node.process.send_signal(signal.SIGSTOP)
        goes_on = threading.Timer(8, node.process.send_signal, [signal.SIGCONT])
        goes_on.start()
        assert made.say("keys k") == "keys 0" and not goes_on.is_alive()
        assert made.agent()[0] == pid
        goes_on.join()
    finally:
        made.end()


def test_a_jar_of_another_version_says_which_two_there_are(classes: str, node: Daemon, tmp_path: Path) -> None:
    other = tmp_path / spark_jar.PACKAGE / "version"
    other.parent.mkdir(parents=True)
    other.write_text("0.0.7")
    made = Holder(f"{tmp_path}{os.pathsep}{classes}", node.socket)
    try:
        said = made.say("agent at once")
        assert re.search(f"ConfigError.*jar is of tierstore 0.0.7 .*of {re.escape(tierstore.__version__)} ", said), said
    finally:
        made.end()


def test_without_a_daemon_the_agent_says_so(classes: str, tmp_path: Path) -> None:
    made = Holder(classes, str(tmp_path / "s"))
    try:
        assert "no daemon answers" in made.say("agent at once")
    finally:
        made.end()
