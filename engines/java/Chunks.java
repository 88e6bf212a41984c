package io.tierstore.spark;

import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/** Bytes of one partition in memory, in pieces that are never copied to grow. */
final class Chunks extends OutputStream {
  private static final int FIRST = 4 << 10;
  private static final int MOST = 1 << 20;
  private final List<byte[]> pieces = new ArrayList<>(2);
  private final Meter meter;
  private byte[] last;
  private int used;
  private int size;

  /** Where allocated bytes are counted. */
  interface Meter {
    void allocated(int bytes);
  }

  Chunks(Meter meter) {
    this.meter = meter;
    grow(FIRST);
  }

  private void grow(int bytes) {
    last = new byte[bytes];
    used = 0;
    pieces.add(last);
    meter.allocated(bytes);
  }

  @Override
  public void write(int value) {
    if (used == last.length) {
      grow(Math.min(MOST, Math.max(FIRST, Integer.highestOneBit(size))));
    }
    last[used++] = (byte) value;
    size++;
  }

  @Override
  public void write(byte[] data, int from, int count) {
    size = Math.addExact(size, count);
    while (count > 0) {
      if (used == last.length) {
        grow(Math.min(MOST, Math.max(FIRST, Integer.highestOneBit(size))));
      }
      int taken = Math.min(count, last.length - used);
      System.arraycopy(data, from, last, used, taken);
      used += taken;
      from += taken;
      count -= taken;
    }
  }

  int size() {
    return size;
  }

  long check() {
    return Checks.of(pieces, size);
  }

  /** Copy all bytes to a buffer. */
  void copyTo(ByteBuffer target) {
    for (int number = 0; number < pieces.size() - 1; number++) {
      target.put(pieces.get(number));
    }
    target.put(last, 0, used);
  }
}
