"""What an access to an emulated device costs, in virtual time: pure functions of a profile, no clock, no chance.

    time = latency of the first answer (of every step, if each step waits for the one before)
         + remaining bytes / rate(kind, pattern, grain, threads) x remote factor / share left by rivals

The rate is interpolated between the measured numbers of threads and grains, so it is exact at those and a power law in
between. The rules beside the tables, each an approximation whose error docs/EMULATION.md states:

- Below the smallest measured grain, an access at a random place moves a whole unit of the medium (256 bytes in Optane),
  so a grain of 64 bytes has a quarter of the rate. Writes in order are gathered in the device: no such loss.
- Without figures for random places, as many accesses are under way as the threads, or the device, can have.
- Optane, reads beside writes: writers get at most ``mixed_write_share_max`` of the best write rate, readers keep
  (1 - u) ** ``mixed_read_exponent``, u being the rate of the writers over the best. Other devices: fair shares.
- Plain stores leave the cache in no order, so no grain or pattern matters to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from tierstore.ringbuf.errors import ConfigError

from .figures import LINE_BYTES, THREADS_MAX, Curve, Peaks, interpolate
from .profiles import Profile, best

Kind = Literal["read", "ntstore", "clwb", "store"]
Pattern = Literal["sequential", "random"]
IN_ORDER_BYTES = (
    4096  # from this grain on, random places are as good as order: DIMMs interleave by it, disks block by it
)
ACCESS_BYTES_MAX = 1 << 50
_GIB = 1 << 30
_NS = 1e9


@dataclass(frozen=True)
class Access:
    """Bytes that some threads move together. Raises ConfigError for what cannot be.

    kind:       read; ntstore (non-temporal stores and a fence; a write to a disk); clwb (stores and flushes); store (not
                flushed, so not durable unless the profile says "visible").
    grain:      bytes that lie together, from 1; whole grains lie in order or at random places.
    dependent:  each grain waits for the one before, as when pointers are followed.
    remote:     from the other socket.
    rivals:     threads that at the same time do the opposite: write while this reads, read while this writes.
    rival_grain: theirs.
    """

    kind: Kind
    bytes: int
    grain: int = 4096
    threads: int = 1
    pattern: Pattern = "sequential"
    dependent: bool = False
    remote: bool = False
    rivals: int = 0
    rival_grain: int = 4096

    def __post_init__(self) -> None:
        for key, allowed in (("kind", get_args(Kind)), ("pattern", get_args(Pattern))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"access.{key}", getattr(self, key), f"one of {', '.join(allowed)}")
        limits = {"bytes": (0, ACCESS_BYTES_MAX), "threads": (1, THREADS_MAX), "rivals": (0, THREADS_MAX)}
        limits |= {"grain": (1, ACCESS_BYTES_MAX), "rival_grain": (1, ACCESS_BYTES_MAX)}
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"access.{key}", value, f"a whole number from {low} to {high}")


class CostModel:
    """The costs of one profile. Holds no state: the same access costs the same, always."""

    def __init__(self, profile: Profile):
        self.profile = profile

    def time_ns(self, access: Access) -> float:
        """From the first request to the last byte, in virtual nanoseconds; 0 for no bytes, and for profile none."""
        if not self.profile.adds_cost or access.bytes == 0:
            return 0.0
        if not access.dependent:
            return self._flow_ns(access, access.grain * access.threads, 1)
        # Many chains at once are still bounded by what the device can do when nobody waits.
        steps = math.ceil(math.ceil(access.bytes / access.grain) / access.threads)
        return max(self._flow_ns(access, access.bytes, steps), self._flow_ns(access, access.grain * access.threads, 1))

    def _flow_ns(self, access: Access, first: int, steps: int) -> float:
        """The grains of the first bytes arrive with a latency, which is that of their first 64 bytes; the others of a grain
        lie in order. What follows flows at the rate of the pattern."""
        first, latency_ns = min(access.bytes, first), self.latency_ns(access)
        whole, rest = divmod(first, access.grain)
        answered = whole * min(LINE_BYTES, access.grain) + min(LINE_BYTES, rest) if latency_ns else 0
        within = (first - answered) / self.bytes_per_s(replace(access, pattern="sequential"))
        after = (access.bytes - first) / self.bytes_per_s(access)
        return steps * latency_ns + (within + after) * _NS

    def bytes_per_s(self, access: Access) -> float:
        """gib_s() in bytes."""
        return self.gib_s(access) * _GIB

    def gib_s(self, access: Access) -> float:
        """Sustained GiB/s of all threads of the access together; infinite for profile none."""
        if not self.profile.adds_cost:
            return math.inf
        rate = self._read_rate(access) if access.kind == "read" else self._write_rate(access)
        if access.rivals:
            rate = self._beside_rivals(access, rate)
        return rate / self._remote(access)

    def latency_ns(self, access: Access) -> float:
        """Until the first answer: of a load, or until a small write of this kind is acknowledged."""
        profile = self.profile
        if access.kind == "read":
            random = access.pattern == "random"
            figure = profile.read_latency_random_ns if random else profile.read_latency_sequential_ns
        elif access.kind == "ntstore" or profile.flush_latency_ns.basis == "absent":
            figure = profile.write_ack_latency_ns
        elif access.kind == "store" and profile.durable == "flush":
            return 0.0  # it ends in the cache; the device is felt only as a rate
        else:
            figure = profile.flush_latency_ns
        return figure.value * self._remote(access)

    def media_bytes(self, access: Access) -> int:
        """Bytes the medium moves: whole units for each grain at a random place, whole units in all when in order."""
        unit = int(self.profile.media_grain_bytes.value)
        if access.pattern == "sequential":
            return unit * math.ceil(access.bytes / unit)
        whole, rest = divmod(access.bytes, access.grain)
        return unit * (whole * math.ceil(access.grain / unit) + math.ceil(rest / unit))

    def _remote(self, access: Access) -> float:
        if not access.remote:
            return 1.0
        profile = self.profile
        return (profile.remote_read_factor if access.kind == "read" else profile.remote_write_factor).value

    def _read_rate(self, access: Access) -> float:
        profile = self.profile
        if access.pattern == "sequential":
            return in_order(profile.read, access.threads, access.grain)
        return self._at_random(profile.read, profile.random_read, access, profile.read_latency_random_ns.value)

    def _write_rate(self, access: Access) -> float:
        profile = self.profile
        flushed = access.kind == "clwb" and profile.durable != "visible"
        if profile.store and access.kind != "ntstore" and not flushed:
            # Not faster than non-temporal stores of a large grain, which skip the cache.
            return min(in_order(profile.store, access.threads, access.grain), profile.write[-1].at(access.threads))
        if access.pattern == "sequential":
            rate = in_order(profile.write, access.threads, access.grain)
        else:
            rate = self._at_random(profile.write, profile.random_write, access, profile.write_ack_latency_ns.value)
        return rate * profile.clwb_share.value if flushed else rate

    def _at_random(self, rows: tuple[Curve, ...], table: Peaks | None, access: Access, latency_ns: float) -> float:
        ordered = in_order(rows, access.threads, access.grain)
        if table is not None:
            top = max(in_order(rows, threads, access.grain) for row in rows for threads in row.threads)
            # Between measured grains a line through the one table may rise above that through the other.
            return ordered * min(1.0, self._peak(rows, table, access.grain) / top)
        profile = self.profile
        under_way = profile.outstanding_per_thread.value * access.threads
        if profile.outstanding_max.value:
            under_way = min(under_way, profile.outstanding_max.value)
        by_latency = under_way * access.grain / latency_ns * _NS / _GIB
        return min(ordered * min(1.0, access.grain / profile.media_grain_bytes.value), by_latency)

    def _peak(self, rows: tuple[Curve, ...], table: Peaks, grain: int) -> float:
        """The best rate at random places: measured, or towards the best rate in order, or a part of the smallest."""
        grains, rates = table.grain_bytes, table.gib_s
        if grain < grains[0]:
            return rates[0] * grain / grains[0]
        if grains[-1] < IN_ORDER_BYTES:
            top = max(in_order(rows, threads, IN_ORDER_BYTES) for row in rows for threads in row.threads)
            grains, rates = (*grains, IN_ORDER_BYTES), (*rates, top)
        return interpolate(grain, grains, rates)

    def _beside_rivals(self, access: Access, rate: float) -> float:
        profile, top = self.profile, best(self.profile.write)
        cap = profile.mixed_write_share_max.value
        if not cap:
            own = best(profile.read if access.kind == "read" else profile.write)
            return min(rate, own * access.threads / (access.threads + access.rivals))
        if access.kind != "read":
            return min(rate, cap * top)
        taken = min(cap, in_order(profile.write, access.rivals, access.rival_grain) / top)
        return float(rate * (1 - taken) ** profile.mixed_read_exponent.value)


def in_order(rows: tuple[Curve, ...], threads: int, grain: int) -> float:
    """GiB/s in order: between the measured numbers of threads, then between the measured grains."""
    return interpolate(grain, [row.grain_bytes for row in rows], [row.at(threads) for row in rows])
