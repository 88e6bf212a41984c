"""Records what the product's own kernels and system calls do to a device; needs kernels built with TIERSTORE_TRACE=1.

Imported only by the crash explorer's process, before anything loads kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tierstore.ringbuf import jit

from .shadow import FENCE, FLUSH, RESET, STORE, STREAM, SYNC, WRITE, Event

# As in ringbuf.atomic, which a process without numba does not import.
_KINDS = {1: STORE, 2: STORE, 3: STREAM, 4: FLUSH, 5: FENCE}
_COPIES = (2, 3)
_LENGTH = re.compile(r"\d+")

_gate = ctypes.c_uint64(0)
_recorder: Recorder | None = None


@dataclass
class Recorder:
    """Events of one run, with what is legal from each on. ``place``: (address, size) to offset in the device, or None."""

    memory: Callable[[int], int | None]
    files: dict[tuple[int, int], Callable[[int], int | None]]
    events: list[Event | dict[str, frozenset[bytes | None]]] = field(default_factory=list)
    base: bytes = b""  # what the device held before
    cpu: Callable[[], int] = lambda: 0  # the processor that is at work
    sites: dict[int, str] = field(default_factory=dict)  # position of a flush, fence or sync: where in the code it is

    def legal(self, outcomes: dict[str, frozenset[bytes | None]]) -> None:
        """From now on a power loss may leave these values (None: absent) under the keys, and no other key."""
        self.events.append(dict(outcomes))

    def note(self, kind: str, site: str, offset: int = 0) -> None:
        """A flush, fence or sync."""
        self.sites[len(self.events)] = site
        self.events.append(Event(kind, offset, cpu=self.cpu()))


def everything(device: bytes) -> Event:
    """The whole device is set to these contents, durably."""
    return Event(RESET, 0, device)


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
def _observe(kind: int, address: int, size: int, value: int) -> None:
    recorder = _recorder
    if recorder is None:
        return
    name = _KINDS[kind]
    if name in (FLUSH, FENCE):
        place = recorder.memory(address & ~63) if name == FLUSH else 0
        if place is not None:
            recorder.note(name, _site(ctypes.string_at(value).decode()), place)
        return
    place = recorder.memory(address)
    if place is not None:
        data = ctypes.string_at(value, size) if kind in _COPIES else value.to_bytes(8, "little", signed=True)[:size]
        recorder.events.append(Event(name, place, data, recorder.cpu()))


def _site(mangled: str) -> str:
    """The function in a name mangled by numba (length-prefixed parts after _ZN), and which flush or fence of it this is."""
    name, number = mangled.rsplit(" ", 1)
    at, found = name.index("_ZN") + 3, ""
    while match := _LENGTH.match(name, at):
        at = match.end() + int(match.group())
        found = name[match.end() : at]
    return f"{found} {number}"


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
def _kernel_pwrite(fd: int, address: int, size: int, offset: int) -> int:
    return os.pwrite(fd, ctypes.string_at(address, size), offset)


_real: dict[str, Any] = {"pwrite": os.pwrite, "pwritev": os.pwritev, "fdatasync": os.fdatasync}


def _file_of(fd: int) -> Callable[[int], int | None] | None:
    if _recorder is None:
        return None
    status = os.fstat(fd)
    return _recorder.files.get((status.st_dev, status.st_ino))


def _pwrite(fd: int, data: Any, offset: int) -> int:
    where = _file_of(fd)
    place = where(offset) if where is not None else None
    if place is not None and _recorder is not None:
        _recorder.events.append(Event(WRITE, place, bytes(data)))
    return int(_real["pwrite"](fd, data, offset))


def _pwritev(fd: int, buffers: list[Any], offset: int) -> int:
    where = _file_of(fd)
    place = where(offset) if where is not None else None
    if place is not None and _recorder is not None:
        _recorder.events.append(Event(WRITE, place, b"".join(bytes(part) for part in buffers)))
    return int(_real["pwritev"](fd, buffers, offset))


def _fdatasync(fd: int) -> None:
    if _file_of(fd) is not None and _recorder is not None:
        frame = sys._getframe(1)
        caller = frame.f_back
        above = f" {caller.f_code.co_name}" if caller is not None else ""
        _recorder.note(SYNC, f"{frame.f_code.co_name}{above}")
    _real["fdatasync"](fd)


def prepare() -> None:
    """Let the kernels that are loaded from now on find the observer. Raises RuntimeError where they are built without."""
    if not jit.TRACED:
        raise RuntimeError("set TIERSTORE_TRACE=1 before Python starts: kernels must be built to be observed")
    jit.SYMBOLS["tierstore_trace"] = ctypes.cast(_observe, ctypes.c_void_p).value or 0
    jit.SYMBOLS["tierstore_trace_gate"] = ctypes.addressof(_gate)
    jit.SYMBOLS["pwrite"] = ctypes.cast(_kernel_pwrite, ctypes.c_void_p).value or 0
    os.pwrite, os.pwritev, os.fdatasync = _pwrite, _pwritev, _fdatasync  # type: ignore[assignment]


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Observe what is done inside."""
    global _recorder
    _recorder, _gate.value = recorder, 1
    try:
        yield recorder
    finally:
        _recorder, _gate.value = None, 0
