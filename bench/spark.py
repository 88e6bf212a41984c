"""How much faster is an iteration of k-means in Spark tasks that map the store's columns than in tasks that get them otherwise?

Points in Parquet files, twice as many as Spark's storage memory has room for; two executors of one core (at smoke size,
two threads). One file is one task for everyone, the arithmetic is the same NumPy, all take turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tierstore
from tierstore.ringbuf.errors import ConfigError

from .data import GIB, MIB
from .harness import Bench, at_least, at_most, in_turns, ratios, seconds
from .node import MEMORY, connected, folder, serving
from .spark_tasks import RESULT, Assign, FromFiles

FILES, DIMENSIONS, CENTROIDS = 8, 20, 10
FIGURE = "k-means with map_batches"
OURS, CACHE, PYARROW, PLAIN = "map_batches", "df.cache() + mapInArrow", "pyarrow again", "plain files in /dev/shm"
Step = Callable[[Assign], Any]


def run(bench: Bench) -> None:
    """All four ways."""
    reason = missing()
    if reason:
        bench.skip(FIGURE, reason)
        return
    _kmeans(bench)


def _kmeans(bench: Bench) -> None:
    """All four in turns."""
    rows = bench.parameter("rows", 40_000, 10_000_000)
    rounds = bench.parameter("rounds", 1, 7)
    executors = bench.parameter("executors", "local[2,4]", "local-cluster[2,1,2048]")
    with (
        folder() as data,
        folder(MEMORY) as memory,
        serving("--dram", str(rows * DIMENSIONS * 8 * 5 // 4 + 64 * MIB)) as node,
        connected(node) as store,
        _session(executors, node.socket, data / "local", bench.smoke) as spark,
    ):
        files, plain = _points(data, memory, rows)
        start = np.random.default_rng(3).normal(scale=8, size=(CENTROIDS, DIMENSIONS))
        centroids = dict.fromkeys((OURS, CACHE, PYARROW, PLAIN), start)

        def one(name: str, step: Step) -> float:
            return seconds(lambda: centroids.update({name: _moved(centroids[name], step)}))

        ours, others = _ours(spark, store, files), _others(spark, files, plain)
        before = _bytes_below(data / "local")
        for _ in range(rounds + 1):  # the first fills the store
            one(OURS, ours)
        bench.report("bytes new in SPARK_LOCAL_DIRS", _bytes_below(data / "local") - before, "B", at_most(0))
        stats = store.dataset(files, snapshot="points").stats()
        bench.report("column chunks in the store", stats["cached_chunks"] / stats["chunks"], "", at_least(1))
        bench.report("diskUsed by map_batches", _disk_used(spark), "B", at_most(0))
        centroids[OURS] = start
        variants = {OURS: ours, **others}
        for name, step in variants.items():
            one(name, step)
        bench.report("diskUsed by df.cache()", _disk_used(spark) / MIB, "MiB", note="storage memory for half of it")
        samples = in_turns({name: partial(one, name, step) for name, step in variants.items()}, rounds)
        _report(bench, samples, centroids)


def missing(jdk: bool = False) -> str:
    """Why Spark cannot run here; nothing if it can. jdk: our jar is to be built, too."""
    if jdk and shutil.which("javac") is None:
        return "there is no JDK: apt install openjdk-17-jdk-headless"
    if importlib.util.find_spec("pyspark") is None:
        return "PySpark is not installed: pip install 'tierstore[spark]'"
    from tierstore.engines.spark_settings import find_java

    try:
        find_java(dict(os.environ))
    except ConfigError as error:
        return str(error)
    return ""


def _report(bench: Bench, samples: dict[str, list[float]], centroids: dict[str, Any]) -> None:
    for name, found in samples.items():
        bench.report(f"seconds per iteration, {name}", found, "s")
    for name, target in ((CACHE, at_least(4.5)), (PYARROW, at_least(1.5))):
        bench.report(f"{name} / {OURS}", ratios(samples[name], samples[OURS]), "x", target, name)
    bench.report(f"{OURS} / {PLAIN}", ratios(samples[OURS], samples[PLAIN]), "x", at_most(1.1), PLAIN)
    scale = np.abs(centroids[PLAIN]).max()
    difference = max(float(np.abs(found - centroids[PLAIN]).max() / scale) for found in centroids.values())
    bench.report("largest relative difference of centroids", difference, "", at_most(1e-9), PLAIN)


@contextlib.contextmanager
def _session(master: str, socket: str, local: Path, smoke: bool) -> Iterator[Any]:
    """A session; its JVM ends with it. Storage memory is a quarter of (heap - 300 MiB): 0.87 GiB in both executors."""
    from pyspark.sql import SparkSession

    from tierstore.spark import configure

    local.mkdir()
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    settings = {
        "spark.driver.memory": "1g",
        "spark.executor.memory": "1g" if smoke else "2g",
        "spark.memory.fraction": "0.25",
        "spark.executor.extraJavaOptions": "-XX:G1HeapRegionSize=8m",
        "spark.local.dir": str(local),
        "spark.sql.files.maxPartitionBytes": str(GIB),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder: Any = SparkSession.builder.master(master).appName("tierstore bench")
    for name, value in settings.items():
        builder = builder.config(name, value)
    # The rival's df.cache() is Spark's own.
    spark = configure(builder, socket=socket, shuffle=False, cache=False).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    gateway = spark.sparkContext._gateway
    try:
        yield spark
    finally:
        spark.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(30)


def _points(data: Path, memory: Path, rows: int) -> tuple[list[str], list[str]]:
    """The same points in Parquet files, and in Arrow files in memory."""
    random, files, plain = np.random.default_rng(7), [], []
    centers = random.normal(scale=8, size=(CENTROIDS, DIMENSIONS))
    for number in range(FILES):
        points = centers[random.integers(CENTROIDS, size=rows // FILES)]
        points = points + random.normal(size=points.shape)
        table = pa.table({f"f{column:02}": np.ascontiguousarray(points[:, column]) for column in range(DIMENSIONS)})
        files.append(str(data / f"points-{number}.parquet"))
        plain.append(str(memory / f"points-{number}.arrow"))
        pq.write_table(table, files[-1], row_group_size=1 << 17, use_dictionary=False)
        with pa.ipc.new_file(plain[-1], table.schema) as writer:
            writer.write_table(table, max_chunksize=1 << 17)
    return files, plain


def _ours(spark: Any, store: tierstore.Store, files: list[str]) -> Step:
    from tierstore.spark import map_batches

    # Named, as files just written would not be kept for some seconds.
    dataset = store.dataset(files, snapshot="points")
    return lambda step: map_batches(spark, dataset, step, RESULT, piece=GIB)


def _others(spark: Any, files: list[str], plain: list[str]) -> dict[str, Step]:
    frame = spark.read.parquet(*files).cache()
    numbers = spark.range(0, len(files), 1, len(files))
    return {
        CACHE: lambda step: frame.mapInArrow(step, RESULT),
        PYARROW: lambda step: numbers.mapInArrow(FromFiles(files, False, step), RESULT),
        PLAIN: lambda step: numbers.mapInArrow(FromFiles(plain, True, step), RESULT),
    }


def _moved(centroids: Any, step: Step) -> Any:
    sums, rows = np.zeros(centroids.shape), np.zeros(len(centroids))
    for part in step(Assign(centroids)).collect():
        sums[part.cluster] += part.sums
        rows[part.cluster] += part.rows
    return np.where(rows[:, None] > 0, sums / np.maximum(rows, 1)[:, None], centroids)


def _disk_used(spark: Any) -> int:
    """What the storage page calls diskUsed, of all cached data."""
    return sum(int(info.diskSize()) for info in spark.sparkContext._jsc.sc().getRDDStorageInfo())


def _bytes_below(root: Path) -> int:
    found = 0
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size if path.is_file() else 0
    return found
