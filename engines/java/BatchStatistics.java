package io.tierstore.spark;

import java.util.Arrays;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.catalyst.expressions.GenericInternalRow;
import org.apache.spark.sql.catalyst.expressions.UnsafeProjection;
import org.apache.spark.sql.execution.columnar.BooleanColumnStats;
import org.apache.spark.sql.execution.columnar.ByteColumnStats;
import org.apache.spark.sql.execution.columnar.ColumnStats;
import org.apache.spark.sql.execution.columnar.DecimalColumnStats;
import org.apache.spark.sql.execution.columnar.DoubleColumnStats;
import org.apache.spark.sql.execution.columnar.FloatColumnStats;
import org.apache.spark.sql.execution.columnar.IntColumnStats;
import org.apache.spark.sql.execution.columnar.LongColumnStats;
import org.apache.spark.sql.execution.columnar.ShortColumnStats;
import org.apache.spark.sql.execution.columnar.StringColumnStats;
import org.apache.spark.sql.types.BooleanType;
import org.apache.spark.sql.types.ByteType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.DateType;
import org.apache.spark.sql.types.DayTimeIntervalType;
import org.apache.spark.sql.types.DecimalType;
import org.apache.spark.sql.types.DoubleType;
import org.apache.spark.sql.types.FloatType;
import org.apache.spark.sql.types.IntegerType;
import org.apache.spark.sql.types.LongType;
import org.apache.spark.sql.types.ShortType;
import org.apache.spark.sql.types.StringType;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.types.TimestampNTZType;
import org.apache.spark.sql.types.TimestampType;
import org.apache.spark.sql.types.YearMonthIntervalType;
import org.apache.spark.unsafe.types.UTF8String;

/** Bounds of the columns of a batch, by Spark's own collectors, so that Spark's own filter leaves the same batches out. */
final class BatchStatistics {
  /** Of each column: lower and upper bound, nulls, rows, bytes. Spark's filter relies on this order. */
  private static final int FIELDS = 5;
  /** Of a text as a bound. */
  private static final int TEXT_BYTES = 256;

  private final DataType[] types;
  private final ColumnStats[] columns;
  private final int[] nulls;
  private final UnsafeProjection compact;

  BatchStatistics(StructType stored) {
    int count = stored.size();
    types = new DataType[count];
    columns = new ColumnStats[count];
    nulls = new int[count];
    DataType[] fields = new DataType[FIELDS * count];
    for (int number = 0; number < count; number++) {
      types[number] = stored.fields()[number].dataType();
      fields[FIELDS * number] = fields[FIELDS * number + 1] = types[number];
      fields[FIELDS * number + 2] = fields[FIELDS * number + 3] = DataTypes.IntegerType;
      fields[FIELDS * number + 4] = DataTypes.LongType;
    }
    compact = UnsafeProjection.create(fields);
    begin();
  }

  private void begin() {
    for (int number = 0; number < types.length; number++) {
      columns[number] = collector(types[number]);
      nulls[number] = 0;
    }
  }

  void add(InternalRow row) {
    for (int number = 0; number < columns.length; number++) {
      if (columns[number] != null) {
        columns[number].gatherStats(row, number);
      } else if (row.isNullAt(number)) {
        nulls[number]++;
      }
    }
  }

  /** The statistics of the rows since the last call. */
  InternalRow take(int rows) {
    Object[] values = new Object[FIELDS * columns.length];
    for (int number = 0; number < columns.length; number++) {
      Object[] found = columns[number] == null
          ? new Object[] {null, null, nulls[number], rows, 0L} : columns[number].collectedStatistics();
      System.arraycopy(found, 0, values, FIELDS * number, FIELDS);
      if (types[number] instanceof StringType text && text.supportsBinaryOrdering()) {
        values[FIELDS * number] = shortened((UTF8String) found[0], false);
        values[FIELDS * number + 1] = shortened((UTF8String) found[1], true);
      }
    }
    begin();
    return compact.apply(new GenericInternalRow(values)).copy(); // one byte array, of which Spark's heap has to know
  }

  /**
   * A bound of long texts, shorter and a little looser: handles are to stay small. An upper bound ends with a byte that
   * is larger than any in UTF-8, so it is above all that begins as it does.
   */
  private static UTF8String shortened(UTF8String bound, boolean upper) {
    if (bound == null || bound.numBytes() <= TEXT_BYTES) {
      return bound;
    }
    byte[] bytes = Arrays.copyOf(bound.getBytes(), upper ? TEXT_BYTES + 1 : TEXT_BYTES);
    if (upper) {
      bytes[TEXT_BYTES] = (byte) 0xFF;
    }
    return UTF8String.fromBytes(bytes);
  }

  /** Null for types that have no order that filters use: their bounds are not known. */
  private static ColumnStats collector(DataType type) {
    if (type instanceof BooleanType) {
      return new BooleanColumnStats();
    } else if (type instanceof ByteType) {
      return new ByteColumnStats();
    } else if (type instanceof ShortType) {
      return new ShortColumnStats();
    } else if (type instanceof IntegerType || type instanceof DateType || type instanceof YearMonthIntervalType) {
      return new IntColumnStats();
    } else if (type instanceof LongType || type instanceof TimestampType || type instanceof TimestampNTZType
        || type instanceof DayTimeIntervalType) {
      return new LongColumnStats();
    } else if (type instanceof FloatType) {
      return new FloatColumnStats();
    } else if (type instanceof DoubleType) {
      return new DoubleColumnStats();
    } else if (type instanceof StringType text) {
      return new StringColumnStats(text);
    } else if (type instanceof DecimalType decimal) {
      return new DecimalColumnStats(decimal);
    }
    return null;
  }
}
