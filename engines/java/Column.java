package io.tierstore.spark;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.Decimal;
import org.apache.spark.sql.vectorized.ColumnVector;
import org.apache.spark.sql.vectorized.ColumnarArray;
import org.apache.spark.sql.vectorized.ColumnarMap;
import org.apache.spark.unsafe.Platform;
import org.apache.spark.unsafe.types.UTF8String;

/**
 * A column in Arrow's format, in the store's memory or in bytes that were sent, read where it lies.
 *
 * <p>Spark's own ArrowColumnVector knows neither dictionaries nor decimals of 32 and 64 bits, which is how the store keeps
 * columns, nor slices.
 */
abstract class Column extends ColumnVector {
  /** Bytes: of an array, or at an address. kept: what keeps a mapping there. */
  record Memory(byte[] base, long at, ByteBuffer kept) {}

  /** Which rows are null. bits: not looked at if none is; first: where the column begins in them, and in its other buffers. */
  record Validity(Memory bits, int first, int nulls) {}

  final int first;
  private final Memory kept;
  private final byte[] base;
  private final long at;
  private final int nulls;

  private Column(DataType type, Validity valid) {
    super(type);
    first = valid.first();
    kept = valid.bits();
    base = kept.base();
    at = kept.at();
    nulls = valid.nulls();
  }

  private static boolean bit(byte[] base, long at, int number) {
    return (Platform.getByte(base, at + (number >> 3)) >> (number & 7) & 1) != 0;
  }

  @Override
  public boolean isNullAt(int row) {
    return nulls != 0 && !bit(base, at, first + row);
  }

  @Override
  public boolean hasNull() {
    return nulls != 0;
  }

  @Override
  public int numNulls() {
    return nulls;
  }

  /** The memory belongs to the agent's connection. */
  @Override
  public void close() {}

  private UnsupportedOperationException other(String what) {
    return new UnsupportedOperationException(what + " of a column of " + dataType().sql());
  }

  @Override
  public boolean getBoolean(int row) {
    throw other("a boolean");
  }

  @Override
  public byte getByte(int row) {
    throw other("a byte");
  }

  @Override
  public short getShort(int row) {
    throw other("a short");
  }

  @Override
  public int getInt(int row) {
    throw other("an int");
  }

  @Override
  public long getLong(int row) {
    throw other("a long");
  }

  @Override
  public float getFloat(int row) {
    throw other("a float");
  }

  @Override
  public double getDouble(int row) {
    throw other("a double");
  }

  @Override
  public Decimal getDecimal(int row, int precision, int scale) {
    throw other("a decimal");
  }

  @Override
  public UTF8String getUTF8String(int row) {
    throw other("text");
  }

  @Override
  public byte[] getBinary(int row) {
    throw other("bytes");
  }

  @Override
  public ColumnarArray getArray(int row) {
    throw other("an array");
  }

  @Override
  public ColumnarMap getMap(int row) {
    throw other("a map");
  }

  @Override
  public ColumnVector getChild(int number) {
    throw other("a field");
  }

  /** Only nulls. */
  static final class Nothing extends Column {
    private final int rows;

    Nothing(DataType type, int rows) {
      super(type, new Validity(new Memory(null, 0, null), 0, 0));
      this.rows = rows;
    }

    @Override
    public boolean isNullAt(int row) {
      return true;
    }

    @Override
    public boolean hasNull() {
      return rows > 0;
    }

    @Override
    public int numNulls() {
      return rows;
    }
  }

  /** Booleans. */
  static final class Bits extends Column {
    private final Memory values;

    Bits(DataType type, Validity valid, Memory values) {
      super(type, valid);
      this.values = values;
    }

    @Override
    public boolean getBoolean(int row) {
      return bit(values.base(), values.at(), first + row);
    }
  }

  /** Values of one width, which Spark holds as they are: numbers, days, microseconds. */
  static final class Numbers extends Column {
    private final Memory kept;
    private final byte[] base;
    private final long at;

    Numbers(DataType type, Validity valid, Memory values, int width) {
      super(type, valid);
      kept = values;
      base = values.base();
      at = values.at() + (long) valid.first() * width;
    }

    @Override
    public byte getByte(int row) {
      return Platform.getByte(base, at + row);
    }

    @Override
    public short getShort(int row) {
      return Platform.getShort(base, at + 2L * row);
    }

    @Override
    public int getInt(int row) {
      return Platform.getInt(base, at + 4L * row);
    }

    @Override
    public long getLong(int row) {
      return Platform.getLong(base, at + 8L * row);
    }

    @Override
    public float getFloat(int row) {
      return Platform.getFloat(base, at + 4L * row);
    }

    @Override
    public double getDouble(int row) {
      return Platform.getDouble(base, at + 8L * row);
    }
  }

  /** Decimals in 4, 8 or 16 bytes. */
  static final class Decimals extends Column {
    private final Memory kept;
    private final byte[] base;
    private final long at;
    private final int width;

    Decimals(DataType type, Validity valid, Memory values, int width) {
      super(type, valid);
      kept = values;
      this.width = width;
      base = values.base();
      at = values.at() + (long) valid.first() * width;
    }

    @Override
    public Decimal getDecimal(int row, int precision, int scale) {
      long place = at + (long) row * width;
      if (width == 4) {
        return Decimal.createUnsafe(Platform.getInt(base, place), precision, scale);
      }
      long low = Platform.getLong(base, place);
      if (width == 8 || precision <= Decimal.MAX_LONG_DIGITS()) {
        return Decimal.createUnsafe(low, precision, scale);
      }
      byte[] bytes = new byte[16];
      ByteBuffer.wrap(bytes).putLong(Platform.getLong(base, place + 8)).putLong(low);
      return Decimal.apply(new BigDecimal(new BigInteger(bytes), scale), precision, scale);
    }
  }

  /** Where values of several widths lie: one after the other, between offsets. */
  private static final class Offsets {
    private final Memory kept;
    private final byte[] base;
    private final long at;
    private final boolean wide;

    Offsets(Memory offsets, int first, int width) {
      kept = offsets;
      base = offsets.base();
      at = offsets.at() + (long) first * width;
      wide = width == 8;
    }

    long get(int row) {
      return wide ? Platform.getLong(base, at + 8L * row) : Platform.getInt(base, at + 4L * row);
    }
  }

  /** Text or bytes. */
  static final class Text extends Column {
    private final Offsets offsets;
    private final Memory kept;
    private final byte[] base;
    private final long at;

    Text(DataType type, Validity valid, Memory offsets, int width, Memory values) {
      super(type, valid);
      this.offsets = new Offsets(offsets, valid.first(), width);
      kept = values;
      base = values.base();
      at = values.at();
    }

    @Override
    public UTF8String getUTF8String(int row) {
      long start = offsets.get(row);
      return UTF8String.fromAddress(base, at + start, (int) (offsets.get(row + 1) - start));
    }

    @Override
    public byte[] getBinary(int row) {
      long start = offsets.get(row);
      byte[] made = new byte[(int) (offsets.get(row + 1) - start)];
      Platform.copyMemory(base, at + start, made, Platform.BYTE_ARRAY_OFFSET, made.length);
      return made;
    }
  }

  /** Text with few values, by their numbers. */
  static final class Codes extends Column {
    private final Memory kept;
    private final byte[] base;
    private final long at;
    private final int width;
    private final ColumnVector words;
    private final UTF8String[] known;

    Codes(DataType type, Validity valid, Memory codes, int width, ColumnVector words, int count) {
      super(type, valid);
      kept = codes;
      this.width = width;
      this.words = words;
      base = codes.base();
      at = codes.at() + (long) valid.first() * width;
      known = new UTF8String[count];
    }

    private int code(int row) {
      return switch (width) {
        case 1 -> Platform.getByte(base, at + row);
        case 2 -> Platform.getShort(base, at + 2L * row);
        default -> Platform.getInt(base, at + 4L * row);
      };
    }

    @Override
    public UTF8String getUTF8String(int row) {
      int code = code(row);
      UTF8String word = known[code];
      if (word == null) {
        word = words.getUTF8String(code);
        known[code] = word;
      }
      return word;
    }
  }

  /** Arrays. */
  static final class Lists extends Column {
    private final Offsets offsets;
    private final ColumnVector elements;

    Lists(DataType type, Validity valid, Memory offsets, int width, ColumnVector elements) {
      super(type, valid);
      this.offsets = new Offsets(offsets, valid.first(), width);
      this.elements = elements;
    }

    @Override
    public ColumnarArray getArray(int row) {
      int start = (int) offsets.get(row);
      return new ColumnarArray(elements, start, (int) offsets.get(row + 1) - start);
    }

    @Override
    public ColumnVector getChild(int number) {
      return elements;
    }
  }

  /** Maps. */
  static final class Maps extends Column {
    private final Offsets offsets;
    private final ColumnVector keys;
    private final ColumnVector values;

    Maps(DataType type, Validity valid, Memory offsets, ColumnVector keys, ColumnVector values) {
      super(type, valid);
      this.offsets = new Offsets(offsets, valid.first(), 4);
      this.keys = keys;
      this.values = values;
    }

    @Override
    public ColumnarMap getMap(int row) {
      int start = (int) offsets.get(row);
      return new ColumnarMap(keys, values, start, (int) offsets.get(row + 1) - start);
    }

    @Override
    public ColumnVector getChild(int number) {
      return number == 0 ? keys : values;
    }
  }

  /** Structs; their fields are columns of as many rows. */
  static final class Struct extends Column {
    private final ColumnVector[] fields;

    Struct(DataType type, Validity valid, ColumnVector[] fields) {
      super(type, valid);
      this.fields = fields;
    }

    @Override
    public ColumnVector getChild(int number) {
      return fields[number];
    }
  }
}
