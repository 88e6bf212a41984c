"""Configuration: one TOML file, overridden by TIERSTORE_* variables, overridden by flags. Nothing unknown is accepted."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tierstore.ringbuf.errors import ConfigError

from .wire import settings as network

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZE_MAX = 1 << 63  # what a file offset can say
_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN = 32 * MIB, MIB
SEGMENTS_PER_TIER_GOAL, SEGMENTS_PER_TIER_MIN, SEGMENTS_MAX = 64, 4, 1 << 20
POOLS_MAX = 63
REPLICAS_MAX = 3
DRAM_DEFAULT_MAX = 8 * GIB
LOG_LEVELS = ("debug", "info", "warning", "error")
RESERVED = tuple(f"TIERSTORE_{name}" for name in ("CONFIG", "KERNEL_CACHE", "KILL_AT", "STOP_AT", "TRACE"))


def parse_size(text: str | int, key: str = "size") -> int:
    """Bytes of "512MiB", "8GiB", "4096" or an int. Decimal units are refused: MB and MiB differ by 5 %."""
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        match = _SIZE.fullmatch(str(text))
        unit = match.group(2).upper() if match else "?"
        if match is None or unit not in _UNITS:
            raise ConfigError(key, text, "a size such as 512MiB or 8GiB (units B, KiB, MiB, GiB, TiB)")
        number = float(match.group(1)) * _UNITS[unit]
        size = int(number) if number < SIZE_MAX else SIZE_MAX
    if size < 0 or size >= SIZE_MAX:
        raise ConfigError(key, text, "a size that is not negative and below 8388608TiB")
    return size


def format_size(size: int) -> str:
    """A size in the largest unit that leaves at least 1, "1.5GiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit.upper()]:
            return f"{size / _UNITS[unit.upper()]:.4g}{unit}"
    return f"{size}B"


def parse_path_size(text: str, key: str) -> tuple[str, int]:
    """The parts of "PATH:SIZE"."""
    path, colon, size = str(text).rpartition(":")
    if not colon or not path:
        raise ConfigError(key, text, "PATH:SIZE, for example /mnt/pmem0:8GiB")
    return os.path.abspath(os.path.expanduser(path)), parse_size(size, key)


@dataclass(frozen=True)
class DiskDir:
    """One directory of the disk tier."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Pool:
    """A named share of the store; quota 0 is unlimited."""

    name: str
    quota_bytes: int


@dataclass(frozen=True)
class StoreConfig:
    """Everything a store can be told. 0 and None mean "choose"; resolve() chooses and checks."""

    socket: str | None = None
    dram_bytes: int = 0
    dram_dir: str = "/dev/shm"
    pmem_path: str | None = None
    pmem_bytes: int = 0
    pmem_profile: str = "none"
    disk_profile: str = "none"
    disks: tuple[DiskDir, ...] = ()
    disk_lz4: bool = False
    segment_bytes: int = 0
    pools: tuple[Pool, ...] = ()
    columns_allow: tuple[str, ...] = ()
    columns_deny: tuple[str, ...] = ()
    client_slots: int = 1024
    ephemeral: bool = False
    listen: str | None = None
    advertise: str | None = None  # what other nodes call this one; default: the address it listens at
    flight: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    tls_client_auth: bool = False
    token_file: str | None = None
    nodes: tuple[str, ...] = ()
    replicas: int = 1
    log_level: str = "warning"

    def resolve(self) -> StoreConfig:
        """Defaults filled in, everything checked. Raises ConfigError naming key, value and what is allowed."""
        if not os.path.isdir(self.dram_dir):
            raise ConfigError("dram_dir", self.dram_dir, "an existing directory in memory (a tmpfs)")
        config = replace(
            self,
            socket=self.socket or default_socket(),
            dram_bytes=self.dram_bytes or default_dram_bytes(self.dram_dir),
        )
        config = replace(config, segment_bytes=config._segment_bytes())
        config._check()
        return config

    def _tier_sizes(self) -> dict[str, int]:
        sizes = {"dram": self.dram_bytes} | ({"pmem": self.pmem_bytes} if self.pmem_path else {})
        return sizes | {f"disk {disk.path}": disk.bytes for disk in self.disks}

    def _segment_bytes(self) -> int:
        if self.segment_bytes:
            return self.segment_bytes
        size = SEGMENT_BYTES_MAX
        while size > SEGMENT_BYTES_MIN and min(self._tier_sizes().values()) // size < SEGMENTS_PER_TIER_GOAL:
            size //= 2
        return size

    def _check(self) -> None:
        segment = self.segment_bytes
        if segment & (segment - 1) or not SEGMENT_BYTES_MIN <= segment <= SEGMENT_BYTES_MAX:
            raise ConfigError("segment", format_size(segment), "a power of two from 1MiB to 32MiB")
        for name, size in self._tier_sizes().items():
            if size < SEGMENTS_PER_TIER_MIN * segment:
                raise ConfigError(
                    name, format_size(size), f"at least {SEGMENTS_PER_TIER_MIN} segments of {format_size(segment)}"
                )
        if sum(size // segment for size in self._tier_sizes().values()) >= SEGMENTS_MAX:
            raise ConfigError(
                "segment",
                format_size(segment),
                f"fewer than {SEGMENTS_MAX} segments in all: larger segments or smaller tiers",
            )
        if not 8 <= self.client_slots <= 4096:
            raise ConfigError("clients", self.client_slots, "a number from 8 to 4096")
        if len(self.pools) > POOLS_MAX or len({pool.name for pool in self.pools}) != len(self.pools):
            raise ConfigError("pools", [pool.name for pool in self.pools], f"up to {POOLS_MAX} different names")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError("log_level", self.log_level, f"one of {', '.join(LOG_LEVELS)}")
        if not 1 <= self.replicas <= REPLICAS_MAX:
            raise ConfigError("replicas", self.replicas, f"a number from 1 to {REPLICAS_MAX}")
        network.check(self)
        if self.pmem_path and os.path.dirname(self.pmem_path) and not os.path.isdir(os.path.dirname(self.pmem_path)):
            raise ConfigError("pmem", self.pmem_path, "a file in an existing directory, or a directory")


def default_socket() -> str:
    """Where a daemon of this user listens unless told otherwise."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (
        os.path.join(runtime, "tierstore", "tierstore.sock")
        if runtime
        else (f"/tmp/tierstore-{os.getuid()}/tierstore.sock")
    )


def default_dram_bytes(dram_dir: str) -> int:
    """A quarter of the memory this process may use, at most half of the free room in memory, at most 8 GiB."""
    free = os.statvfs(dram_dir)
    size = min(memory_limit() // 4, free.f_bavail * free.f_frsize // 2, DRAM_DEFAULT_MAX)
    return max(size // SEGMENT_BYTES_MAX * SEGMENT_BYTES_MAX, SEGMENTS_PER_TIER_MIN * SEGMENT_BYTES_MIN)


def memory_limit(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> int:
    """The machine's memory, or the control group's limit if that is smaller."""
    with open(os.path.join(proc, "meminfo")) as file:
        limit = int(file.readline().split()[1]) * KIB
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(os.path.join(cgroup, path)) as file:
            limit = min(limit, int(file.read()))
    return limit


def _disks(value: object, key: str) -> tuple[DiskDir, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(key, value, "DIR:SIZE, or a list of them")
    return tuple(DiskDir(*parse_path_size(str(part), key)) for part in value)


def _pools(value: object, key: str) -> tuple[Pool, ...]:
    if not isinstance(value, Mapping):
        raise ConfigError(key, value, "a table of NAME = SIZE")
    if "default" in value:
        raise ConfigError(f"{key}.default", value["default"], "another name: the pool of that name has no quota")
    return tuple(Pool(str(name), parse_size(size, f"pools.{name}")) for name, size in value.items())


def _patterns(value: object, key: str) -> tuple[str, ...]:
    """Paths with *, ? and []; those of this machine are made absolute."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise ConfigError(key, value, "a path, directory, pattern or URL, or a list of them")
    return tuple(part if "://" in part else _path(part, key) for part in value)


def _flag(value: object, key: str) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ConfigError(key, value, "true or false")
    return words[str(value).lower()]


def _path(value: object, key: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(key, value, "a path in quotes")
    return os.path.abspath(os.path.expanduser(os.fspath(value)))


def _number(value: object, key: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(key, value, "a whole number") from None


def _pmem(value: object, key: str) -> dict[str, Any]:
    path, size = parse_path_size(str(value), key)
    return {"pmem_path": path, "pmem_bytes": size}


_FIELDS: dict[str, Any] = {
    "socket": lambda v, k: {"socket": _path(v, k)},
    "dram": lambda v, k: {"dram_bytes": parse_size(v, k)},
    "dram_dir": lambda v, k: {"dram_dir": _path(v, k)},
    "pmem": _pmem,
    "pmem_profile": lambda v, k: {"pmem_profile": str(v)},
    "disk_profile": lambda v, k: {"disk_profile": str(v)},
    "disk": lambda v, k: {"disks": _disks(v, k)},
    "disk_lz4": lambda v, k: {"disk_lz4": _flag(v, k)},
    "segment": lambda v, k: {"segment_bytes": parse_size(v, k)},
    "pools": lambda v, k: {"pools": _pools(v, k)},
    "columns_allow": lambda v, k: {"columns_allow": _patterns(v, k)},
    "columns_deny": lambda v, k: {"columns_deny": _patterns(v, k)},
    "clients": lambda v, k: {"client_slots": _number(v, k)},
    "ephemeral": lambda v, k: {"ephemeral": _flag(v, k)},
    "listen": lambda v, k: {"listen": network.listen(v, k)},
    "advertise": lambda v, k: {"advertise": network.advertise(v, k)},
    "flight": lambda v, k: {"flight": network.listen(v, k)},
    "tls_cert": lambda v, k: {"tls_cert": _path(v, k)},
    "tls_key": lambda v, k: {"tls_key": _path(v, k)},
    "tls_ca": lambda v, k: {"tls_ca": _path(v, k)},
    "tls_client_auth": lambda v, k: {"tls_client_auth": _flag(v, k)},
    "token_file": lambda v, k: {"token_file": _path(v, k)},
    "nodes": lambda v, k: {"nodes": network.nodes(v, k)},
    "replicas": lambda v, k: {"replicas": _number(v, k)},
    "log_level": lambda v, k: {"log_level": str(v)},
}


def load_config(
    path: str | None = None, environ: Mapping[str, str] = os.environ, flags: Mapping[str, object] | None = None
) -> StoreConfig:
    """The configuration from file, environment and flags, later ones winning; not yet resolved.

    path: of the TOML file; else TIERSTORE_CONFIG, else ~/.config/tierstore/config.toml if there is one.
    """
    named = path or environ.get("TIERSTORE_CONFIG")
    default = os.path.expanduser("~/.config/tierstore/config.toml")
    file = named or (default if os.path.exists(default) else None)
    values: dict[str, tuple[str, object]] = {}
    if file:
        values |= {key: (f"{file}: {key}", value) for key, value in _read(file).items()}
    for name, text in environ.items():
        if name.startswith("TIERSTORE_") and name not in RESERVED:
            values[name[len("TIERSTORE_") :].lower()] = (name, text)
    values |= {key: (key, value) for key, value in (flags or {}).items() if value is not None}
    fields: dict[str, Any] = {}
    for key, (where, value) in values.items():
        if key not in _FIELDS:
            close = difflib.get_close_matches(key, _FIELDS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(where, value, f"{hint}known settings are {', '.join(_FIELDS)}")
        fields |= _FIELDS[key](value, where)
    return StoreConfig(**fields)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError("config", path, f"a readable file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("config", path, f"a TOML file ({error})") from None
