package io.tierstore.spark;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** One file of the store, mapped window by window. Any thread. Windows are kept for the life of the agent. */
final class Arena {
  private static final long WINDOW = 1L << 30;
  /** Windows overlap by more than a segment, so that no block lies across their borders. */
  private static final long OVERLAP = 64L << 20;

  private final String read;
  private final String write;
  private final long size;
  private final Map<Long, MappedByteBuffer> reading = new ConcurrentHashMap<>();
  private final Map<Long, MappedByteBuffer> writing = new ConcurrentHashMap<>();

  /** read, write: paths of descriptors of the agent; write is "" where nothing is leased. size: 0 if it cannot be mapped. */
  Arena(String read, String write, long size) {
    this.read = read;
    this.write = write;
    this.size = size;
  }

  /** Whether blocks can be written through a mapping of this JVM. */
  boolean writable() {
    return size > 0 && !write.isEmpty();
  }

  /** A range of the file. The caller is between {@link Agent#enter} and {@link Agent#exit} whenever it touches it. */
  ByteBuffer range(long offset, int length, boolean writable) throws IOException {
    if (offset < 0 || length < 0 || offset + length > size) {
      throw new IOException("bytes " + offset + " to " + (offset + length) + " of an arena of " + size);
    }
    long number = offset / WINDOW;
    Map<Long, MappedByteBuffer> windows = writable ? writing : reading;
    MappedByteBuffer window = windows.get(number);
    if (window == null) {
      window = map(number, writable);
      MappedByteBuffer first = windows.putIfAbsent(number, window);
      window = first == null ? window : first;
    }
    return window.slice((int) (offset - number * WINDOW), length);
  }

  private MappedByteBuffer map(long number, boolean writable) throws IOException {
    long start = number * WINDOW;
    long length = Math.min(WINDOW + OVERLAP, size - start);
    if (writable) {
      Path path = Path.of(write);
      try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
        if (channel.size() < start + length) { // mapping would make the file longer
          throw new IOException("an arena of " + channel.size() + " bytes, not " + size);
        }
        return channel.map(FileChannel.MapMode.READ_WRITE, start, length);
      }
    }
    try (FileChannel channel = FileChannel.open(Path.of(read), StandardOpenOption.READ)) {
      return channel.map(FileChannel.MapMode.READ_ONLY, start, length);
    }
  }
}
