"""Start a program that ends when its parent does: ``python demo_guard.py PARENT_PID PROGRAM ARGUMENT...``.

The kernel sends SIGTERM to the program when the parent dies, even by kill -9, so a daemon started for one run cannot
outlive it. A program of its own and not ``preexec_fn``, which is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Ask for the signal, then become the program; do nothing if the parent died before the asking."""
    end_with_parent()
    if os.getppid() == int(sys.argv[1]):
        os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
