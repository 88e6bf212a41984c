"""`tierstore doctor --profiles`: the device profiles, what they cost, and how far to believe them.

Profiles belong to tierstore.emulation, which production does not import: it is loaded by its name, here, on request.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

MODULE = "tierstore.emulation.listing"
LEGEND = (
    "load: idle, in order / at a random place. write: ntstore / store and flush; of a disk, one write. "
    "GiB/s: one thread / best. One figure stands for two equal ones. "
    "error: the widest of the profile, as a factor either way; each figure's own, and its source, is in --json."
)


def listing(chosen: str) -> list[dict[str, Any]]:
    """All profiles as plain values; the chosen one too if it is the path of a TOML file. Raises ConfigError."""
    found: list[dict[str, Any]] = importlib.import_module(MODULE).listing(chosen)
    return found


def render(profiles: list[dict[str, Any]]) -> Group:
    """What they cost, where that is from, and what they do not say."""
    costs = _table("device profiles", ("profile", "load", "write", "read GiB/s", "write GiB/s", "error"))
    origins = _table("where that is from", ("profile", "device", "source", "figures"))
    for profile in profiles:
        costs.add_row(
            profile["name"],
            _pair(profile, "read_latency_sequential_ns", "read_latency_random_ns", _time),
            _pair(profile, "write_ack_latency_ns", "flush_latency_ns", _time),
            _pair(profile, "read_gib_s_one_thread", "read_gib_s_best", _plain),
            _pair(profile, "write_gib_s_one_thread", "write_gib_s_best", _plain),
            "" if profile["error_max"] is None else f"{profile['error_max']:g}x",
        )
        figures = ", ".join(f"{count} {basis}" for basis, count in profile["basis"].items() if count)
        origins.add_row(profile["name"], profile["title"], profile["origin"], figures)
    missing = f"No profile models: {', '.join(profiles[0]['not_modelled'])}."
    return Group(costs, Text(LEGEND + "\n"), origins, Text(missing))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("profile", "load", "write"))
    return table


def _pair(profile: dict[str, Any], first: str, second: str, show: Callable[[float], str]) -> str:
    """Both, or one where they are equal or there is only one; a unit they share is said once."""
    shown = list(dict.fromkeys(show(profile[key]) for key in (first, second) if profile[key] is not None))
    if len(shown) == 2 and shown[0].partition(" ")[2] == shown[1].partition(" ")[2]:
        shown[0] = shown[0].partition(" ")[0]
    return " / ".join(shown)


def _time(value_ns: float) -> str:
    for unit, size in (("ms", 1e6), ("us", 1e3)):
        if value_ns >= size:
            return f"{value_ns / size:g} {unit}"
    return f"{value_ns:g} ns"


def _plain(value: float) -> str:
    return f"{value:g}"
