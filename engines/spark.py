"""Spark: Python tasks that map the store's columns, without a JVM in the way of the data.

Spark does all the distributing: a job is a DataFrame with one row for each piece, and mapInArrow. So tasks are tried again and
speculated as any others, and what they give goes nowhere but into Spark's own results.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tierstore.cache.columns import pieces
from tierstore.cache.columns.dataset import Dataset
from tierstore.service.config import parse_size

from . import spark_settings
from .spark_plan import hosts_of, plan_of, preferred
from .spark_worker import Function, Task, socket_path, store_at

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

SOCKET_SETTING = "spark.executorEnv.TIERSTORE_SOCKET"


def configure(
    builder: Any,
    *,
    socket: str | None = None,
    dram: str | int | None = None,
    shuffle: bool | None = None,
    cache: bool | None = None,
    spill: str | int | None = None,
) -> Any:
    """Set on a SparkSession.builder what its Python workers and its JVMs need, and return it.

    socket: of each node's daemon; default: TIERSTORE_SOCKET, then as configured.
    dram:   where no daemon answers on this node, start one with so much memory; it ends with this process and removes its
            data. The plugin's executors do so on other nodes; those of nodes without a plugin read the files.
    shuffle: whether shuffles go to the store, for which JVMs load our jar; default: if there is one or it can be built.
    cache:   the same for df.cache() and persist().
    spill:   so much of Spark's own files (spills of sorts, joins and aggregations, broadcasts) may lie in a folder beside the
             file of the PMem tier, where spark.local.dir then points. Needs the plugin, and a daemon with such a tier.
    Sets:   also JAVA_HOME and PYSPARK_PYTHON of this process where they are not set and Spark would not find the right ones.
    Raises: ConfigError where no Java is found (or no jar, with shuffle=True or cache=True), PeerLost if the daemon does not start.
    """
    spark_settings.find_java(os.environ)
    spark_settings.find_python(os.environ)
    path = socket_path(socket)
    if dram is not None:
        from .spark_daemon import running

        path = running(path, parse_size(dram, "dram"))
    made = spark_settings.settings(path) | spark_settings.jar_settings(path, shuffle, cache, dram, spill)
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
    """Make ``spark.read.format("tierstore")`` known to a session; again after a change of the push-down setting.

    Where Spark has our jar, that name is the jar's already, which reads by itself and writes by what is registered here.
    """
    from .spark_source import NAMED, PYTHON_NAME

    pushing = spark.conf.get("spark.sql.python.filterPushdown.enabled", "false") == "true"
    for name, sources in NAMED.items():
        try:
            spark.dataSource.register(sources[pushing])
        except Exception as error:  # of a class that differs between Spark's versions
            if name == PYTHON_NAME or "DATA_SOURCE_ALREADY_EXISTS" not in str(error):
                raise


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
    made, planned = plan_of(source, columns, filter, parse_size(piece, "piece"), lambda: store_at(given))
    task = Task(made, planned, fn, given)
    return _numbers(spark, planned).mapInArrow(task, schema)


def executor_hosts(spark: SparkSession) -> list[str]:
    """The hosts of the executors there are now, as Spark names them; none where it does not tell (Spark Connect)."""
    context = getattr(spark, "_jsparkSession", None) and spark.sparkContext
    if not context:
        return []
    found, names = [], context._jsc.sc().getExecutorMemoryStatus().keys().iterator()
    while names.hasNext():
        found.append(names.next())
    return hosts_of(found, context.getConf().get("spark.driver.host"))


def _numbers(spark: SparkSession, planned: Sequence[Any]) -> DataFrame:
    """A row for each piece, each a partition of its own; on several hosts each file's pieces prefer the same two of them."""
    hosts = preferred(planned, executor_hosts(spark))
    if not any(hosts):
        return spark.range(0, len(planned), 1, max(1, len(planned)))
    return _placed(spark, hosts)


def _placed(spark: SparkSession, wanted: Sequence[Sequence[str]]) -> DataFrame:
    """As _numbers(), each row on preferred hosts. Python has no call for that, so the JVM's own are made."""
    from pyspark.sql import DataFrame

    context: Any = spark.sparkContext
    jvm, session = context._jvm, spark._jsparkSession
    pairs = []
    for number, hosts in enumerate(wanted):
        cells = context._gateway.new_array(jvm.java.lang.Object, 1)
        cells[0] = number
        row = jvm.org.apache.spark.sql.RowFactory.create(cells)
        pairs.append(jvm.scala.Tuple2(row, jvm.PythonUtils.toSeq(list(hosts))))
    tag = jvm.scala.reflect.ClassTag.apply(jvm.java.lang.Class.forName("org.apache.spark.sql.Row"))
    rows = context._jsc.sc().makeRDD(jvm.PythonUtils.toSeq(pairs), tag).toJavaRDD()
    kind = jvm.org.apache.spark.sql.types.StructType.fromDDL("number int")
    return DataFrame(session.createDataFrame(rows, kind), spark)
