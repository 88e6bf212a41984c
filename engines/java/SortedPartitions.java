package io.tierstore.spark;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.spark.serializer.SerializationStream;
import org.apache.spark.serializer.SerializerInstance;
import org.apache.spark.serializer.SerializerManager;
import org.apache.spark.storage.ShuffleBlockId;

/**
 * For many partitions: records are serialized one behind the other and put in order when they are taken, so that one
 * stream is open at a time. Only for serializers whose records can be moved (Spark's own rows, Kryo).
 */
final class SortedPartitions extends Partitions {
  private static final int PAGE = 1 << 20;
  private static final int RECORD_BYTES = 16; // of the three arrays, which are up to twice as long

  private final SerializerManager manager;
  private final int shuffleId;
  private final long mapId;
  private final int count;
  private final Buffer record = new Buffer();
  private final SerializationStream stream;
  private final List<byte[]> pages = new ArrayList<>();
  private int used = PAGE;
  private int[] numbers = new int[1024];
  private int[] lengths = new int[1024];
  private long[] places = new long[1024];
  private int records;
  private long bytes;

  private static final class Buffer extends ByteArrayOutputStream {
    Buffer() {
      super(4096);
    }

    byte[] raw() {
      return buf;
    }
  }

  SortedPartitions(SerializerInstance serializer, SerializerManager manager, int shuffleId, long mapId, int count) {
    this.manager = manager;
    this.shuffleId = shuffleId;
    this.mapId = mapId;
    this.count = count;
    stream = serializer.serializeStream(record);
  }

  @Override
  long held() {
    return bytes + 2L * RECORD_BYTES * records;
  }

  @Override
  long waiting() {
    return bytes;
  }

  @Override
  void add(int partition, Object key, Object value) {
    record.reset();
    stream.writeKey(key, ANY);
    stream.writeValue(value, ANY);
    stream.flush();
    int size = record.size();
    if (used + size > PAGE) {
      pages.add(new byte[Math.max(PAGE, size)]);
      used = 0;
      bytes += pages.get(pages.size() - 1).length;
    }
    System.arraycopy(record.raw(), 0, pages.get(pages.size() - 1), used, size);
    if (records == numbers.length) {
      numbers = Arrays.copyOf(numbers, 2 * records);
      lengths = Arrays.copyOf(lengths, 2 * records);
      places = Arrays.copyOf(places, 2 * records);
    }
    numbers[records] = partition;
    lengths[records] = size;
    places[records++] = (long) (pages.size() - 1) << 32 | used;
    used += size;
  }

  @Override
  Chunks[] take() throws IOException {
    Chunks[] taken = new Chunks[count];
    int[] order = ordered();
    OutputStream out = null;
    int open = -1;
    for (int at : order) {
      if (numbers[at] != open) {
        if (out != null) {
          out.close();
        }
        open = numbers[at];
        taken[open] = new Chunks(size -> { });
        out = manager.wrapStream(new ShuffleBlockId(shuffleId, mapId, open), taken[open]);
      }
      out.write(pages.get((int) (places[at] >>> 32)), (int) places[at], lengths[at]);
    }
    if (out != null) {
      out.close();
    }
    pages.clear();
    used = PAGE;
    records = 0;
    bytes = 0;
    return taken;
  }

  /** Records by partition, in each as they came: a counting sort. */
  private int[] ordered() {
    int[] starts = new int[count + 1];
    for (int i = 0; i < records; i++) {
      starts[numbers[i] + 1]++;
    }
    for (int partition = 0; partition < count; partition++) {
      starts[partition + 1] += starts[partition];
    }
    int[] order = new int[records];
    for (int i = 0; i < records; i++) {
      order[starts[numbers[i]]++] = i;
    }
    return order;
  }
}
