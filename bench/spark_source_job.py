"""The Spark application of bench/spark_source.py: scans a table in three ways, in turns; prints figures as JSON.

python -m bench.spark_source_job MASTER DATA ROUNDS LOCAL_DIR SOCKET
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tierstore.cache.columns import files

from .harness import in_turns
from .spark_application import ending
from .spark_source import FLOATS, OURS, PARQUET, PYTHON

QUERIES: dict[str, Callable[[Any], Any]] = {
    "sums of 8 floats": lambda table: table.selectExpr(*[f"sum(f{number})" for number in range(FLOATS)]),
    "sum of 1 float": lambda table: table.selectExpr("sum(f1)"),
    "sum of a decimal": lambda table: table.selectExpr("cast(sum(price) as double)"),
    "filter of a tenth, sum": lambda table: table.where("f0 > 0.9").selectExpr("sum(f1)"),
    "sums by 50 words": lambda table: table.groupBy("word").agg({"f1": "sum"}).selectExpr("max(`sum(f1)`)"),
    "lengths of texts": lambda table: table.selectExpr("sum(length(text))"),
}


def session(master: str, local: str, socket: str) -> Any:
    """A session whose JVM has the jar, for this alone."""
    from pyspark.sql import SparkSession

    from tierstore.spark import configure, register

    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder: Any = SparkSession.builder.master(master).appName("tierstore source")
    for name, value in {
        "spark.driver.memory": "2g",
        "spark.local.dir": local,
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, value)
    made = configure(builder, socket=socket, shuffle=False, cache=True).getOrCreate()
    made.sparkContext.setLogLevel("OFF")
    register(made)
    return made


def measured(spark: Any, data: str, rounds: int) -> dict[str, Any]:
    """All queries in all ways. What warms up is not told: it fills the store, and the page cache."""
    paths = sorted(Path(data).glob("*.parquet"))
    youngest = max(path.stat().st_ctime for path in paths)
    time.sleep(max(0.0, files.DISTRUST_S - (time.time() - youngest)) + 0.1)  # files younger than that are not cached
    tables = {name: spark.read.format(name).load(data) for name in (OURS, PYTHON, PARQUET)}
    times: dict[str, dict[str, list[float]]] = {}
    difference = 0.0
    for query, make in QUERIES.items():
        answers: dict[str, list[float]] = {}

        for name in (OURS, PARQUET, PYTHON, OURS, PARQUET):
            _timed(make, tables[name], answers, name)
        variants = {name: partial(_timed, make, table, answers, name) for name, table in tables.items()}
        times[query] = in_turns(variants, rounds)
        for name in tables:
            pairs = zip(answers[name], answers[PARQUET], strict=True)
            difference = max([difference, *(abs(ours / theirs - 1) for ours, theirs in pairs)])
    mapped, sent = _counted(tables[OURS])
    return {"times_s": times, "difference": difference, "mapped_bytes": mapped, "sent_bytes": sent}


def _timed(make: Callable[[Any], Any], table: Any, answers: dict[str, list[float]], name: str) -> float:
    """Seconds of a new frame, as an old one keeps what its shuffles gave; the answer is kept."""
    began = time.perf_counter()
    [row] = make(table).collect()
    took = time.perf_counter() - began
    answers[name] = [float(value) for value in row]
    return took


def _counted(table: Any) -> tuple[int, int]:
    """Bytes mapped and sent by a scan of all columns."""
    none = table.where("f0 + f1 < 0")  # which statistics cannot know
    assert none.collect() == []
    scan = none._jdf.queryExecution().executedPlan().collectLeaves().apply(0)
    names = ("tierstoreMappedBytes", "tierstoreSentBytes")
    mapped, sent = (int(scan.metrics().apply(name).value()) for name in names)
    return mapped, sent


def main(master: str, data: str, rounds: str, local: str, socket: str) -> None:
    """Run, and print JSON."""
    spark = session(master, local, socket)
    with ending(spark):
        found = measured(spark, data, int(rounds))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
