"""MLlib's KMeans on a cached DataFrame: in tierstore, or with --without as Spark caches by itself. The job is the same.

    python examples/spark_mllib.py
    python examples/spark_mllib.py --without

Needs PySpark, a JDK (or a jar) and a Java. A daemon is started for the run if none answers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tierstore.spark import configure


def session(options: argparse.Namespace) -> SparkSession:
    """A session whose storage memory is too small for the points."""
    builder: Any = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.memory", options.memory).config("spark.memory.fraction", "0.2")
    if not options.without:
        builder = configure(builder, dram=options.dram, cache=True)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    made: SparkSession = builder.getOrCreate()
    made.sparkContext.setLogLevel("ERROR")
    return made


def points(spark: SparkSession, rows: int, dimensions: int) -> DataFrame:
    """Random points as MLlib's vectors."""
    columns = [F.rand(number).alias(f"f{number}") for number in range(dimensions)]
    frame = spark.range(0, rows, 1, 8).select(*columns)
    return VectorAssembler(inputCols=frame.columns, outputCol="features").transform(frame).select("features")


def main() -> None:
    """Fill the cache, fit, and say where the cached data are."""
    parser = argparse.ArgumentParser(description="MLlib's KMeans on a cached DataFrame.")
    parser.add_argument("--without", action="store_true", help="as Spark caches by itself")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=20)
    parser.add_argument("--memory", default="1g", help="of the driver's JVM")
    parser.add_argument("--dram", default="1GiB", help="of the daemon, if none answers")
    options = parser.parse_args()
    spark = session(options)
    frame = points(spark, options.rows, options.dimensions).cache()
    began = time.perf_counter()
    frame.count()
    filled = time.perf_counter()
    model = KMeans(k=10, seed=1, maxIter=5, initMode="random").fit(frame)
    fitted = time.perf_counter()
    infos: Any = spark.sparkContext._jsc.sc().getRDDStorageInfo()
    heap, disk = sum(info.memSize() for info in infos), sum(info.diskSize() for info in infos)
    print(f"filled in {filled - began:.1f} s, fitted in {fitted - filled:.1f} s, cost {model.summary.trainingCost:.1f}")
    print(f"cached blocks: {heap / 2**20:.1f} MiB on the heap, {disk / 2**20:.1f} MiB on Spark's disk")
    spark.stop()


if __name__ == "__main__":
    main()
