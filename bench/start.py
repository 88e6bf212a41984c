"""How long does a new process take from nothing to its first object?

The whole life of ``python -c`` that imports, connects, gets one table and exits, in turns with one that only imports
pyarrow and numpy: the difference, pair by pair, is the store's own share. Then eight processes at once that find no
compiled kernels.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from .data import KIB, MIB, batch
from .harness import Bench, at_most, in_turns
from .node import KERNEL_CACHE, Node, build_kernels, child_environment, connected, folder, serving

CLIENT = "import tierstore, sys; tierstore.connect(sys.argv[1]).get('key')"
LIBRARIES = "import pyarrow, numpy"
NOTHING = "pass"
COLD = "import logging; logging.basicConfig(level=logging.INFO); " + CLIENT
COUNT = 8


def life_s(code: str, *arguments: str) -> float:
    """Seconds from spawn to exit of one Python process."""
    environment = child_environment()
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


def run(bench: Bench) -> None:
    """Warm starts, then cold ones."""
    rounds = bench.parameter("rounds", 2, 15)
    build_kernels()
    with serving("--dram", str(64 * MIB)) as node, connected(node) as store:
        store.put("key", batch(64 * KIB, 1))
        life_s(CLIENT, node.socket)
        samples = in_turns(
            {
                "client": lambda: life_s(CLIENT, node.socket),
                "libraries": lambda: life_s(LIBRARIES),
                "nothing": lambda: life_s(NOTHING),
            },
            rounds,
        )
        own = [whole - libraries for whole, libraries in zip(samples["client"], samples["libraries"], strict=True)]
        bench.report("new process: import, connect, first get, exit", samples["client"], "s", at_most(0.4))
        bench.report(
            "of which the store's own share",
            own,
            "s",
            at_most(0.12),
            "a process that imports pyarrow and numpy, in turns; subtracted pair by pair",
        )
        bench.report("a process that imports pyarrow and numpy", samples["libraries"], "s")
        bench.report("a process that does nothing", samples["nothing"], "s")
        time_cold(bench, node)


def time_cold(bench: Bench, node: Node) -> None:
    """Clients at once on an empty kernel cache of their own; the daemon has its kernels."""
    rounds = bench.parameter("cold_rounds", 1, 3)
    elapsed, compiled, manifests = [], [], []
    for _ in range(rounds):
        with folder() as cache:
            environment = child_environment(**{KERNEL_CACHE: str(cache)})
            took, messages = eight(node.socket, environment)
            elapsed.append(took)
            compiled.append(float(sum(text.count("compiling ") for text in messages)))
            manifests.append(float(len(list(Path(cache).glob("*/manifest.json")))))
    bench.report(f"{COUNT} clients at once, no kernels compiled, until all have read", elapsed, "s", at_most(8))
    bench.report("compilations among them", compiled, "times", at_most(1), note="their own log messages, counted")
    bench.report("sets of kernels in the cache after that", manifests, "sets", at_most(1))


def eight(socket: str, environment: dict[str, str]) -> tuple[float, list[str]]:
    """Seconds until the last of them ended, and what they logged."""
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COLD, socket],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(COUNT)
    ]
    try:
        messages = [process.communicate(timeout=120)[1] for process in processes]
        elapsed = time.perf_counter() - began
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    failed = [text for process, text in zip(processes, messages, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {COUNT} cold clients failed:\n{failed[0]}")
    return elapsed, messages
