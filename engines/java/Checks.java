package io.tierstore.spark;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.List;

/**
 * The check of a partition's bytes: shuffle/checks.py for one column of uint8, with the hash of shuffle/kernels/mixing.py.
 * Made of the bytes as the serializer left them, before they are copied into the store.
 */
final class Checks {
  private static final long K0 = 0xA0761D6478BD642FL;
  private static final long K1 = 0xE7037ED1A0B428DBL;
  private static final long K2 = 0x8EBC6AF09C88C6E3L;
  private static final long K3 = 0x589965CC75374CC3L;
  private static final VarHandle WORD = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle HALF = MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
  private static final int TAIL = 80;
  /** hash_text("uint8", SEED): what every check of opaque bytes begins with. */
  private static final long SEED = hash("uint8".getBytes(StandardCharsets.US_ASCII), 0, 5,
      0x1F83D9ABFB41BD6BL);

  private Checks() {}

  /** The check of a partition that consists of these bytes. */
  static long of(byte[] data, int from, int size) {
    return hash(data, from, size, begin(size));
  }

  /** The same of bytes in pieces, each but the last as long as it is and of a multiple of 64 bytes. */
  static long of(List<byte[]> pieces, int size) {
    if (pieces.size() == 1) {
      return of(pieces.get(0), 0, size);
    }
    long[] lanes = {begin(size) ^ K0, 0, 0, 0};
    split(lanes);
    int blocks = (size - 1) >> 6;
    int left = blocks;
    for (byte[] piece : pieces) {
      int here = Math.min(left, piece.length >> 6);
      lanes(piece, 0, here, lanes);
      left -= here;
    }
    byte[] tail = new byte[Math.min(size, TAIL)];
    int to = tail.length;
    int end = size;
    for (int number = pieces.size() - 1; number >= 0 && to > 0; number--) {
      int start = end - (number == pieces.size() - 1 ? size - before(pieces, number) : pieces.get(number).length);
      int take = Math.min(to, end - start);
      System.arraycopy(pieces.get(number), end - start - take, tail, to - take, take);
      to -= take;
      end = start;
    }
    return finish(tail, tail.length - (size - (blocks << 6)), tail.length, size, join(lanes));
  }

  private static int before(List<byte[]> pieces, int number) {
    int sum = 0;
    for (int i = 0; i < number; i++) {
      sum += pieces.get(i).length;
    }
    return sum;
  }

  private static long begin(int size) {
    return fold(SEED ^ K0, (long) size ^ K1);
  }

  private static long fold(long a, long b) {
    long high = Math.multiplyHigh(a, b) + ((a >> 63) & b) + ((b >> 63) & a); // of the unsigned product
    return high ^ (a * b);
  }

  private static long word(byte[] data, int at) {
    return (long) WORD.get(data, at);
  }

  private static long half(byte[] data, int at) {
    return (int) HALF.get(data, at) & 0xFFFFFFFFL;
  }

  static long hash(byte[] data, int from, int size, long seed) {
    long state = seed ^ K0;
    if (size > 16) {
      int at = from;
      if (size > 64) {
        int blocks = (size - 1) >> 6;
        long[] lanes = {state, 0, 0, 0};
        split(lanes);
        lanes(data, from, blocks, lanes);
        state = join(lanes);
        at += blocks << 6;
      }
      return finish(data, at, from + size, size, state);
    }
    long first = 0;
    long last = 0;
    if (size >= 8) {
      first = word(data, from);
      last = word(data, from + size - 8);
    } else if (size >= 4) {
      first = half(data, from);
      last = half(data, from + size - 4);
    } else if (size > 0) {
      first = (data[from] & 0xFFL) | (data[from + (size >> 1)] & 0xFFL) << 8 | (data[from + size - 1] & 0xFFL) << 16;
    }
    return fold(K1 ^ size, fold(first ^ K1, last ^ state));
  }

  /** What follows the whole blocks: 1 to 64 bytes from ``at``; the 16 bytes before ``end`` are there. */
  private static long finish(byte[] data, int at, int end, int size, long state) {
    while (end - at > 16) {
      state = fold(word(data, at) ^ K1, word(data, at + 8) ^ state);
      at += 16;
    }
    return fold(K1 ^ size, fold(word(data, end - 16) ^ K1, word(data, end - 8) ^ state));
  }

  private static void split(long[] lanes) {
    lanes[1] = lanes[0] ^ K1;
    lanes[2] = lanes[0] ^ K2;
    lanes[3] = lanes[0] ^ K3;
  }

  private static long join(long[] lanes) {
    return lanes[0] ^ lanes[1] ^ fold(lanes[2] ^ K1, lanes[3] ^ K2);
  }

  private static void lanes(byte[] data, int from, int blocks, long[] lanes) {
    long lane0 = lanes[0];
    long lane1 = lanes[1];
    long lane2 = lanes[2];
    long lane3 = lanes[3];
    for (int block = 0, at = from; block < blocks; block++, at += 64) {
      lane0 = fold(word(data, at) ^ K0, word(data, at + 8) ^ lane0);
      lane1 = fold(word(data, at + 16) ^ K1, word(data, at + 24) ^ lane1);
      lane2 = fold(word(data, at + 32) ^ K2, word(data, at + 40) ^ lane2);
      lane3 = fold(word(data, at + 48) ^ K3, word(data, at + 56) ^ lane3);
    }
    lanes[0] = lane0;
    lanes[1] = lane1;
    lanes[2] = lane2;
    lanes[3] = lane3;
  }
}
