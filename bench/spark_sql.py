"""Do all queries of TPC-H and TPC-DS give with shuffles in the store, and with tables cached there, what they give by Spark alone?

Applications with the same settings, one after the other. Adaptive execution is on, so that shuffles are also read by ranges of
maps; joins begin as shuffles. All rows are compared: what a limit leaves of rows that sort alike is the engine's choice.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from .data import MIB
from .harness import Bench, at_most
from .node import folder, serving
from .spark import missing
from .spark_application import run_application
from .spark_shuffle import OURS, SORT
from .tpc import make_data, queries, same_rows

CACHED = "the store, tables cached in it"
FIGURE = "queries whose rows differ"
SMOKE = {"tpch": [3, 5], "tpcds": [3, 7]}


def run(bench: Bench) -> None:
    """All applications."""
    reason = missing(jdk=True)
    if reason:
        bench.skip(FIGURE, reason)
        return
    scale = bench.parameter("scale", 0.01, 0.1)
    master = bench.parameter("executors", "local[2,4]", "local[2,4]")
    chosen = bench.parameter("queries", SMOKE, {suite: sorted(queries(suite)) for suite in ("tpch", "tpcds")})
    dram = bench.parameter("dram_bytes", 384 * MIB, 2048 * MIB)
    found: dict[str, Any] = {}
    with folder() as data, serving("--dram", str(dram)) as node:
        for suite in chosen:
            make_data(suite, data / suite, scale)
        for name in (SORT, OURS, CACHED):
            found[name] = _application(data, master, chosen, name == CACHED, "" if name == SORT else node.socket)
    _report(bench, found)


def _application(data: Path, master: str, chosen: dict[str, list[int]], cached: bool, socket: str) -> dict[str, Any]:
    local, out = data / "local", data / "rows"
    arguments = [master, str(data), str(local), str(out), json.dumps(chosen), "yes" if cached else ""]
    told = run_application("spark_sql_job", local, socket, *arguments)
    rows, took = pickle.loads(out.read_bytes())
    return {"rows": rows, "took": took, **told}


def _report(bench: Bench, found: dict[str, Any]) -> None:
    theirs = found[SORT]
    for suite in bench.parameters["queries"]:
        names = [name for name in theirs["rows"] if name[0] == suite]
        count = len({name[1] for name in names})
        rows = sum(len(theirs["rows"][name]) for name in names)
        for name in (OURS, CACHED):
            wrong = [one for one in names if not same_rows(found[name]["rows"][one], theirs["rows"][one])]
            note = f"of {count}; {rows} rows" + "".join(f"; {number}" for _, number, _ in wrong)
            differing = len({one[1] for one in wrong})
            bench.report(f"{suite}: {FIGURE}, {name}", differing, "", at_most(0), SORT, note=note)
        for name, made in found.items():
            seconds = sum(took for (of, _), took in made["took"].items() if of == suite)
            bench.report(f"{suite}: all queries, first run, {name}", seconds, "s", note="JVM warming up; not in turns")
    for name, made in found.items():
        target = None if name == SORT else at_most(0)
        bench.report(f"bytes of shuffles in SPARK_LOCAL_DIRS, {name}", made["local_bytes"], "B", target)
    made = found[CACHED]
    bench.report("bytes of tables in the store", made["data_bytes"], "B")
    few = None if bench.smoke else at_most(0.01)
    bench.report(
        "what Spark itself holds of cached tables / their bytes", made["held_bytes"] / made["data_bytes"], "", few
    )
