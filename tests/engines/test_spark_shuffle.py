"""Spark's shuffles in the store: real Spark, one JVM for all tests, a context for each kind of cluster."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark import TaskContext, cloudpickle
from pyspark.sql import functions as F

import tierstore
from tests.engines.spark_places import (
    CLUSTER,
    MARKS,
    Counted,
    Place,
    no_leaks,  # noqa: F401
    placed,
    processes,
    soon,
    text,
)

pytestmark = MARKS
cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROWS = 20_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = {"spark.sql.shuffle.partitions": "4", "spark.sql.autoBroadcastJoinThreshold": "-1"}
    yield from placed(tmp_path_factory, settings, shuffle=True)


# --- answers --------------------------------------------------------------------------------------------------------------------


def test_sql_gives_the_right_answers_and_no_local_file(place: Place) -> None:
    spark = place.spark()
    numbers = (
        spark.range(0, ROWS, 1, 4)
        .withColumn("k", F.col("id") % 97)
        .withColumn("t", F.sha2(F.col("id").cast("string"), 256))
    )
    sums = {row.k: row.s for row in numbers.groupBy("k").agg(F.sum("id").alias("s")).collect()}
    assert sums == {k: int(np.arange(k, ROWS, 97).sum()) for k in range(97)}
    ordered = numbers.orderBy(F.desc("t")).select("t").collect()
    assert [row.t for row in ordered] == sorted((row.t for row in numbers.select("t").collect()), reverse=True)
    assert numbers.select("k").distinct().count() == 97
    assert numbers.repartition(204, "t").agg(F.sum("id"), F.countDistinct("t")).first()[:] == (
        ROWS * (ROWS - 1) // 2,
        ROWS,
    )
    assert place.local_files() == []
    [app] = place.apps()
    assert app["app"].startswith("spark-") and sum(shuffle["runs"] for shuffle in app["shuffles"]) > 0


def test_a_skewed_join_is_split_by_maps(place: Place) -> None:
    spark = place.spark()
    for name, value in {
        "spark.sql.adaptive.skewJoin.skewedPartitionThresholdInBytes": "10k",
        "spark.sql.adaptive.skewJoin.skewedPartitionFactor": "1.5",
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": "20k",
    }.items():
        spark.conf.set(name, value)
    many = spark.range(0, ROWS, 1, 4).select(
        F.when(F.col("id") % 10 < 8, 1).otherwise(F.col("id") % 50).alias("k"), "id"
    )
    few = spark.range(0, 50, 1, 2).select(F.col("id").alias("k"), (F.col("id") * 3).alias("v"))
    joined = many.withColumn("t", F.sha2(F.col("id").cast("string"), 256)).join(few, "k")
    found = joined.agg(F.count("*"), F.sum("v"), F.sum("id"), F.countDistinct("t")).first()
    keys = [1 if number % 10 < 8 else number % 50 for number in range(ROWS)]
    assert found[:] == (ROWS, 3 * sum(keys), ROWS * (ROWS - 1) // 2, ROWS)
    joined.collect()
    assert "skewed" in joined._jdf.queryExecution().executedPlan().toString()


def test_rdds_of_python_and_of_the_jvm(place: Place, tmp_path: Path) -> None:
    context = place.spark().sparkContext
    pairs = context.parallelize(range(1000), 4).map(lambda number: (number % 7, number))
    assert dict(pairs.reduceByKey(lambda a, b: a + b, 3).collect()) == {k: sum(range(k, 1000, 7)) for k in range(7)}
    assert {k: sorted(values) for k, values in pairs.groupByKey(3).collect()} == {
        k: list(range(k, 1000, 7)) for k in range(7)
    }
    assert pairs.sortByKey(numPartitions=3).keys().collect() == sorted(number % 7 for number in range(1000))
    (tmp_path / "lines").write_text("".join(f"line {number % 300:03}\n" for number in range(1000)))
    lines = context._jsc.textFile(str(tmp_path / "lines"), 4)
    assert lines.distinct(3).count() == 300  # combined by maps and by reducers, Java's serializer
    assert lines.distinct(204).count() == 300  # more partitions than streams are open for
    indexed = lines.zipWithIndex()
    assert indexed.groupByKey(3).count() == 300
    ordered = [pair._1() for pair in indexed.sortByKey().collect()]
    assert ordered == sorted(f"line {number % 300:03}" for number in range(1000))


def test_records_larger_than_a_segment(place: Place) -> None:
    spark = place.spark()
    wide = spark.range(0, 6, 1, 2).select("id", F.expr("repeat(sha2(cast(id as string), 512), 40000)").alias("t"))
    plain = spark._jsparkSession.conf().get("spark.io.compression.codec", "lz4")
    assert plain == "lz4"
    found = wide.repartition(3, "id").select("id", F.length("t"), F.md5("t")).collect()
    expected = wide.select("id", F.length("t"), F.md5("t")).collect()
    assert sorted(found) == sorted(expected) and found[0][1] == 128 * 40000


def test_bytes_that_do_not_compress_and_are_larger_than_a_segment(place: Place) -> None:
    context = place.spark().sparkContext

    def noise(number: int) -> tuple[int, bytes]:
        return number, np.random.default_rng(number).bytes(3 << 20)

    found = (
        context.parallelize(range(4), 2)
        .map(noise)
        .partitionBy(2)
        .mapValues(lambda data: hash(data[:9]) and data)
        .collect()
    )
    assert dict(found) == dict(map(noise, range(4)))


def test_metrics_tell_what_was_written_and_read(place: Place) -> None:
    spark = place.spark()
    before = sum(len(app["shuffles"]) for app in place.apps())
    spark.range(0, 5000, 1, 4).repartition(3).write.format("noop").mode("overwrite").save()
    store = spark._jsparkSession.sharedState().statusStore()
    assert sum(len(app["shuffles"]) for app in place.apps()) > before
    execution = store.executionsList().apply(store.executionsCount() - 1)
    values = dict(line.rsplit(": ", 1) for line in str(metrics(store, execution)).splitlines())
    assert values["shuffle records written"] == values["records read"] == "5,000", values
    assert values["shuffle bytes written"] not in ("0.0 B", "0")


def metrics(store: Any, execution: Any) -> str:
    """The SQL metrics of an execution, a line each."""
    values, lines = store.executionMetrics(execution.executionId()), []
    for metric in [execution.metrics().apply(number) for number in range(execution.metrics().length())]:
        found = values.get(metric.accumulatorId())
        if found.isDefined():
            lines.append(f"{metric.name()}: " + found.get().split("\n")[-1].split(" (")[0])
    return "\n".join(lines)


# --- failures -------------------------------------------------------------------------------------------------------------------


def test_a_store_that_fills_has_the_driver_look_for_garbage(place: Place) -> None:
    """More than half of the store is of shuffles that nobody refers to; Spark alone would keep them."""
    columns = [F.rand(number).alias(f"r{number}") for number in range(4)]

    def job(rows: int) -> None:
        frame = place.spark().range(rows).select(*columns).repartition(4, "r0")
        assert frame.agg(*(F.sum(name) for name in frame.columns)).first() is not None

    def numbers() -> set[int]:
        gc.collect()  # Python's wrappers of frames refer to each other
        return {shuffle["shuffle"] for app in place.apps() for shuffle in app["shuffles"]}

    earlier = numbers()
    job(1_500_000)
    large = numbers() - earlier
    time.sleep(2)  # a store that does not fill any more is left alone
    job(300_000)
    assert large
    soon(lambda: not large & numbers())


def test_tasks_that_fail_twice(place: Place) -> None:
    def flaky(rows: Iterator[int]) -> Iterator[tuple[int, int]]:
        context = TaskContext.get()
        for position, number in enumerate(rows):
            if context.attemptNumber() < 2 and position == 100:
                raise RuntimeError("as planned")
            yield number % 5, 1

    found = (
        place.spark().sparkContext.parallelize(range(1000), 2).mapPartitions(flaky).reduceByKey(lambda a, b: a + b, 2)
    )
    assert dict(found.collect()) == dict(Counter(number % 5 for number in range(1000)))


def test_a_daemon_that_is_killed_and_comes_back_has_lost_nothing(place: Place) -> None:
    counted = Counted(place.spark())
    assert counted.check() == 4
    place.daemon.kill()
    place.daemon.start()
    assert counted.check() == 4
    assert Counted(place.spark()).check() == 4


def test_an_agent_that_is_killed_is_started_again(place: Place) -> None:
    counted = Counted(place.spark())
    assert counted.check() == 4
    [pid] = processes(b"spark_agent")
    os.kill(int(pid), signal.SIGKILL)
    assert counted.check() == 4
    assert Counted(place.spark()).check() == 4


def test_lost_maps_run_again(place: Place) -> None:
    counted = Counted(place.spark())
    assert counted.check() == 4
    with place.daemon.connect() as store:
        lost = max(shuffle["shuffle"] for shuffle in place.apps()[0]["shuffles"])
        runs = [key for key in store.keys(f"shuffle/{place.apps()[0]['app']}/{lost}/1/") if key.count("/") == 5]
        store.delete(runs[0])
    assert counted.check() == 8  # all that Spark knows to be in that store
    assert counted.check() == 8


def test_a_daemon_that_lost_its_data_costs_its_maps_once(place: Place) -> None:
    counted = Counted(place.spark())
    assert counted.check() == 4
    [pid] = processes(b"spark_agent")
    place.daemon.kill()
    for folder in place.daemon._memory:
        shutil.rmtree(folder)
    os.kill(int(pid), signal.SIGKILL)  # or it would still read what it has mapped
    place.daemon.start()
    assert counted.check() == 8
    assert counted.check() == 8
    assert place.spark().range(0, 1000, 1, 2).repartition(3).count() == 1000
    assert place.local_files() == []


def test_a_store_that_is_another_now_gets_the_next_shuffle(place: Place) -> None:
    assert Counted(place.spark()).check() == 4
    place.daemon.kill()
    for folder in place.daemon._memory:
        shutil.rmtree(folder)
    place.daemon.start()
    assert Counted(place.spark()).check() >= 4  # a map that had begun with the agent of the store before runs again
    assert place.local_files() == []


# --- the end, and no daemon -------------------------------------------------------------------------------------------------------


def test_nothing_is_left_when_an_application_ends(place: Place) -> None:
    Counted(place.spark()).check()
    assert place.apps()
    place.stop()
    assert place.apps() == []
    soon(lambda: not processes(b"spark_agent"))


def test_an_executor_killed_between_map_and_reduce_costs_no_map(place: Place) -> None:
    spark = place.spark(CLUSTER)
    counted = Counted(spark)
    assert counted.check() == 4
    victim = sorted(processes(b"CoarseGrainedExecutorBackend"))[0]
    os.kill(int(victim), signal.SIGKILL)
    soon(lambda: victim not in processes(b"CoarseGrainedExecutorBackend"))
    assert counted.check() == 4
    assert spark.range(0, ROWS, 1, 4).repartition(3).agg(F.sum("id")).first()[0] == ROWS * (ROWS - 1) // 2
    assert place.local_files() == []


def test_a_driver_that_is_told_nonsense_does_not_start(place: Place) -> None:
    for name, value in {"spark.tierstore.fallbak": "auto", "spark.tierstore.lease": "1s"}.items():
        with pytest.raises(Exception, match=f"{name} = {value} cannot be used"):
            place.spark("local[1]", **{name.replace(".", "_"): value})
        place.session = None


def test_without_a_daemon_spark_shuffles_by_itself_or_says_why_not(place: Place) -> None:
    nowhere = str(place.folder / "nobody")
    with pytest.raises(Exception, match="no daemon answers at .*fallback = auto"):
        place.spark("local[1]", spark_tierstore_socket=nowhere, spark_tierstore_fallback="never")
    place.session = None
    spark = place.spark("local[1]", spark_tierstore_socket=nowhere)
    assert spark.range(0, 1000, 1, 2).repartition(3).count() == 1000
    assert place.apps() == [] and place.local_files()


PROGRAM = """
import sys, time
from pyspark.sql import SparkSession
from tierstore.spark import configure
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").config("spark.tierstore.lease", "20s")
builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
spark = configure(builder, socket=sys.argv[1], shuffle=True).getOrCreate()
more = int(sys.argv[2])
pairs = spark.sparkContext.parallelize(range(1000), 2).map(lambda n: (n % 7, n + more)).partitionBy(2)
print("ready", pairs.values().sum(), flush=True)
sys.stdin.readline()
print("again", pairs.values().sum(), flush=True)
"""


def test_a_node_without_a_daemon_starts_one(place: Place, tmp_path: Path) -> None:
    socket = str(place.folder / "own")
    spark = place.spark(spark_tierstore_socket=socket, spark_tierstore_dram="64MiB")
    assert spark.range(1000).repartition(3).count() == 1000
    with tierstore.connect(socket) as store:
        pid = store.stats()["pid"]
        assert store.stats()["shuffle"]["attempts_committed"] >= 2
    place.stop()
    with tierstore.connect(socket) as store:  # and is there for the next application
        assert store.stats()["pid"] == pid and store._control.call("shuffle_list") == []
    os.kill(pid, signal.SIGTERM)
    soon(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.soak
def test_encrypted_and_speculative_and_killed_in_the_middle(place: Place) -> None:
    """Attempts that go on at once, agents and executors that die while maps write: the answer is right all the same."""
    spark = place.spark(
        CLUSTER,
        spark_io_encryption_enabled="true",
        spark_speculation="true",
        spark_speculation_interval="50ms",
        spark_speculation_multiplier="1.2",
        spark_speculation_quantile="0.3",
    )

    def slow(rows: Iterator[int]) -> Iterator[tuple[int, bytes]]:
        late = TaskContext.get().partitionId() == 0 and TaskContext.get().attemptNumber() == 0
        for number in rows:
            time.sleep(0.02 if late else 0.001)
            yield number, text(number).encode() * 50

    expected = {number: text(number).encode() * 50 for number in range(2000)}
    for victims in ((), (b"spark_agent",), (b"CoarseGrainedExecutorBackend",)):
        rdd = spark.sparkContext.parallelize(range(2000), 8).mapPartitions(slow).partitionBy(3)
        answer: list[dict[int, bytes]] = []
        job = threading.Thread(target=lambda rdd=rdd, answer=answer: answer.append(dict(rdd.collect())))
        job.start()
        time.sleep(1.5)
        for victim in sorted(processes(*victims))[:1] if victims else []:
            os.kill(int(victim), signal.SIGKILL)
        job.join(120)
        assert answer == [expected], victims
        assert place.verified()


@pytest.mark.soak
def test_two_applications_and_a_driver_that_is_killed(place: Place) -> None:
    place.stop()
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, place.daemon.socket, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number in (0, 5)
    ]
    total = sum(range(1000))
    for driver, expected in zip(drivers, (total, total + 5000)):
        assert driver.stdout.readline() == f"ready {expected}\n"
    assert len(place.apps()) == 2
    for driver in drivers[1:]:
        print(file=driver.stdin, flush=True)
        assert driver.stdout.readline() == f"again {total + 5000}\n"
        assert driver.wait(60) == 0
    soon(lambda: len(place.apps()) == 1)  # its JVM ends a little later
    os.killpg(drivers[0].pid, signal.SIGKILL)
    drivers[0].wait()
    assert place.apps()  # until its lease ends
    soon(lambda: place.apps() == [], 60)
    for driver in drivers:
        driver.stdin.close()
        driver.stdout.close()
