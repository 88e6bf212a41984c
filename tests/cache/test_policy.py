"""The order of eviction, as lists: a pure object, no store behind it."""

from __future__ import annotations

from tierstore.cache.policy import Policy


class Heat:
    """Warmth by segment, as the policy asks for it."""

    def __init__(self, warm: set[int] | None = None, fixed: set[int] | None = None):
        self.warm, self.fixed, self.cooled = warm or set(), fixed or set(), []

    def victim(self, policy: Policy, pool: int = 0) -> int | None:
        return policy.victim(pool, lambda s: float(s in self.warm), self.cool, lambda s: s not in self.fixed)

    def cool(self, segment: int) -> None:
        self.warm.discard(segment)
        self.cooled.append(segment)

    def drain(self, policy: Policy, count: int) -> list[int]:
        """Evict ``count`` segments."""
        gone = []
        for _ in range(count):
            segment = self.victim(policy)
            assert segment is not None
            policy.discard(segment)
            gone.append(segment)
        return gone


def filled(*segments: int) -> Policy:
    policy = Policy()
    for segment in segments:
        policy.add(segment, 0)
    return policy


def test_unread_segments_leave_in_order() -> None:
    policy = filled(1, 2, 3, 4)
    assert Heat().drain(policy, 4) == [1, 2, 3, 4]
    assert len(policy) == 0 and Heat().victim(policy) is None


def test_warm_segments_stay_and_are_cooled() -> None:
    policy, heat = filled(*range(10)), Heat({0, 3})
    assert heat.drain(policy, 8) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert heat.cooled == [0, 3] and sorted(policy.members()) == [0, 3]


def test_a_scan_does_not_push_out_what_was_read() -> None:
    policy, hot = filled(*range(10)), set(range(5))
    heat = Heat(set(hot))
    assert heat.drain(policy, 5) == [5, 6, 7, 8, 9]
    for segment in range(100, 200):  # each read by nobody
        policy.add(segment, 0)
        gone = heat.drain(policy, 1)
        assert not hot & set(gone)
    assert hot <= set(policy.members())


def test_all_warm_still_gives_one_up() -> None:
    policy, heat = filled(1, 2, 3), Heat({1, 2, 3})
    assert heat.victim(policy) == 1 and set(heat.cooled) == {1, 2, 3}
    always = policy.victim(0, lambda s: 1.0, lambda s: None, lambda s: True)
    assert always in (1, 2, 3), "segments that never cool must not make the store full"


def test_immovable_segments_are_passed_over() -> None:
    policy, heat = filled(1, 2, 3), Heat(fixed={1, 3})
    assert heat.drain(policy, 1) == [2]
    assert heat.victim(policy) is None and len(policy) == 2


def test_a_victim_is_only_named() -> None:
    policy = filled(1, 2)
    assert [Heat().victim(policy) for _ in range(3)] == [1, 1, 1] and 1 in policy


def test_adding_again_moves_and_discarding_twice_is_nothing() -> None:
    policy = filled(1, 2, 3)
    policy.add(1, 0)
    assert Heat().drain(policy, 3) == [2, 3, 1]
    policy.discard(1)
    policy.discard(99)
    assert len(policy) == 0 and 1 not in policy


def test_pools_do_not_mix() -> None:
    policy = filled(1)
    policy.add(2, 7)
    assert Heat().victim(policy, 7) == 2 and Heat().victim(policy, 0) == 1 and Heat().victim(policy, 5) is None
    policy.add(1, 7)
    assert Heat().victim(policy, 0) is None and sorted(policy.members()) == [1, 2]


def test_warm_arrivals_outlive_unread_ones() -> None:
    policy = Policy()
    policy.add(1, 0, warm=True)
    for segment in range(2, 12):
        policy.add(segment, 0)
    assert Heat().drain(policy, 9) == list(range(2, 11))
