"""Map tasks that are meant to be killed: ``python -m tierstore.emulation.mapper SOCKET APP SEED FIRST LAST``.

Runs maps FIRST to LAST (one behind the last) of shuffle 0 of an application, some of them in several runs, and prints
each receipt as a line of JSON once it has it. What every map writes follows from its number, so that whoever reads knows
which rows must be there: rows_of().
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pyarrow as pa

from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.receipt import Receipt

from .victim import connect, say

PARTITIONS = 11


def rows_of(map_index: int) -> pa.Table:
    """The rows of a map; no other has the same. Some maps have more than a segment of 1 MiB, one in nine none."""
    generator = random.Random(map_index)
    count = 0 if map_index % 9 == 8 else generator.choice([10, 3_000, 60_000])
    numbers = np.arange(count) + map_index * 1_000_000
    words = pa.array([str(number) if number % 7 else None for number in numbers.tolist()], pa.string())
    return pa.table({"k": numbers % 977, "n": numbers, "w": words})


def expected(maps: range) -> tuple[int, int]:
    """How many rows some maps have, and the sum of their numbers."""
    tables = [rows_of(number) for number in maps]
    return sum(t.num_rows for t in tables), sum(int(t["n"].to_numpy().sum()) for t in tables)


def found(shuffle: Shuffle, receipts: list[Receipt]) -> tuple[int, int]:
    """The same of what is read; each partition for itself, and all at once."""
    rows = total = 0
    for _, table in shuffle.read_partitions(receipts=receipts, schema=rows_of(0).schema):
        rows += table.num_rows
        total += int(table["n"].to_numpy().sum())
    at_once = shuffle.read(receipts=receipts, schema=rows_of(0).schema).read_all()
    assert (at_once.num_rows, int(at_once["n"].to_numpy().sum())) == (rows, total)
    return rows, total


def run(store: Store, app: str, seed: int, maps: range, lease_s: float = 600.0) -> None:
    """Write the maps."""
    shuffle, generator = store.shuffle(app, 0, PARTITIONS, lease_s=lease_s), random.Random(seed)
    for number in maps:
        table = rows_of(number)
        if generator.random() < 0.2:  # a try that is given up
            abandoned = shuffle.writer(number)
            abandoned.write(table, by=["k"])
            abandoned.flush()
            abandoned.abort()
        with shuffle.writer(number, schema=table.schema) as writer:
            for start in range(0, table.num_rows, 20_000):
                writer.write(table.slice(start, 20_000), by=["k"])
                if generator.random() < 0.3:
                    writer.flush()
        say(json.dumps(writer.receipt.to_dict()))


if __name__ == "__main__":
    first, last = int(sys.argv[4]), int(sys.argv[5])
    run(connect(sys.argv[1]), sys.argv[2], int(sys.argv[3]), range(first, last))  # type: ignore[arg-type]
    say("end")
