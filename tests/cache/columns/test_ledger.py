"""Counters by table, and which files may be cached."""

from __future__ import annotations

import pytest

from tierstore.cache.columns.ledger import TABLES_MAX, Ledger, Rules, matches


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("/d/a.parquet", "/d/a.parquet", True),
        ("/d/a.parquet", "/d", True),
        ("/d/a.parquet", "/d/", True),
        ("/dd/a.parquet", "/d", False),
        ("/d/a.parquet", "/d/*.parquet", True),
        ("/d/a.parquet", "/d/b*", False),
        ("memory://x/a", "memory://x/*", True),
    ],
)
def test_patterns(path: str, pattern: str, expected: bool) -> None:
    assert matches(path, pattern) is expected


def test_rules() -> None:
    assert Rules().admit("/x")
    assert Rules(allow=["/a"]).admit("/a/b") and not Rules(allow=["/a"]).admit("/b")
    assert not Rules(allow=["/a"], deny=["/a/secret*"]).admit("/a/secret.parquet")


def test_rows_add_up_and_unknown_files_have_rows_of_their_own() -> None:
    ledger = Ledger()
    ledger.add("t", ["/t/*.parquet"], {"hits": 2, "fill_s": 0.5})
    ledger.add("t", ["/t/*.parquet"], {"hits": 3})
    rows = ledger.rows([("/t/1.parquet", "dram", 10), ("/t/2.parquet", "disk", 5), ("/u/x", "dram", 7)])
    assert rows == [
        {"table": "t", "hits": 5, "fill_s": 0.5, "chunks": 2, "bytes": {"dram": 10, "disk": 5}},
        {"table": "/u/x", "chunks": 1, "bytes": {"dram": 7}},
    ]


def test_a_bounded_number_of_tables() -> None:
    ledger = Ledger()
    for number in range(TABLES_MAX + 5):
        ledger.add(str(number), [], {"hits": 1})
        ledger.add("kept", [], {"hits": 1})
    names = [row["table"] for row in ledger.rows([])]
    assert len(names) == TABLES_MAX and "0" not in names and "kept" in names
