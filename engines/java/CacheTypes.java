package io.tierstore.spark;

import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.types.pojo.Schema;
import org.apache.spark.sql.catalyst.expressions.Attribute;
import org.apache.spark.sql.execution.arrow.ArrowWriter;
import org.apache.spark.sql.types.ArrayType;
import org.apache.spark.sql.types.BinaryType;
import org.apache.spark.sql.types.BooleanType;
import org.apache.spark.sql.types.ByteType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DateType;
import org.apache.spark.sql.types.DayTimeIntervalType;
import org.apache.spark.sql.types.DecimalType;
import org.apache.spark.sql.types.DoubleType;
import org.apache.spark.sql.types.FloatType;
import org.apache.spark.sql.types.IntegerType;
import org.apache.spark.sql.types.LongType;
import org.apache.spark.sql.types.MapType;
import org.apache.spark.sql.types.Metadata;
import org.apache.spark.sql.types.NullType;
import org.apache.spark.sql.types.ShortType;
import org.apache.spark.sql.types.StringType;
import org.apache.spark.sql.types.StructField;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.types.TimestampNTZType;
import org.apache.spark.sql.types.TimestampType;
import org.apache.spark.sql.types.UserDefinedType;
import org.apache.spark.sql.types.YearMonthIntervalType;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;

/** Which data can be cached as Arrow, and as what. */
final class CacheTypes {
  /** Those that Spark writes to Arrow and reads from it without a change. Calendar intervals and variants are not. */
  private static final List<Class<?>> PLAIN = List.of(BooleanType.class, ByteType.class, ShortType.class,
      IntegerType.class, LongType.class, FloatType.class, DoubleType.class, DecimalType.class, StringType.class,
      BinaryType.class, DateType.class, TimestampType.class, TimestampNTZType.class, YearMonthIntervalType.class,
      DayTimeIntervalType.class, NullType.class);

  private CacheTypes() {}

  /** What a row of these columns is stored as; null if it cannot be, or if there are no columns. */
  static StructType stored(Seq<Attribute> columns) {
    List<DataType> types = new ArrayList<>();
    for (Attribute column : CollectionConverters.asJava(columns)) {
      types.add(column.dataType());
    }
    return stored(types);
  }

  static StructType stored(StructType schema) {
    List<DataType> types = new ArrayList<>();
    for (StructField field : schema.fields()) {
      types.add(field.dataType());
    }
    return stored(types);
  }

  /** Names do not matter, and Spark allows the same one twice, which Arrow does not; so columns are numbered. */
  private static StructType stored(List<DataType> types) {
    StructField[] fields = new StructField[types.size()];
    for (int number = 0; number < fields.length; number++) {
      DataType type = stored(types.get(number));
      if (type == null) {
        return null;
      }
      fields[number] = new StructField("c" + number, type, true, Metadata.empty());
    }
    return fields.length == 0 ? null : new StructType(fields);
  }

  private static DataType stored(DataType type) {
    for (Class<?> plain : PLAIN) {
      if (plain.isInstance(type)) {
        return type;
      }
    }
    if (type instanceof UserDefinedType<?> own) {
      return stored(own.sqlType());
    }
    if (type instanceof StructType struct) {
      return stored(struct);
    }
    if (type instanceof ArrayType array) {
      DataType element = stored(array.elementType());
      return element == null ? null : new ArrayType(element, true);
    }
    if (type instanceof MapType map) {
      DataType key = stored(map.keyType());
      DataType value = stored(map.valueType());
      return key == null || value == null ? null : new MapType(key, value, true);
    }
    return null;
  }

  /** What writes rows of a stored type into Arrow vectors. Close its root. */
  static ArrowWriter writer(StructType stored) {
    return ArrowWriter.create(stored, "UTC", true, false);
  }

  static Schema arrow(StructType stored) {
    try (VectorSchemaRoot root = writer(stored).root()) {
      return root.getSchema();
    }
  }
}
