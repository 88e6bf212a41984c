"""The command: ``python -m bench [NAME ...] [--smoke] [--json] [--out FILE]``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .environment import environment
from .harness import NAMES, question_of, run_one

COLUMNS = ("figure", "value", "unit", "min", "p90", "max", "n", "target", "met", "compared with")
WIDE = 200  # columns of a table that goes to a file


def main() -> int:
    """Run the named benchmarks (all without names); exit code 1 if one of them stopped with an error."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure tierstore.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: show that each benchmark works")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to this file too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else WIDE)
    report: dict[str, Any] = {"environment": environment(), "smoke": options.smoke, "benches": []}
    for name in options.names or NAMES:
        console.print(f"{name}: {question_of(name)}", style="dim", highlight=False)
        found = run_one(name, options.smoke)
        report["benches"].append(found)
        report["load_average_at_end"] = environment()["load_average"]
        if options.out:  # after each one: a run of an hour must not be lost to its last minute
            options.out.write_text(json.dumps(report, indent=2) + "\n")
        if not options.json:
            console.print(table_of(found))
    if options.json:
        print(json.dumps(report, indent=2))
    return 1 if any(row["status"] == "failed" for found in report["benches"] for row in found["rows"]) else 0


def table_of(found: dict[str, Any]) -> Table:
    """The rows of one benchmark for people."""
    smoke = " (smoke sizes: the numbers mean nothing)" if found["smoke"] else ""
    table = Table(title=f"{found['command']}{smoke}", title_justify="left")
    for position, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if 0 < position < 7 else "left")
    for row in found["rows"]:
        if row["status"] != "measured":
            table.add_row(row["figure"], row["status"], *[""] * 7, row["note"])
            continue
        spread = row["spread"]
        style = {True: "green", False: "red"}.get(row["met"])
        met = {True: "yes", False: "NO"}.get(row["met"], "")
        emulated = f" [{row['emulated']}]" if row["emulated"] else ""
        note = f" ({row['note']})" if row["note"] else ""
        cells = [row["value"], row["unit"], spread["min"], spread["p90"], spread["max"], row["samples"], row["target"]]
        table.add_row(
            row["figure"] + emulated,
            *[f"{c:,g}" if isinstance(c, float) else str(c) for c in cells],
            met,
            row["baseline"] + note,
            style=style,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
