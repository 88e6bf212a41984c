"""Profiles as plain values, for tables and JSON."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from .figures import BASES, Curve, Figure, Peaks
from .profiles import NOT_MODELLED, Profile, best, label, load, names


def listing(chosen: str = "none") -> list[dict[str, Any]]:
    """All our profiles, and the chosen one if it is a file of the user's. Raises ConfigError if it cannot be used."""
    profiles = [load(name) for name in names()]
    also = load(chosen)
    return [describe(profile) for profile in (profiles if also in profiles else [*profiles, also])]


def describe(profile: Profile) -> dict[str, Any]:
    """What it costs in short, every figure with error, basis and source, and its label. None: nothing is added."""
    figures: dict[str, Any] = {}
    for field in fields(profile):
        value = getattr(profile, field.name)
        if isinstance(value, tuple):
            figures |= {field.name: [asdict(row) for row in value]} if value else {}
        elif isinstance(value, Figure | Curve | Peaks) and value.basis != "absent":
            figures[field.name] = asdict(value)
    trusted = profile.trusted()
    return {
        "name": profile.name,
        "title": profile.title,
        "origin": profile.origin,
        "medium": profile.medium,
        "durable": profile.durable,
        **_costs(profile),
        "error_max": max((value.error for value in trusted), default=None),
        "basis": {basis: sum(value.basis == basis for value in trusted) for basis in BASES},
        "sources": sorted({value.source for value in trusted}),
        "not_modelled": list(NOT_MODELLED),
        "label": label(profile),
        "figures": figures,
    }


def _costs(profile: Profile) -> dict[str, Any]:
    keys = ("read_latency_sequential_ns", "read_latency_random_ns", "write_ack_latency_ns", "flush_latency_ns")
    costs: dict[str, Any] = {}
    for key in keys:
        figure = getattr(profile, key)
        costs[key] = None if figure.basis == "absent" else figure.value
    for key, rows in (("read", profile.read), ("write", profile.write)):
        costs[f"{key}_gib_s_one_thread"] = max(row.at(1) for row in rows) if rows else None
        costs[f"{key}_gib_s_best"] = best(rows) if rows else None
    return costs
