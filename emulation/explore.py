"""The crash explorer: power fails at every store, flush, fence, write and sync of every protocol; recovery must be right.

``python -m tierstore.emulation.explore --json`` runs the product's own kernels over a small store (still.py), observed
(observe.py), builds the contents that a power loss may leave behind at each point (shadow.py), recovers each of them,
and checks: what was acknowledged as durable is there; nothing torn, stale or foreign is; nothing is there twice; space adds
up; a second recovery finds the same; the recovered store takes new data and finds it again. Then every flush, fence and
sync is taken out in turn, and some scenario must notice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .shadow import Event, Shadow

# At most so many contents per point; fewer choices than that are enumerated.
IMAGES_MAX, MUTANT_IMAGES_MAX = 16, 6
# Fences that no power loss needs, and why they are there.
NOT_FOR_POWER = {
    "commit 1": "non-temporal stores must be visible to other processors before the commit word is",
}
# Each so-manieth recovered store is recovered once more; and must take new data.
AGAIN_EVERY, GO_ON_EVERY = 3, 25
RUN_S = 600


@dataclass
class Report:
    """What exploring found. states: different contents recovered; violations: the first ones, in words."""

    states: int = 0
    points: int = 0
    exhaustive_points: int = 0
    violations: list[str] = field(default_factory=list)
    scenarios: dict[str, int] = field(default_factory=dict)
    mutants: dict[str, str] = field(default_factory=dict)  # site: the scenario that caught its absence, or ""

    def add(self, other: Report) -> None:
        """Take in what was found in another part."""
        self.states += other.states
        self.points += other.points
        self.exhaustive_points += other.exhaustive_points
        self.violations += other.violations
        self.scenarios |= other.scenarios
        self.mutants |= other.mutants


def points(
    events: list[Any], base: bytes, limit: int, generator: random.Random, eadr: bool
) -> Iterator[tuple[int, bool, dict[str, frozenset[bytes | None]], Iterator[bytes]]]:
    """Every moment of a run: (position, whether all contents are listed, what is legal, the contents)."""
    shadow, legal = Shadow(bytearray(base), eadr), {}
    for position, event in enumerate(events):
        if isinstance(event, Event):
            shadow.apply(event)
        else:
            legal = event
        yield position, shadow.count() <= limit, legal, shadow.images(limit, generator)


class Explorer:
    """Explores recorded runs over one store. limit: contents per point."""

    def __init__(self, store: Any, limit: int, seed: int):
        self.store, self.limit, self.seed = store, limit, seed
        self.report = Report()

    def explore(self, name: str, run: Any, without: str = "", eadr: bool = False, stop: bool = False) -> str:
        """All moments of a run, without the flushes, fences and syncs of one site; the first violation, or ""."""
        generator, seen = random.Random(f"{self.seed}/{name}"), set[bytes]()
        events = [e for i, e in enumerate(run.events) if not without or run.sites.get(i) != without]
        for position, whole, legal, images in points(events, run.base, self.limit, generator, eadr):
            if not without:
                self.report.points += 1
                self.report.exhaustive_points += whole
            for image in images:
                digest = hashlib.blake2b(image + repr(sorted(legal.items())).encode(), digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
                problem = self._check(image, legal, len(seen))
                if problem:
                    text = f"{name}, event {position} of {len(events)}{', eADR' if eadr else ''}: {problem}"
                    if not without:
                        self.report.violations.append(text)
                    if stop or len(self.report.violations) > 20:
                        return text
        if not without:
            self.report.states += len(seen)
            self.report.scenarios[name + (" (eADR)" if eadr else "")] = len(seen)
        return ""

    def _check(self, image: bytes, legal: dict[str, frozenset[bytes | None]], number: int) -> str:
        """What is wrong with the store recovered from these contents, "" if nothing."""
        try:
            found = self._recover(image, legal)
            if number % AGAIN_EVERY == 0:
                again = self._recover(self.store.device(), legal)
                if again != found:
                    return f"a second recovery finds {_names(again)}, the first {_names(found)}"
            if number % GO_ON_EVERY == 0:
                self._go_on(found)
        except AssertionError as error:
            return str(error)
        return ""

    def _recover(self, image: bytes, legal: dict[str, frozenset[bytes | None]]) -> dict[str, bytes]:
        self.store.reset(image)
        found: dict[str, bytes] = self.store.contents()
        self.store.check_space()
        for key in {*legal, *found}:
            if found.get(key) not in legal.get(key, frozenset({None})):
                raise AssertionError(
                    f"{key} is {_name(found.get(key))}; legal: {sorted(map(_name, legal.get(key, ())))}"
                )
        return found

    def _go_on(self, found: dict[str, bytes]) -> None:
        """The recovered store takes a value, and finds it and all others after the next power loss."""
        self.store.put(1, "new", b"n" * 200)
        self.store.seal(1)
        again = self._recover(self.store.device(), {k: frozenset({v}) for k, v in {**found, "new": b"n" * 200}.items()})
        if again != {**found, "new": b"n" * 200}:
            raise AssertionError(f"after new data, {_names(again)} are there")


def _name(value: bytes | None) -> str:
    return "absent" if value is None else f"{value[:4]!r}*{len(value)}"


def _names(contents: dict[str, bytes]) -> str:
    return ", ".join(f"{key} {_name(value)}" for key, value in sorted(contents.items())) or "nothing"


def explore_all(limit: int, seed: int, mutants: bool, part: int = 0, parts: int = 1) -> Report:
    """Every scenario, on ordinary persistent memory and with eADR; then the mutants. part, parts: only each so-manieth."""
    from . import observe

    observe.prepare()
    from . import scenarios
    from .still import StillStore

    store = StillStore()
    try:
        explorer = Explorer(store, limit, seed)
        runs = {name: scenarios.record(store, scenario) for name, scenario in scenarios.SCENARIOS.items()}
        for name in list(runs)[part::parts]:
            for eadr in (False, True):
                explorer.explore(name, runs[name], eadr=eadr)
        if mutants and not explorer.report.violations:
            sites = sorted({site for run in runs.values() for site in run.sites.values()})
            _try_mutants(explorer, runs, sites[part::parts])
    finally:
        store.close()
    return explorer.report


def _try_mutants(explorer: Explorer, runs: dict[str, Any], sites: list[str]) -> None:
    explorer.limit = min(explorer.limit, MUTANT_IMAGES_MAX)
    for site in sites:
        explorer.report.mutants[site] = ""
        for name, run in runs.items():
            if site in run.sites.values() and explorer.explore(name, run, without=site, stop=True):
                explorer.report.mutants[site] = name
                break


def explore_in_children(limit: int = IMAGES_MAX, seed: int = 1, mutants: bool = True) -> dict[str, Any]:
    """explore_all() in two processes whose kernels are observed; their reports in one, and what was missed."""
    began, parts = time.monotonic(), 2
    command = [
        sys.executable,
        "-m",
        "tierstore.emulation.explore",
        "--json",
        "--images",
        str(limit),
        "--seed",
        str(seed),
    ]
    command += [] if mutants else ["--no-mutants"]
    environment = {**os.environ, "TIERSTORE_TRACE": "1"}
    children = [
        subprocess.Popen(
            [*command, "--part", f"{part}/{parts}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(parts)
    ]
    report = Report()
    try:
        for child in children:
            out, complaint = child.communicate(timeout=RUN_S)
            if child.returncode != 0:
                raise RuntimeError(f"the explorer ended with {child.returncode}: {complaint}")
            report.add(Report(**json.loads(out)))
    finally:
        for child in children:
            child.kill()
            child.wait()
    missed = [site for site, caught in report.mutants.items() if not caught and site not in NOT_FOR_POWER]
    return {**vars(report), "seed": seed, "seconds": time.monotonic() - began, "missed": missed}


def main() -> int:
    """0: no violation and every mutant caught."""
    parser = argparse.ArgumentParser(description="Recover from a power loss at every point of every protocol.")
    parser.add_argument("--images", type=int, default=IMAGES_MAX, help="contents per point")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-mutants", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of the children: N/M
    options = parser.parse_args()
    if options.part:
        part, parts = map(int, options.part.split("/"))
        print(json.dumps(vars(explore_all(options.images, options.seed, not options.no_mutants, part, parts))))
        return 0
    report = explore_in_children(options.images, options.seed, not options.no_mutants)
    if options.json:
        print(json.dumps(report))
    else:
        exhaustive = f"({report['exhaustive_points']} of them exhaustively)"
        print(f"{report['states']} states at {report['points']} points {exhaustive}, ", end="")
        print(f"seed {options.seed}, {report['seconds']:.0f} s; {len(report['violations'])} violations")
        for line in report["violations"]:
            print("  " + line)
        for site, caught in report["mutants"].items():
            print(f"  without {site}: {'caught by ' + caught if caught else NOT_FOR_POWER.get(site, 'NOT CAUGHT')}")
    return 1 if report["violations"] or report["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
