"""Which nodes keep a file: balanced, agreed on, and hardly moved by a node that comes or goes."""

from __future__ import annotations

import collections

import pytest

from tierstore.cache.columns.placement import PREFERRED, Placement

NODES = [f"node-{number}.example:7070" for number in range(1000)]
FILES = [f"/data/table/part-{number:05}.parquet" for number in range(20_000)]


def test_a_thousand_nodes_share_files_evenly() -> None:
    placement = Placement(NODES)
    counts = collections.Counter(node for path in FILES for node in placement.nodes_for(path))
    mean = PREFERRED * len(FILES) / len(NODES)
    assert set(counts) == set(NODES)
    # Random placement of 40 on average: six standard deviations.
    assert mean - 6 * mean**0.5 < min(counts.values()) and max(counts.values()) < mean + 6 * mean**0.5


def test_a_node_that_leaves_moves_only_its_own_files_and_spreads_them() -> None:
    before, gone = Placement(NODES), NODES[123]
    after = Placement([node for node in NODES if node != gone])
    heirs = collections.Counter()
    for path in FILES:
        old, new = before.nodes_for(path), after.nodes_for(path)
        if gone in old:
            (kept,) = set(old) - {gone}
            assert kept in new
            heirs.update(set(new) - {kept})
        else:
            assert new == old
    assert sum(heirs.values()) == sum(gone in before.nodes_for(path) for path in FILES) > 10
    assert max(heirs.values()) <= 4


def test_nodes_agree_whatever_order_they_know_each_other_in() -> None:
    one, other = Placement(NODES[:50]), Placement(NODES[49::-1])
    assert all(one.nodes_for(path) == other.nodes_for(path) for path in FILES[:500])
    assert one.admits(one.nodes_for("x")[1], "x")
    assert not any(one.admits(node, "x") for node in NODES[:50] if node not in one.nodes_for("x"))


def test_few_nodes() -> None:
    assert Placement(["a"]).nodes_for("x") == ["a"]
    assert sorted(Placement(["a", "b"]).nodes_for("x")) == ["a", "b"]
    assert len(Placement(NODES[:9], preferred=3).nodes_for("x")) == 3
    for nodes in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="nodes must be"):
            Placement(nodes)
