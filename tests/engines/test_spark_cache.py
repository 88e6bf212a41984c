"""df.cache() in the store: real Spark, one JVM and nearly always one session for all tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pyspark import StorageLevel, cloudpickle
from pyspark.sql import functions as F

from tests.engines.spark_places import CLUSTER, MARKS, Place, no_leaks, placed, processes, soon  # noqa: F401

pytestmark = MARKS
cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROWS, PARTS = 20_000, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = {"spark.sql.shuffle.partitions": "2", "spark.sql.inMemoryColumnarStorage.batchSize": "1000"}
    yield from placed(tmp_path_factory, settings, shuffle=False, cache=True)


@pytest.fixture
def spark(place: Place) -> Iterator[Any]:
    """The session, without a cache before and after."""
    session = place.spark()
    yield session
    if place.session is session:
        session.catalog.clearCache()
        soon(lambda: not place.caches())


def cached(frame: Any) -> Any:
    """A frame with the same rows that is cached; frame itself and what is made of it is not, and can be compared."""
    made = frame.where("true").cache()
    made.count()
    assert "InMemoryTableScan" not in frame.select("*")._jdf.queryExecution().executedPlan().toString()
    plan = made._jdf.queryExecution().executedPlan().toString()
    assert "InMemoryTableScan" in plan
    return made


# --- answers --------------------------------------------------------------------------------------------------------------------

SIMPLE = {
    "b": "id % 3 = 0",
    "i8": "cast(id % 100 as tinyint)",
    "i16": "cast(id as smallint)",
    "i32": "cast(id as int)",
    "i64": "id * 1000000007",
    "f32": "cast(id / 7 as float)",
    "f64": "if(id % 11 = 0, double('NaN'), id / 7)",
    "d9": "cast(id / 7 as decimal(9,3))",
    "d38": "cast(id * 123456789 as decimal(38,10))",
    "t": "repeat(concat('täxt', id), cast(id % 5 as int))",
    "bin": "cast(concat('b', id) as binary)",
    "day": "date_add(date'1969-01-01', cast(id as int))",
    "ts": "timestamp_micros(id * 1234567891)",
    "ntz": "cast(timestamp_micros(id * 1234567) as timestamp_ntz)",
    "ym": "make_ym_interval(cast(id as int), 1)",
    "dt": "make_dt_interval(cast(id as int), 1, 2, 3.5)",
    "nothing": "null",
}
NESTED = {
    "a": "transform(sequence(0, cast(id % 4 as int)), x -> if(x = 2, null, concat('e', x)))",
    "s": "named_struct('p', id, 'q', named_struct('r', array(id), 'u', cast(null as int)))",
    "m": "map(concat('k', id), array(id), 'z', null)",
    "aa": "array(array(id, null), array(), null)",
    "af": "transform(sequence(1, cast(id % 4 as int)), x -> x / 8)",
    "ai": "array_repeat(cast(id % 100 as tinyint), cast(id % 19 as int))",
    "ab": "array(id % 2 = 0, true)",
    "ad": "array(cast(id as decimal(9,3)))",
    "aday": "array(date'1969-12-31', date_add(date'1970-01-01', cast(id as int)))",
}


def some_null(expression: str, number: int) -> str:
    return f"if(id % {number + 5} = 1, null, {expression})"


def told(frame: Any) -> list[str]:
    """The rows as text. PySpark cannot tell one of the types."""
    if "ym" in frame.columns:
        frame = frame.withColumn("ym", F.col("ym").cast("string"))
    return list(map(repr, frame.collect()))


def sampled(rows: Any) -> list[str]:
    """Some rows of a Java list or array, as text, and how many there are; each is a call."""
    return [str(len(rows)), *(rows[number].toString() for number in range(0, len(rows), 97))]


def columnar(frame: Any) -> list[str]:
    """Rows of a scan that gives columns, which Spark 4.3 itself asks for only where an operator wants columns."""
    jvm, plan = frame.sparkSession._jvm, frame._jdf.queryExecution().executedPlan()
    while "InMemoryTableScan" not in plan.nodeName():
        plan = plan.children().head()
    assert plan.supportsColumnar()
    return sampled(jvm.org.apache.spark.sql.execution.ColumnarToRowExec(plan).executeCollectPublic())


@pytest.mark.parametrize("named", [SIMPLE, NESTED], ids=["columns", "rows"])
def test_all_types_come_back_as_they_were(place: Place, spark: Any, named: dict[str, str]) -> None:
    columns = [f"{some_null(text, number)} as {name}" for number, (name, text) in enumerate(named.items())]
    # A column twice, which Arrow would refuse by name.
    frame = (
        spark.range(0, 5000, 1, PARTS).selectExpr("id", *columns, "id as same").select("*", F.col("id").alias("same"))
    )
    expected, plain = told(frame), sampled(frame.drop("bin")._jdf.collectAsList())
    kept = cached(frame)
    [cache] = place.caches()
    assert cache["runs"] >= 8 and cache["bytes"] > 5000 * 100
    assert told(kept) == expected
    some = list(named)[1::4]
    assert told(kept.select(*some)) == told(frame.select(*some))
    memory, disk = place.held()
    assert disk == 0 and memory < cache["bytes"] / 20
    assert not list(place.scratch.rglob("rdd_*"))
    if named is SIMPLE:
        assert columnar(kept.drop("bin")) == plain
        totals = [F.max("t"), F.min("bin"), F.sum("d38"), F.count("nothing"), F.max("ts")]
        assert kept.select(*totals).first() == frame.select(*totals).first()
        spark.conf.set("spark.sql.inMemoryColumnarStorage.enableVectorizedReader", "false")
        try:
            assert told(kept.where("id >= 0")) == expected
        finally:
            spark.conf.unset("spark.sql.inMemoryColumnarStorage.enableVectorizedReader")


def test_batches_fit_a_segment(place: Place, spark: Any) -> None:
    """Or readers would be sent copies."""
    frame = spark.range(0, 4000, 1, 2).select("id", F.expr("repeat(sha2(cast(id as string), 256), 32)").alias("t"))
    kept = cached(frame)  # of 2 KiB a row, and 1000 rows a batch
    with place.daemon.connect() as store:
        found = [store.info(key) for key in place.blocks()]
        assert sum(info["bytes"] for info in found) > 4000 * 2048
        assert {info["blocks"] for info in found} == {1}
    assert kept.select("id", F.md5("t")).collect() == frame.select("id", F.md5("t")).collect()


def test_rows_larger_than_a_segment_and_no_rows_at_all(place: Place, spark: Any) -> None:
    frame = spark.range(0, 6, 1, 3).select("id", F.expr("repeat(sha2(cast(id as string), 512), 50000)").alias("t"))
    kept = cached(frame)
    assert sum(cache["bytes"] for cache in place.caches()) > 6 * 50000 * 128 and place.held()[0] < 100_000
    assert kept.select("id", F.md5("t")).collect() == frame.select("id", F.md5("t")).collect()
    nothing = cached(spark.range(0, 1000, 1, 2).where("id < 0").selectExpr("id", "array(id) a"))
    assert nothing.collect() == []


def test_what_arrow_cannot_hold_is_sparks_own(place: Place, spark: Any) -> None:
    frame = spark.range(0, 1000, 1, 2).selectExpr(
        "id", "make_interval(0, 1, 0, cast(id as int)) i", "parse_json('1') v"
    )
    kept = cached(frame.selectExpr("id", "cast(i as string) i", "cast(v as int) v", "i as c"))
    assert not place.caches()
    assert kept.selectExpr("sum(id)", "max(i)", "sum(v)").first() == (499500, "1 months 999 days", 1000)
    assert cached(frame.select("id", "v")).selectExpr("sum(id)", "sum(cast(v as int))").first() == (499500, 1000)
    empty = cached(frame.select())
    assert empty.count() == 1000 and not place.caches()


def test_vectors_and_kmeans(place: Place, spark: Any) -> None:
    from pyspark.ml.clustering import KMeans
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.linalg import Vectors

    points = spark.range(0, 3000, 1, PARTS).selectExpr("id", "id % 3 * 10 + rand(1) x", "id % 3 * 5 + rand(2) y")
    points = VectorAssembler(inputCols=["x", "y"], outputCol="features").transform(points)
    sparse = spark.createDataFrame(
        [(Vectors.sparse(5, {1: 2.0, 4: 1.5}),), (Vectors.dense([1.0, 2.0]),), (None,)], ["v"]
    )
    fit = KMeans(k=3, seed=5, maxIter=2, initMode="random").fit
    expected = fit(points)
    kept = cached(points)
    assert sum(cache["bytes"] for cache in place.caches()) > 3000 * 40
    found = fit(kept)
    for one, other in zip(found.clusterCenters(), expected.clusterCenters(), strict=True):
        assert list(one) == pytest.approx(list(other), rel=1e-12)
    assert found.summary.trainingCost == pytest.approx(expected.summary.trainingCost, rel=1e-9)
    assert cached(sparse).collect() == sparse.collect()


def test_python_reads_cached_data(place: Place, spark: Any) -> None:
    def double(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        for batch in batches:
            yield pa.record_batch({"n": pc.multiply(batch.column(0), 2), "t": batch.column(1)})

    kept = cached(spark.range(0, ROWS, 1, PARTS).selectExpr("id", "concat('t', id) t"))
    made = kept.mapInArrow(double, "n long, t string").agg(F.sum("n"), F.countDistinct("t")).first()
    assert made[:] == (ROWS * (ROWS - 1), ROWS)
    assert kept.toArrow().num_rows == ROWS
    assert len(kept.limit(7).collect()) == 7  # a partition that is not read to its end
    assert kept.join(kept.selectExpr("id + 1 as id", "t as u"), "id").count() == ROWS - 1


# --- pruning --------------------------------------------------------------------------------------------------------------------


def scanned(spark: Any, frame: Any) -> int:
    """Rows that the scan of a cache gave."""
    frame.collect()
    store = spark._jsparkSession.sharedState().statusStore()
    soon(lambda: store.execution(store.executionsCount() - 1).get().completionTime().isDefined())
    execution = store.execution(store.executionsCount() - 1).get()
    graph, values = store.planGraph(execution.executionId()), store.executionMetrics(execution.executionId())
    for node in [graph.allNodes().apply(number) for number in range(graph.allNodes().length())]:
        if "InMemoryTableScan" in node.name():
            for metric in [node.metrics().apply(number) for number in range(node.metrics().length())]:
                if metric.name() == "number of output rows":
                    return int(values.apply(metric.accumulatorId()).replace(",", ""))
    raise AssertionError("no scan of a cache")


def test_batches_that_cannot_match_are_not_read(place: Place, spark: Any) -> None:
    frame = spark.range(0, ROWS, 1, PARTS).selectExpr(
        "id",
        "cast(id as decimal(12,2)) d",
        "concat(repeat('long', 100), printf('%08d', id)) long",
        "printf('%08d', id) t",
        "if(id < 1000, null, id) n",
        "array(id) a",
    )
    kept = cached(frame)
    assert scanned(spark, kept.select("id")) == ROWS
    for where, batches in {
        "id = 4321": 1,
        "id between 3500 and 4500": 2,
        "d > 18999.5": 1,
        "t = '00012345'": 1,
        "t like '000123%'": 1,
        "n is null": 1,
        "id in (5, 19999)": 2,
        "id < 0": 0,
        "a = array(77L)": 20,  # has no bounds
        "long like concat(repeat('long', 100), '00000077%')": 20,  # bounds are short
        "long > 'lonh'": 0,
        "long < 'lonf'": 0,
    }.items():
        chosen = kept.where(where)
        assert sorted(chosen.collect()) == sorted(frame.where(where).collect()), where
        assert scanned(spark, chosen) == batches * 1000, where


# --- the end of a cache ---------------------------------------------------------------------------------------------------------


def test_unpersist_frees_the_bytes(place: Place, spark: Any) -> None:
    def used() -> int:
        with place.daemon.connect() as store:
            return sum(pool["used_bytes"] for pool in store.stats()["pools"].values())

    frame = spark.range(0, ROWS, 1, PARTS).selectExpr("id", "sha2(cast(id as string), 256) t")
    first, second = cached(frame), cached(frame.select("t"))
    assert len(place.caches()) == 2 and len(place.blocks()) == 2 * ROWS // 1000
    first.unpersist()
    soon(lambda: len(place.blocks()) == ROWS // 1000)
    assert len(place.caches()) == 1
    assert second.agg(F.countDistinct("t")).first()[0] == ROWS
    held = used()
    second.unpersist()
    soon(lambda: place.blocks() == [] and used() < held)
    again = cached(frame)  # the same plan, from the beginning
    assert again.agg(F.countDistinct("t")).first()[0] == ROWS and len(place.caches()) == 1


@pytest.mark.soak
def test_a_task_that_fails_leaves_nothing_behind(place: Place, spark: Any) -> None:
    def flaky(rows: Iterator[Any]) -> Iterator[Any]:
        from pyspark import TaskContext

        context = TaskContext.get()
        for position, row in enumerate(rows):
            if context.attemptNumber() < 2 and position == 3500:
                raise RuntimeError("as planned")
            yield row

    frame = spark.createDataFrame(spark.range(0, ROWS, 1, PARTS).rdd.mapPartitions(flaky), "id long")
    kept = frame.cache()
    assert kept.agg(F.sum("id")).first()[0] == ROWS * (ROWS - 1) // 2
    soon(lambda: len(place.blocks()) == ROWS // 1000)


# --- losses ---------------------------------------------------------------------------------------------------------------------


class Counted:
    """A cached frame of which is counted how often a partition was computed."""

    def __init__(self, spark: Any, parts: int = PARTS):
        self.count = count = spark.sparkContext.accumulator(0)

        def touch(rows: Iterator[Any]) -> Iterator[Any]:
            count.add(1)
            yield from rows

        made = spark.createDataFrame(spark.range(0, ROWS, 1, parts).rdd.mapPartitions(touch), "id long")
        self.kept = made.selectExpr("id", "concat('text of number ', id) t").cache()

    def check(self) -> int:
        """How many partitions were computed so far, after an action with the right answer."""
        found = self.kept.agg(F.sum("id"), F.countDistinct("t"), F.max("t")).first()
        assert found[:] == (ROWS * (ROWS - 1) // 2, ROWS, "text of number 9999")
        return int(self.count.value)


def test_a_lost_batch_is_computed_again_and_only_its_partition(place: Place, spark: Any) -> None:
    counted = Counted(spark)
    assert counted.check() == counted.check() == PARTS
    blocks = place.blocks()
    with place.daemon.connect() as store:
        store.delete(blocks[7])
    assert counted.check() == PARTS + 1
    assert counted.check() == PARTS + 1 and len(place.blocks()) == len(blocks)


@pytest.mark.soak
def test_an_agent_that_is_killed_is_started_again(place: Place, spark: Any) -> None:
    counted = Counted(spark)
    assert counted.check() == PARTS
    [pid] = processes(b"spark_agent")
    os.kill(int(pid), signal.SIGKILL)
    assert counted.check() == PARTS
    assert Counted(spark).check() == PARTS


def test_an_agent_that_is_killed_while_batches_are_open(place: Place, spark: Any) -> None:
    counted = Counted(spark, 1)
    assert counted.check() == 1
    [pid] = map(int, processes(b"spark_agent"))

    def slow(batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 3:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(1)
            yield batch

    found = counted.kept.mapInArrow(slow, "id long, t string").agg(F.sum("id"), F.countDistinct("t")).first()
    assert found[:] == (ROWS * (ROWS - 1) // 2, ROWS)
    assert counted.check() == 1


def test_a_daemon_that_is_killed_and_comes_back_has_lost_nothing(place: Place, spark: Any) -> None:
    counted = Counted(spark)
    assert counted.check() == PARTS
    place.daemon.kill()
    assert counted.check() == PARTS  # what is mapped needs no daemon
    place.daemon.start()
    assert counted.check() == PARTS
    assert Counted(spark).check() == PARTS and len(place.caches()) == 2


# --- the end, and no daemon -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_sparks_to_keep(place: Place) -> None:
    spark = place.spark(spark_tierstore_quota="300k")
    frame = spark.range(0, ROWS, 1, PARTS).selectExpr("id", "sha2(cast(id as string), 256) t")
    kept = cached(frame)
    [cache] = place.caches()
    assert 100_000 < cache["bytes"] <= 300 * 1024
    assert place.held()[0] > 500_000
    assert kept.collect() == frame.collect()
    assert kept.where("id = 19999").count() == 1


def test_nothing_is_left_when_an_application_ends(place: Place) -> None:
    Counted(place.spark()).check()
    assert place.caches()
    place.stop()
    assert place.caches() == [] and place.blocks() == []
    soon(lambda: not processes(b"spark_agent"))


@pytest.mark.soak
def test_a_daemon_that_is_gone_for_good(place: Place, spark: Any) -> None:
    frame = spark.range(0, ROWS, 1, PARTS).selectExpr("id", "sha2(cast(id as string), 256) t", "array(id) a")
    expected, before, planned = frame.collect(), cached(frame), frame.selectExpr("id", "t").where("true").cache()
    later, wanted = planned.select("id", "t"), sampled(frame.select("id", "t")._jdf.collectAsList())
    later._jdf.queryExecution().executedPlan()  # planned for the store, and not executed yet
    runs = place.caches()[0]["runs"]
    place.daemon.kill()
    try:
        assert before.collect() == expected  # what is mapped stays
        assert columnar(later) == wanted
        own = cached(frame.select("t", "a"))
        assert own.agg(F.countDistinct("t")).first()[0] == ROWS
        assert place.held()[0] > 2_000_000
    finally:
        place.daemon.start()
    assert before.collect() == expected
    assert [cache["runs"] for cache in place.caches()] == [runs]
    place.stop()  # this application would cache in Spark's own way for ever


@pytest.mark.soak
def test_no_daemon_or_no_wish_is_sparks_own_cache(place: Place) -> None:
    for settings in ({"spark_tierstore_cache": "false"}, {"spark_tierstore_socket": str(place.folder / "nobody")}):
        spark = place.spark(**settings)
        kept = cached(spark.range(0, ROWS, 1, PARTS).selectExpr("id", "sha2(cast(id as string), 256) t"))
        assert kept.agg(F.countDistinct("t")).first()[0] == ROWS
        assert place.caches() == [] and place.held()[0] > 1_000_000


@pytest.mark.soak
def test_handles_are_spilled_and_sent_by_either_serializer(place: Place) -> None:
    for name in ("JavaSerializer", "KryoSerializer"):
        spark = place.spark(spark_serializer=f"org.apache.spark.serializer.{name}")
        frame = spark.range(0, ROWS, 1, PARTS).selectExpr("id", "sha2(cast(id as string), 256) t")
        kept = frame.where("true").persist(StorageLevel.DISK_ONLY)
        assert kept.count() == ROWS
        assert kept.collect() == frame.collect() and kept.where("id = 777").count() == 1
        memory, disk = place.held()
        assert memory == 0 and 0 < disk < 100_000 and len(place.blocks()) == ROWS // 1000


@pytest.mark.soak
def test_executors_share_the_store_and_one_is_killed(place: Place) -> None:
    counted = Counted(place.spark(CLUSTER))
    assert counted.check() == PARTS
    assert counted.check() == PARTS and place.held()[0] < 100_000
    victim = sorted(processes(b"CoarseGrainedExecutorBackend"))[0]
    os.kill(int(victim), signal.SIGKILL)
    soon(lambda: victim not in processes(b"CoarseGrainedExecutorBackend"))
    assert PARTS < counted.check() <= 2 * PARTS  # the handles of one executor were lost with it
    counted.kept.unpersist()
    soon(lambda: not place.blocks())


PROGRAM = """
import sys
from pyspark.sql import SparkSession
from tierstore.spark import configure
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").config("spark.tierstore.lease", "20s")
builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
spark = configure(builder, socket=sys.argv[1], shuffle=False, cache=True).getOrCreate()
print("ready", spark.range(1000).cache().count(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.soak
def test_a_driver_that_is_killed_leaves_its_data_for_the_lease(place: Place) -> None:
    place.stop()
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, place.daemon.socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None and driver.stdin is not None
    assert driver.stdout.readline() == "ready 1000\n"
    assert place.blocks()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    soon(lambda: place.blocks() == [] and place.caches() == [], 60)
    driver.stdin.close()
    driver.stdout.close()
