"""Results as the tables of docs/BENCHMARKS.md: ``python -m bench.report RESULTS.json ... [--into FILE]``.

No figure in that file is typed by hand: what stands between its two marks is replaced by the tables of these results.
Of a benchmark that several files hold, the last one counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEAD = "| figure | median | unit | min | P90 | max | n | target | met | compared with, notes |"
RULE = "|---|---:|---|---:|---:|---:|---:|---|---|---|"
MET = {True: "yes", False: "**no**", None: ""}


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """All tables, one a benchmark, each with its command, and the machines they were measured on."""
    latest: dict[str, tuple[dict[str, Any], int]] = {}
    for number, report in enumerate(reports):
        latest |= {found["bench"]: (found, number) for found in report["benches"]}
    used = sorted({number for _, number in latest.values()})
    lines: list[str] = []
    for found, number in latest.values():
        lines += table(found, f" (run {used.index(number) + 1})" if len(used) > 1 else "")
    for position, number in enumerate(used):
        title = f"### Run {position + 1}" if len(used) > 1 else "### Machine and software"
        lines += [title, "", *environment(reports[number]), ""]
    return "\n".join(lines)


def table(found: dict[str, Any], run: str) -> Iterator[str]:
    """The table of one benchmark."""
    yield f"### {found['bench']}{run}"
    yield ""
    yield f"{found['question']} `{found['command']}`, {found['seconds']:.0f} s."
    if found["smoke"]:
        yield "**Smoke sizes: these numbers mean nothing.**"
    yield ""
    yield HEAD
    yield RULE
    for row in found["rows"]:
        yield line(row)
    yield ""
    sizes = ", ".join(f"{name} {value}" for name, value in found["parameters"].items())
    yield f"Parameters: {sizes}."
    yield ""


def line(row: dict[str, Any]) -> str:
    """One row."""
    if row["status"] != "measured":
        return f"| {row['figure']} | {row['status']} | | | | | | | | {_cell(row['note'])} |"
    spread = row["spread"]
    remarks = [row["baseline"], row["note"], f"emulated: {row['emulated']}" if row["emulated"] else ""]
    cells = [
        row["figure"],
        number(row["value"]),
        row["unit"],
        number(spread["min"]),
        number(spread["p90"]),
        number(spread["max"]),
        str(row["samples"]),
        row["target"],
        MET[row["met"]],
        _cell("; ".join(filter(None, remarks))),
    ]
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Digits as they were measured, with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def environment(report: dict[str, Any]) -> Iterator[str]:
    """What a run was made on."""
    for name, value in report["environment"].items():
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        yield f"- {name.replace('_', ' ')}: {shown}"
    yield f"- load average at the end: {report.get('load_average_at_end', 'not noted')}"


def insert(text: str, tables: str) -> str:
    """A document with the part between the marks replaced. Raises ValueError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the file lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main() -> int:
    """Print the tables, or put them into a document."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Tables of benchmark results.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json", help="from python -m bench --out")
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the tables of this document")
    options = parser.parse_args()
    tables = markdown([json.loads(path.read_text()) for path in options.results])
    if options.into is None:
        print(tables)
    else:
        options.into.write_text(insert(options.into.read_text(), tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
