"""Which segment goes next: S3-FIFO over rings of segments, one pair of rings per arena and pool.

New segments enter the small ring. At its head a segment whose blocks were read since is passed on to the main ring,
unread ones leave the arena. At the head of the main ring a segment that was read gets another round with its marks
cleared. Passing on is relabelling: no byte is copied. Fingerprints of what left the last tier are kept (the ghost table of
the mutator), and a block that comes back soon starts with a mark.

Pure: no clock, no disk, no shared memory; tests are lists.
Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

SMALL_SHARE = 0.1
# At least this share of a segment's live bytes must have been read for it to stay.
WARM_SHARE = 0.5


@dataclass
class Rings:
    """The rings of one arena and pool. Bounded by the number of segments."""

    small: deque[int] = field(default_factory=deque)
    main: deque[int] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.small) + len(self.main)


class Policy:
    """The order in which segments leave one arena."""

    def __init__(self) -> None:
        self.pools: dict[int, Rings] = {}
        self._where: dict[int, tuple[int, str]] = {}

    def add(self, segment: int, pool: int, warm: bool = False) -> None:
        """A sealed segment enters; warm ones (promoted, copied forward) go straight to the main ring."""
        self.discard(segment)
        rings = self.pools.setdefault(pool, Rings())
        name = "main" if warm else "small"
        getattr(rings, name).append(segment)
        self._where[segment] = (pool, name)

    def discard(self, segment: int) -> None:
        """A segment left or was freed."""
        place = self._where.pop(segment, None)
        if place is not None:
            getattr(self.pools[place[0]], place[1]).remove(segment)

    def __len__(self) -> int:
        return len(self._where)

    def members(self) -> list[int]:
        """All segments in the rings."""
        return list(self._where)

    def __contains__(self, segment: int) -> bool:
        return segment in self._where

    def victim(
        self, pool: int, warmth: Callable[[int], float], cool: Callable[[int], None], movable: Callable[[int], bool]
    ) -> int | None:
        """The next segment to leave; passes warm ones on. At most two rounds over the rings.

        warmth: share of a segment's live bytes that was read since it was last cooled. cool: clear its marks.
        movable: whether the segment may be chosen at all.
        """
        rings = self.pools.get(pool)
        if rings is None or not len(rings):
            return None
        for _ in range(2 * len(rings)):
            name = "small" if len(rings.small) > SMALL_SHARE * len(rings) or not rings.main else "main"
            ring = rings.small if name == "small" else rings.main
            segment = ring.popleft()
            if warmth(segment) < WARM_SHARE and movable(segment):
                ring.appendleft(segment)
                return segment
            cool(segment)
            rings.main.append(segment)
            self._where[segment] = (pool, "main")
        ring = rings.main or rings.small
        return next((segment for segment in ring if movable(segment)), None)
