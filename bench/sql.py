"""Is SQL over cached columns as fast as an engine's own tables, and how much faster than over warm Parquet?

TPC-H by DuckDB, Polars and DataFusion in one process with as many threads as processors, over the store of a daemon and
over what each engine would read without it, in turns; all answers are compared.
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datafusion
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

import tierstore
from tierstore.cache.columns import files

from . import tpc, tpch_polars
from .data import MIB
from .harness import Bench, at_least, at_most, in_turns, ratios, seconds
from .node import folder, serving

Run = Callable[[int], Sequence[Sequence[Any]]]
Tables = Mapping[str, Path]
TPCH = tpc.queries("tpch")
SCAN_BOUND = (1, 6)
HOT_SHARE = 0.9
FRAMES = {
    "four columns of integers": ["l_orderkey", "l_partkey", "l_suppkey", "l_linenumber"],
    "a decimal and a date": ["l_extendedprice", "l_shipdate"],
}


def run(bench: Bench) -> None:
    """All cases."""
    scale = bench.parameter("scale_factor", 0.01, 1.0)
    rounds = bench.parameter("rounds", 2, 7)
    threads = bench.parameter("threads", 2, len(os.sched_getaffinity(0)))
    with folder() as data:
        tables = tpc.make_data("tpch", data / "tpch", scale)
        facts = tpc.make_data("tpcds", data / "tpcds", bench.parameter("tpcds_scale_factor", 0.01, 1.0))
        _settle([*tables.values(), *facts.values()])
        with serving("--dram", f"{bench.parameter('dram_MiB', 256, 4096)}MiB") as node, node.connect() as store:
            _fill(bench, store, tables, threads, rounds)
            _duckdb(bench, store, tables, threads, rounds)
            _tpcds(bench, store, facts, threads, rounds)
            _lazy(bench, store, tables, threads, rounds)
            _polars(bench, store, tables, rounds)
            _datafusion(bench, store, tables, threads, rounds)
            _pandas(bench, store, tables, rounds)
            _single_flight(bench, store, tables, threads)
        _tiers(bench, tables, threads, rounds)
        _scan_resistance(bench, tables)


def _settle(paths: Sequence[Path]) -> None:
    """Files are cached once their times can tell versions apart."""
    time.sleep(max(0.0, files.DISTRUST_S - min(time.time() - path.stat().st_ctime for path in paths)) + 0.1)


def _connection(threads: int) -> Any:
    connection = duckdb.connect()
    connection.execute(f"set threads = {threads}")
    return connection


def _connections(store: Any, tables: Tables, threads: int, names: Sequence[str]) -> dict[str, Any]:
    """DuckDB over the store, over Parquet, and over tables of its own."""
    connections = {}
    for name in names:
        connection = _connection(threads)
        for table, path in tables.items():
            if name == "store":
                store.dataset(path).to_duckdb(connection, table)
            else:
                kind = "view" if name == "Parquet" else "table"
                connection.execute(f"create {kind} {table} as select * from '{path}'")
        connections[name] = connection
    return connections


def _fetch(connection: Any, texts: Mapping[int, str], number: int) -> list[tuple[Any, ...]]:
    return [row for statement in tpc.statements(texts[number]) for row in connection.execute(statement).fetchall()]


def _fetch_uncut(connection: Any, text: str) -> list[tuple[Any, ...]]:
    return [row for statement in tpc.statements(text) for row in connection.execute(tpc.uncut(statement)).fetchall()]


def _same(number: int, answers: Sequence[tpc.Rows]) -> bool:
    return all(tpc.same_answer(answers[0], answer) for answer in answers[1:])


def _times(
    runs: Mapping[str, Run], numbers: Sequence[int], rounds: int, same: Callable[[int, Any], bool] = _same
) -> dict[str, dict[int, list[float]]]:
    """Seconds of each query by each variant, in turns, after two runs whose answers are compared: the second may change forms."""
    times: dict[str, dict[int, list[float]]] = {name: {number: [] for number in numbers} for name in runs}
    for number in numbers:
        for _ in range(2):
            answers = [run(number) for run in runs.values()]
            assert same(number, answers), f"query {number}: other answers"
        for _ in range(rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                run(number)
                times[name][number].append(time.perf_counter() - began)
    return times


def _geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _against(bench: Bench, engine: str, suite: str, rival: str, times: dict[str, dict[int, list[float]]]) -> None:
    """Rows: how many times faster than a rival, on the geometric mean, and the query that gains least."""
    ours, theirs = times["store"], times[rival]
    by_query = {number: statistics.median(ratios(theirs[number], ours[number])) for number in ours}
    rounds = range(len(next(iter(ours.values()))))
    means = [_geometric([theirs[number][turn] / ours[number][turn] for number in ours]) for turn in rounds]
    compared = f"the same queries over {rival}, in turns"
    bench.report(
        f"{engine}, {len(ours)} {suite} queries: times as fast as over {rival}, geometric mean",
        means, "x", at_least(1.5), compared,
    )  # fmt: skip
    least = min(by_query, key=lambda number: by_query[number])
    bench.report(
        f"{engine}, {suite}: the query that gains least (number {least}), time / over {rival}",
        [mine / other for mine, other in zip(ours[least], theirs[least], strict=True)], "x", at_most(1.05), compared,
    )  # fmt: skip


def _duckdb(bench: Bench, store: Any, tables: Tables, threads: int, rounds: int) -> None:
    names = ("store", "Parquet", "own tables")
    connections = _connections(store, tables, threads, names)
    times = _times({name: partial(_fetch, opened, TPCH) for name, opened in connections.items()}, list(TPCH), rounds)
    totals = {
        name: [sum(samples[turn] for samples in queries.values()) for turn in range(rounds)]
        for name, queries in times.items()
    }
    for name, samples in totals.items():
        bench.report(f"DuckDB, 22 TPC-H queries over {name}", [1e3 * sample for sample in samples], "ms")
    bench.report(
        "DuckDB, 22 TPC-H queries: over the store / over its own tables",
        ratios(totals["store"], totals["own tables"]), "x", at_most(1.15), "DuckDB's own tables in memory, in turns",
    )  # fmt: skip
    _against(bench, "DuckDB", "TPC-H", "Parquet", times)


def _tpcds(bench: Bench, store: Any, tables: Tables, threads: int, rounds: int) -> None:
    texts = tpc.queries("tpcds")
    numbers = sorted(texts)[:: -(-len(texts) // bench.parameter("tpcds_queries", 4, len(texts)))]
    connections = _connections(store, tables, threads, ("store", "Parquet"))

    def same(number: int, answers: Sequence[tpc.Rows]) -> bool:
        """Many of these queries cut rows that sort alike; then all rows are compared."""
        if tpc.same_rows(*answers):
            return True
        return tpc.same_rows(*(_fetch_uncut(opened, texts[number]) for opened in connections.values()))

    runs = {name: partial(_fetch, opened, texts) for name, opened in connections.items()}
    _against(bench, "DuckDB", "TPC-DS", "Parquet", _times(runs, numbers, rounds, same))


def _lazy(bench: Bench, store: Any, tables: Tables, threads: int, rounds: int) -> None:
    """A first query of a new dataset whose columns are cached, against one over a table of the same mapped batches."""
    path, text = tables["lineitem"], TPCH[6]
    dataset = store.dataset(path)
    snapshot = dataset.snapshot()
    table = dataset.mapped(snapshot, snapshot.stored)
    if table is None:
        dataset.preload()
        table = dataset.mapped(snapshot, snapshot.stored)

    def lazy() -> Any:
        connection = _connection(threads)
        store.dataset(path).to_duckdb(connection, "lineitem")
        return connection.execute(text).fetchall()

    def by_hand() -> Any:
        connection = _connection(threads)
        connection.register("lineitem", table)
        return connection.execute(text).fetchall()

    samples = []
    for _ in range(2 * rounds + 1):
        began = time.perf_counter()
        first = lazy()
        middle = time.perf_counter()
        assert first == by_hand()
        samples.append(1e3 * ((middle - began) - (time.perf_counter() - middle)))
    bench.report(
        "dataset, to_duckdb and query 6: longer than over a table of the same mapped batches",
        samples, "ms", at_most(5.0), "con.register of a pyarrow table, in turns",
    )  # fmt: skip


def _polars(bench: Bench, store: Any, tables: Tables, rounds: int) -> None:
    def frames(open_one: Callable[[Path], pl.LazyFrame]) -> tpch_polars.Frames:
        return {table: open_one(path) for table, path in tables.items()}

    sides = {"store": frames(lambda path: store.dataset(path).to_polars()), "Parquet": frames(pl.scan_parquet)}
    runs: dict[str, Run] = {
        name: partial(lambda side, number: tpch_polars.POLARS[number](side).collect().rows(), side)
        for name, side in sides.items()
    }
    _against(bench, "Polars", "TPC-H", "Parquet", _times(runs, list(tpch_polars.POLARS), rounds))


def _datafusion(bench: Bench, store: Any, tables: Tables, threads: int, rounds: int) -> None:
    runs: dict[str, Run] = {}
    for name in ("store", "Parquet"):
        context = datafusion.SessionContext(datafusion.SessionConfig().with_target_partitions(threads))
        for table, path in tables.items():
            if name == "store":
                store.dataset(path).to_datafusion(context, table)
            else:
                context.register_parquet(table, str(path))
        runs[name] = partial(_collect, context, TPCH)
    _against(bench, "DataFusion", "TPC-H", "Parquet", _times(runs, list(TPCH), max(2, rounds // 2)))


def _collect(context: Any, texts: Mapping[int, str], number: int) -> list[tuple[Any, ...]]:
    table = context.sql(texts[number]).to_arrow_table()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _fill(bench: Bench, store: Any, tables: Tables, threads: int, rounds: int) -> None:
    """The first query of columns, through the store and by DuckDB over Parquet, both without page cache."""
    path = tables["lineitem"]
    samples: dict[str, list[float]] = {"store": [], "Parquet": [], "pyarrow": []}
    for _ in range(rounds):
        for name, times in samples.items():
            store.dataset(path).evict()
            _forget_pages([path])
            connection = _connection(threads)
            began = time.perf_counter()
            if name == "pyarrow":
                _decode(path)
            else:
                if name == "store":
                    store.dataset(path).to_duckdb(connection, "lineitem")
                else:
                    connection.execute(f"create view lineitem as select * from '{path}'")
                connection.execute(TPCH[1]).fetchall()
            times.append(time.perf_counter() - began)
    compared = "DuckDB over Parquet whose pages were dropped, in turns"
    bench.report("first query (1), filling / DuckDB over cold Parquet", ratios(samples["store"], samples["Parquet"]), "x",
                 at_most(1.25), compared)  # fmt: skip
    bench.report("pyarrow reading query 1's columns alone / DuckDB's whole query over cold Parquet",
                 ratios(samples["pyarrow"], samples["Parquet"]), "x", None, compared,
                 note="the decoder that fills with: its limit")  # fmt: skip


def _decode(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    columns = ["l_quantity", "l_extendedprice", "l_discount", "l_tax", "l_returnflag", "l_linestatus", "l_shipdate"]
    return pq.read_table(path, columns=columns, read_dictionary=["l_returnflag", "l_linestatus"])


def _forget_pages(paths: Sequence[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _pandas(bench: Bench, store: Any, tables: Tables, rounds: int) -> None:
    """A few columns of the rows of one year as a frame, by to_table and by pandas over Parquet.

    No text: it is declared as views, which pyarrow cannot filter when it reads Parquet.
    """
    try:
        import pandas as pd
    except ImportError as error:
        bench.skip("lineitem as a pandas frame", str(error))
        return
    began, ended = datetime.date(1994, 1, 1), datetime.date(1995, 1, 1)
    dataset, path, shipped = store.dataset(tables["lineitem"]), tables["lineitem"], pc.field("l_shipdate")
    filters = [("l_shipdate", ">=", began), ("l_shipdate", "<", ended)]
    for kind, columns in FRAMES.items():
        variants: dict[str, Callable[[], Any]] = {
            "store": lambda names=columns: dataset.to_table(names, (shipped >= began) & (shipped < ended)).to_pandas(),
            "Parquet": lambda names=columns: pd.read_parquet(path, columns=names, filters=filters),
        }
        pd.testing.assert_frame_equal(*(variant() for variant in variants.values()))
        samples = in_turns({name: partial(seconds, variant) for name, variant in variants.items()}, rounds)
        bench.report(
            f"to_table and to_pandas of {kind}, one year of lineitem: times as fast as over Parquet",
            ratios(samples["Parquet"], samples["store"]), "x", None, "pandas.read_parquet with filters, in turns",
        )  # fmt: skip


def _single_flight(bench: Bench, store: Any, tables: Tables, threads: int) -> None:
    """Eight identical queries at once over columns that are not cached."""
    path = tables["orders"]
    dataset = store.dataset(path)
    dataset.evict()
    text = "select o_orderpriority, count(*), sum(o_totalprice) from orders group by 1 order by 1"

    def query(_: int) -> Any:
        connection = _connection(threads)
        dataset.to_duckdb(connection, "orders")
        return connection.execute(text).fetchall()

    before = dataset.counters.misses
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(query, range(8)))
    assert all(answer == answers[0] for answer in answers)
    groups = len(dataset.snapshot().units())
    bench.report(
        "8 identical queries at once: times each chunk was read and decoded",
        (dataset.counters.misses - before) / (2 * groups), "x", at_most(1.0), "2 columns, all row groups",
    )  # fmt: skip


def _tiers(bench: Bench, tables: Tables, threads: int, rounds: int) -> None:
    """A third of the working set in memory, the rest in emulated PMem or on a disk whose pages were dropped."""
    path = tables["lineitem"]
    columns = ["l_quantity", "l_extendedprice", "l_discount", "l_tax", "l_returnflag", "l_linestatus", "l_shipdate"]
    dram = bench.parameter("tiers_dram_MiB", 8, 80)
    room = bench.parameter("tiers_lower_MiB", 64, 1024)
    segment = bench.parameter("tiers_segment_MiB", 1, 4)
    times: dict[str, list[float]] = {}
    with folder() as disk, folder(Path("/dev/shm")) as memory:
        kinds = {
            "pmem": {"pmem": f"{memory}/pmem:{room}MiB", "pmem_profile": "optane100-6"},
            "disk": {"disk": f"{disk}:{room}MiB"},
            "disk, sata-ssd": {"disk": f"{disk}:{room}MiB", "disk_profile": "sata-ssd"},
        }
        for kind, options in kinds.items():
            with tierstore.open(dram=f"{dram}MiB", segment=f"{segment}MiB", **options) as store:
                dataset, connection = store.dataset(path), _connection(threads)
                dataset.preload(columns)
                dataset.to_duckdb(connection, "lineitem")
                times[kind] = []
                for turn in range(rounds + 1):
                    _forget_pages(list(disk.iterdir()))
                    began = time.perf_counter()
                    for number in SCAN_BOUND:
                        connection.execute(TPCH[number]).fetchall()
                    if turn:
                        times[kind].append(time.perf_counter() - began)
                filled = dataset.counters.misses
                bench.parameters[f"chunks filled while reading, {kind}"] = filled - dataset.stats()["cached_chunks"]
            for left in disk.iterdir():
                left.unlink()
    label = "PMem played by tmpfs at profile optane100-6"
    for kind, samples in times.items():
        bench.report(f"queries 1 and 6, a third in dram, the rest in {kind}", [1e3 * s for s in samples], "ms",
                     emulated=label if kind == "pmem" else "sata-ssd" if "sata" in kind else "")  # fmt: skip
    bench.report("queries 1 and 6: rest on disk / rest in PMem", ratios(times["disk"], times["pmem"]), "x", at_least(4.0),
                 "this machine's disk, pages dropped before each turn", label)  # fmt: skip
    bench.report("queries 1 and 6: rest on a disk as slow as profile sata-ssd / rest in PMem",
                 ratios(times["disk, sata-ssd"], times["pmem"]), "x", None, "the same with the profile's delay",
                 f"{label}; disk slowed to sata-ssd")  # fmt: skip


def _scan_resistance(bench: Bench, tables: Tables) -> None:
    """A hot set that is read again and again, then one pass over ten times the cache."""
    hot, once = tables["orders"], tables["lineitem"]
    names = ["o_orderkey", "o_totalprice"]
    dram = bench.parameter("resistance_dram_MiB", 8, 48)
    with tierstore.open(dram=f"{dram}MiB", segment="1MiB") as store:
        dataset, other = store.dataset(hot), store.dataset(once)
        for _ in range(4):
            dataset.to_table(names)
            time.sleep(0.3)
        keys = dataset.cached_keys(names)
        for batch in other.scan():
            del batch
        passed, kept = other.counters.fill_bytes, len(dataset.cached_keys(names))
    bench.report("hot chunks still cached after one pass over ten times the cache or more", kept / max(1, len(keys)), "of 1",
                 at_least(HOT_SHARE), f"{len(keys)} chunks, {passed / MIB / dram:.0f} times the cache")  # fmt: skip
