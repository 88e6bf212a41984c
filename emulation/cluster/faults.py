"""What may go wrong in a simulated cluster, as data: rates for the seed to decide by, and a schedule.

A rate becomes single faults in a run: each is a Mishap, such as "drop the second COMMIT from a to b". The schedule consists of
single faults already. Cluster.happened lists both.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from tierstore.ringbuf.errors import ConfigError

FOREVER = float("inf")
RATES = ("drop", "duplicate", "reorder", "truncate", "lose")
DELAY_MAX_S = 1e6  # far beyond any test, and small enough for virtual time to stay exact to a microsecond


def check_range(name: str, given: tuple[float, float], least: float, most: float) -> None:
    """Raises ConfigError unless given is a pair of numbers in order, within bounds."""
    if not (len(given) == 2 and least <= given[0] <= given[1] <= most):
        raise ConfigError(name, given, f"two numbers in order, from {least:g} to {most:g}")


class Mishap(NamedTuple):
    """One fault that a rate led to. kind: a name in RATES. what: what it hit, shortened. number: which of those that look so."""

    kind: str
    source: str
    target: str
    what: str
    number: int

    def __str__(self) -> str:
        where = f"{self.source}>{self.target}" if self.target else self.source
        return f"{self.kind} {where} {self.what} (number {self.number} of these)"


class Partition(NamedTuple):
    """Nothing gets from left to right between two times, and unless one_way nothing from right to left."""

    from_s: float
    until_s: float
    left: Collection[str]
    right: Collection[str]
    one_way: bool = False

    def cuts(self, source: str, target: str, now_s: float) -> bool:
        """Whether something from source to target is stopped."""
        if not self.from_s <= now_s < self.until_s:  # healed at until_s: healed_s() relies on it
            return False
        return (source in self.left and target in self.right) or (
            not self.one_way and source in self.right and target in self.left
        )

    def __str__(self) -> str:
        arrow = "-x->" if self.one_way else "<-x->"
        return (
            f"cut off {','.join(self.left)} {arrow} {','.join(self.right)} from {self.from_s} s until {self.until_s} s"
        )


class Crash(NamedTuple):
    """A process ends without a word; at restart_s it starts again with what was durable. None: never."""

    at_s: float
    node: str
    restart_s: float | None = None

    def __str__(self) -> str:
        return f"crash {self.node} at {self.at_s} s, restart {'never' if self.restart_s is None else f'{self.restart_s} s'}"


Fault = Mishap | Partition | Crash


@dataclass(frozen=True)
class Link:
    """One direction between two nodes. Rates are shares from 0 to 1.

    delay_s:   how long a message or the bytes of one write take: least and most.
    drop, duplicate, reorder: of messages. Without reorder a link keeps their order.
    late_s:    how much later than usual, at most, a reordered message or a second copy comes.
    truncate:  of writes to a stream: it ends in the middle of what was written, for both sides.
    piece_bytes: least and most bytes a stream hands over at once.
    """

    delay_s: tuple[float, float] = (0.001, 0.003)
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    late_s: float = 0.05
    truncate: float = 0.0
    piece_bytes: tuple[int, int] = (1 << 16, 1 << 16)

    def __post_init__(self) -> None:
        for name in RATES:
            rate = getattr(self, name, 0.0)
            if not 0 <= rate <= 1:
                raise ConfigError(name, rate, "a share from 0 to 1")
        check_range("delay_s", self.delay_s, 0.0, DELAY_MAX_S)
        check_range("late_s", (0.0, self.late_s), 0.0, DELAY_MAX_S)
        check_range("piece_bytes", self.piece_bytes, 1, 1 << 30)

    def draw_delay_s(self, generator: random.Random) -> float:
        """How long one thing takes."""
        return generator.uniform(*self.delay_s)


@dataclass(frozen=True)
class Faults(Link):
    """What may go wrong in a run; its own fields as a Link are those of every link not in ``links``.

    links:       by (source, target), links that differ; what such a Link leaves out is as in Link(), not as here.
    partitions, crashes: the schedule; plain tuples will do.
    persist_s:   how long it takes until a write is durable: least and most.
    lose:        share of writes that were not yet durable at a crash and are gone afterwards.
    patience_s:  how long a stream waits for a partition to end before it breaks.
    until_s:     rates apply before this time only, so that a run may be asked to come to an end.
    """

    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    partitions: Sequence[Partition | tuple[Any, ...]] = ()
    crashes: Sequence[Crash | tuple[Any, ...]] = ()
    persist_s: tuple[float, float] = (0.0001, 0.001)
    lose: float = 0.5
    patience_s: float = 1.0
    until_s: float = FOREVER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("persist_s", self.persist_s, 0.0, DELAY_MAX_S)
        check_range("patience_s", (0.0, self.patience_s), 0.0, DELAY_MAX_S)
        check_range("until_s", (0.0, self.until_s), 0.0, FOREVER)
        cuts = [Partition(*given) for given in self.partitions]
        cuts = [cut._replace(left=tuple(sorted(cut.left)), right=tuple(sorted(cut.right))) for cut in cuts]
        object.__setattr__(self, "partitions", tuple(cuts))
        object.__setattr__(self, "crashes", tuple(Crash(*given) for given in self.crashes))
        for fault in self.schedule():
            end_s = fault.restart_s if isinstance(fault, Crash) else fault.until_s
            forever = isinstance(fault, Partition) and end_s == FOREVER
            if not 0 <= fault[0] < FOREVER or not (end_s is None or forever or fault[0] < end_s < FOREVER):
                raise ConfigError(type(fault).__name__, fault, "a time from 0, and an end after it")
        for cut in cuts:
            if set(cut.left) & set(cut.right):  # it would be cut off from itself
                raise ConfigError("Partition", cut, "each node on one side only")

    def schedule(self) -> tuple[Partition | Crash, ...]:
        """Every fault that has a time."""
        return (*self.partitions, *self.crashes)  # type: ignore[arg-type]  # made so above

    def link(self, source: str, target: str) -> Link:
        """How things get from source to target."""
        return self.links.get((source, target), self)

    def check_names(self, nodes: Collection[str]) -> None:
        """Raises ConfigError if something is said about a node that is not there."""
        named: list[tuple[str, Iterable[str]]] = [("links", pair) for pair in self.links]
        for fault in self.schedule():
            both = (*fault.left, *fault.right) if isinstance(fault, Partition) else (fault.node,)
            named.append((type(fault).__name__, both))
        for where, names in named:
            for name in names:
                if name not in nodes:
                    raise ConfigError(where, name, f"one of the nodes {', '.join(sorted(nodes))}")

    def __repr__(self) -> str:
        """As it would be written: only what differs from no faults at all."""
        changed = [f for f in fields(self) if getattr(self, f.name) != getattr(NONE, f.name)]
        return f"Faults({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


NONE = Faults()


def scheduled(
    faults: Faults,
    seed: int,
    nodes: Sequence[str],
    span_s: float,
    crashes: int = 0,
    partitions: int = 0,
    longest_s: float = FOREVER,
) -> Faults:
    """Faults with a schedule drawn by seed added: so many of each, none longer than longest_s, all over by span_s.

    nodes: those that may crash, or be cut off from all others of them; half of the partitions are one-way.
    """
    generator = random.Random(repr((seed, "schedule")))

    def span() -> tuple[float, float]:
        length_s = generator.uniform(0.001, 1.0) * min(span_s, longest_s)
        from_s = generator.uniform(0.0, span_s - length_s)
        return from_s, from_s + length_s

    drawn_crashes, cuts = [], []
    for _ in range(crashes):
        from_s, until_s = span()
        drawn_crashes.append(Crash(from_s, generator.choice(nodes), until_s))
    for _ in range(partitions):
        alone = generator.choice(nodes)
        others = tuple(node for node in nodes if node != alone)
        left, right = ((alone,), others) if generator.random() < 0.5 else (others, (alone,))
        cuts.append(Partition(*span(), left, right, generator.random() < 0.5))
    return replace(
        faults,
        crashes=(*faults.crashes, *drawn_crashes),
        partitions=(*faults.partitions, *cuts),
    )
