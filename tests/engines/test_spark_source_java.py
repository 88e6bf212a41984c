"""format("tierstore") by the jar: real Spark, one JVM for all tests."""

from __future__ import annotations

import datetime
import decimal
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("pyspark", reason="PySpark is not installed: pip install 'tierstore[spark]'")

from pyspark import cloudpickle
from pyspark.errors import PySparkException

from tests.engines.spark_places import LOCAL, MARKS, Place, living, no_leaks, processes, soon  # noqa: F401
from tierstore.spark import register

pytestmark = MARKS
cloudpickle.register_pickle_by_value(sys.modules[__name__])
FILES, ROWS, GROUP_ROWS = 3, 4000, 1000
OLD_S = 11.0  # when a file is trusted, and cached


class Files(Place):
    """Files too, and sessions that keep their settings until others are asked for."""

    def __init__(self, folder: Path, scratch: Path):
        super().__init__(folder, scratch, {"shuffle": False, "cache": True}, {"spark.sql.shuffle.partitions": "2"})
        self.table, self.types = str(folder / "table"), str(folder / "types")
        for number in range(FILES):
            write(folder / "table" / f"part-{number}.parquet", table_of(number))
        write(folder / "types" / "a.parquet", every_type(0))
        write(folder / "types" / "b.parquet", every_type(500))
        self.written_at = time.monotonic()

    def spark(self, master: str = LOCAL, **settings: str) -> Any:
        """A new session where something is asked for, else the one there is."""
        if self.session is None or settings:
            self.stop()
            register(super().spark(master, **settings))
        return self.session

    def load(self, path: str | list[str] | None = None, name: str = "tierstore", **options: str) -> Any:
        reader = self.spark().read.format(name).options(**options)
        return reader.load() if "key" in options else reader.load(path or self.table)

    def grow_old(self) -> None:
        """From now on what is read of the files is cached."""
        time.sleep(max(0.0, self.written_at + OLD_S - time.monotonic()))


def table_of(number: int) -> pa.Table:
    numbers = range(number * ROWS, (number + 1) * ROWS)
    return pa.table(
        {
            "n": pa.array(numbers, pa.int64()),
            "x": pa.array([None if i % 7 == 3 else float("nan") if i % 11 == 2 else i / 8 for i in numbers]),
            "word": [["red", "green", None][i % 3] for i in numbers],
            "price": pa.array([i * 100 + 25 for i in numbers]).cast(pa.decimal128(21, 2)).cast(pa.decimal128(15, 2)),
            "text": [f"{i}:" + "x" * 1000 for i in numbers],
        }
    )


def every_type(start: int) -> pa.Table:
    rows = range(start, start + 500)

    def some(value: Callable[[int], Any]) -> list[Any]:
        return [None if i % 7 == 3 else value(i) for i in rows]

    moment, wide = (
        datetime.datetime(2024, 2, 29, 12, 30, 15, 250_001),
        decimal.Decimal("12345678901234567890.123456789"),
    )
    return pa.table(
        {
            "b": some(lambda i: i % 3 == 0),
            "i8": pa.array(some(lambda i: i % 100), pa.int8()),
            "i16": pa.array(some(lambda i: -i), pa.int16()),
            "u32": pa.array(some(lambda i: (1 << 32) - 1 - i), pa.uint32()),
            "u64": pa.array(some(lambda i: (1 << 64) - 1 - i), pa.uint64()),
            "f32": pa.array(some(lambda i: i / 4), pa.float32()),
            "d9": pa.array(some(lambda i: decimal.Decimal(i) / 4), pa.decimal128(9, 2)),
            "d18": pa.array(some(lambda i: decimal.Decimal(-i * 10**12) / 4), pa.decimal128(18, 2)),
            "d38": pa.array(some(lambda i: wide * (i - 500)), pa.decimal128(38, 9)),
            "bin": some(lambda i: bytes([i % 256]) * (i % 5)),
            "day": pa.array(some(lambda i: datetime.date(1969, 1, 1) + datetime.timedelta(i)), pa.date32()),
            "ntz": pa.array(some(lambda i: moment + datetime.timedelta(seconds=i)), pa.timestamp("us")),
            "utc": pa.array(some(lambda i: moment + datetime.timedelta(i)), pa.timestamp("us", "UTC")),
            "ns": pa.array(some(lambda i: moment), pa.timestamp("us")).cast(pa.timestamp("ns")),
            "span": pa.array(some(lambda i: i * 1000), pa.duration("us")),
            "list": pa.array(some(lambda i: [None, *map(str, range(i % 4))]), pa.list_(pa.string())),
            "deep": pa.array(some(lambda i: [[i], None][: i % 3]), pa.list_(pa.list_(pa.int64()))),
            "map": pa.array(
                some(lambda i: [(str(k), k or None) for k in range(i % 3)]), pa.map_(pa.string(), pa.int32())
            ),
            "empty": pa.array([[]] * 500, pa.list_(pa.string())),
            "void": pa.nulls(500),
            "struct": some(lambda i: {"a": i, "b": None if i % 2 else {"c": [i] * (i % 3), "d": str(i)}}),
        }
    )


def write(path: Path, table: pa.Table) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    with living(tmp_path_factory, Files) as made:
        made.grow_old()
        yield made


def in_order(frame: Any) -> list[str]:
    return sorted(map(str, frame.collect()))


def scans(frame: Any) -> list[Any]:
    """The scans of a frame that was collected."""
    plan, found = frame._jdf.queryExecution().executedPlan(), []
    if "AdaptiveSparkPlan" in plan.getClass().getSimpleName():
        plan = plan.executedPlan()
    leaves = plan.collectLeaves()
    for number in range(leaves.size()):
        found.append(leaves.apply(number))
    return found


def metric(frame: Any, name: str) -> int:
    """What the scans of a frame, which is collected here, counted."""
    frame.collect()
    return sum(int(scan.metrics().apply(name).value()) for scan in scans(frame))


MAPPED, SENT = "tierstoreMappedBytes", "tierstoreSentBytes"


# --- answers --------------------------------------------------------------------------------------------------------------------


def test_rows_are_those_that_spark_reads_itself_first_filled_then_mapped(place: Files) -> None:
    ours, theirs = place.load(), place.spark().read.parquet(place.table)
    assert ours.schema == theirs.schema and ours.count() == FILES * ROWS
    assert "BatchScan tierstore" in ours._jdf.queryExecution().executedPlan().toString()
    for _ in range(2):
        assert in_order(ours) == in_order(theirs)
    few = ours.select("n", "x", "word", "price", "text")
    assert metric(few, SENT) == 0 and metric(few, MAPPED) > FILES * ROWS * 1000
    with place.daemon.connect() as store:
        assert store.dataset(place.table).stats()["cached_chunks"] == FILES * (ROWS // GROUP_ROWS) * 5
    assert ours.limit(3).count() == 3 and ours.select("n").first().n == 0
    assert place.load(sorted(map(str, Path(place.table).iterdir()))).count() == FILES * ROWS


def test_all_types_are_as_python_gives_them(place: Files) -> None:
    ours, python = place.load(place.types), place.load(place.types, "tierstore_python")
    assert [(one.name, one.dataType) for one in ours.schema] == [(one.name, one.dataType) for one in python.schema]
    rows = in_order(python)
    assert in_order(ours) == rows and len(rows) == 1000
    for column in ("struct.b.d", "map['1']", "get(list, 1)", "size(deep)", "struct.a"):
        assert in_order(ours.selectExpr(column)) == in_order(python.selectExpr(column)), column
    grouped = ours.groupBy("d9", "day", "struct").count()
    assert in_order(grouped) == in_order(python.groupBy("d9", "day", "struct").count())
    cached = ours.cache()
    assert in_order(cached) == rows
    cached.unpersist()


def test_a_query_reads_the_columns_and_row_groups_it_needs(place: Files) -> None:
    whole = place.load()
    one = metric(whole.select("n"), MAPPED)
    assert FILES * ROWS * 8 <= one < FILES * ROWS * 9
    assert metric(whole.select("n").where("n >= 5500"), MAPPED) <= one * 7 // 12 + 100
    assert metric(whole.selectExpr("1"), MAPPED) == 0
    assert whole.selectExpr("count(*)").first()[0] == FILES * ROWS
    assert place.load(piece="0").where("n >= 5500").rdd.getNumPartitions() == 7  # by statistics
    narrow = place.load(columns="word, n")
    assert narrow.columns == ["word", "n"]
    size = int(str(whole.select("n").where("n >= 5500")._jdf.queryExecution().optimizedPlan().stats().sizeInBytes()))
    assert 0 < size < 8 * FILES * ROWS * 4


@pytest.mark.parametrize(
    "condition",
    [
        "n >= 5500 and word in ('red', 'blue') and not word = 'blue' and n not in (6000, 6003)",
        "word is null and x is not null",
        "not (n < 11990)",
        "x <=> null",
        "x > 1400",
        "x >= double('NaN')",
        "x < 10 or x = 700.5",
        "x <> 5",
        "price > 1199000.00",
        "price = 25.25",
        "5 > n",
        "n = 2147483648 or n in (1, null)",
        "word <> 'red'",
        "n < 0",
    ],
)
def test_conditions_mean_what_they_mean_to_spark(place: Files, condition: str) -> None:
    some = ["n", "x", "word", "price"]
    # Spark's reader of Parquet excludes row groups by statistics, which leave NaN out, and loses these rows.
    place.spark().conf.set("spark.sql.parquet.filterPushdown", "false")
    theirs = in_order(place.spark().read.parquet(place.table).select(some).where(condition))
    assert in_order(place.load().select(some).where(condition)) == theirs


def test_joins_and_equal_scans(place: Files) -> None:
    first, second = place.load().select("n", "word"), place.load().select("n", "word")
    joined = first.groupBy("word").count().join(second.groupBy("word").count(), "word")
    assert len(joined.collect()) == 2
    assert "ReusedExchange" in joined._jdf.queryExecution().executedPlan().toString()


def test_files_of_different_schemas_and_hive_folders(place: Files) -> None:
    root = place.folder / "hive"
    write(root / "day=1" / "a.parquet", pa.table({"a": pa.array([1, 2], pa.int32())}))
    write(root / "day=2" / "b.parquet", pa.table({"a": pa.array([3, None], pa.int64()), "b": ["x", "y"]}))
    write(root / "day=2" / "empty.parquet", pa.table({"a": pa.array([], pa.int64())}))
    found = place.load(str(root))
    assert found.dtypes == [("a", "bigint"), ("b", "string"), ("day", "int")]
    assert sorted(map(tuple, found.where("a > 1").collect())) == [(2, None, 1), (3, "x", 2)]
    assert found.where("day = 2 and b is null").count() == 0
    assert place.load(str(root / "day=2" / "empty.parquet")).collect() == []


# --- names, options, writing ----------------------------------------------------------------------------------------------------


def test_the_name_is_the_jars_and_python_writes(place: Files) -> None:
    session = place.spark()
    register(session)  # once more
    frame = place.load().select("n", "word")
    frame.write.format("tierstore").option("key", "written").mode("append").save()
    assert in_order(place.load(key="written")) == in_order(frame)
    with place.daemon.connect() as store:
        assert store.info("written")["class"].lower() == "keep" and store.keys("written.parts/") == []
    with pytest.raises(PySparkException, match="not added to"):
        frame.limit(5).write.format("tierstore").option("key", "written").mode("append").save()
    frame.where("n < 5").write.format("tierstore").option("key", "written").mode("overwrite").save()
    assert place.load(key="written").count() == 5
    again = place.load(key="written")
    assert metric(again.select("n"), MAPPED) >= 40 and metric(again.select("n"), SENT) == 0
    with pytest.raises(PySparkException, match="a key: tables are written into the store"):
        frame.write.format("tierstore").mode("append").save(place.table)
    other = session.newSession()
    with pytest.raises(PySparkException, match=r"call tierstore.spark.register\(spark\) first"):
        other.range(3).write.format("tierstore").option("key", "nobody").mode("append").save()


def test_sql(place: Files) -> None:
    session = place.spark()
    place.load().select("n").where("n < 9").write.format("tierstore").option("key", "k").mode("overwrite").save()
    for statement in (
        f"create temporary view seen using tierstore options (path '{place.table}', columns 'n')",
        f"create table files using tierstore options (path '{place.table}')",
        f"create table listed using tierstore location '{place.table}/*.parquet'",
        "create table named using tierstore options (key 'k')",
        "create table made using tierstore options (key 'made') as select n, word from files where n < 4",
    ):
        session.sql(statement)
    try:
        found = [
            session.sql(f"select count(*) from {name}").first()[0] for name in ("seen", "files", "listed", "named")
        ]
        assert found == [FILES * ROWS] * 3 + [9]
        assert session.table("seen").columns == ["n"] and session.table("files").count() == FILES * ROWS
        session.sql("insert overwrite named select n from files where n < 3")
        assert session.table("named").count() == 3 and in_order(session.table("made").select("n")) == [
            f"Row(n={n})" for n in range(4)
        ]
    finally:
        for name in ("files", "listed", "named", "made"):
            session.sql(f"drop table if exists {name}")


def test_bad_options_and_schemas(place: Files) -> None:
    for options, words in (
        ({"colums": "n", "path": place.table}, "options are"),
        ({"key": "no-such"}, "neither a table"),
        ({"path": "/no/such.parquet"}, "no file '/no/such.parquet'"),
        ({"path": place.table, "columns": "colour"}, "these files have"),
        ({"path": place.table, "piece": "much"}, "piece"),
    ):
        with pytest.raises(PySparkException, match=words):
            place.spark().read.format("tierstore").options(**options).load()
    with pytest.raises(PySparkException, match="column n of .* is BIGINT and not INT"):
        place.spark().read.format("tierstore").schema("n int").load(place.table).collect()


# --- what goes wrong ------------------------------------------------------------------------------------------------------------


def test_files_and_keys_that_go_away(place: Files) -> None:
    path = write(place.folder / "late" / "a.parquet", pa.table({"n": range(5000)}))
    late = place.load(path).select("n")
    late._jdf.queryExecution().executedPlan().execute().getNumPartitions()  # plans the pieces
    write(Path(path), pa.table({"n": range(70)}))
    with pytest.raises(Exception, match="not the file any more that was planned for"):
        late.collect()
    assert place.load(path).count() == 70
    with place.daemon.connect() as store:
        store.put("gone", pa.table({"n": range(9)}), keep=True)
    gone = place.load(key="gone")
    gone._jdf.queryExecution().executedPlan().execute().getNumPartitions()
    with place.daemon.connect() as store:
        store.delete("gone")
    with pytest.raises(Exception, match="deleted, evicted or replaced"):
        gone.collect()


def slowly(marks: str) -> Callable[[Any], Any]:
    """Gives the first number of each batch, after the first only when the mark is there."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(batches):
            Path(marks, "begun").touch()
            deadline = time.monotonic() + 60
            while number and not Path(marks, "go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield pa.record_batch({"n": batch.column(0)})

    return work


def test_a_killed_agent_in_the_middle_of_a_piece(place: Files, tmp_path: Path) -> None:
    place.spark().conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
    agents = processes(b"spark_agent")
    assert agents

    def kill() -> None:
        soon((tmp_path / "begun").exists, 60)
        for pid in agents:
            os.kill(int(pid), signal.SIGKILL)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    found = place.load().select("n", "text").mapInArrow(slowly(str(tmp_path)), "n long").collect()
    killer.join()
    assert sorted(row.n for row in found) == list(range(FILES * ROWS))
    assert processes(b"spark_agent") and not processes(b"spark_agent") & agents
    place.spark().conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    with place.daemon.connect() as store:
        soon(lambda: store.verify(payloads=True)["ok"])


def test_a_killed_daemon_and_none_at_all(place: Files) -> None:
    """The last test of this module: what is mapped can be read on, and files can be read without any daemon."""
    wanted = in_order(place.spark().read.parquet(place.table))
    place.daemon.kill()
    assert in_order(place.load()) == wanted
    with pytest.raises(Exception, match="tierstore cannot be used"):
        place.spark(spark_tierstore_fallback="never")
    place.spark(spark_tierstore_pool="default")  # a new session, whose driver finds no daemon
    assert in_order(place.load()) == wanted
    assert in_order(place.load().where("n > 11000").select("n")) == [f"Row(n={n})" for n in range(11_001, FILES * ROWS)]
    assert metric(place.load().select("n"), SENT) > 0
    with pytest.raises(PySparkException, match="no daemon answered"):
        place.load(key="written")
