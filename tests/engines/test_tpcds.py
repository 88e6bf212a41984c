"""All 99 queries of TPC-DS by DuckDB over our datasets answer as over the plain Parquet files.

Scale 0.01 is the smallest: the generator gives no fewer rows for less. A fifth of the answers is empty there, none at scale 1.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tierstore

GENERATOR = Path(sys.executable).with_name("tpcgen-cli")
SOURCE = Path(__file__).parents[2] / "bench" / "tpc.py"
TWO_STATEMENTS = [14, 23, 24, 39]
SCALES = {"0.01": ("256MiB", "512KB"), "1": ("4GiB", "8MB")}  # memory of the store, bytes of a row group

pytestmark = pytest.mark.slow


def load() -> ModuleType:
    """bench/tpc.py, whatever is on the path."""
    spec = importlib.util.spec_from_file_location("bench_tpc", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tpc = load()
QUERIES: dict[int, str] = tpc.queries("tpcds")


def test_there_are_99_and_four_of_them_are_two_statements() -> None:
    assert list(QUERIES) == list(range(1, 100))
    parts = {number: tpc.statements(query) for number, query in QUERIES.items()}
    assert [number for number, found in parts.items() if len(found) > 1] == TWO_STATEMENTS
    statements = [statement for found in parts.values() for statement in found]
    assert len(statements) == 103 and all(text.startswith(("select", "with")) for text in statements)
    assert not any(";" in text or "--" in text for text in statements)
    assert not any("limit" in tpc.uncut(text).splitlines()[-1] for text in statements)


@pytest.fixture(scope="module", params=["0.01", pytest.param("1", marks=pytest.mark.soak)])
def scale(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def duck(scale: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Connections over one store that all queries share, and over Parquet."""
    duckdb = pytest.importorskip("duckdb")
    if not GENERATOR.exists():
        pytest.skip("tpcgen-cli is not installed")
    folder = tmp_path_factory.mktemp("tpcds")
    memory, group = SCALES[scale]
    command = [GENERATOR, "tpcds", "parquet", "-s", scale, f"--row-group-bytes={group}", f"--output-dir={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch, duckdb.connect() as ours, duckdb.connect() as expected:
        patch.setattr("tierstore.cache.columns.files.DISTRUST_S", 0.0)
        with tierstore.open(dram=memory, segment="1MiB") as store:
            for path in sorted(folder.glob("*.parquet")):
                store.dataset(path).to_duckdb(ours, path.stem)
                expected.execute(f"create view {path.stem} as from read_parquet('{path}')")
            yield ours, expected
            report = store.verify(payloads=True)
            assert report["ok"], report["problems"]


@pytest.mark.parametrize("number", QUERIES)
def test_duckdb(duck: tuple[Any, Any], scale: str, number: int) -> None:
    """Rows that sort alike come in any order, and a limit cuts any of them: all are compared, and then how many it left."""
    for statement in tpc.statements(QUERIES[number]):
        mine, theirs = (connection.execute(tpc.uncut(statement)) for connection in duck)
        assert [column[:2] for column in mine.description] == [column[:2] for column in theirs.description]
        assert tpc.same_rows(mine.fetchall(), theirs.fetchall())
        mine, theirs = (connection.execute(statement).fetchall() for connection in duck)
        assert len(mine) == len(theirs) and (mine or scale == "0.01")


def test_rows_are_compared_whatever_their_order() -> None:
    generator = random.Random(1)
    rows = [(generator.choice([None, 1, 2]), generator.choice(["a", None]), generator.random()) for _ in range(50)]
    shuffled = [(a, b, c * (1 + 1e-12)) for a, b, c in generator.sample(rows, len(rows))]
    assert tpc.same_rows(rows, shuffled) and not tpc.same_answer(rows, shuffled)
    assert not tpc.same_rows(rows, rows[1:]) and not tpc.same_rows(rows, [*rows[1:], rows[1]])
    assert not tpc.same_rows([(1.0,)], [(None,)]) and not tpc.same_rows([(1.0,)], [(1.001,)])
    assert tpc.same_rows([(float("nan"),)], [(float("nan"),)])
