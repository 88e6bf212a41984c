"""One Spark application of bench/spark_shuffle.py: four jobs that are mostly shuffle; prints what they took as JSON.

python -m bench.spark_shuffle_job MASTER ROWS PARTITIONS LOCAL_DIR [SOCKET]     with a socket: shuffles in the store
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .spark_application import ending

COLUMNS = 8
TICKS_S = os.sysconf("SC_CLK_TCK")
GRACE_S = 1.0  # for Spark to drop the shuffles of the job before


def session(master: str, local: str, partitions: int, socket: str) -> Any:
    """A session, with shuffles in the store if there is a socket."""
    from pyspark.sql import SparkSession

    from tierstore.spark import configure

    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder: Any = SparkSession.builder.master(master).appName("tierstore shuffles")
    for name, value in {
        "spark.driver.memory": "1g",
        "spark.executor.memory": "2g",
        "spark.local.dir": local,
        "spark.sql.shuffle.partitions": str(partitions),
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, value)
    if socket:
        builder = configure(builder, socket=socket, shuffle=True)
    made = builder.getOrCreate()
    made.sparkContext.setLogLevel("OFF")
    return made


def jobs(spark: Any, rows: int, partitions: int) -> dict[str, Callable[[], list[Any]]]:
    """The jobs by name; each gives a digest of its result."""
    from pyspark.sql import functions as F

    randoms = [F.rand(number).alias(f"r{number}") for number in range(COLUMNS)]
    wide = spark.range(0, rows, 1, partitions).select("id", *randoms)
    # Sums of doubles depend on their order, so only whole numbers are told.
    digest = F.sum(F.xxhash64("id", *(f"r{number}" for number in range(COLUMNS))).cast("decimal(20,0)"))
    sums = [F.sum(f"r{number}").alias(f"s{number}") for number in range(COLUMNS)]
    grouped = wide.groupBy((F.col("id") % max(1, rows // 4)).alias("k")).agg(*sums)
    total = F.sum(F.round(sum(F.col(f"s{number}") for number in range(COLUMNS)), 3).cast("decimal(20,3)"))
    other = spark.range(0, rows, 4, partitions).select("id", F.rand(COLUMNS).alias("v"))
    joined = wide.join(other, "id")

    def ordered() -> list[Any]:
        wide.orderBy("r0").write.format("noop").mode("overwrite").save()
        return []

    return {
        "groupBy": lambda: list(grouped.agg(F.count("*"), F.sum("k"), F.round(total, 0)).first()),
        "join": lambda: list(joined.agg(F.count("*"), digest).first()),
        "sort": ordered,
        "repartition": lambda: list(wide.repartition(partitions, "id").agg(F.count("*"), digest).first()),
    }


def cpu_s(*words: bytes) -> float:
    """CPU seconds of the processes that have one of these words in their command line and descend from this one's group."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and any(word in (entry / "cmdline").read_bytes() for word in words):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == os.getsid(0):
                    total += (int(fields[11]) + int(fields[12])) / TICKS_S
    return total


def bytes_of_shuffles(local: str) -> int:
    """Bytes of shuffle files below Spark's local directories."""
    found = 0
    for path in Path(local).rglob("*shuffle*"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size if path.is_file() else 0
    return found


def task_cpu_s(spark: Any) -> float:
    """What Spark itself counts: CPU seconds of all tasks so far."""
    gateway = spark.sparkContext._gateway
    store = spark.sparkContext._jsc.sc().statusStore()
    stages = store.stageList(None, False, False, gateway.new_array(gateway.jvm.double, 0), None)
    return sum(stages.apply(number).executorCpuTime() for number in range(stages.length())) / 1e9


def main(master: str, rows: int, partitions: int, local: str, socket: str = "") -> None:
    """Run all jobs, and print JSON."""
    spark = session(master, local, partitions, socket)
    found: dict[str, Any] = {}
    with ending(spark):
        spark.range(0, 1000, 1, 2).repartition(2).count()  # classes, workers, agents
        for name, job in jobs(spark, rows, partitions).items():
            gc.collect()  # Python's wrappers of frames refer to each other
            spark.sparkContext._jvm.System.gc()
            time.sleep(GRACE_S)
            before, tasks, processes = (
                time.perf_counter(),
                task_cpu_s(spark),
                cpu_s(b"org.apache.spark", b"spark_agent"),
            )
            result = job()
            wall = time.perf_counter() - before
            time.sleep(GRACE_S / 2)  # the last stage's figures come a little later
            found[name] = {
                "wall_s": wall,
                "task_cpu_s": task_cpu_s(spark) - tasks,
                "process_cpu_s": cpu_s(b"org.apache.spark", b"spark_agent") - processes,
                "local_bytes": bytes_of_shuffles(local),
                "result": [str(value) for value in result],
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
