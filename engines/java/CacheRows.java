package io.tierstore.spark;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.stream.IntStream;
import org.apache.arrow.vector.FieldVector;
import org.apache.spark.TaskContext;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.catalyst.expressions.Attribute;
import org.apache.spark.sql.catalyst.expressions.BoundReference;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.expressions.GenericInternalRow;
import org.apache.spark.sql.catalyst.expressions.JoinedRow;
import org.apache.spark.sql.catalyst.expressions.UnsafeProjection;
import org.apache.spark.sql.execution.arrow.ArrowWriter;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.Metadata;
import org.apache.spark.sql.types.StructField;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.vectorized.ArrowColumnVector;
import org.apache.spark.sql.vectorized.ColumnVector;
import org.apache.spark.sql.vectorized.ColumnarBatch;
import org.apache.spark.util.TaskCompletionListener;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;

/** From batches to rows, and from rows to batches. */
final class CacheRows {
  private CacheRows() {}

  static StructType schema(Seq<Attribute> columns) {
    List<StructField> fields = new ArrayList<>();
    for (Attribute column : CollectionConverters.asJava(columns)) {
      fields.add(new StructField(column.name(), column.dataType(), true, Metadata.empty()));
    }
    return new StructType(fields.toArray(new StructField[0]));
  }

  /** A batch of Spark over vectors of Arrow. */
  static ColumnarBatch batch(List<FieldVector> vectors, int rows) {
    ColumnVector[] columns = new ColumnVector[vectors.size()];
    for (int number = 0; number < columns.length; number++) {
      columns[number] = new ArrowColumnVector(vectors.get(number));
    }
    return new ColumnarBatch(columns, rows);
  }

  /** Rows as Spark's operators expect them; each is valid until the next. stored: null if there are no columns. */
  static Iterator<InternalRow> rows(CacheReader batches, StructType stored) {
    StructType columns = stored == null ? new StructType() : stored;
    int[] nested = IntStream.range(0, columns.size())
        .filter(number -> StoredValue.nested(columns.fields()[number].dataType())).toArray();
    UnsafeProjection project = projection(columns, nested);
    return new Iterator<>() {
      private final Object[] values = new Object[nested.length];
      private final StoredValue[] found = new StoredValue[nested.length];
      private final InternalRow converted = new GenericInternalRow(values);
      private final JoinedRow joined = new JoinedRow();
      private ColumnarBatch current;
      private int row;

      @Override
      public boolean hasNext() {
        while ((current == null || row == current.numRows()) && batches.hasNext()) {
          current = batches.next();
          row = 0;
          for (int number = 0; number < nested.length; number++) {
            found[number] = StoredValue.of(
                batches.vectors().get(nested[number]), columns.fields()[nested[number]].dataType());
          }
        }
        return current != null && row < current.numRows();
      }

      @Override
      public InternalRow next() {
        if (!hasNext()) {
          throw new NoSuchElementException();
        }
        for (int number = 0; number < found.length; number++) {
          values[number] = found[number].at(row);
        }
        InternalRow flat = current.getRow(row++);
        return project.apply(found.length == 0 ? flat : joined.apply(flat, converted));
      }
    };
  }

  /** Of a batch's row, whose nested columns stand behind it once more, as StoredValue gives them. */
  private static UnsafeProjection projection(StructType columns, int[] nested) {
    List<Expression> chosen = new ArrayList<>();
    for (StructField field : columns.fields()) {
      chosen.add(new BoundReference(chosen.size(), field.dataType(), true));
    }
    for (int number = 0; number < nested.length; number++) {
      DataType type = columns.fields()[nested[number]].dataType();
      chosen.set(nested[number], new BoundReference(columns.size() + number, type, true));
    }
    return UnsafeProjection.create(CollectionConverters.asScala(chosen).toSeq());
  }

  /** Rows as batches, each valid until the next. stored: null if there are no columns. */
  static Iterator<ColumnarBatch> batches(Iterator<InternalRow> rows, StructType stored, int most) {
    ArrowWriter writer = CacheTypes.writer(stored == null ? new StructType() : stored);
    atEnd(writer.root()::close);
    return new Iterator<>() {
      @Override
      public boolean hasNext() {
        return rows.hasNext();
      }

      @Override
      public ColumnarBatch next() {
        writer.reset();
        int count = 0;
        while (count < most && rows.hasNext()) {
          writer.write(rows.next());
          count++;
        }
        writer.finish();
        return batch(writer.root().getFieldVectors(), count);
      }
    };
  }

  /** Do something when the task ends, however. */
  static void atEnd(Runnable work) {
    TaskContext.get().addTaskCompletionListener((TaskCompletionListener) context -> work.run());
  }
}
