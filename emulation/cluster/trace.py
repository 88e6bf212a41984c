"""What happened in a run, line by line, as a table that can be read and compared."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

SHOWN_MAX = 72


class Line(NamedTuple):
    """One thing that happened. source, target: nodes, or empty."""

    time_s: float
    source: str
    target: str
    what: str


class Trace:
    """The lines of a run, oldest first; two runs are the same if their traces are equal."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, time_s: float, source: str, target: str, what: str) -> None:
        self.lines.append(Line(time_s, source, target, what))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.lines == other.lines

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __str__(self) -> str:
        return self.table()

    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for all lines, the same in every process."""
        return hashlib.sha256(repr([tuple(line) for line in self.lines]).encode()).hexdigest()[:16]

    def table(self, last: int | None = None, node: str | None = None) -> str:
        """The lines as text: time in seconds, from, to, what. last: only so many; node: only those that name it."""
        lines = [line for line in self.lines if node is None or node in (line.source, line.target)]
        shown = lines if last is None else lines[max(0, len(lines) - last) :]
        wide = (max([4, *(len(line.source) for line in shown)]), max([4, *(len(line.target) for line in shown)]))
        rows = [f"{'time':>10}  {'from':<{wide[0]}}  {'to':<{wide[1]}}  what"]
        rows += [f"{t:10.6f}  {a:<{wide[0]}}  {b:<{wide[1]}}  {what}" for t, a, b, what in shown]
        if len(shown) < len(lines):
            rows.insert(1, f"{'':>10}  ({len(lines) - len(shown)} earlier lines)")
        return "\n".join(row.rstrip() for row in rows)


def show(value: Any) -> str:
    """A value in one line of at most SHOWN_MAX characters."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."
