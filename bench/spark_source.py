"""How fast does Spark scan warm tables by format("tierstore") in Java, by the same in Python, and by its own reader of Parquet?

One application; the three in turns. Parquet files are in the page cache, columns in the store's memory, before anything is
measured. The answers of the three are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .data import MIB
from .harness import Bench, at_most, ratios
from .node import folder, serving
from .spark import missing
from .spark_application import run_application

OURS, PYTHON, PARQUET = "tierstore", "tierstore_python", "parquet"
FILES, FLOATS = 8, 8
# A row: floats, a decimal, a word of a few, and a text of its own.
ROW_BYTES = FLOATS * 8 + 8 + 2 + 16


def run(bench: Bench) -> None:
    """The application, and what it found."""
    reason = missing(jdk=True)
    if reason:
        bench.skip('format("tierstore")', reason)
        return
    rows = bench.parameter("rows", 20_000, 11_000_000)
    rounds = bench.parameter("rounds", 1, 3)
    master = bench.parameter("executors", "local[2,4]", "local[2,4]")
    with folder() as data, serving("--dram", str(rows * ROW_BYTES * 3 // 2 + 64 * MIB)) as node:
        table, local = data / "table", data / "local"
        _table(table, rows)
        found = run_application("spark_source_job", local, node.socket, master, str(table), str(rounds), str(local))
    _report(bench, found)


def _table(data: Path, rows: int) -> None:
    data.mkdir()
    random = np.random.default_rng(11)
    for number in range(FILES):
        count = rows // FILES
        columns: dict[str, Any] = {f"f{column}": random.random(count) for column in range(FLOATS)}
        cents = pa.array(random.integers(0, 10**8, count)).cast(pa.decimal128(21, 2))
        columns["price"] = cents.cast(pa.decimal128(15, 2))
        columns["word"] = np.char.add("word ", random.integers(0, 50, count).astype(str))
        columns["text"] = np.char.add("text ", random.integers(0, 10**9, count).astype(str))
        pq.write_table(pa.table(columns), data / f"part-{number}.parquet", row_group_size=1 << 19)


def _report(bench: Bench, found: dict[str, Any]) -> None:
    for query, times in found["times_s"].items():
        for name in (OURS, PYTHON, PARQUET):
            bench.report(f"{query}, {name}", times[name], "s")
        for other, limit in ((PYTHON, 0.5), (PARQUET, 1.0)):
            both = ratios(times[OURS], times[other])
            bench.report(f"{query}: {OURS} / {other}", both, "x", None if bench.smoke else at_most(limit), other)
    sent = found["sent_bytes"]
    bench.report("bytes of columns sent, not mapped, in a warm scan of all", sent, "B", at_most(0))
    bench.report("bytes of columns mapped in a warm scan of all", found["mapped_bytes"] / MIB, "MiB")
    bench.report("largest difference of the answers", found["difference"], "", at_most(1e-9), PARQUET)
