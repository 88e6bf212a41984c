"""What the demo found: one row per placement, and how far the centroids agree."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .kmeans import Floats, relative_difference

TIERS = ("dram", "pmem", "disk")
AGREEMENT_MAX = 1e-9  # relative; sums of millions of float64 in another order differ by about 1e-14


@dataclass(frozen=True)
class Measured:
    """One placement.

    seconds: per iteration, in order; tier_bytes: served to executors by each tier, None without a store.
    disk_read_bytes, disk_written_bytes: moved between block devices and all processes of the placement while iterating.
    """

    name: str
    label: str
    seconds: tuple[float, ...]
    load_seconds: float
    tier_bytes: dict[str, int] | None
    disk_read_bytes: int
    disk_written_bytes: int
    centroids: Floats
    empty_centroids: bool

    @property
    def seconds_per_iteration(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Check:
    """One comparison of final centroids; difference is relative, None if the comparison could not be made."""

    what: str
    difference: float | None
    same_bits: bool
    note: str = ""

    @property
    def agrees(self) -> bool | None:
        return None if self.difference is None else self.difference <= AGREEMENT_MAX


@dataclass(frozen=True)
class DemoReport:
    """All of it. reference: the placement the ratios are against; checks: one per placement, then others."""

    settings: dict[str, Any]
    placements: tuple[Measured, ...]
    reference: Measured
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """True if no comparison that could be made failed."""
        return all(check.agrees is not False for check in self.checks)

    def ratio(self, measured: Measured) -> float:
        return measured.seconds_per_iteration / self.reference.seconds_per_iteration

    def gigabytes_per_second(self, measured: Measured) -> float:
        return float(self.settings["data_bytes"]) / measured.seconds_per_iteration / 1e9

    def to_json(self) -> str:
        """The report as one JSON object; bytes and seconds in plain numbers."""
        rows = []
        for measured in (*self.placements, self.reference):
            row = {key: value for key, value in asdict(measured).items() if key != "centroids"}
            row["seconds_per_iteration"] = measured.seconds_per_iteration
            row["gigabytes_per_second"] = self.gigabytes_per_second(measured)
            row["ratio_to_numpy"] = self.ratio(measured)
            rows.append(row)
        checks = [{**asdict(check), "agrees": check.agrees} for check in self.checks]
        return json.dumps(
            {
                "settings": self.settings,
                "placements": rows,
                "checks": checks,
                "agrees": self.agrees,
                "centroids": self.reference.centroids.tolist(),
                "notes": list(self.notes),
            },
            indent=2,
        )

    def table(self) -> Table:
        """One row per placement, the reference last; below it what agrees with what, and what the numbers are not."""
        table = Table(title=str(self.settings["title"]), title_justify="left")
        table.caption, table.caption_justify = self.caption(), "left"
        table.add_column("placement", min_width=10, overflow="fold")  # "(emulated)" must never be cut off
        for name in (
            "s/iteration",
            "GB/s",
            "from DRAM",
            "from PMem",
            "from disk",
            "disk read",
            "disk written",
            "x NumPy",
        ):
            table.add_column(name, justify="right")
        for measured in (*self.placements, self.reference):
            if measured is self.reference:
                table.add_section()
            tiers = measured.tier_bytes
            served = ["-"] * 3 if tiers is None else [size_text(tiers.get(tier, 0)) for tier in TIERS]
            table.add_row(
                measured.label,
                f"{measured.seconds_per_iteration:.3f}",
                f"{self.gigabytes_per_second(measured):.1f}",
                *served,
                size_text(measured.disk_read_bytes),
                size_text(measured.disk_written_bytes),
                f"{self.ratio(measured):.2f}",
            )
        return table

    def caption(self) -> Text:
        """Checks, a failed one in red, then notes."""
        caption = Text(style="not italic")
        if all(check.same_bits for check in self.checks[: len(self.placements)]):
            caption.append("Centroids of all placements: the same bits\n")
        else:
            self._append(caption, self.checks[: len(self.placements)])
        self._append(caption, self.checks[len(self.placements) :])
        caption.append("\n".join(self.notes), style="dim")
        return caption

    @staticmethod
    def _append(caption: Text, checks: Sequence[Check]) -> None:
        for check in checks:
            caption.append(check_text(check) + "\n", style="bold red" if check.agrees is False else "")

    def show(self, console: Console) -> None:
        """Print the table."""
        console.print(self.table())


def compare(what: str, found: Floats, expected: Floats, note: str = "") -> Check:
    """A check of found centroids against expected ones."""
    same_bits = found.tobytes() == expected.tobytes()
    return Check(what, relative_difference(found, expected), same_bits, note)


def check_text(check: Check) -> str:
    """One line for people."""
    note = f" ({check.note})" if check.note else ""
    if check.difference is None:
        return f"Centroids {check.what}: not compared{note}"
    if check.same_bits:
        return f"Centroids {check.what}: the same bits{note}"
    word = "agree" if check.agrees else "DIFFER"
    return f"Centroids {check.what}: {word}, largest relative difference {check.difference:.1e}{note}"


def size_text(size: int) -> str:
    """Bytes in binary units with about three digits: 0, 512 B, 1.50 GiB."""
    if size == 0:
        return "0"
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] in ("B", "KiB") or value >= 100 else f"{value:.3g} {units[0]}"
