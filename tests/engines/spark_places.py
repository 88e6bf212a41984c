"""Real Spark with a daemon of its own: what the tests of the plug-in share. One JVM for a module, one session at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tierstore.emulation.procs import Daemon

pytest.importorskip("pyspark", reason="PySpark is not installed: pip install 'tierstore[spark]'")

from pyspark import SparkContext, cloudpickle
from pyspark.sql import SparkSession

from tierstore.spark import configure

if shutil.which("javac") is None:
    pytest.skip("there is no JDK: apt install openjdk-17-jdk-headless", allow_module_level=True)

cloudpickle.register_pickle_by_value(sys.modules[__name__])
MARKS = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # PySpark leaves sockets to the collector
]
LOCAL = "local[2,4]"  # two tasks at a time, each tried four times
CLUSTER = "local-cluster[2,1,900]"  # two executors, JVMs of their own
CACHED = 1 << 30  # shuffles from here on are caches
COMMON = {
    "spark.driver.memory": "1g",
    "spark.executor.memory": "900m",
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.session.timeZone": "UTC",
}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Spark keeps workers and agents for as long as its session lives; placed() looks for what is left."""
    yield


class Place:
    """A daemon, and sessions of one JVM, one at a time."""

    def __init__(self, folder: Path, scratch: Path, plugin: dict[str, bool], settings: dict[str, str]):
        """plugin: what configure() is told. settings: of every session; "pmem": the size of such a tier of the daemon's."""
        self.folder, self.scratch, self.plugin = folder, scratch, plugin
        self.settings = COMMON | settings
        self.settings["spark.local.dir"] = str(scratch)
        self.settings["spark.sql.warehouse.dir"] = str(folder / "warehouse")
        # Its data survive it: tests kill it and start it again.
        pmem = self.settings.pop("pmem", "")
        more = ["--pmem", f"{folder}/pool:{pmem}"] if pmem else []
        self.daemon = Daemon(folder, "--dram", "96MiB", *more)
        self.session: Any = None
        self._asked: tuple[str, dict[str, str]] = "", {}

    def spark(self, master: str = LOCAL, **settings: str) -> Any:
        """The session of this master and of these settings (dots as underscores); another one where it is not."""
        if self.session is not None and self._asked == (master, settings):
            return self.session
        self.stop()
        builder = SparkSession.builder.master(master).appName("tierstore tests")
        for name, value in self.settings.items():
            builder = builder.config(name, value)
        builder = configure(builder, socket=self.daemon.socket, **self.plugin)
        for name, value in settings.items():
            builder = builder.config(name.replace("_", "."), value)
        self.session, self._asked = builder.getOrCreate(), (master, settings)
        self.session.sparkContext.setLogLevel("OFF")
        return self.session

    def stop(self) -> None:
        """End the session, if there is one."""
        if self.session is not None:
            self.session.stop()
            self.session = None

    def apps(self) -> Any:
        """What the store's registry knows."""
        with self.daemon.connect() as store:
            return store._control.call("shuffle_list")

    def caches(self) -> list[dict[str, Any]]:
        """What of this are caches."""
        return [one for app in self.apps() for one in app["shuffles"] if one["shuffle"] >= CACHED]

    def blocks(self) -> list[str]:
        """Keys of cached batches, and of runs."""
        with self.daemon.connect() as store:
            return [key for key in store.keys("shuffle/") if key.count("/") == 5]

    def held(self) -> tuple[int, int]:
        """Bytes of cached blocks that Spark has in memory and on disk."""
        infos = self.session.sparkContext._jsc.sc().getRDDStorageInfo()
        return sum(int(info.memSize()) for info in infos), sum(int(info.diskSize()) for info in infos)

    def local_files(self) -> list[str]:
        """Of shuffles, below Spark's local directories."""
        return [path.name for path in self.scratch.rglob("shuffle_*") if path.is_file()]

    def verified(self) -> bool:
        """Whether the store is whole."""
        with self.daemon.connect() as store:
            return bool(store.verify(payloads=True)["ok"])


P = TypeVar("P", bound=Place)


@contextlib.contextmanager
def living(folders: pytest.TempPathFactory, make: Callable[[Path, Path], P]) -> Iterator[P]:
    """A place with its daemon and a session, made of two folders; then no process of it may be left."""
    short = Path("/tmp") / f"ts-spark-{uuid.uuid4().hex[:8]}"  # a socket's path has little room
    short.mkdir()
    environment, before = dict(os.environ), processes()
    SparkContext._gateway = SparkContext._jvm = None  # of a module before this one
    made = make(short, folders.mktemp("spark"))
    gateway: Any = None
    try:
        made.daemon.start()
        gateway = made.spark().sparkContext._gateway
        yield made
    finally:
        made.stop()
        if gateway is not None:
            gateway.shutdown()
            gateway.proc.stdin.close()  # the JVM ends with it
            with contextlib.suppress(Exception):
                gateway.proc.wait(20)
        SparkContext._gateway = SparkContext._jvm = None
        made.daemon.end()
        shutil.rmtree(short, ignore_errors=True)
        os.environ.clear()
        os.environ.update(environment)
    soon(lambda: not processes() - before)


def placed(folders: pytest.TempPathFactory, settings: dict[str, str], **plugin: bool) -> Iterator[Place]:
    """A place for the tests of a module; then nothing of it may be left."""
    with living(folders, lambda folder, scratch: Place(folder, scratch, plugin, settings)) as made:
        yield made
        made.stop()
        assert made.apps() == [] and made.blocks() == [] and made.verified()


def processes(*words: bytes) -> set[str]:
    """The JVMs, agents and Python workers that this run of the tests has started."""
    token = os.environ.get("LEAKCHECK_RUN", "?").encode()
    wanted = words or (b"pyspark", b"org.apache.spark", b"spark_agent")
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and token in (entry / "environ").read_bytes():
                command = (entry / "cmdline").read_bytes()
                if any(word in command for word in wanted):
                    found.add(entry.name)
    return found


def soon(true: Callable[[], Any], within_s: float = 20) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def text(number: int) -> str:
    return f"text of number {number}"


class Counted:
    """An RDD whose maps are counted: each partition adds 1."""

    def __init__(self, spark: Any, maps: int = 4, partitions: int = 3):
        self.count = count = spark.sparkContext.accumulator(0)

        def touch(rows: Iterator[int]) -> Iterator[tuple[int, str]]:
            count.add(1)
            for number in rows:
                yield number, text(number)

        self.rdd = spark.sparkContext.parallelize(range(4000), maps).mapPartitions(touch).partitionBy(partitions)

    def check(self) -> int:
        """How many maps have run, after an action with the right answer."""
        assert dict(self.rdd.collect()) == {number: text(number) for number in range(4000)}
        return int(self.count.value)
