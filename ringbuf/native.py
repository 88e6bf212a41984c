"""The compiled kernels of this package, loaded once per process: a client's, and those that only a daemon needs."""

from __future__ import annotations

from types import SimpleNamespace

from . import guard
from .jit import load, once

CLIENT_MODULES = [
    f"tierstore.ringbuf.{name}"
    for name in ("xxh3", "records", "reader", "writer", "messages", "inject", "guard_kernel")
]
DAEMON_MODULES = [f"tierstore.ringbuf.{name}" for name in ("core", "survey", "mover")]


@once
def kernels() -> SimpleNamespace:
    """A client's kernels as builtins; compiles them on the first call on a machine (about 6 s)."""
    native = load(CLIENT_MODULES)
    guard.install(native.on_bus_error)
    return native


@once
def batch_kernels() -> SimpleNamespace:
    """Those of batch.py."""
    return load(["tierstore.ringbuf.batch"])


@once
def daemon_kernels() -> SimpleNamespace:
    """A client's kernels and the daemon's (about 10 s more on the first call on a machine)."""
    client, daemon = kernels(), load(DAEMON_MODULES)
    return SimpleNamespace(**{**vars(client), **vars(daemon), "_alive": [client, daemon]})
