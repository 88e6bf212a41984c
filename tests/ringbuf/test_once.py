"""Kernels asked for by many threads at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from tierstore.ringbuf.jit import once


def test_threads_that_ask_at_once_get_the_same() -> None:
    # With functools.cache each thread got its own, and the machine code of all but one was freed while in use.
    made, gate = [], threading.Barrier(8)

    @once
    def shared() -> SimpleNamespace:
        made.append(1)
        time.sleep(0.01)
        return SimpleNamespace()

    def ask(_: int) -> int:
        gate.wait()
        return id(shared())

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert len(made) == len(answers) == 1
