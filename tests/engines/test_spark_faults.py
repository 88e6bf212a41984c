"""Faults of an application's surroundings: agents that hang, a full store, damage, versions; and what Spark counts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark import BarrierTaskContext, cloudpickle
from pyspark.sql import functions as F

from tests.engines.spark_places import (
    MARKS,
    Counted,
    Place,
    no_leaks,  # noqa: F401
    placed,
    processes,
    soon,
    text,
)
from tierstore.engines.spark_agent_calls import Calls, Shared
from tierstore.service import protocol

pytestmark = MARKS
cloudpickle.register_pickle_by_value(sys.modules[__name__])
MIB = 1 << 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = {"spark.sql.shuffle.partitions": "4", "spark.tierstore.timeout": "5s"}
    settings["spark.barrier.sync.timeout"] = "60"  # seconds; the default is a year
    yield from placed(tmp_path_factory, settings, shuffle=True, cache=True)


def agent() -> int:
    [pid] = processes(b"spark_agent")
    return int(pid)


# --- agents that hang -----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_an_agent_that_is_stopped_while_maps_write(place: Place, tmp_path: Path) -> None:
    spark, mark = place.spark(), tmp_path / "mark"
    assert Counted(spark).check() == 4
    pid = agent()

    def stop(rows: Iterator[int]) -> Iterator[tuple[int, str]]:
        for number in rows:
            if number == 1500:
                with contextlib.suppress(FileExistsError):
                    mark.mkdir()
                    os.kill(pid, signal.SIGSTOP)
            yield number, text(number)

    found = spark.sparkContext.parallelize(range(4000), 4).mapPartitions(stop).partitionBy(3)
    assert dict(found.collect()) == {number: text(number) for number in range(4000)}
    assert mark.exists() and agent() != pid


def test_an_agent_that_is_stopped_before_reducers_read(place: Place) -> None:
    counted = Counted(place.spark())
    assert counted.check() == 4
    pid = agent()
    os.kill(pid, signal.SIGSTOP)
    assert counted.check() == 4
    assert agent() != pid


def damage(place: Place, key: str) -> None:
    """Change a byte of an object in memory."""
    with place.daemon.connect() as store:
        found, _ = Calls(Shared(store)).handle({"op": "pin", "key": key}, bytearray())
        with open(store.stats()["tiers"]["dram"]["paths"][found["arena"]], "r+b") as file:
            position = found["offset"] + found["size"] // 2
            old = os.pread(file.fileno(), 1, position)[0]
            os.pwrite(file.fileno(), bytes([old ^ 0xFF]), position)


# --- stages -----------------------------------------------------------------------------------------------------------------------


def test_a_barrier_stage_between_two_shuffles_runs_again_as_a_whole(place: Place, tmp_path: Path) -> None:
    spark, mark = place.spark(), tmp_path / "mark"
    counted = Counted(spark, partitions=2)
    tries = spark.sparkContext.accumulator(0)

    def together(rows: Iterator[Any]) -> Iterator[tuple[int, tuple[str, int]]]:
        context = BarrierTaskContext.get()
        assert context is not None
        tries.add(1)
        mine, first = list(rows), not mark.exists()
        sizes = [int(told) for told in context.allGather(str(len(mine)))]
        if first and context.partitionId() == 0:
            time.sleep(60)  # until it is stopped: had it ended by then, Spark might run the other one alone
        for position, (number, value) in enumerate(mine):
            if first and position == 1000:
                mark.mkdir()
                raise RuntimeError("as planned")
            yield number % 5, (value, sum(sizes))

    found = counted.rdd.barrier().mapPartitions(together).partitionBy(2)
    for _ in range(2):
        assert sorted(found.collect()) == sorted((number % 5, (text(number), 4000)) for number in range(4000))
    assert mark.exists() and counted.count.value == 4 and tries.value == 2  # of tasks that ended well


def test_a_run_that_is_damaged_in_memory_costs_its_maps_once(place: Place) -> None:
    counted = Counted(place.spark())
    assert counted.check() == 4
    [app] = place.apps()
    number = max(shuffle["shuffle"] for shuffle in app["shuffles"])
    run = next(key for key in place.blocks() if key.startswith(f"shuffle/{app['app']}/{number}/2/"))
    damage(place, run)
    assert counted.check() == 8
    assert counted.check() == 8


# --- room -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def filled(place: Place, left: int) -> Iterator[None]:
    """The store, but for so many bytes, is full of what may not go."""
    with place.daemon.connect() as store:
        tier, number = store.stats()["tiers"]["dram"]["segments"], 0
        while tier["free"] > left // MIB:
            store.put_bytes(f"filled/{number}", bytes(MIB - 8192), keep=True)
            tier, number = store.stats()["tiers"]["dram"]["segments"], number + 1
        try:
            yield
        finally:
            for key in store.keys("filled/"):
                store.delete(key)


@pytest.mark.soak
def test_a_shuffle_that_does_not_fit_says_so_and_leaves_nothing(place: Place) -> None:
    spark = place.spark("local[2]")  # each task waits 20 s for room, once
    noise = spark.range(0, 1_200_000, 1, 4).select(F.rand(7).alias("a"), F.rand(8).alias("b"), F.rand(9).alias("c"))
    with filled(place, 12 * MIB):
        with pytest.raises(Exception, match=r"Full: .*(tier|pool|room|segment)"):
            noise.repartition(3).write.format("noop").mode("overwrite").save()
        spark._jvm.System.gc()  # Spark drops a shuffle when nobody refers to it any more
        soon(lambda: sum(shuffle["bytes"] for shuffle in place.apps()[0]["shuffles"]) == 0, 60)
        assert Counted(spark).check() == 4
    assert noise.repartition(3).count() == 1_200_000


@pytest.mark.soak
def test_cached_data_that_do_not_fit_are_sparks_to_keep(place: Place) -> None:
    spark = place.spark()
    frame = spark.range(0, 400_000, 1, 4).select("id", F.rand(7).alias("a"), F.rand(8).alias("b"))
    expected = frame.agg(F.sum("id"), F.max("a"), F.min("b")).first()
    with filled(place, 12 * MIB):
        kept = frame.cache()
        assert kept.agg(F.sum("id"), F.max("a"), F.min("b")).first() == expected
        assert place.held()[0] > MIB  # and shuffles still find room
        assert sum(cache["bytes"] for cache in place.caches()) > MIB
        assert kept.agg(F.sum("id"), F.max("a"), F.min("b")).first() == expected
        kept.unpersist()
        soon(lambda: not place.caches())


# --- what Spark counts ------------------------------------------------------------------------------------------------------------


def counted(spark: Any) -> list[dict[str, int]]:
    """What Spark's status store says of the stages of some jobs."""
    context = spark.sparkContext
    pairs = context.parallelize(range(9000), 4).map(lambda number: (number % 700, number))
    assert pairs.reduceByKey(lambda one, other: one + other, 3).count() == 700
    assert len(pairs.sortByKey(numPartitions=3).collect()) == 9000
    frame = (
        spark.range(0, 30_000, 1, 4)
        .withColumn("k", F.col("id") % 91)
        .withColumn("t", F.sha2(F.col("id").cast("string"), 256))
    )
    assert frame.groupBy("k").agg(F.max("t")).count() == 91
    assert (
        frame.repartition(5, "k").join(frame.select("id", F.col("t").alias("u")).repartition(3, "id"), "id").count()
        == 30_000
    )
    context._jsc.sc().listenerBus().waitUntilEmpty()
    found, store = [], context._jsc.sc().statusStore()
    names = ("shuffleWriteRecords", "shuffleReadRecords", "shuffleWriteBytes", "shuffleReadBytes")
    with contextlib.suppress(Exception):  # until there is no stage of this number
        while True:
            stage = store.lastStageAttempt(len(found))
            found.append({name: int(getattr(stage, name)()) for name in names})
    return found


def test_spark_counts_what_it_counts_of_its_own_shuffle(place: Place) -> None:
    place.stop()
    ours = counted(place.spark())
    theirs = counted(place.spark(spark_tierstore_shuffle="false"))
    assert len(ours) == len(theirs) > 8
    for name in ("shuffleWriteRecords", "shuffleReadRecords"):
        assert [stage[name] for stage in ours] == [stage[name] for stage in theirs], name
    for name in ("shuffleWriteBytes", "shuffleReadBytes"):
        for one, other in zip(ours, theirs, strict=True):
            assert other[name] * 0.5 <= one[name] <= other[name] * 2 + 500, (name, one, other)
    for stages in (ours, theirs):
        assert (
            sum(stage["shuffleReadBytes"] for stage in stages)
            == sum(stage["shuffleWriteBytes"] for stage in stages)
            > 0
        )


# --- versions -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """A daemon that speaks another version of the protocol; its socket."""
    path = f"/tmp/ts-stranger-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    frame = bytearray(protocol.encode(protocol.ERROR, 1, {}))
                    frame[4:6] = (99).to_bytes(2, "little")
                    connection.sendall(frame)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        os.unlink(path)


def test_a_daemon_of_another_version_is_an_error_and_no_reason_to_fall_back(place: Place, stranger: str) -> None:
    with pytest.raises(Exception, match="speaks protocol version 99.*same tierstore on both sides"):
        place.spark("local[1]", spark_tierstore_socket=stranger)
    place.session = None
