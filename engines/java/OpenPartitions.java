package io.tierstore.spark;

import java.io.IOException;
import org.apache.spark.serializer.SerializationStream;
import org.apache.spark.serializer.SerializerInstance;
import org.apache.spark.serializer.SerializerManager;
import org.apache.spark.storage.ShuffleBlockId;

/** A serializer's stream open for each partition: no record is copied or sorted, but each stream has buffers. */
final class OpenPartitions extends Partitions {
  /** What a stream holds besides its bytes: buffers of the serializer and the compressor. */
  static final int STREAM_BYTES = 96 << 10;
  /** What is still in those buffers, at most, once compressed. */
  private static final int BUFFERED_BYTES = 32 << 10;

  private final SerializerInstance serializer;
  private final SerializerManager manager;
  private final int shuffleId;
  private final long mapId;
  private final SerializationStream[] streams;
  private Chunks[] chunks;
  private long allocated;
  private int open;

  OpenPartitions(SerializerInstance serializer, SerializerManager manager, int shuffleId, long mapId, int count) {
    this.serializer = serializer;
    this.manager = manager;
    this.shuffleId = shuffleId;
    this.mapId = mapId;
    streams = new SerializationStream[count];
    chunks = new Chunks[count];
  }

  @Override
  long held() {
    return allocated + (long) open * STREAM_BYTES;
  }

  @Override
  long waiting() {
    return allocated + (long) open * BUFFERED_BYTES;
  }

  @Override
  void add(int partition, Object key, Object value) {
    SerializationStream stream = streams[partition];
    if (stream == null) {
      chunks[partition] = new Chunks(bytes -> allocated += bytes);
      stream = serializer.serializeStream(
          manager.wrapStream(new ShuffleBlockId(shuffleId, mapId, partition), chunks[partition]));
      streams[partition] = stream;
      open++;
    }
    stream.writeKey(key, ANY);
    stream.writeValue(value, ANY);
  }

  @Override
  Chunks[] take() throws IOException {
    for (int partition = 0; partition < streams.length; partition++) {
      if (streams[partition] != null) {
        streams[partition].close();
        streams[partition] = null;
      }
    }
    Chunks[] taken = chunks;
    chunks = new Chunks[streams.length];
    allocated = 0;
    open = 0;
    return taken;
  }
}
