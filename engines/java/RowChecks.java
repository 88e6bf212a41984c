package io.tierstore.spark;

import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;

/**
 * Checksums of rows, by which Spark (from 4.1 on) notices that a map ran again with another result. By handles, because
 * Spark 4.0 has no such class to compile against.
 */
final class RowChecks {
  private static final String NAME = "org.apache.spark.shuffle.checksum.RowBasedChecksum";
  private static final MethodHandle UPDATE;
  private static final MethodHandle TOTAL;

  static {
    try {
      Class<?> sum = Class.forName(NAME, true, RowChecks.class.getClassLoader());
      MethodHandles.Lookup lookup = MethodHandles.publicLookup();
      UPDATE = lookup.findVirtual(sum, "update", MethodType.methodType(void.class, Object.class, Object.class))
          .asType(MethodType.methodType(void.class, Object.class, Object.class, Object.class));
      TOTAL = lookup.findStatic(sum, "getAggregatedChecksumValue", MethodType.methodType(long.class, sum.arrayType()))
          .asType(MethodType.methodType(long.class, Object.class));
    } catch (ReflectiveOperationException e) {
      throw new IllegalStateException("this Spark's " + NAME + " is not known: tierstore knows 4.0 to 4.3", e);
    }
  }

  private final Object[] sums;

  RowChecks(Object[] sums) {
    this.sums = sums;
  }

  void update(int partition, Object key, Object value) {
    try {
      UPDATE.invokeExact(sums[partition], key, value);
    } catch (Throwable e) {
      throw new IllegalStateException("a row has no checksum", e);
    }
  }

  long total() {
    try {
      return (long) TOTAL.invokeExact((Object) sums);
    } catch (Throwable e) {
      throw new IllegalStateException("rows have no checksum", e);
    }
  }
}
