"""Do all queries of TPC-H and TPC-DS give with shuffles in the store what they give with Spark's own?

Two applications with the same settings, one after the other. Adaptive execution is on, so that shuffles are also read by ranges of
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

FIGURE = "queries whose rows differ"
SMOKE = {"tpch": [3, 5], "tpcds": [3, 7]}


def run(bench: Bench) -> None:
    """Both applications."""
    reason = missing(jdk=True)
    if reason:
        bench.skip(FIGURE, reason)
        return
    scale = bench.parameter("scale", 0.01, 0.1)
    master = bench.parameter("executors", "local[2,4]", "local[2,4]")
    chosen = bench.parameter("queries", SMOKE, {suite: sorted(queries(suite)) for suite in ("tpch", "tpcds")})
    dram = bench.parameter("dram_bytes", 128 * MIB, 2048 * MIB)
    found: dict[str, Any] = {}
    with folder() as data, serving("--dram", str(dram)) as node:
        for suite in chosen:
            make_data(suite, data / suite, scale)
        for name in (SORT, OURS):
            found[name] = _application(data, master, chosen, node.socket if name == OURS else "")
    _report(bench, found)


def _application(data: Path, master: str, chosen: dict[str, list[int]], socket: str) -> dict[str, Any]:
    local, out = data / "local", data / "rows"
    arguments = [master, str(data), str(local), str(out), json.dumps(chosen)]
    told = run_application("spark_sql_job", local, socket, *arguments)
    rows, took = pickle.loads(out.read_bytes())
    return {"rows": rows, "took": took, **told}


def _report(bench: Bench, found: dict[str, Any]) -> None:
    ours, theirs = found[OURS], found[SORT]
    for suite in bench.parameters["queries"]:
        names = [name for name in theirs["rows"] if name[0] == suite]
        wrong = [name for name in names if not same_rows(ours["rows"][name], theirs["rows"][name])]
        count = len({name[1] for name in names})
        rows = sum(len(theirs["rows"][name]) for name in names)
        note = f"of {count}; {rows} rows" + "".join(f"; {number}" for _, number, _ in wrong)
        bench.report(f"{suite}: {FIGURE}", len({name[1] for name in wrong}), "", at_most(0), SORT, note=note)
        for name in (OURS, SORT):
            seconds = sum(took for (of, _), took in found[name]["took"].items() if of == suite)
            bench.report(f"{suite}: all queries, first run, {name}", seconds, "s", note="JVM warming up; not in turns")
    for name in (OURS, SORT):
        target = at_most(0) if name == OURS else None
        bench.report(f"bytes of shuffles in SPARK_LOCAL_DIRS, {name}", found[name]["local_bytes"], "B", target)
