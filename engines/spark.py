"""Spark: Python tasks that map the store's columns, without a JVM in the way of the data.

Spark does all the distributing: a job is a DataFrame with one row for each piece, and mapInArrow. So tasks are tried again and
speculated as any others, and what they give goes nowhere but into Spark's own results.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tierstore.cache import object_pieces
from tierstore.cache.columns import pieces
from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.columns.placement import Placement
from tierstore.cache.columns.prune import columns_of
from tierstore.ringbuf.errors import ConfigError, NotFound, PeerLost
from tierstore.service.config import parse_size

from . import spark_settings
from .spark_worker import Function, ObjectPlan, Plan, Task, socket_path, store_at

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

SOCKET_SETTING = "spark.executorEnv.TIERSTORE_SOCKET"
_ENDINGS = (".parquet", ".parq", ".pq")


def configure(
    builder: Any,
    *,
    socket: str | None = None,
    dram: str | int | None = None,
    shuffle: bool | None = None,
    cache: bool | None = None,
) -> Any:
    """Set on a SparkSession.builder what its Python workers and its JVMs need, and return it.

    socket: of each node's daemon; default: TIERSTORE_SOCKET, then as configured.
    dram:   where no daemon answers on this node, start one with so much memory; it ends with this process and removes its
            data. The plugin's executors do so on other nodes; those of nodes without a plugin read the files.
    shuffle: whether shuffles go to the store, for which JVMs load our jar; default: if there is one or it can be built.
    cache:   the same for df.cache() and persist().
    Sets:   also JAVA_HOME and PYSPARK_PYTHON of this process where they are not set and Spark would not find the right ones.
    Raises: ConfigError where no Java is found (or no jar, with shuffle=True or cache=True), PeerLost if the daemon does not start.
    """
    spark_settings.find_java(os.environ)
    spark_settings.find_python(os.environ)
    path = socket_path(socket)
    if dram is not None:
        from .spark_daemon import running

        path = running(path, parse_size(dram, "dram"))
    made = spark_settings.settings(path) | spark_settings.jar_settings(path, shuffle, cache, dram)
    for name, value in made.items():
        builder = builder.config(name, _with_own(builder, name, value))
    return builder


def _with_own(builder: Any, name: str, value: str) -> str:
    """A setting that is a list, behind what the user put there."""
    if name not in ("spark.jars", "spark.plugins"):
        return value
    own = str(getattr(builder, "_options", {}).get(name, ""))
    return ",".join(dict.fromkeys([*filter(None, own.split(",")), value]))


def register(spark: SparkSession) -> None:
    """Make ``spark.read.format("tierstore")`` known to a session; again after a change of the push-down setting."""
    from .spark_source import PrunedSource, Source

    pushing = spark.conf.get("spark.sql.python.filterPushdown.enabled", "false")
    spark.dataSource.register(PrunedSource if pushing == "true" else Source)


def map_batches(
    spark: SparkSession,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Dataset,
    fn: Function,
    schema: StructType | str,
    columns: Sequence[str] | None = None,
    filter: Any = None,
    *,
    piece: str | int = pieces.PIECE_BYTES,
    socket: str | None = None,
) -> DataFrame:
    """A DataFrame of what fn makes of the batches of a table, computed by Python tasks over mapped columns.

    source:  the key of a table in the store, else Parquet files (paths, folders, patterns, URLs, or a Dataset).
    fn:      as for DataFrame.mapInArrow, called once a piece: takes an iterator of record batches, gives record batches (or
             tables) of ``schema``. It may be called again for the same piece. What it refers to is sent along.
    columns: only these.  filter: a pyarrow.compute expression; statistics exclude row groups.
    piece:   row groups of one file, or blocks of a table, that follow one another are one task's up to this size.
    socket:  of each node's daemon; default: what configure() set, TIERSTORE_SOCKET of the worker, then as configured.
    Lives:   batches refer to the store's memory, which stays until they are gone.
    Cost:    here: a look at all footers, or at the key. In a task: some microseconds a column chunk that lies in memory.
    Raises:  NotFound (neither a key nor a file), ConfigError (no such column), PeerLost (a key, and no daemon here).
    """
    given = socket or spark.conf.get(SOCKET_SETTING, None)
    made, planned = plan_of(source, columns, filter, parse_size(piece, "piece"), given)
    task = Task(made, planned, fn, given)
    numbers = _numbers(spark, [str(getattr(one, "path", "")) for one in planned])
    return numbers.mapInArrow(task, schema)


def plan_of(
    source: Any, columns: Sequence[str] | None, filter: Any, piece_bytes: int, socket: str | None
) -> tuple[Plan, list[Any]]:
    """What all tasks have in common, and the piece of each."""
    if not isinstance(source, str) or source.lower().endswith(_ENDINGS):
        return pieces.plan(source, columns, filter, piece_bytes)
    reason: Exception
    try:
        return _plan_of_key(source, columns, filter, piece_bytes, socket)
    except (NotFound, PeerLost, OSError) as error:
        reason = error
    if not _is_path(source) and isinstance(reason, PeerLost):
        raise reason
    try:
        return pieces.plan(source, columns, filter, piece_bytes)
    except FileNotFoundError as error:
        raise NotFound(
            f"{source!r:.200} is neither a table in the store ({reason}) nor are there files ({error})"
        ) from None


def _is_path(text: str) -> bool:
    return "/" in text or "*" in text or os.path.exists(text)


def _plan_of_key(
    key: str, columns: Sequence[str] | None, filter: Any, piece_bytes: int, socket: str | None
) -> tuple[Plan, list[Any]]:
    schema, planned = object_pieces.pieces_of(store_at(socket), key, piece_bytes)
    if filter is not None:
        columns_of(filter, schema)  # raises here what would be raised in each task
    for name in columns or ():
        if schema.get_field_index(name) < 0:
            raise ConfigError("columns", name, f"this table has {', '.join(schema.names)}")
    chosen = schema if columns is None else schema.empty_table().select(list(columns)).schema
    return ObjectPlan(key, chosen, filter), list(planned)


def executor_hosts(spark: SparkSession) -> list[str]:
    """The hosts of the executors there are now, as Spark names them; none where it does not tell (Spark Connect)."""
    context = getattr(spark, "_jsparkSession", None) and spark.sparkContext
    if not context:
        return []
    found, names = [], context._jsc.sc().getExecutorMemoryStatus().keys().iterator()
    while names.hasNext():
        found.append(names.next())
    return hosts_of(found, context.getConf().get("spark.driver.host"))


def hosts_of(places: Sequence[str], driver: str) -> list[str]:
    """The hosts of executors, of all "HOST:PORT" that hold blocks: the driver is one of these, and runs tasks if it is alone."""
    hosts = [place.rpartition(":")[0] for place in places]
    if len(hosts) > 1 and driver in hosts:
        hosts.remove(driver)
    return sorted(set(hosts))


def _numbers(spark: SparkSession, paths: Sequence[str]) -> DataFrame:
    """A row for each piece, each a partition of its own; on several hosts each file's pieces prefer the same two of them."""
    hosts = executor_hosts(spark)
    if len(hosts) < 2 or not any(paths):
        return spark.range(0, len(paths), 1, max(1, len(paths)))
    placement = Placement(hosts)
    known = {path: placement.nodes_for(path) for path in set(paths)}
    return _placed(spark, [known[path] for path in paths])


def _placed(spark: SparkSession, preferred: Sequence[Sequence[str]]) -> DataFrame:
    """As _numbers(), each row on preferred hosts. Python has no call for that, so the JVM's own are made."""
    from pyspark.sql import DataFrame

    context: Any = spark.sparkContext
    jvm, session = context._jvm, spark._jsparkSession
    pairs = []
    for number, hosts in enumerate(preferred):
        cells = context._gateway.new_array(jvm.java.lang.Object, 1)
        cells[0] = number
        row = jvm.org.apache.spark.sql.RowFactory.create(cells)
        pairs.append(jvm.scala.Tuple2(row, jvm.PythonUtils.toSeq(list(hosts))))
    tag = jvm.scala.reflect.ClassTag.apply(jvm.java.lang.Class.forName("org.apache.spark.sql.Row"))
    rows = context._jsc.sc().makeRDD(jvm.PythonUtils.toSeq(pairs), tag).toJavaRDD()
    kind = jvm.org.apache.spark.sql.types.StructType.fromDDL("number int")
    return DataFrame(session.createDataFrame(rows, kind), spark)
