"""The Python type of a pin: made from C slots that are kernels, so that taking and dropping one runs no Python."""

from __future__ import annotations

import ctypes
from typing import Any

from .codes import PIN_OBJECT_WORDS
from .native import kernels

# From CPython's typeslots.h, part of the stable ABI.
_BF_GETBUFFER, _TP_DEALLOC = 1, 52
_FLAGS_DEFAULT = 1 << 18
_DISALLOW_INSTANTIATION = 1 << 7


class _Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_Slot)),
    ]


_made: list[Any] = []


def pin_type() -> Any:
    """The one Pin type of this process. Instances expose the pinned bytes by the buffer protocol, read-only."""
    if not _made:
        native = kernels()
        slots = (_Slot * 3)(
            _Slot(_TP_DEALLOC, native.pin_dealloc), _Slot(_BF_GETBUFFER, native.pin_getbuffer), _Slot(0, None)
        )
        size = object.__basicsize__ + 8 * PIN_OBJECT_WORDS
        spec = _Spec(b"tierstore.ringbuf.Pin", size, 0, _FLAGS_DEFAULT | _DISALLOW_INSTANTIATION, slots)
        make = ctypes.pythonapi.PyType_FromSpec
        make.restype, make.argtypes = ctypes.py_object, [ctypes.POINTER(_Spec)]
        _made.append(make(ctypes.byref(spec)))
        _made.append((slots, spec))
    return _made[0]
