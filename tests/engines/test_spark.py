"""Spark over the store: map_batches, the data source, settings. Real Spark, two tasks at once, four tries each."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore.cache.columns.placement import Placement
from tierstore.emulation.procs import Daemon

pytest.importorskip("pyspark", reason="PySpark is not installed: pip install 'tierstore[spark]'")

from pyspark import cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from tierstore.engines import spark as engine
from tierstore.engines import spark_settings
from tierstore.spark import configure, map_batches, register

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # PySpark leaves sockets to the collector
]
FILES, ROWS, GROUP_ROWS = 3, 4000, 1000
# Python workers may be unable to import the tests: functions of this module travel whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Spark keeps workers and connections for as long as its session lives, whose own fixture looks for what is left."""
    yield


class Place:
    """What all tests of this module use: files, a daemon, a session."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = [write(folder / "table" / f"part-{number}.parquet", number) for number in range(FILES)]
        self.table = str(folder / "table")
        self.daemon = Daemon(folder, "--dram", "32MiB", "--ephemeral")
        self.session: Any = None

    def whole(self) -> pa.Table:
        return pa.concat_tables([pq.read_table(path) for path in self.files])


def write(path: Path, number: int, rows: int = ROWS) -> str:
    path.parent.mkdir(exist_ok=True)
    numbers = range(number * rows, (number + 1) * rows)
    columns = {
        "n": pa.array(numbers, pa.int64()),
        "x": pa.array([None if i % 7 == 3 else i / 8 for i in numbers], pa.float64()),
        "word": pa.array([["red", "green", None][i % 3] for i in numbers]),
        "price": pa.array([i * 100 + 25 for i in numbers], pa.int64())
        .cast(pa.decimal128(21, 2))
        .cast(pa.decimal128(15, 2)),
    }
    pq.write_table(pa.table(columns), path, row_group_size=GROUP_ROWS)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("spark")
    # A folder with a short name: a socket's path has little room.
    short = Path("/tmp") / f"ts-spark-{uuid.uuid4().hex[:8]}"
    short.mkdir()
    environment = dict(os.environ)
    before = processes()
    made = Place(short)
    try:
        made.daemon.start()
        builder = SparkSession.builder.master("local[2,4]").appName("tierstore tests")
        for name, value in {
            "spark.driver.memory": "1g",
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.local.dir": str(folder),
            "spark.sql.warehouse.dir": str(folder / "warehouse"),
            "spark.sql.shuffle.partitions": "2",
            "spark.sql.session.timeZone": "UTC",
        }.items():
            builder = builder.config(name, value)
        made.session = configure(builder, socket=made.daemon.socket).getOrCreate()
        made.session.sparkContext.setLogLevel("OFF")
        yield made
    finally:
        if made.session is not None:
            gateway = made.session.sparkContext._gateway
            made.session.stop()
            gateway.shutdown()
            gateway.proc.stdin.close()  # the JVM ends with it
            with contextlib.suppress(Exception):
                gateway.proc.wait(20)
        made.daemon.end()
        shutil.rmtree(short, ignore_errors=True)
        os.environ.clear()
        os.environ.update(environment)
    deadline = time.monotonic() + 20
    while left := processes() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"processes are left: {left}")
        time.sleep(0.1)


def processes() -> set[str]:
    """The JVMs and Python workers that this run of the tests has started."""
    token = os.environ.get("LEAKCHECK_RUN", "?").encode()
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and token in (entry / "environ").read_bytes():
                command = (entry / "cmdline").read_bytes()
                if b"pyspark" in command or b"org.apache.spark" in command:
                    found.add(entry.name)
    return found


def same(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    return batches


def in_order(frame: Any) -> list[Any]:
    return sorted(tuple(row) for row in frame.collect())


def rows_of(table: pa.Table) -> list[Any]:
    return sorted(tuple(row.values()) for row in table.to_pylist())


SCHEMA = "n long, x double, word string, price decimal(15,2)"


def test_a_table_of_files_is_what_spark_reads_itself(place: Place) -> None:
    mapped = map_batches(place.session, place.table, lambda batches: batches, SCHEMA)
    assert in_order(mapped) == in_order(place.session.read.parquet(place.table)) and mapped.count() == FILES * ROWS
    # The workers filled the cache of the daemon.
    with place.daemon.connect() as store:
        assert store.dataset(place.table).stats()["cached_chunks"] == FILES * (ROWS // GROUP_ROWS) * 4


def test_columns_filter_and_a_task_for_each_row_group(place: Place) -> None:
    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = pa.Table.from_batches(list(batches))
        yield pa.record_batch(
            {"low": [pc.min(found["n"]).as_py()], "rows": [found.num_rows], "of": [found.num_columns]}
        )

    each = map_batches(place.session, place.files, count, "low long, rows long, of long", ["n", "word"], piece=0)
    assert each.rdd.getNumPartitions() == FILES * ROWS // GROUP_ROWS
    assert in_order(each) == [(low, GROUP_ROWS, 2) for low in range(0, FILES * ROWS, GROUP_ROWS)]
    some = map_batches(
        place.session, place.table, count, "low long, rows long, of long", ["word"], pc.field("n") >= 5500, piece=0
    )
    assert some.rdd.getNumPartitions() == 7  # row groups that statistics leave
    with pytest.raises(PySparkException, match="low|KeyError"):
        some.collect()  # the filter's column is not handed out
    kept = map_batches(place.session, place.table, same, "n long", ["n"], pc.field("n") >= 5500)
    assert in_order(kept) == [(n,) for n in range(5500, FILES * ROWS)]
    none = map_batches(place.session, place.table, same, "n long", ["n"], pc.field("n") < 0)
    assert none.collect() == []
    with pytest.raises(tierstore.ConfigError, match="colour"):
        map_batches(place.session, place.table, same, "n long", ["colour"])


def test_a_dataset_keeps_its_options(place: Place) -> None:
    path = write(place.folder / "fresh" / "a.parquet", 0)
    with place.daemon.connect() as store:
        named = store.dataset(path, snapshot="v1", form="encoded")
        mapped = map_batches(place.session, named, same, SCHEMA)
        assert in_order(mapped) == rows_of(pq.read_table(path))
        assert named.stats()["cached_chunks"] == ROWS // GROUP_ROWS * 4  # though the file is too young
        once = store.dataset(path, snapshot="v2", hint="once")
        assert len(map_batches(place.session, once, same, SCHEMA).collect()) == ROWS
        assert once.stats()["cached_chunks"] == 0


def test_hive_folders_and_files_of_different_types(place: Place) -> None:
    root = place.folder / "hive"
    for folder, table in {
        "day=1": pa.table({"a": pa.array([1, 2], pa.int32())}),
        "day=2": pa.table({"a": pa.array([3, None], pa.int64()), "b": ["x", "y"]}),
    }.items():
        (root / folder).mkdir(parents=True)
        pq.write_table(table, root / folder / "f.parquet")
    found = in_order(map_batches(place.session, str(root), same, "a long, b string, day int", filter=pc.field("a") > 1))
    assert found == [(2, None, 1), (3, "x", 2)]


def test_a_table_under_a_key_is_mapped_block_by_block(place: Place) -> None:
    table = pa.table({"i": pa.array(range(300_000), pa.int64()), "f": pa.array([i / 2 for i in range(300_000)])})
    with place.daemon.connect() as store:
        store.put("points", table, keep=True)
        blocks = store.info("points")["blocks"]

    def sums(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
        found = pa.Table.from_batches(list(batches))
        yield pa.table({"i": [pc.sum(found["i"]).as_py()], "rows": [found.num_rows]})

    mapped = map_batches(place.session, "points", sums, "i long, rows long", piece="1MiB")
    found = mapped.collect()
    assert blocks > 2 and len(found) == mapped.rdd.getNumPartitions() > 1
    assert sum(row.i for row in found) == sum(range(300_000)) and sum(row.rows for row in found) == 300_000
    few = map_batches(place.session, "points", same, "f double", ["f"], pc.field("i") < 3)
    assert [row.f for row in few.collect()] == [0.0, 0.5, 1.0]
    in_file_order = map_batches(place.session, "points", same, "i long", ["i"]).collect()
    assert [row.i for row in in_file_order] == list(range(300_000))
    with pytest.raises(tierstore.ConfigError, match="colour"):
        map_batches(place.session, "points", same, "i long", ["colour"])
    # What was planned is gone: the job fails and says why.
    late = map_batches(place.session, "points", same, "i long", ["i"])
    with place.daemon.connect() as store:
        store.delete("points")
    with pytest.raises(PySparkException, match="deleted, evicted or replaced"):
        late.count()


def test_an_unknown_name_says_what_was_looked_for(place: Place) -> None:
    with pytest.raises(tierstore.NotFound, match="neither a table in the store .*no-such"):
        map_batches(place.session, "no-such", same, "i long")
    with pytest.raises(FileNotFoundError, match="such"):
        map_batches(place.session, "/no/such.parquet", same, "i long")
    with place.daemon.connect() as store:
        store.put_bytes("bytes", b"no table")
    with pytest.raises(tierstore.TierstoreError, match="holds bytes"):
        map_batches(place.session, "bytes", same, "i long")


def test_a_killed_worker_changes_nothing(place: Place) -> None:
    marks = place.folder / "marks"
    marks.mkdir()

    def die_once(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch  # some of a killed task's rows were given already
            if batch.column(0)[0].as_py() == GROUP_ROWS:
                mark = marks / f"{len(os.listdir(marks))}"
                mark.touch()
                if mark.name == "0":
                    os.kill(os.getpid(), signal.SIGKILL)

    found = in_order(map_batches(place.session, place.table, die_once, "n long", ["n"], piece=0))
    assert found == [(n,) for n in range(FILES * ROWS)]
    assert len(os.listdir(marks)) == 2


# Where there is a JDK, the first is read by the jar; see test_spark_source_java.py.
NAMES = pytest.mark.parametrize("name", ["tierstore", "tierstore_python"])


@NAMES
def test_the_data_source(place: Place, name: str) -> None:
    session = place.session
    register(session)

    def load(**options: str) -> Any:
        return session.read.format(name).options(**options).load(place.table)

    assert in_order(load()) == in_order(session.read.parquet(place.table))
    assert load(columns="word, n").columns == ["word", "n"]
    by_jar = name == "tierstore" and "TierPlugin" in session.conf.get("spark.plugins", "")
    told = tuple(map(int, session.version.split(".")[:2])) >= (4, 1)  # before, a source in Python hears of no filters
    pushed = by_jar or told
    assert load(piece="0").where("n >= 5500").rdd.getNumPartitions() == (7 if pushed else 12)  # by statistics
    query = "n >= 5500 and word in ('red', 'blue') and not word = 'blue' and x > 700.5 and n not in (6000, 6003)"
    mine = in_order(load().where(query))
    assert mine and mine == in_order(session.read.parquet(place.table).where(query))
    for condition in ("word is null", "not (n < 11990)", "word not in ('red')", "x <=> null", "price > 1199000.00"):
        ours, theirs = load().where(condition), session.read.parquet(place.table).where(condition)
        assert in_order(ours) == in_order(theirs), condition
    with pytest.raises(PySparkException, match="options are"):
        load(colums="n")
    with pytest.raises(PySparkException, match="neither a table"):
        session.read.format(name).option("key", "no-such").load()


@NAMES
def test_types_that_spark_does_not_have(place: Place, name: str) -> None:
    register(place.session)
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 250_001)
    table = pa.table(
        {
            "u8": pa.array([255, None], pa.uint8()),
            "u64": pa.array([(1 << 64) - 1, 0], pa.uint64()),
            "half": pa.array([0.5, -2.0], pa.float16()),
            "coded": pa.array(["a", "b"]).dictionary_encode(),
            "large": pa.array(["c", None], pa.large_string()),
            "view": pa.array(["d", "longer than a view holds"], pa.string_view()),
            "fixed": pa.array([b"abc", b"def"], pa.binary(3)),
            "when": pa.array([moment, None], pa.timestamp("us")).cast(pa.timestamp("ns")),
            "zoned": pa.array([moment, None], pa.timestamp("ns", "UTC")),
            "list": pa.array([[1, None], None], pa.large_list(pa.uint16())),
            "struct": pa.array([{"a": 1}, {"a": None}], pa.struct([("a", pa.int64())])),
        }
    )
    with place.daemon.connect() as store:
        store.put("types", table, keep=True)
    first, second = place.session.read.format(name).option("key", "types").load().collect()
    zoned = moment.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)  # what collect() gives
    assert tuple(first)[:9] == (255, (1 << 64) - 1, 0.5, "a", "c", "d", b"abc", moment, zoned)
    assert first["list"] == [1, None] and first.struct.a == 1
    assert tuple(second)[:8] == (None, 0, -2.0, "b", None, "longer than a view holds", b"def", None)


@NAMES
def test_the_data_source_writes_a_table(place: Place, name: str) -> None:
    session = place.session
    register(session)
    frame = session.read.parquet(place.table)
    write = frame.write.format(name).option("key", f"written-{name}")
    write.mode("append").save()
    with place.daemon.connect() as store:
        assert rows_of(store.get(f"written-{name}")) == rows_of(place.whole())
        assert store.info(f"written-{name}")["class"].lower() == "keep" and store.keys(f"written-{name}.parts/") == []
    again = session.read.format(name).option("key", f"written-{name}").load()
    assert in_order(again) == in_order(frame)
    with pytest.raises(PySparkException, match="not added to"):
        frame.limit(5).write.format(name).option("key", f"written-{name}").mode("append").save()
    frame.where("n < 5").write.format(name).option("key", f"written-{name}").mode("overwrite").save()
    with place.daemon.connect() as store:
        assert store.get(f"written-{name}").num_rows == 5 and store.keys(f"written-{name}.parts/") == []


def test_the_example_finds_the_same_with_and_without_the_store(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).resolve().parents[2] / "examples/spark_kmeans.py"
    spec = importlib.util.spec_from_file_location("spark_kmeans", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "spark_kmeans", example)
    spec.loader.exec_module(example)
    cloudpickle.register_pickle_by_value(example)  # as if it were the program
    points = place.folder / "points"
    points.mkdir()
    paths = example.make_points(points, rows=4000, dimensions=3)
    start = np.random.default_rng(1).normal(scale=8, size=(5, 3))
    found = {name: example.iterate(make(place.session, paths), start, 2) for name, make in example.SOURCES.items()}
    rows = np.concatenate([np.stack(pq.read_table(path).columns, axis=1) for path in paths])
    wanted = start
    for _ in range(2):
        nearest = ((rows[:, None] - wanted) ** 2).sum(axis=2).argmin(axis=1)
        wanted = np.array([rows[nearest == k].mean(axis=0) if (nearest == k).any() else wanted[k] for k in range(5)])
    assert sorted(found) == ["cache", "pyarrow", "tierstore"]
    for centroids in found.values():
        assert np.allclose(centroids, wanted, rtol=1e-12)
    place.session.catalog.clearCache()


def test_pieces_prefer_the_hosts_of_their_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.executor_hosts(place.session) == ["127.0.0.1"]
    assert engine.hosts_of(["d:1", "b:1", "a:1", "b:2"], "d") == ["a", "b"]
    assert engine.hosts_of(["d:1", "b:1", "d:2"], "d") == ["b", "d"]
    monkeypatch.setattr(engine, "executor_hosts", lambda session: ["a", "b", "c"])
    mapped = map_batches(place.session, place.table, same, "n long", ["n"], piece=0)
    plan = mapped._jdf.queryExecution().executedPlan().execute()
    context = place.session.sparkContext._jsc.sc()
    told = [context.getPreferredLocs(plan, number) for number in range(FILES * ROWS // GROUP_ROWS)]
    wanted = Placement(["a", "b", "c"])
    expected = [wanted.nodes_for(path) for path in place.files for _ in range(ROWS // GROUP_ROWS)]
    assert [[one.apply(i).host() for i in range(one.size())] for one in told] == expected
    assert in_order(mapped) == [(n,) for n in range(FILES * ROWS)]  # none of these hosts is there


def test_a_killed_daemon_does_not_stop_a_job(place: Place) -> None:
    """The last test of this module: workers have connections, mapped memory, and datasets of the daemon that dies."""
    path, killed = place.table, place.folder / "killed"

    def slowly(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.column(0)[0].as_py() >= 2 * ROWS:  # of the last file: not before the daemon is dead
                deadline = time.monotonic() + 60
                while not killed.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
            yield batch
            (killed.parent / f"given-{batch.column(0)[0].as_py()}").touch()

    import threading

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (killed.parent / "given-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        place.daemon.kill()
        killed.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    found = in_order(map_batches(place.session, path, slowly, SCHEMA, piece=0))
    killer.join()
    assert killed.exists() and found == rows_of(place.whole())
    # And none is there when this one begins; a table under a key cannot be read.
    assert in_order(map_batches(place.session, path, same, SCHEMA)) == found
    with pytest.raises(tierstore.PeerLost):
        map_batches(place.session, "points", same, "i long")


def test_settings_name_the_socket(place: Place) -> None:
    found = spark_settings.settings("/run/s")
    assert found["spark.executorEnv.TIERSTORE_SOCKET"] == "/run/s"
    assert place.session.conf.get(engine.SOCKET_SETTING) == place.daemon.socket
