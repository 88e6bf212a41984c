"""The compiled kernels of this package, loaded once per process."""

from __future__ import annotations

from types import SimpleNamespace

from .jit import load

MODULES = [f"tierstore.ringbuf.{name}" for name in ("xxh3", "records", "reader", "writer", "core", "survey", "mover")]
_loaded: SimpleNamespace | None = None


def kernels() -> SimpleNamespace:
    """All kernels as builtins; compiles them on the first call on a machine."""
    global _loaded
    if _loaded is None:
        _loaded = load(MODULES)
    return _loaded
