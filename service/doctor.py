"""What each configured path is, what durability it gives, and what to change."""

from __future__ import annotations

import ctypes.util
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from tierstore.ringbuf import pmem
from tierstore.ringbuf.arena import in_memory, open_direct
from tierstore.ringbuf.jit import cpu_flags
from tierstore.ringbuf.region import collapse_works, map_sync_works

from .config import StoreConfig, format_size, memory_limit

OK, NOTE, WARN, BAD = "ok", "note", "warn", "bad"
DOCKER_SHM_BYTES = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    subject: str
    item: str
    value: str
    level: str = OK
    durability: str | None = None
    remedy: str | None = None


def examine(config: StoreConfig, proc: str = "/proc", sys: str = "/sys") -> list[Finding]:
    """Everything worth knowing about a checked configuration on this machine. Leaves no file behind."""
    from .doctor_network import examine_network

    findings = [*_memory(config, proc, sys), *_dram(config, proc, sys)]
    if config.pmem_path:
        findings += _pmem(config, proc)
    for disk in config.disks:
        findings += _disk(disk.path, disk.bytes, proc)
    return [*findings, *examine_network(config), *_machine(proc, sys)]


def mount_of(path: str, proc: str = "/proc") -> tuple[str, str, str]:
    """(mount point, file system, options) that a path lies on; the path may not exist yet."""
    real, best = os.path.realpath(path), ("/", "unknown", "")
    with open(os.path.join(proc, "self/mounts")) as mounts:
        for line in mounts:
            _, point, kind, options = line.split()[:4]
            if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind, options)
    return best


def existing(path: str) -> str:
    """The nearest folder of a path that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


def _room(subject: str, path: str, size: int, remedy: str) -> Finding:
    status = os.statvfs(existing(path))
    free = status.f_bavail * status.f_frsize
    already = os.stat(path).st_blocks * 512 if os.path.isfile(path) else 0
    value = f"{format_size(free)} free for {format_size(size)}"
    if free + already < size:
        return Finding(subject, "room", value, BAD, remedy=remedy)
    return Finding(subject, "room", value)


def _writable(subject: str, path: str) -> Finding:
    folder = existing(path)
    if os.access(path if os.path.exists(path) else folder, os.W_OK):
        return Finding(subject, "writable", "yes")
    return Finding(subject, "writable", f"no ({folder})", BAD, remedy=f"give this user write permission on {folder}")


def _probe(path: str, suffix: str) -> str:
    return os.path.join(existing(path), f".tierstore-probe-{os.getpid()}-{suffix}")


def map_sync(path: str) -> bool:
    """Whether files there can be mapped with MAP_SYNC, tried on a temporary file (or the device itself)."""
    target = path if path.startswith("/dev/dax") else _probe(path, "sync")
    try:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        if target != path:
            os.ftruncate(fd, 4096)
        return map_sync_works(fd)
    finally:
        os.close(fd)
        if target != path:
            os.unlink(target)


def direct_io(path: str) -> bool:
    """Whether files there can be opened past the page cache."""
    import fcntl

    target = _probe(path, "direct")
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        fd = open_direct(target, os.O_RDONLY)
        works = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        os.close(fd)
        return works
    except OSError:
        return False
    finally:
        if os.path.exists(target):
            os.unlink(target)


def _memory(config: StoreConfig, proc: str, sys: str) -> Iterator[Finding]:
    limit = memory_limit(proc, os.path.join(sys, "fs/cgroup"))
    wanted = config.dram_bytes + (
        config.pmem_bytes if config.pmem_path and in_memory(existing(config.pmem_path)) else 0
    )
    value = f"{format_size(limit)} may be used, the memory tiers want {format_size(wanted)}"
    if wanted > limit:
        yield Finding(
            "memory",
            "limit",
            value,
            BAD,
            remedy="make dram (and an emulated pmem in memory) smaller, or raise the "
            "container's memory limit: memory of a tmpfs counts",
        )
    elif wanted > limit * 3 // 4:
        yield Finding(
            "memory", "limit", value, WARN, remedy="leave a quarter of the memory to the processes that use the store"
        )
    else:
        yield Finding("memory", "limit", value)


def _dram(config: StoreConfig, proc: str, sys: str) -> Iterator[Finding]:
    folder = config.dram_dir
    _, kind, options = mount_of(folder, proc)
    durability = "volatile: lost at power loss, survives the daemon"
    if in_memory(folder):
        yield Finding("dram", "file system", f"{kind} at {folder}", durability=durability)
    else:
        yield Finding(
            "dram",
            "file system",
            f"{kind} at {folder}",
            WARN,
            durability,
            "put dram_dir on a tmpfs (/dev/shm): on a disk file system the kernel writes it back all the time",
        )
    status = os.statvfs(folder)
    total = status.f_blocks * status.f_frsize
    if total <= DOCKER_SHM_BYTES:
        yield Finding(
            "dram",
            "container limit",
            f"{folder} holds {format_size(total)} in all",
            BAD,
            remedy=f"start the container with --shm-size={format_size(config.dram_bytes * 5 // 4)}",
        )
    yield _room("dram", folder, config.dram_bytes, f"make dram smaller, or mount -o remount,size=SIZE {folder}")
    yield _writable("dram", folder)
    yield _huge_pages(folder, options, sys)


def _huge_pages(folder: str, options: str, sys: str) -> Finding:
    setting = ""
    try:
        with open(os.path.join(sys, "kernel/mm/transparent_hugepage/shmem_enabled")) as file:
            setting = file.read().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        pass
    if "huge=" in options or setting in ("always", "advise", "force"):
        return Finding("dram", "huge pages", f"mount {options!r}, shmem_enabled {setting or 'unknown'}")
    if collapse_works(folder):
        return Finding("dram", "huge pages", f"asked for one by one (shmem_enabled {setting or 'unknown'})")
    return Finding(
        "dram",
        "huge pages",
        f"off (shmem_enabled {setting or 'unknown'})",
        NOTE,
        remedy="for faster first use and reads: Linux 6.1 or newer and free memory in large pieces, or mount -t tmpfs "
        "-o huge=always tierstore /mnt/tierstore, then dram_dir = /mnt/tierstore",
    )


def _pmem(config: StoreConfig, proc: str) -> Iterator[Finding]:
    path = config.pmem_path or ""
    _, kind, options = mount_of(path, proc)
    if map_sync(path):
        yield Finding("pmem", "kind", f"DAX, MAP_SYNC works ({kind})", durability="durable at acknowledgement")
    elif in_memory(existing(path)):
        yield Finding(
            "pmem",
            "kind",
            f"emulated on {kind}, no MAP_SYNC",
            NOTE,
            "emulated: volatile at power loss",
            "for real persistence give a path on a DAX mount (mount -o dax) or a /dev/dax device",
        )
    else:
        dax = "mounted with dax, but " if "dax" in options.split(",") else ""
        yield Finding(
            "pmem",
            "kind",
            f"emulated on {kind}, {dax}no MAP_SYNC",
            NOTE,
            "emulated: durable after fsync at the acknowledged point",
            "for speed without fsync give a path on a DAX mount (mount -o dax) or a /dev/dax device",
        )
    yield Finding("pmem", "profile", config.pmem_profile)
    yield _room("pmem", path, config.pmem_bytes, "make pmem smaller or free room there")
    yield _writable("pmem", path)


def _disk(path: str, size: int, proc: str) -> Iterator[Finding]:
    subject = f"disk {path}"
    _, kind, _ = mount_of(path, proc)
    if in_memory(existing(path)):
        yield Finding(subject, "file system", kind, WARN, "volatile: this is memory", "give a directory on a real disk")
    else:
        yield Finding(subject, "file system", kind, durability="durable after fsync")
    if direct_io(path):
        yield Finding(subject, "O_DIRECT", "works")
    else:
        yield Finding(
            subject,
            "O_DIRECT",
            "refused",
            WARN,
            remedy="use a file system with direct I/O (ext4, xfs): else blocks also fill the page cache",
        )
    yield _room(subject, path, size, "make this directory's share smaller or free room there")
    yield _writable(subject, path)


def _machine(proc: str, sys: str) -> Iterator[Finding]:
    flags = set(cpu_flags().split())
    flush = next((name for name in ("clwb", "clflushopt", "clflush") if name in flags), "none known")
    yield Finding("cpu", "flush instruction", flush, OK if flush != "none known" else NOTE)
    yield Finding("machine", "flushed by", pmem.describe())
    yield Finding("cpu", "processors", str(len(os.sched_getaffinity(0))))
    yield Finding("machine", "kernel", os.uname().release)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < 4096:
        yield Finding(
            "machine", "open files", str(files), WARN, remedy="ulimit -n 65536: each client takes a connection"
        )
    else:
        yield Finding("machine", "open files", str(files))
    nodes = os.path.join(sys, "devices/system/node")
    count = (
        sum(name.startswith("node") and name[4:].isdigit() for name in os.listdir(nodes)) if os.path.isdir(nodes) else 1
    )
    yield Finding("machine", "NUMA nodes", str(count))
    with open(os.path.join(proc, "swaps")) as file:
        swap = len(file.read().splitlines()) > 1
    yield Finding(
        "machine",
        "swap",
        "on" if swap else "off",
        NOTE if swap else OK,
        remedy="memory tiers can be swapped out under pressure; leave enough memory free" if swap else None,
    )
    yield Finding("machine", "libpmem", ctypes.util.find_library("pmem") or "not installed (not needed)")


def to_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(finding) for finding in findings]


def render(findings: list[Finding]) -> Table:
    """A table; what is not in order stands out with its remedy."""
    table = Table(title="tierstore doctor", title_justify="left")
    for column in ("subject", "what", "found", "durability", "remedy"):
        table.add_column(column, overflow="fold")
    colors = {OK: "", NOTE: "cyan", WARN: "yellow", BAD: "red"}
    for finding in findings:
        table.add_row(
            finding.subject,
            finding.item,
            finding.value,
            finding.durability or "",
            finding.remedy or "",
            style=colors[finding.level],
        )
    return table
