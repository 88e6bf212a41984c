"""Spark jobs that are mostly shuffle, with their shuffles in tierstore or, by one flag, in Spark's own files.

    python examples/spark_jobs.py pagerank                        # an RDD job: join and reduceByKey in each iteration
    python examples/spark_jobs.py tpcds --numbers 7 19 55         # queries of TPC-DS; makes the data with tpcgen-cli
    python examples/spark_jobs.py tpcds --data FOLDER --sql FILE  # any SQL over a folder of Parquet files
    python examples/spark_jobs.py pagerank --without              # the same without tierstore

Needs PySpark and a Java (pip install 'tierstore[spark]') and, with tierstore, a JDK to build the jar once. A daemon is started for
the run if none answers. K-means is in spark_kmeans.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from tierstore.spark import configure

DAMPING = 0.85
QUERIES = Path(__file__).resolve().parent.parent / "bench" / "queries"


def edges(part: int, nodes: int, count: int) -> Iterator[tuple[int, int]]:
    """Random links of a graph in which few nodes are linked to by many."""
    random = np.random.default_rng(part)
    targets = np.minimum(random.pareto(1.2, count) * nodes / 100, nodes - 1).astype(np.int64)
    return zip(random.integers(nodes, size=count).tolist(), targets.tolist(), strict=True)


def pagerank(spark: SparkSession, options: argparse.Namespace) -> None:
    """The pages that most links lead to, by the textbook's iteration over RDDs."""
    nodes, each = options.nodes, options.edges // options.partitions
    parts: Any = spark.sparkContext.parallelize(range(options.partitions), options.partitions)
    links = parts.flatMap(lambda part: edges(part, nodes, each)).distinct().groupByKey(options.partitions).cache()
    ranks = links.mapValues(lambda _: 1.0)
    for number in range(options.iterations):
        began = time.perf_counter()
        given = links.join(ranks).flatMap(lambda pair: [(to, pair[1][1] / len(pair[1][0])) for to in pair[1][0]])
        ranks = given.reduceByKey(add, options.partitions).mapValues(lambda rank: 1 - DAMPING + DAMPING * rank)
        ranks.count()
        print(f"iteration {number + 1}: {time.perf_counter() - began:.2f} s", flush=True)
    for page, rank in ranks.takeOrdered(5, key=lambda pair: (-pair[1], pair[0])):
        print(f"page {page}: {rank:.6f}")


def tpcds(spark: SparkSession, options: argparse.Namespace) -> None:
    """Time some queries, and show how many rows they give."""
    with tempfile.TemporaryDirectory(prefix="spark-tpcds-") as made:
        folder = Path(options.data or made)
        if options.data is None:
            command = [str(Path(sys.executable).parent / "tpcgen-cli"), "tpcds", "parquet", "-s", str(options.scale)]
            subprocess.run([*command, f"--output-dir={folder}"], check=True, capture_output=True)
        for path in sorted(folder.glob("*.parquet")):
            spark.read.parquet(str(path)).createOrReplaceTempView(path.stem)
        for name, text in texts(options):
            began = time.perf_counter()
            rows = spark.sql(text.replace('"', "`")).collect()
            print(f"{name}: {len(rows)} rows, {time.perf_counter() - began:.2f} s", flush=True)


def texts(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What is to be run: a file of the user's, or queries of TPC-DS by their numbers."""
    if options.sql:
        yield options.sql, Path(options.sql).read_text().strip().rstrip(";")
        return
    everything = "\n".join(path.read_text() for path in sorted(QUERIES.glob("tpcds*.sql")))
    for number in options.numbers:
        _, found, rest = everything.partition(f"\n-- {number}\n")
        if not found:
            raise SystemExit(f"TPC-DS has no query {number}: 1 to 99")
        yield f"query {number}", rest.partition(";")[0]


def session(options: argparse.Namespace) -> SparkSession:
    """A session; with tierstore, configured for it."""
    builder: Any = SparkSession.builder.master(options.master).config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.memory", options.memory).config("spark.sql.ansi.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", str(options.partitions))
    if not options.without:
        builder = configure(builder, dram=options.dram, shuffle=True)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or workers are whatever python3 is first in PATH
    made: SparkSession = builder.getOrCreate()
    made.sparkContext.setLogLevel("ERROR")
    return made


JOBS = {"pagerank": pagerank, "tpcds": tpcds}


def main() -> None:
    """Run a job."""
    parser = argparse.ArgumentParser(description="Spark jobs that are mostly shuffle.")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--without", action="store_true", help="tierstore: shuffles are Spark's own")
    parser.add_argument("--nodes", type=int, default=100_000, help="of the graph")
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--numbers", type=int, nargs="+", default=[3, 7, 19, 42, 52, 55], help="queries of TPC-DS")
    parser.add_argument("--scale", type=float, default=0.1, help="gigabytes of TPC-DS data to make")
    parser.add_argument("--data", help="a folder of Parquet files, a table each, in place of TPC-DS data")
    parser.add_argument("--sql", help="a file with one query, in place of TPC-DS queries")
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--memory", default="2g", help="of the driver's JVM")
    parser.add_argument("--dram", default="1GiB", help="of the daemon, if none answers")
    options = parser.parse_args()
    spark = session(options)
    JOBS[options.job](spark, options)
    spark.stop()


if __name__ == "__main__":
    main()
