"""One Spark application of bench/spark_sql.py: runs queries of TPC-H and TPC-DS and keeps what they give.

python -m bench.spark_sql_job MASTER DATA LOCAL_DIR OUT NUMBERS [SOCKET]     with a socket: shuffles in the store

DATA holds a folder of Parquet files for each suite. NUMBERS is JSON: {suite: [numbers of queries]}. OUT gets, pickled, the rows of
each statement, {(suite, number, position): rows}, and the seconds of each query, {(suite, number): seconds}.
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


def main(master: str, data: str, local: str, out: str, numbers: str, socket: str = "") -> None:
    """Run all; print JSON."""
    spark = session(master, local, PARTITIONS, socket)
    rows: dict[Any, Any] = {}
    took: dict[Any, float] = {}
    with ending(spark):
        for name, value in {
            "spark.sql.ansi.enabled": "false",  # at small scales some queries divide by zero
            "spark.sql.adaptive.coalescePartitions.enabled": "true",
            "spark.sql.adaptive.autoBroadcastJoinThreshold": "10MB",  # which makes AQE read shuffles by map
        }.items():
            spark.conf.set(name, value)
        for suite, wanted in json.loads(numbers).items():
            for path in sorted(Path(data, suite).glob("*.parquet")):
                spark.read.parquet(str(path)).createOrReplaceTempView(path.stem)
            texts = queries(suite)
            for number in wanted:
                began = time.perf_counter()
                for position, statement in enumerate(statements(texts[number])):
                    found = spark.sql(in_sparks_words(statement)).collect()
                    rows[suite, number, position] = [tuple(row) for row in found]
                took[suite, number] = time.perf_counter() - began
        local_bytes = bytes_of_shuffles(local)
    Path(out).write_bytes(pickle.dumps((rows, took)))
    print(json.dumps({"queries": len(took), "local_bytes": local_bytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
