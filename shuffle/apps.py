"""What the registry remembers of applications: numbers only; the data are in the store."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

GONE_MAX = 4096


@dataclass
class State:
    """One attempt. committed: bytes of its manifest, 0 before."""

    runs: int = 0
    bytes: int = 0
    committed: int = 0


@dataclass
class Attempts:
    """One shuffle: its attempts by (map index, attempt)."""

    partitions: int
    states: dict[tuple[int, str], State] = field(default_factory=dict)

    def attempt(self, map_index: int, attempt: str) -> State:
        """The state of an attempt, a new one if it is not known."""
        return self.states.setdefault((map_index, attempt), State())

    def summary(self) -> dict[str, Any]:
        """Counts, for listings."""
        committed = [name for name, state in self.states.items() if state.committed]
        return {
            "maps": len({map_index for map_index, _ in committed}),
            "attempts": len(committed),
            "open_attempts": len(self.states) - len(committed),
            "runs": sum(state.runs for state in self.states.values()),
            "bytes": sum(state.bytes for state in self.states.values()),
            "manifest_bytes": sum(state.committed for state in self.states.values()),
        }


@dataclass
class App:
    """One application. until: when its lease ends, by the registry's clock; quota_bytes: 0 for none."""

    lease_s: float
    quota_bytes: int
    until: float
    secret: str  # its digest
    shuffles: dict[int, Attempts] = field(default_factory=dict)
    renewed_copies: float = 0.0  # the renewal that other nodes were told last

    def used(self) -> int:
        """Bytes written or reserved by all its attempts."""
        states = (state for attempts in self.shuffles.values() for state in attempts.states.values())
        return sum(state.bytes + state.committed for state in states)


class Gone:
    """Why applications and shuffles are gone: of the last GONE_MAX."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[tuple[str, int | None], str] = OrderedDict()

    def note(self, reason: str, app: str, shuffle: int | None = None) -> None:
        """Remember one."""
        self._reasons[app, shuffle] = reason
        self._reasons.move_to_end((app, shuffle))
        while len(self._reasons) > GONE_MAX:
            self._reasons.popitem(last=False)

    def forget(self, app: str, shuffle: int | None = None) -> None:
        """It is there again."""
        self._reasons.pop((app, shuffle), None)

    def reason(self, app: str, shuffle: int | None = None) -> str | None:
        """Why it is gone, None if that is not known."""
        return self._reasons.get((app, shuffle))


def listing(apps: dict[str, App], now: float) -> list[dict[str, Any]]:
    """Applications, their shuffles and what these hold, as plain values."""
    return [
        {
            "app": name,
            "lease_s": app.lease_s,
            "lease_left_s": round(app.until - now, 1),
            "quota_bytes": app.quota_bytes,
            "used_bytes": app.used(),
            "shuffles": [
                {"shuffle": number, "partitions": attempts.partitions, **attempts.summary()}
                for number, attempts in sorted(app.shuffles.items())
            ],
        }
        for name, app in sorted(apps.items())
    ]


def terms_of(app: App, shuffle: Attempts) -> dict[str, Any]:
    """What another node must know to open a shuffle of an application."""
    return {
        "partitions": shuffle.partitions,
        "lease_s": float(app.lease_s),
        "quota_bytes": app.quota_bytes,
        "digest": app.secret,
    }


def committed(apps: dict[str, App]) -> list[list[Any]]:
    """All committed attempts: [application, shuffle, map index, attempt]."""
    return [
        [name, shuffle, *attempt]
        for name, app in apps.items()
        for shuffle, attempts in app.shuffles.items()
        for attempt, state in attempts.states.items()
        if state.committed
    ]
