"""What becomes of a message: one function of the seed, the link, what the message says, and how often it was said there.

Each decision has a generator of its own, made from the seed and a name. So a decision does not depend on how many were made
before it: when one rate, fault or message is changed, the others fare as before.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

from .faults import Fault, Faults, Mishap, Partition


class Fate(NamedTuple):
    """When the copies of a message arrive, if any; and what happened to it, in words, or empty."""

    arrivals_s: tuple[float, ...]
    what: str


class Network:
    """The links between nodes. happened: the faults so far, each once, in order."""

    def __init__(self, faults: Faults, seed: int):
        self.faults = faults
        self.happened: dict[Fault, None] = {}
        self._seed = seed
        self._numbers: Counter[tuple[str, ...]] = Counter()
        self._last_s: dict[tuple[str, str], float] = {}

    def generator(self, *name: object) -> random.Random:
        """The generator of one decision; the same in every process."""
        return random.Random(repr((self._seed, *name)))

    def number(self, *name: str) -> int:
        """How many there are of something, this one included."""
        self._numbers[name] += 1
        return self._numbers[name]

    def strikes(self, mishap: Mishap, drawn: float, rate: float, now_s: float) -> bool:
        """Whether a mishap happens; it is noted if so. drawn: from 0 to 1, from the generator of what it would hit."""
        hit = drawn < rate and now_s < self.faults.until_s
        if hit:
            self.happened[mishap] = None
        return hit

    def cut(self, source: str, target: str, now_s: float) -> Partition | None:
        """The partition that stops what goes from source to target now."""
        for partition in self.faults.partitions:
            assert isinstance(partition, Partition)
            if partition.cuts(source, target, now_s):
                return partition
        return None

    def healed_s(self, source: str, target: str, now_s: float) -> float:
        """When something gets through again: now_s if nothing is in the way, infinity if never."""
        while now_s < float("inf") and (partition := self.cut(source, target, now_s)) is not None:
            now_s = partition.until_s
        return now_s

    def fate(self, source: str, target: str, shown: str, now_s: float) -> Fate:
        """What becomes of a message sent now. shown: what it says, shortened."""
        link = self.faults.link(source, target)
        number = self.number("message", source, target, shown)
        generator = self.generator("message", source, target, shown, number)
        # All draws are made whether they are needed or not, so that no decision moves another.
        delay_s, late_s, again_s = link.draw_delay_s(generator), *(generator.uniform(0, link.late_s) for _ in range(2))
        drop, duplicate, reorder = (generator.random() for _ in range(3))

        def strikes(kind: str, drawn: float) -> bool:
            return self.strikes(Mishap(kind, source, target, shown, number), drawn, getattr(link, kind), now_s)

        if self.cut(source, target, now_s) is not None:
            return Fate((), "cut off")
        if strikes("drop", drop):
            return Fate((), "dropped")
        words = []
        if strikes("reorder", reorder):
            words.append("late")
            arrivals = [now_s + delay_s + late_s]
        else:  # behind whatever kept the order before it
            arrivals = [max(now_s + delay_s, self._last_s.get((source, target), 0.0))]
            self._last_s[source, target] = arrivals[0]
        if strikes("duplicate", duplicate):
            words.append("twice")
            arrivals.append(now_s + delay_s + again_s)
        return Fate(tuple(arrivals), ", ".join(words))
