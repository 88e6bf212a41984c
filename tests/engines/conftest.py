"""What the tests of engines share."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """Random tables and predicates: cases.py, which lies beside the tests and is no test."""
    spec = importlib.util.spec_from_file_location("engine_cases", Path(__file__).with_name("cases.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def _started(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Engines make threads and their descriptors once in a process, which is no leak of the test that happens to be first."""
    path = str(tmp_path_factory.mktemp("first") / "first.parquet")
    pq.write_table(pa.table({"a": [1]}), path)
    with contextlib.suppress(ImportError):
        import polars

        polars.scan_parquet(path).filter(polars.col("a") > 0).collect()
        polars.scan_parquet(path).collect(engine="streaming")
    with contextlib.suppress(ImportError):
        import datafusion

        context = datafusion.SessionContext()
        context.register_parquet("first", path)
        context.sql("select count(*) from first").collect()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written are cached at once."""
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 0.0)


ROWS, GROUP_ROWS = 4000, 500


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file of ROWS rows in row groups of GROUP_ROWS: n is sorted, mixed is not, word is dictionary-encoded."""
    made = tmp_path / "table.parquet"
    write_rows(made, ROWS)
    return str(made)


def write_rows(made: Path, rows: int) -> None:
    words, numbers = ["red", "green", None], range(rows)
    columns = {
        "n": pa.array(numbers, pa.int64()),
        "mixed": pa.array([i * 2_654_435_761 % 4096 for i in numbers], pa.int64()),
        "x": pa.array([None if i % 7 == 3 else i / 8 for i in numbers], pa.float64()),
        "word": pa.array([words[i % 3] for i in numbers]),
        "text": pa.array([f"text number {i}, longer than a view" for i in numbers]),
        "price": pa.array([i * 100 + 25 for i in numbers], pa.int64())
        .cast(pa.decimal128(21, 2))
        .cast(pa.decimal128(15, 2)),
    }
    pq.write_table(pa.table(columns), made, row_group_size=GROUP_ROWS)
