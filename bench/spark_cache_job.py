"""One Spark application of bench/spark_cache.py: fills df.cache() and runs MLlib's KMeans on it; prints figures as JSON.

python -m bench.spark_cache_job MASTER DATA ITERATIONS LOCAL_DIR [SOCKET]     with a socket: the cache is in the store
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from .spark_application import ending
from .spark_shuffle_job import cpu_s

CLUSTERS = 10
GRACE_S = 1.0  # the last figures of stages and executors come a little later


def session(master: str, local: str, socket: str) -> Any:
    """A session whose storage memory is a quarter of (heap - 300 MiB)."""
    from pyspark.sql import SparkSession

    from tierstore.spark import configure

    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder: Any = SparkSession.builder.master(master).appName("tierstore cache")
    for name, value in {
        "spark.driver.memory": "1g",
        "spark.executor.memory": "2g",
        "spark.memory.fraction": "0.25",
        "spark.executor.extraJavaOptions": "-XX:G1HeapRegionSize=8m",
        "spark.local.dir": local,
        "spark.sql.files.maxPartitionBytes": "256m",  # each file a partition: several in one would fit in no memory
        "spark.executor.heartbeatInterval": "1s",  # garbage collections are told with it
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, value)
    if socket:
        builder = configure(builder, socket=socket, shuffle=False, cache=True)
    made = builder.getOrCreate()
    made.sparkContext.setLogLevel("OFF")
    return made


def measured(spark: Any, data: str, iterations: int, local: str) -> dict[str, Any]:
    """Fill the cache, then fit."""
    from pyspark.ml.clustering import KMeans
    from pyspark.ml.feature import VectorAssembler

    points = spark.read.parquet(f"{data}/points-*.parquet")
    points = VectorAssembler(inputCols=points.columns, outputCol="features").transform(points).select("features")
    frame = points.cache()
    began = time.perf_counter()
    rows = frame.count()
    fill_s = time.perf_counter() - began
    fit = KMeans(k=CLUSTERS, maxIter=iterations, tol=0.0, seed=3, initMode="random").fit(frame)
    time.sleep(2 * GRACE_S)
    context = spark.sparkContext._jsc.sc()
    infos = context.getRDDStorageInfo()
    return {
        "fill_s": fill_s,
        "iterations_s": _iterations(spark),
        "gc_s": _gc_s(context),
        "cpu_s": cpu_s(b"org.apache.spark", b"spark_agent"),
        "heap_bytes": sum(int(info.memSize()) for info in infos),
        "disk_bytes": max(sum(int(info.diskSize()) for info in infos), _bytes_of_blocks(local)),
        "data_bytes": rows * len(fit.clusterCenters()[0]) * 8,
        "centers": sorted([float(value) for value in center] for center in fit.clusterCenters()),
    }


def _iterations(spark: Any) -> list[float]:
    """How long each job of an iteration took, the first left out: it starts what others find running."""
    jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    found = {}
    for job in [jobs.apply(number) for number in range(jobs.length())]:
        if "collectAsMap" in job.name():
            found[job.jobId()] = (job.completionTime().get().getTime() - job.submissionTime().get().getTime()) / 1e3
    times = [found[number] for number in sorted(found)]
    return times[1:] or times


def _gc_s(context: Any) -> float:
    executors = context.statusStore().executorList(True)
    every = [executors.apply(number) for number in range(executors.length())]
    return float(sum(one.totalGCTime() for one in every if one.id() != "driver" or len(every) == 1)) / 1e3


def _bytes_of_blocks(local: str) -> int:
    found = 0
    for path in Path(local).rglob("rdd_*"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size if path.is_file() else 0
    return found


def main(master: str, data: str, iterations: int, local: str, socket: str = "") -> None:
    """Run, and print JSON."""
    spark = session(master, local, socket)
    with ending(spark):
        spark.range(0, 1000, 1, 2).count()  # classes, agents
        found = measured(spark, data, iterations, local)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
