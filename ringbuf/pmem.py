"""libpmem, where it is installed: it knows which flush a machine needs, and that one with eADR needs none.

The kernels then flush through it (``pmem_flush``, 3 ns a line more than the bare instruction); the copy stays theirs, because
it hashes on the way and is faster. Evidence: docs/DECISIONS.md. Called by ctypes: five functions of a stable C interface.
Source: libpmem(7), PMDK.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

SONAME = "libpmem.so.1"
FLUSH = "pmem_flush"


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library with its functions declared; None where it is not installed."""
    try:
        found = ctypes.CDLL(SONAME)
    except OSError:
        return None
    found.pmem_has_auto_flush.argtypes, found.pmem_has_auto_flush.restype = [], ctypes.c_int
    found.pmem_is_pmem.argtypes, found.pmem_is_pmem.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
    found.pmem_flush.argtypes, found.pmem_flush.restype = [ctypes.c_void_p, ctypes.c_size_t], None
    found.pmem_drain.argtypes, found.pmem_drain.restype = [], None
    found.pmem_memcpy_nodrain.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    found.pmem_memcpy_nodrain.restype = ctypes.c_void_p
    return found


def flush_address() -> int:
    """Address of pmem_flush(), 0 where libpmem is not installed."""
    found = library()
    return ctypes.cast(found.pmem_flush, ctypes.c_void_p).value or 0 if found is not None else 0


def describe() -> str:
    """Who flushes, for people."""
    found = library()
    if found is None:
        return "the CPU's flush instruction (libpmem is not installed)"
    caches = {1: "the caches belong to the power-fail domain (eADR)", 0: "caches must be flushed"}
    return f"libpmem; {caches.get(found.pmem_has_auto_flush(), 'whether caches must be flushed is unknown')}"
