package io.tierstore.spark;

import java.lang.reflect.Constructor;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import org.apache.spark.ShuffleDependency;
import org.apache.spark.TaskContext;
import org.apache.spark.scheduler.MapStatus;
import org.apache.spark.storage.BlockManagerId;
import org.apache.spark.util.collection.ExternalSorter;
import scala.Option;

/** What differs between Spark 4.0 and 4.3. */
final class Shims {
  private static final Method MAP_STATUS = mapStatus();
  private static final Constructor<?> SORTER = ExternalSorter.class.getConstructors()[0];
  private static final Method CHECKSUMS = checksums();

  private Shims() {}

  private static Method mapStatus() {
    for (Method method : MapStatus.class.getMethods()) {
      if (method.getName().equals("apply") && Modifier.isStatic(method.getModifiers())) {
        return method;
      }
    }
    throw new IllegalStateException("this Spark has no MapStatus.apply: tierstore knows 4.0 to 4.3");
  }

  private static Method checksums() {
    try {
      return ShuffleDependency.class.getMethod("rowBasedChecksums");
    } catch (NoSuchMethodException e) {
      return null; // Spark 4.0
    }
  }

  /** What a map task returns. checksum: of its rows, which Spark knows since 4.1. */
  static MapStatus mapStatus(BlockManagerId location, long[] sizes, long mapId, long checksum) {
    Object[] arguments = {location, sizes, mapId, checksum};
    return (MapStatus) call(MAP_STATUS, null, java.util.Arrays.copyOf(arguments, MAP_STATUS.getParameterCount()));
  }

  /** The checksums of rows that a dependency wants, one a partition; null for none. */
  static Object[] rowChecksums(ShuffleDependency<?, ?, ?> dependency) {
    Object[] found = CHECKSUMS == null ? null : (Object[]) call(CHECKSUMS, dependency);
    return found == null || found.length == 0 ? null : found;
  }

  /** A sorter of what was read. */
  static ExternalSorter<Object, Object, Object> sorter(TaskContext context, ShuffleDependency<?, ?, ?> dependency) {
    Object[] arguments = {context, Option.empty(), Option.empty(), dependency.keyOrdering(), dependency.serializer(), null};
    if (SORTER.getParameterCount() == 6) {
      arguments[5] = java.lang.reflect.Array.newInstance(SORTER.getParameterTypes()[5].getComponentType(), 0);
    }
    try {
      @SuppressWarnings("unchecked")
      ExternalSorter<Object, Object, Object> made = (ExternalSorter<Object, Object, Object>)
          SORTER.newInstance(java.util.Arrays.copyOf(arguments, SORTER.getParameterCount()));
      return made;
    } catch (InstantiationException | IllegalAccessException | InvocationTargetException e) {
      throw new IllegalStateException("this Spark's ExternalSorter is not known: tierstore knows 4.0 to 4.3", e);
    }
  }

  /** Whether the session knows a data source of this name in Python. */
  static boolean hasPythonSource(String name) {
    return ((org.apache.spark.sql.classic.SparkSession) org.apache.spark.sql.SparkSession.active())
        .sessionState().dataSourceManager().dataSourceExists(name);
  }

  private static Object call(Method method, Object of, Object... arguments) {
    try {
      return method.invoke(of, arguments);
    } catch (IllegalAccessException | InvocationTargetException e) {
      throw new IllegalStateException("this Spark is not known (" + method + "): tierstore knows 4.0 to 4.3", e);
    }
  }
}
