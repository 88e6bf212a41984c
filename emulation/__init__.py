"""Stand-ins for hardware and for a cluster, and the suites that judge tiers, devices, policies and rings; no part of production."""

from __future__ import annotations

from typing import Any

_SUITES = ("check_device", "check_policy", "check_ring", "check_tier")
__all__ = list(_SUITES)


def __getattr__(name: str) -> Any:
    """The suites, loaded when one is asked for."""
    if name in _SUITES:
        from . import conformance

        return getattr(conformance, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
