"""A file truncated while it is mapped must not end the process with SIGBUS: the reader gets CorruptionError instead.

Every Mapping is listed in a table that a signal handler walks. Where the fault lies in one of them, the handler maps zeros
over the lost part, so that the access goes on, says so on standard error, and makes Python raise in the main thread. A
fault anywhere else is left to the handler that was there before.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from typing import Any

from .errors import CorruptionError

SYMBOL = "tierstore_guard_table"
ENTRIES = 4096
G_HIGH, G_COUNT, G_ADDRESS, G_MESSAGE_BYTES = 0, 8, 16, 24
G_OLD = 64  # struct sigaction of whoever handled the signal before
G_MESSAGE = 256
G_ENTRIES = 512  # start and end of each mapping
_SA_SIGINFO, _SA_ONSTACK, _SA_NODEFER = 0x4, 0x08000000, 0x40000000
_MESSAGE = b"tierstore: a file of the store was truncated while it was in use; what lay there reads as zeros now\n"

_table = (ctypes.c_uint64 * (G_ENTRIES // 8 + 2 * ENTRIES))()
_free: list[int] = []
_paths: dict[int, str] = {}
truncated: set[str] = set()  # files that were found truncated; what is missing from their store may have been there
_installed = False
ctypes.memmove(ctypes.addressof(_table) + G_MESSAGE, _MESSAGE, len(_MESSAGE))
_table[G_MESSAGE_BYTES // 8] = len(_MESSAGE)


class _Action(ctypes.Structure):
    """struct sigaction of glibc on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


assert ctypes.sizeof(_Action) <= G_MESSAGE - G_OLD


def table_address() -> int:
    """Where the table is, for the linker."""
    return ctypes.addressof(_table)


def watch(start: int, size: int, path: str) -> int:
    """List a mapping; a number for forget(), -1 where the table is full (its faults then end the process)."""
    try:
        entry = _free.pop()
    except IndexError:
        entry = int(_table[G_HIGH // 8])
        if entry >= ENTRIES:
            return -1
        _table[G_HIGH // 8] = entry + 1
    at = G_ENTRIES // 8 + 2 * entry
    _table[at], _table[at + 1] = start, start + size
    _paths[entry] = path
    return entry


def forget(entry: int) -> None:
    """A mapping goes."""
    if entry >= 0:
        at = G_ENTRIES // 8 + 2 * entry
        _table[at + 1] = _table[at] = 0
        _paths.pop(entry, None)
        _free.append(entry)


def install(handler: int) -> None:
    """Handle SIGBUS from now on. Idempotent. handler: address of guard_kernel.on_bus_error.

    Only the main thread can have Python raise; installed from another one, faults give zeros and the message.
    """
    global _installed
    if _installed or not handler:
        return
    _installed = True
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGBUS) == signal.SIG_DFL:
        signal.signal(signal.SIGBUS, _raise)
        default = _Action()  # a fault that is not ours ends the process, as without us
        ctypes.memmove(ctypes.addressof(_table) + G_OLD, ctypes.addressof(default), ctypes.sizeof(default))
        old = None
    else:
        old = ctypes.c_void_p(ctypes.addressof(_table) + G_OLD)
    action = _Action(handler, (ctypes.c_byte * 128)(), _SA_SIGINFO | _SA_ONSTACK | _SA_NODEFER, None)
    ctypes.CDLL(None).sigaction(int(signal.SIGBUS), ctypes.byref(action), old)


def _raise(_number: int, _frame: Any) -> None:
    address = int(_table[G_ADDRESS // 8])
    for entry, path in list(_paths.items()):
        at = G_ENTRIES // 8 + 2 * entry
        if _table[at] <= address < _table[at + 1]:
            truncated.add(path)
            raise CorruptionError(path, address - int(_table[at]), "bytes of the store", "the end of a truncated file")
    raise CorruptionError("a mapped file", 0, "bytes of the store", "the end of a truncated file")
