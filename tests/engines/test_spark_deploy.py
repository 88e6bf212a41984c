"""Where executors come and go, and where they run on two nodes: dynamic allocation, a standalone cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark import cloudpickle

from tests.engines.spark_places import (
    CLUSTER,
    MARKS,
    Counted,
    Place,
    no_leaks,  # noqa: F401
    placed,
    processes,
    soon,
)
from tests.shuffle.test_shuffle_nodes import Cluster, free_ports
from tierstore.emulation.procs import Daemon
from tierstore.engines import spark_jar, spark_settings
from tierstore.engines.spark_spill import spill_settings
from tierstore.service.config import parse_size

pytestmark = MARKS
cloudpickle.register_pickle_by_value(sys.modules[__name__])
EXECUTOR = b"CoarseGrainedExecutorBackend"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = {"spark.sql.shuffle.partitions": "4", "spark.sql.autoBroadcastJoinThreshold": "-1", "pmem": "64MiB"}
    yield from placed(tmp_path_factory, settings, shuffle=True, cache=True)


@pytest.mark.soak
def test_idle_executors_go_and_what_they_wrote_stays(place: Place) -> None:
    spark = place.spark(
        CLUSTER,
        spark_dynamicAllocation_enabled="true",
        spark_dynamicAllocation_minExecutors="0",
        spark_dynamicAllocation_maxExecutors="2",
        spark_dynamicAllocation_executorIdleTimeout="1s",
        spark_dynamicAllocation_schedulerBacklogTimeout="1s",
    )
    counted = Counted(spark)
    assert counted.check() == 4
    soon(lambda: not processes(EXECUTOR), 60)
    assert counted.check() == 4
    soon(lambda: not processes(EXECUTOR), 60)
    assert counted.check() == 4
    assert place.local_files() == []


# --- spills -----------------------------------------------------------------------------------------------------------------------


def sorted_slowly(spark: Any) -> Any:
    """A job whose sorts spill some megabytes, and keep them for some seconds while their rows go to another shuffle."""

    def linger(batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if 0 < number < 5:
                time.sleep(1)  # meanwhile rows of batches before this one are written
            yield batch

    frame = spark.range(0, 200_000, 1, 4).selectExpr("id", "sha2(cast(id as string), 256) t")
    ordered = frame.repartition(2, "t").sortWithinPartitions("t")
    return (
        ordered.mapInArrow(linger, "id long, t string").repartition(3, "id").selectExpr("sum(id)", "count(distinct t)")
    )


def spilled(folder: Path) -> int:
    """Bytes below a folder that may change meanwhile."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return sum(sizes)


@pytest.mark.soak
def test_spills_lie_beside_the_pmem_tier_and_within_their_size(place: Place) -> None:
    forced = {"spark_shuffle_spill_numElementsForceSpillThreshold": "20000"}
    folder = place.folder / f"tierstore-spark-{os.getuid()}"
    for size in ("200MiB", "2MiB"):
        found = spill_settings(place.daemon.socket, parse_size(size))
        spark = place.spark("local[2]", **forced, **{name.replace(".", "_"): value for name, value in found.items()})
        most, over, scratch = [0], threading.Event(), spilled(place.scratch)

        def look(most: list[int] = most, over: threading.Event = over) -> None:
            while not over.wait(0.05):
                most.append(spilled(folder))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            if size == "200MiB":
                assert sorted_slowly(spark).first()[:] == (200_000 * 199_999 // 2, 200_000)
            else:
                with pytest.raises(Exception, match=r"own files below .*more than spark.tierstore.spill = 2097152"):
                    sorted_slowly(spark).first()
        finally:
            over.set()
            looking.join()
        assert max(most) > 4_000_000 and spilled(place.scratch) == scratch
        place.stop()
        assert spilled(folder) == 0


@pytest.mark.soak
def test_an_executor_that_is_killed_leaves_no_spills(place: Place) -> None:
    found = spill_settings(place.daemon.socket, 200 << 20)
    spark = place.spark(CLUSTER, **{name.replace(".", "_"): value for name, value in found.items()})
    assert Counted(spark).check() == 4
    places = [Path(found["spark.local.dir"]), place.scratch]  # this JVM keeps the first place that it gave to executors

    def there() -> set[Path]:
        return {path for folder in places for path in folder.rglob("blockmgr-*")}

    before, executors = there(), processes(EXECUTOR)
    assert len(before) == 1 + len(executors) == 3
    os.kill(int(min(executors, key=int)), signal.SIGKILL)
    soon(lambda: len(before & there()) == 2)
    assert Counted(spark).check() == 4


# --- two nodes ------------------------------------------------------------------------------------------------------------------

# Maps wait a little, so that both executors have some.
PROGRAM = """
import json, sys, time
from pyspark.sql import SparkSession

builder = SparkSession.builder.master(sys.argv[1])
for name, value in json.loads(sys.argv[2]).items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
spark.sparkContext.setLogLevel("OFF")
count = spark.sparkContext.accumulator(0)

def touch(rows):
    count.add(1)
    time.sleep(0.3)
    for number in rows:
        yield number, f"text of number {number}"

pairs = spark.sparkContext.parallelize(range(4000), 8).mapPartitions(touch).partitionBy(4)
kept = spark.range(0, 40000, 1, 4).selectExpr("id", "sha2(cast(id as string), 256) t").cache()
for line in sys.stdin:
    right = dict(pairs.collect()) == {number: f"text of number {number}" for number in range(4000)}
    right = right and kept.selectExpr("sum(id)", "count(distinct t)").first()[:] == (40000 * 39999 // 2, 40000)
    print(right, count.value, flush=True)
spark.stop()
"""


class Standalone:
    """A master and a worker for each daemon, all on this host; executors find the daemon of their worker."""

    def __init__(self, folder: Path, nodes: list[Daemon]):
        self.folder, self.nodes = folder, nodes
        self.port, self._started = free_ports(1)[0], contextlib.ExitStack()
        self.master = f"spark://127.0.0.1:{self.port}"
        try:
            self._start("master.Master", "", "--port", str(self.port))
            for number, node in enumerate(nodes):
                work = str(folder / f"work-{number}")
                self._start("worker.Worker", node.socket, "--cores", "1", "-m", "1g", "-d", work, self.master)
        except BaseException:
            self.end()
            raise

    def _start(self, name: str, socket: str, *arguments: str) -> None:
        home = Path(spark_jar._pyspark_jars()).parent
        command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", "--host", "127.0.0.1"]
        told = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(self.folder / "local")}
        log = self._started.enter_context(open(self.folder / "log", "ab"))
        process = subprocess.Popen(
            [*command, "--webui-port", "0", *arguments],
            env=os.environ | told | ({"TIERSTORE_SOCKET": socket} if socket else {}),
            stdout=log,
            stderr=log,
        )
        self._started.callback(process.wait)
        self._started.callback(process.terminate)

    def driver(self) -> subprocess.Popen[str]:
        """An application on two executors. Its driver uses the first daemon."""
        settings = spark_settings.plugin_settings(str(spark_jar.jar()), "") | {
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.executor.memory": "700m",
            "spark.cores.max": "2",
            "spark.scheduler.minRegisteredResourcesRatio": "1",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
            "spark.tierstore.fallback": "never",
        }
        del settings["spark.tierstore.socket"]  # each worker's environment has its own
        environment = os.environ | {"TIERSTORE_SOCKET": self.nodes[0].socket, "PYSPARK_PYTHON": sys.executable}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self.master, json.dumps(settings)],
            env=environment | {"SPARK_LOCAL_IP": "127.0.0.1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def end(self) -> None:
        """End all."""
        self._started.close()


@pytest.fixture
def standalone() -> Iterator[Standalone]:
    folder = Path("/tmp") / f"ts-{uuid.uuid4().hex[:8]}"  # a socket's path has little room
    folder.mkdir()
    before = processes()
    nodes = Cluster(folder, 2)
    try:
        nodes.start()
        made = Standalone(folder, nodes.nodes)
        try:
            yield made
        finally:
            made.end()
            soon(lambda: not processes() - before)
    finally:
        nodes.end()
        shutil.rmtree(folder, ignore_errors=True)


def runs(node: Daemon) -> int:
    """Runs of shuffles and batches of caches in a node's store."""
    with node.connect() as store:
        return sum(key.count("/") == 5 for key in store.keys("shuffle/"))


@pytest.mark.soak
def test_two_nodes_lose_an_executor_and_then_a_store(standalone: Standalone) -> None:
    driver = standalone.driver()
    first, second = standalone.nodes
    assert driver.stdin is not None and driver.stdout is not None
    try:

        def ask() -> int:
            """How many maps have run, after jobs with the right answers."""
            print("go", file=driver.stdin, flush=True)
            right, count = driver.stdout.readline().split()
            assert right == "True"
            return int(count)

        assert ask() == 8
        assert runs(first) > 0 and runs(second) > 0
        assert ask() == 8
        victim = max(processes(EXECUTOR), key=int)
        os.kill(int(victim), signal.SIGKILL)
        soon(lambda: victim not in processes(EXECUTOR))
        assert ask() == 8
        second.kill()
        for path in second._memory:
            shutil.rmtree(path)
        second.start()
        assert 8 < ask() < 16  # all maps of one store, and of no other
        driver.stdin.close()
        assert driver.wait(60) == 0
        soon(lambda: runs(first) == runs(second) == 0)
        for node in standalone.nodes:
            with node.connect() as store:
                assert store.verify(payloads=True)["ok"]
    finally:
        driver.kill()
        driver.wait()
        driver.stdin.close()
        driver.stdout.close()
