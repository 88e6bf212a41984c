"""Numbers with their source: ``Figure`` is one, ``Curve`` is a rate over threads, ``Peaks`` a rate over grains.

All are read from TOML tables and checked here. Whoever reads them may rely on the limits below; they are wide enough for
every device of the last twenty years and the next few, and narrow enough to catch a wrong unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from tierstore.ringbuf.errors import ConfigError

LINE_BYTES = 64  # what a processor loads and stores at once
LATENCY_NS_MIN, LATENCY_NS_MAX = 10.0, 1e9  # nothing behind a memory bus answers within a cache's time; one second
GIB_S_MIN, GIB_S_MAX = 1 / 1024, 1024.0  # 1 MiB/s is a floppy disk's order; no socket has 1 TiB/s of memory behind it
GRAIN_BYTES_MIN, GRAIN_BYTES_MAX = LINE_BYTES, 1 << 20
THREADS_MAX = 1024
KNOTS_MAX = 32
ERROR_MAX = 10.0  # wider than this is not a figure
BASES = ("measured", "quoted", "derived", "assumed")


@dataclass(frozen=True)
class Figure:
    """One number.

    error:  the true value is believed to lie between value / error and value * error; 1.0 is exact.
    basis:  measured (in the source, which was read), quoted (from the source, by others or from memory of it),
            derived (computed from such), assumed (nobody measured it; the source says why this value).
    """

    value: float
    error: float = 1.0
    basis: str = "absent"
    source: str = ""


@dataclass(frozen=True)
class Curve:
    """GiB/s of all threads together, at some numbers of threads, for accesses of one grain (0: source states none)."""

    grain_bytes: int
    threads: tuple[int, ...]
    gib_s: tuple[float, ...]
    error: float
    basis: str
    source: str

    def at(self, threads: int) -> float:
        """Between the knots straight over logarithms of both; flat outside."""
        return interpolate(threads, self.threads, self.gib_s)


@dataclass(frozen=True)
class Peaks:
    """GiB/s at random places, by grain, at the number of threads that does best."""

    grain_bytes: tuple[int, ...]
    gib_s: tuple[float, ...]
    error: float
    basis: str
    source: str


def interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The power law between the two neighbours of x, exact at the neighbours; the end's value outside. All positive."""
    if x <= xs[0]:
        return ys[0]
    for (x0, x1), (y0, y1) in zip(pairwise(xs), pairwise(ys)):
        if x < x1:
            return float(y0 * (y1 / y0) ** (math.log(x / x0) / math.log(x1 / x0)))
        if x == x1:
            return y1
    return ys[-1]


# --- from TOML --------------------------------------------------------------------------------------------------------


def figure(raw: Any, where: str, low: float, high: float, unit: str) -> Figure:
    """{ value, error, basis, source } with low <= value <= high. Raises ConfigError."""
    table = known(raw, where, ("value", "error", "basis", "source"))
    return Figure(number(table["value"], f"{where}.value", low, high, unit), *_trust(table, where))


def curves(raw: Any, where: str) -> tuple[Curve, ...]:
    """[[where]] tables { grain_bytes, threads, gib_s, error, basis, source }, by grain. Raises ConfigError."""
    if not isinstance(raw, list) or not 1 <= len(raw) <= KNOTS_MAX:
        raise ConfigError(where, raw, f"1 to {KNOTS_MAX} tables [[{where.rpartition(' ')[2]}]]")
    found = sorted((_curve(row, f"{where}[{i}]", len(raw) == 1) for i, row in enumerate(raw)), key=_grain)
    grains = [curve.grain_bytes for curve in found]
    if len(set(grains)) < len(grains):
        raise ConfigError(f"{where}.grain_bytes", grains, "one table for each grain")
    return tuple(found)


def peaks(raw: Any, where: str) -> Peaks:
    """{ grain_bytes, gib_s, error, basis, source }. Raises ConfigError."""
    table = known(raw, where, ("grain_bytes", "gib_s", "error", "basis", "source"))
    grains = _rising(table["grain_bytes"], f"{where}.grain_bytes", GRAIN_BYTES_MIN, GRAIN_BYTES_MAX, "bytes")
    return Peaks(grains, _rates(table["gib_s"], f"{where}.gib_s", len(grains)), *_trust(table, where))


def known(raw: Any, where: str, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A table that has all keys, perhaps optional ones, and no others. Raises ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError(where, raw, f"a table with {', '.join(keys)}")
    for key, value in raw.items():
        if key not in (*keys, *optional):
            close = get_close_matches(key, (*keys, *optional), 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"{where}.{key}", value, f"{hint}known keys are {', '.join((*keys, *optional))}")
    for key in keys:
        if key not in raw:
            raise ConfigError(f"{where}.{key}", None, f"it must be given; needed are {', '.join(keys)}")
    return raw


def number(raw: Any, where: str, low: float, high: float, unit: str) -> float:
    """A finite number from low to high; true and false are none. Raises ConfigError."""
    plain = isinstance(raw, int | float) and not isinstance(raw, bool)
    if not plain or not low <= raw <= high:  # NaN is in no range
        raise ConfigError(where, raw, f"a number from {low:.10g} to {high:.10g} {unit}".rstrip())
    return float(raw)


def _trust(table: dict[str, Any], where: str) -> tuple[float, str, str]:
    error = number(table["error"], f"{where}.error", 1.0, ERROR_MAX, "(a factor: 2 means half to double)")
    if table["basis"] not in BASES:
        raise ConfigError(f"{where}.basis", table["basis"], f"one of {', '.join(BASES)}")
    source = table["source"]
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"{where}.source", source, "where the number is from, in words")
    return error, table["basis"], source


def _curve(raw: Any, where: str, alone: bool) -> Curve:
    needed = ("threads", "gib_s", "error", "basis", "source")
    table = known(raw, where, needed if alone else ("grain_bytes", *needed), ("grain_bytes",))
    grain = table.get("grain_bytes", 0)
    if grain != 0:
        _rising([grain], f"{where}.grain_bytes", GRAIN_BYTES_MIN, GRAIN_BYTES_MAX, "bytes")
    threads = _rising(table["threads"], f"{where}.threads", 1, THREADS_MAX, "threads")
    rates = _rates(table["gib_s"], f"{where}.gib_s", len(threads))
    return Curve(grain, threads, rates, *_trust(table, where))


def _grain(curve: Curve) -> int:
    return curve.grain_bytes


def _rising(raw: Any, where: str, low: int, high: int, unit: str) -> tuple[int, ...]:
    rule = f"a list of 1 to {KNOTS_MAX} whole numbers, each larger than the one before"
    if not isinstance(raw, list) or not 1 <= len(raw) <= KNOTS_MAX:
        raise ConfigError(where, raw, rule)
    for entry in raw:
        number(entry, where, low, high, unit)
    if any(not isinstance(entry, int) for entry in raw) or any(a >= b for a, b in pairwise(raw)):
        raise ConfigError(where, raw, rule)
    return tuple(raw)


def _rates(raw: Any, where: str, count: int) -> tuple[float, ...]:
    if not isinstance(raw, list) or len(raw) != count:
        raise ConfigError(where, raw, f"a list of {count} numbers, as many as the list beside it")
    return tuple(number(rate, where, GIB_S_MIN, GIB_S_MAX, "GiB/s") for rate in raw)
