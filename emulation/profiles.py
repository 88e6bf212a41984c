"""Device profiles: what a device costs, as data with sources and error bars.

``load("optane100-6")`` is one of ours, ``load("./mine.toml")`` one of yours; docs/EMULATION.md has the keys of such a file,
and the files in profile_data/ are examples of it. A profile says nothing about time: ``cost.CostModel`` does.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

from tierstore.ringbuf.errors import ConfigError

from .figures import LATENCY_NS_MAX, LATENCY_NS_MIN, THREADS_MAX, Curve, Figure, Peaks, curves, figure, known, peaks

ORDER: tuple[str, ...] = ("none", "dram", "optane100-1", "optane100-6", "optane200", "cxl-asic", "cxl-fpga", "cxl-x16")
ORDER += ("numa-remote", "eadr", "nvme", "sata-ssd", "hdd")
MEDIA = ("none", "memory", "pmem", "disk")
DURABLE = ("never", "flush", "visible", "sync")
NOT_MODELLED = ("CPU cache residency", "prefetch", "TLB misses", "sub-microsecond tails")
DRAM_READ_LATENCY_NS = 101.0  # read_latency_random_ns of profile dram, which every real load here pays already
WRITE_OVER_READ_MAX = 1.5  # no device is known that writes faster than it reads by more than that
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_GIB = 1 << 30
_ABSENT = Figure(0.0)
_ONE = Figure(1.0)
_LATENCY = (LATENCY_NS_MIN, LATENCY_NS_MAX, "ns")

# Smallest and largest value and the unit of each figure.
LIMITS: dict[str, tuple[float, float, str]] = {
    "media_grain_bytes": (64, 1 << 16, "bytes"),
    "read_latency_sequential_ns": _LATENCY,
    "read_latency_random_ns": _LATENCY,
    "write_ack_latency_ns": _LATENCY,
    "flush_latency_ns": (0, LATENCY_NS_MAX, "ns"),
    "remote_read_factor": (1, 10, "times"),
    "remote_write_factor": (1, 10, "times"),
    "clwb_share": (0.01, 1, "of the rate of non-temporal stores"),
    "mixed_write_share_max": (0.01, 1, "of the best write rate"),
    "mixed_read_exponent": (0, 8, ""),
    "outstanding_per_thread": (1, THREADS_MAX, "accesses"),
    "outstanding_max": (1, 1 << 16, "accesses"),
}
_NEEDED = ("media_grain_bytes", "read_latency_sequential_ns", "read_latency_random_ns", "write_ack_latency_ns")
_TEXTS = ("title", "origin", "medium", "durable")
_RATES = ("read", "write", "store")
_PEAKS = ("random_read", "random_write")


@dataclass(frozen=True)
class Profile:
    """One device. Latencies are idle ones, of 64 bytes; rates are those of all threads together.

    title, origin: the device, and where its figures are mostly from, in a few words.
    medium:   none (adds nothing), memory, pmem or disk.
    durable:  never (volatile), flush (after a flush and a fence), visible (as soon as stored: eADR), sync (after fsync).
    read:     by grain; write: by non-temporal stores; store: plain stores never flushed, empty where nobody measured it.
    """

    name: str
    title: str
    origin: str
    medium: str = "none"
    durable: str = "never"
    media_grain_bytes: Figure = _ONE
    read_latency_sequential_ns: Figure = _ABSENT
    read_latency_random_ns: Figure = _ABSENT
    write_ack_latency_ns: Figure = _ABSENT
    flush_latency_ns: Figure = _ABSENT
    remote_read_factor: Figure = _ONE
    remote_write_factor: Figure = _ONE
    clwb_share: Figure = _ONE
    mixed_write_share_max: Figure = _ABSENT
    mixed_read_exponent: Figure = _ABSENT
    outstanding_per_thread: Figure = _ABSENT
    outstanding_max: Figure = _ABSENT
    read: tuple[Curve, ...] = ()
    write: tuple[Curve, ...] = ()
    store: tuple[Curve, ...] = ()
    random_read: Peaks | None = None
    random_write: Peaks | None = None

    @property
    def adds_cost(self) -> bool:
        """False for ``none``: whatever plays the device is as fast as it is."""
        return self.medium != "none"

    @property
    def read_latency_ns(self) -> float:
        """Until the first bytes of a column are there, from a place not read before; 0 if nothing is added."""
        return self.read_latency_random_ns.value

    @property
    def added_read_latency_ns(self) -> float:
        """The part of read_latency_ns that local DRAM, which plays the device, does not take already."""
        return max(0.0, self.read_latency_ns - DRAM_READ_LATENCY_NS) if self.adds_cost else 0.0

    @property
    def write_latency_ns(self) -> float:
        """Until a small write by non-temporal stores, or one to a disk, is acknowledged; 0 if nothing is added."""
        return self.write_ack_latency_ns.value

    @property
    def read_bytes_per_s(self) -> float:
        """The best sustained rate of reads, at the number of threads that does best; infinite if nothing is added."""
        return best(self.read) * _GIB if self.adds_cost else math.inf

    @property
    def write_bytes_per_s(self) -> float:
        """The best sustained rate of writes, at the number of threads that does best; infinite if nothing is added."""
        return best(self.write) * _GIB if self.adds_cost else math.inf

    def trusted(self) -> list[Figure | Curve | Peaks]:
        """Everything in it that has a source."""
        values: list[Figure | Curve | Peaks] = []
        for field in fields(self):
            value = getattr(self, field.name)
            values += value if isinstance(value, tuple) else [value] if isinstance(value, Figure | Peaks) else []
        return [value for value in values if value.basis != "absent"]


def best(rows: tuple[Curve, ...]) -> float:
    """The highest rate anywhere, in GiB/s."""
    return max(rate for row in rows for rate in row.gib_s)


def label(profile: Profile) -> str:
    """What every output of a run on an emulated device must say: one line."""
    missing = ", ".join(NOT_MODELLED)
    if not profile.adds_cost:
        return f"emulated device, profile {profile.name}: no cost is added; not modelled: latency, bandwidth, {missing}"
    values = profile.trusted()
    assumed = sum(value.basis == "assumed" for value in values)
    share = f"; assumed: {assumed} of {len(values)} figures" if assumed else ""
    return f"emulated device, profile {profile.name} ({profile.title}){share}; not modelled: {missing}"


def names() -> tuple[str, ...]:
    """Ours, in the order in which they are shown."""
    return ORDER


def load(name: str, key: str = "pmem_profile") -> Profile:
    """One of ours by its name, or the file at a path that ends in ".toml".

    key: the setting that an error names. Raises ConfigError: unknown name (with what is near and what is known),
    unreadable file, key nobody knows, number that cannot be; each with the value and what is allowed.
    """
    if name.endswith(".toml"):
        return _from_file(name, key)
    if name not in ORDER:
        close = get_close_matches(name, ORDER, 3, 0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ConfigError(key, name, f"{hint}known profiles are {', '.join(ORDER)}; or PATH.toml for one of your own")
    return _ours(name)


@cache
def _ours(name: str) -> Profile:
    return parse(name, _raw(name))


def _raw(name: str) -> dict[str, Any]:
    """Keys of one of ours, those of the profile it is like among them."""
    text = resources.files(__package__).joinpath("profile_data", f"{name}.toml").read_text(encoding="utf-8")
    return _inherit(name, tomllib.loads(text))


def _inherit(where: str, raw: dict[str, Any]) -> dict[str, Any]:
    base = raw.get("like")
    if base is None:
        return raw
    if base not in ORDER:
        raise ConfigError(f"{where}: like", base, f"one of {', '.join(ORDER)}")
    return _raw(base) | {key: value for key, value in raw.items() if key != "like"}


def _from_file(path: str, key: str) -> Profile:
    name = os.path.basename(path).removesuffix(".toml")
    if not _NAME.fullmatch(name) or name in ORDER:
        allowed = "a file name of letters, digits, '.', '_' and '-' before .toml, other than our profiles' names"
        raise ConfigError(key, path, allowed)
    try:
        with open(os.path.expanduser(path), "rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise ConfigError(key, path, f"a readable file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(key, path, f"a TOML file ({error})") from None
    for needed in ("title", "origin"):
        if needed not in raw:
            raise ConfigError(f"{path}: {needed}", None, "it must be given, in a few words, also with `like`")
    return parse(name, _inherit(path, raw), path)


def parse(name: str, raw: dict[str, Any], where: str = "") -> Profile:
    """A checked profile from the keys of its file, those of ``like`` put in. Raises ConfigError."""
    where = where or f"profile {name}"
    known(raw, where, _TEXTS, (*LIMITS, *_RATES, *_PEAKS))
    for key, allowed in (("medium", MEDIA), ("durable", DURABLE)):
        if raw[key] not in allowed:
            raise ConfigError(f"{where}: {key}", raw[key], f"one of {', '.join(allowed)}")
    for key in ("title", "origin"):
        if not isinstance(raw[key], str) or not raw[key].strip():
            raise ConfigError(f"{where}: {key}", raw[key], "a few words")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in LIMITS:
            values[key] = figure(value, f"{where}: {key}", *LIMITS[key])
        elif key in _RATES:
            values[key] = curves(value, f"{where}: {key}")
        elif key in _PEAKS:
            values[key] = peaks(value, f"{where}: {key}")
    profile = Profile(name, **{key: raw[key] for key in _TEXTS}, **values)
    _check(profile, where, values)
    return profile


def _check(profile: Profile, where: str, given: dict[str, Any]) -> None:
    """What must hold between the numbers."""
    if not profile.adds_cost:
        if given:
            raise ConfigError(f"{where}: medium", "none", f"memory, pmem or disk: it has figures ({', '.join(given)})")
        return
    needed = [*_NEEDED, "read", "write"]
    if profile.durable in ("flush", "visible"):
        needed.append("flush_latency_ns")
    if profile.random_read is None or profile.random_write is None:
        needed.append("outstanding_per_thread")
    for key in needed:
        if key not in given:
            raise ConfigError(f"{where}: {key}", None, f"it must be given; needed are {', '.join(needed)}")
    _check_latencies(profile, where)
    reads, writes = best(profile.read), best(profile.write)
    if writes > WRITE_OVER_READ_MAX * reads:
        allowed = f"at most {WRITE_OVER_READ_MAX} times the best read rate of {reads:g} GiB/s"
        raise ConfigError(f"{where}: write", writes, allowed)
    for key, rows, table in (
        ("random_read", reads, profile.random_read),
        ("random_write", writes, profile.random_write),
    ):
        if table is not None and max(table.gib_s) > rows:
            raise ConfigError(
                f"{where}: {key}.gib_s", max(table.gib_s), f"at most the best rate in order, {rows:g} GiB/s"
            )
    if ("mixed_write_share_max" in given) != ("mixed_read_exponent" in given):
        raise ConfigError(f"{where}: mixed_read_exponent", None, "with mixed_write_share_max, both or neither")


def _check_latencies(profile: Profile, where: str) -> None:
    flush, random = profile.flush_latency_ns.value, profile.read_latency_random_ns.value
    if profile.durable == "visible" and flush != 0:
        raise ConfigError(f"{where}: flush_latency_ns", flush, "0, as durable = visible needs no flush")
    if profile.durable == "flush" and flush < LATENCY_NS_MIN:
        allowed = f"at least {LATENCY_NS_MIN:g} ns, as durable = flush needs one; else say durable = visible"
        raise ConfigError(f"{where}: flush_latency_ns", flush, allowed)
    if random < profile.read_latency_sequential_ns.value:
        allowed = f"at least read_latency_sequential_ns = {profile.read_latency_sequential_ns.value:g}"
        raise ConfigError(f"{where}: read_latency_random_ns", random, allowed)
