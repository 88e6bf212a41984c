package io.tierstore.spark;

import java.io.IOException;
import org.apache.spark.memory.MemoryConsumer;
import org.apache.spark.memory.MemoryMode;
import org.apache.spark.memory.TaskMemoryManager;

/**
 * What a map task holds, as a consumer of Spark's execution memory. Spilling is writing to the store; there is no local
 * file. Memory is asked for in steps; what Spark does not give is no reason to hold more, but to write.
 */
final class Buffers extends MemoryConsumer {
  private static final long STEP = 1 << 20;
  private final Thread owner = Thread.currentThread();
  private final Flush flush;
  private boolean adding;

  /** Writes what is held, and lets go of it. */
  interface Flush {
    /** About how many bytes it held. */
    long run() throws IOException;
  }

  Buffers(TaskMemoryManager manager, Flush flush) {
    super(manager, PAGE_BYTES, MemoryMode.ON_HEAP);
    this.flush = flush;
  }

  private static final long PAGE_BYTES = 1 << 20;

  /** Whether so many bytes may be held; if not, they must be written. */
  boolean allows(long bytes) {
    long used = getUsed();
    if (bytes <= used) {
      return true;
    }
    long step = Math.max(STEP, bytes - used);
    long got = acquireMemory(step);
    return got >= bytes - used;
  }

  /** Records are being added: a spill would come at a bad time. */
  void adding(boolean now) {
    adding = now;
  }

  void letGo() {
    freeMemory(getUsed());
  }

  @Override
  public long spill(long size, MemoryConsumer trigger) throws IOException {
    // Another thread of the task, or ourselves while a record is being written: nothing can be written now.
    if (trigger == this || adding || Thread.currentThread() != owner) {
      return 0;
    }
    return flush.run();
  }
}
