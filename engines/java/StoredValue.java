package io.tierstore.spark;

import org.apache.arrow.vector.BaseFixedWidthVector;
import org.apache.arrow.vector.BitVector;
import org.apache.arrow.vector.DecimalVector;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.complex.ListVector;
import org.apache.arrow.vector.complex.MapVector;
import org.apache.arrow.vector.complex.StructVector;
import org.apache.spark.sql.catalyst.expressions.GenericInternalRow;
import org.apache.spark.sql.catalyst.expressions.UnsafeArrayData;
import org.apache.spark.sql.types.ArrayType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.MapType;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.vectorized.ArrowColumnVector;
import org.apache.spark.sql.vectorized.ColumnVector;
import org.apache.spark.sql.vectorized.ColumnarBatch;
import org.apache.spark.unsafe.Platform;

/**
 * A column of nested values, row by row. Spark's own view of Arrow gives arrays element by element, each by several calls;
 * here an array of numbers (which MLlib's vectors are) is one copy, in the layout of Spark's rows.
 */
interface StoredValue {
  /** The value in a row, null for a null; valid until the next call. */
  Object at(int row);

  static boolean nested(DataType type) {
    return type instanceof StructType || type instanceof ArrayType || type instanceof MapType;
  }

  static StoredValue of(FieldVector vector, DataType type) {
    if (vector instanceof StructVector struct && type instanceof StructType fields) {
      return new Struct(struct, fields);
    }
    if (vector instanceof ListVector list && !(vector instanceof MapVector)
        && list.getDataVector() instanceof BaseFixedWidthVector numbers
        && !(numbers instanceof BitVector) && !(numbers instanceof DecimalVector)) {
      return new Numbers(list, numbers, new Plain(vector, type));
    }
    return new Plain(vector, type);
  }

  /** As Spark sees it. */
  final class Plain implements StoredValue {
    private final ColumnVector column;
    private final ColumnarBatch batch;
    private final DataType type;

    Plain(FieldVector vector, DataType type) {
      this.type = type;
      column = new ArrowColumnVector(vector);
      batch = new ColumnarBatch(new ColumnVector[] {column}, vector.getValueCount());
    }

    @Override
    public Object at(int row) {
      return column.isNullAt(row) ? null : batch.getRow(row).get(0, type);
    }
  }

  /** A struct, its fields one by one. */
  final class Struct implements StoredValue {
    private final StructVector vector;
    private final StoredValue[] fields;
    private final Object[] values;
    private final GenericInternalRow row;

    Struct(StructVector vector, StructType type) {
      this.vector = vector;
      fields = new StoredValue[type.size()];
      for (int number = 0; number < fields.length; number++) {
        fields[number] = StoredValue.of((FieldVector) vector.getChildByOrdinal(number), type.fields()[number].dataType());
      }
      values = new Object[fields.length];
      row = new GenericInternalRow(values);
    }

    @Override
    public Object at(int number) {
      if (vector.isNull(number)) {
        return null;
      }
      for (int field = 0; field < fields.length; field++) {
        values[field] = fields[field].at(number);
      }
      return row;
    }
  }

  /** An array of values that have one width, the same in Arrow and in Spark's rows. */
  final class Numbers implements StoredValue {
    private final ListVector vector;
    private final BaseFixedWidthVector elements;
    private final StoredValue otherwise;
    private final int width;
    private final boolean whole;
    private final UnsafeArrayData array = new UnsafeArrayData();
    private long[] copy = new long[8];

    Numbers(ListVector vector, BaseFixedWidthVector elements, StoredValue otherwise) {
      this.vector = vector;
      this.elements = elements;
      this.otherwise = otherwise;
      width = elements.getTypeWidth();
      whole = elements.getNullCount() == 0;
    }

    @Override
    public Object at(int row) {
      if (!whole) {
        return otherwise.at(row);
      }
      if (vector.isNull(row)) {
        return null;
      }
      int start = vector.getElementStartIndex(row);
      int count = vector.getElementEndIndex(row) - start;
      int header = UnsafeArrayData.calculateHeaderPortionInBytes(count);
      int words = (int) ((header + (long) count * width + 7) / 8);
      if (copy.length < words) {
        copy = new long[Math.max(words, 2 * copy.length)];
      }
      // No element is null, and whatever was here before had no null either; but it may have been longer.
      java.util.Arrays.fill(copy, 0, header / 8, 0);
      copy[words - 1] = 0;
      Platform.putLong(copy, Platform.LONG_ARRAY_OFFSET, count);
      Platform.copyMemory(null, elements.getDataBufferAddress() + (long) start * width, copy,
          Platform.LONG_ARRAY_OFFSET + header, (long) count * width);
      array.pointTo(copy, Platform.LONG_ARRAY_OFFSET, words * 8);
      return array;
    }
  }
}
