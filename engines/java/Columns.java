package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import org.apache.arrow.memory.util.MemoryUtil;
import org.apache.spark.sql.execution.vectorized.ConstantColumnVector;
import org.apache.spark.sql.types.ArrayType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.IntegerType;
import org.apache.spark.sql.types.LongType;
import org.apache.spark.sql.types.MapType;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.vectorized.ColumnVector;
import org.apache.spark.unsafe.Platform;
import org.apache.spark.unsafe.types.UTF8String;

/** Makes the columns of a batch of what an agent tells of them; engines/spark_columns.py is the other side. */
final class Columns {
  private static final int IN_BODY = -1;
  private static final Column.Memory NOTHING = new Column.Memory(new byte[0], Platform.BYTE_ARRAY_OFFSET, null);

  private final Agent agent;
  private final byte[] body;
  private final int rows;

  /** The caller has entered the agent, and stays there as long as the columns are used. */
  Columns(Agent agent, byte[] body, int rows) {
    this.agent = agent;
    this.body = body;
    this.rows = rows;
  }

  ColumnVector of(JsonNode told, DataType type) throws IOException {
    String kind = told.path("kind").asText();
    if (kind.equals("constant")) {
      return constant(told.path("value"), type);
    }
    Column.Validity valid = new Column.Validity(
        buffer(told, 0), told.path("offset").asInt(), told.path("nulls").asInt());
    Column.Memory first = buffer(told, 1);
    return switch (kind) {
      case "null" -> new Column.Nothing(type, told.path("rows").asInt());
      case "bits" -> new Column.Bits(type, valid, first);
      case "w1", "w2", "w4", "w8" -> new Column.Numbers(type, valid, first, width(kind));
      case "d4", "d8", "d16" -> new Column.Decimals(type, valid, first, width(kind));
      case "text4", "text8" -> new Column.Text(type, valid, first, width(kind), buffer(told, 2));
      case "codes1", "codes2", "codes4" ->
          new Column.Codes(type, valid, first, width(kind), child(told, 0, type), told.path("children").path(0).path("rows").asInt());
      case "list4", "list8" ->
          new Column.Lists(type, valid, first, width(kind), child(told, 0, ((ArrayType) type).elementType()));
      case "map" -> new Column.Maps(type, valid, first, child(told, 0, ((MapType) type).keyType()),
          child(told, 1, ((MapType) type).valueType()));
      case "struct" -> new Column.Struct(type, valid, children(told, (StructType) type));
      default -> throw new IOException("a column of kind " + kind + " is not known: is the jar of another version?");
    };
  }

  private static int width(String kind) {
    return Integer.parseInt(kind.replaceAll("[a-z]+", ""));
  }

  private ColumnVector child(JsonNode told, int number, DataType type) throws IOException {
    return of(told.path("children").path(number), type);
  }

  private ColumnVector[] children(JsonNode told, StructType type) throws IOException {
    ColumnVector[] made = new ColumnVector[type.size()];
    for (int number = 0; number < made.length; number++) {
      made[number] = child(told, number, type.fields()[number].dataType());
    }
    return made;
  }

  /** A value of a file's path, or null. */
  private ColumnVector constant(JsonNode value, DataType type) throws IOException {
    ConstantColumnVector made = new ConstantColumnVector(rows, type);
    if (value.isNull() || value.isMissingNode()) {
      made.setNull();
      return made;
    }
    made.setNotNull();
    if (type instanceof IntegerType) {
      made.setInt(value.asInt());
    } else if (type instanceof LongType) {
      made.setLong(value.asLong());
    } else {
      made.setUtf8String(UTF8String.fromString(value.asText()));
    }
    return made;
  }

  /** A buffer that may not be there: of validity where nothing is null, of values where there are none. */
  private Column.Memory buffer(JsonNode told, int number) throws IOException {
    JsonNode place = told.path("buffers").path(number);
    if (place.isMissingNode() || place.path(0).asInt() < IN_BODY) {
      return NOTHING;
    }
    int size = place.path(2).asInt();
    if (place.path(0).asInt() == IN_BODY) {
      return new Column.Memory(body, Platform.BYTE_ARRAY_OFFSET + place.path(1).asLong(), null);
    }
    ByteBuffer memory = agent.memory(place.path(0).asInt(), place.path(1).asLong(), size, false);
    return new Column.Memory(null, MemoryUtil.getByteBufferAddress(memory), memory);
  }
}
