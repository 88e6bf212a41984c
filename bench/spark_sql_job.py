"""One Spark application of bench/spark_sql.py: runs queries of TPC-H and TPC-DS and keeps what they give.

python -m bench.spark_sql_job MASTER DATA LOCAL_DIR OUT NUMBERS CACHED [SOCKET]     with a socket: shuffles in the store

DATA holds a folder of Parquet files for each suite. NUMBERS is JSON: {suite: [numbers of queries]}. OUT gets, pickled, the rows of
each statement, {(suite, number, position): rows}, and the seconds of each query, {(suite, number): seconds}. CACHED: "yes" if all
tables are to be cached first, by df.cache().
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import time
from pathlib import Path
from typing import Any

from .spark_application import ending
from .spark_shuffle_job import bytes_of_shuffles, session
from .tpc import queries, statements, uncut

PARTITIONS = 16


def in_sparks_words(statement: str) -> str:
    """Names in double quotes are text for Spark where it is not strict; without a limit, see tpc.uncut()."""
    return re.sub(r'"([^"\n]*)"', r"`\1`", uncut(statement))


def _tables(spark: Any, folder: Path, cached: bool) -> list[Any]:
    """Each file of a folder, known as a table by its name."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        table = spark.read.parquet(str(path))
        if cached:
            table.cache().count()
        table.createOrReplaceTempView(path.stem)
        found.append(table)
    return found


def _held(spark: Any, tables: list[Any]) -> dict[str, int]:
    """What is cached: the bytes that Spark itself has of it, in memory and on disk, and those of the data, wherever they are."""
    infos = spark.sparkContext._jsc.sc().getRDDStorageInfo()
    plans = [table._jdf.queryExecution().withCachedData() for table in tables]
    return {
        "held_bytes": sum(int(info.memSize()) + int(info.diskSize()) for info in infos),
        "data_bytes": sum(int(str(plan.stats().sizeInBytes())) for plan in plans),
    }


def main(master: str, data: str, local: str, out: str, numbers: str, cached: str, socket: str = "") -> None:
    """Run all; print JSON."""
    spark = session(master, local, PARTITIONS, socket)
    rows: dict[Any, Any] = {}
    took: dict[Any, float] = {}
    tables: list[Any] = []
    with ending(spark):
        for name, value in {
            "spark.sql.ansi.enabled": "false",  # at small scales some queries divide by zero
            "spark.sql.adaptive.coalescePartitions.enabled": "true",
            "spark.sql.adaptive.autoBroadcastJoinThreshold": "10MB",  # which makes AQE read shuffles by map
        }.items():
            spark.conf.set(name, value)
        for suite, wanted in json.loads(numbers).items():
            tables += _tables(spark, Path(data, suite), cached == "yes")
            texts = queries(suite)
            for number in wanted:
                began = time.perf_counter()
                for position, statement in enumerate(statements(texts[number])):
                    found = spark.sql(in_sparks_words(statement)).collect()
                    rows[suite, number, position] = [tuple(row) for row in found]
                took[suite, number] = time.perf_counter() - began
        told = {"queries": len(took), "local_bytes": bytes_of_shuffles(local), **_held(spark, tables)}
    Path(out).write_bytes(pickle.dumps((rows, took)))
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
