package io.tierstore.spark;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.types.pojo.Schema;
import org.apache.spark.TaskContext;
import org.apache.spark.sql.columnar.CachedBatch;
import org.apache.spark.sql.util.ArrowUtils;
import org.apache.spark.sql.vectorized.ColumnarBatch;

/**
 * The batches of a partition, as columns over the store's memory. A batch is valid until the next one or the end of the
 * task. Any thread, one at a time: Spark's writers to Python have their own.
 */
final class CacheReader implements Iterator<ColumnarBatch> {
  private static final BufferAllocator ALLOCATOR =
      ArrowUtils.rootAllocator().newChildAllocator("tierstore cache", 0, Long.MAX_VALUE);
  /** Batches that are found by one request. */
  private static final int AHEAD = 16;
  private static final Set<CacheReader> OPEN = ConcurrentHashMap.newKeySet();

  private final Caches.Place place;
  private final int partition;
  private final long task;
  private final Iterator<CachedBatch> handles;
  private final Schema schema;
  private final int[] columns;
  private final BlockReader blocks;
  private final Deque<TierCachedBatch> ahead = new ArrayDeque<>();
  private ColumnarBatch current;
  private List<FieldVector> vectors = List.of();
  /** Whether Spark holds the block's read lock for us: until its iterator says that it is at its end. */
  private boolean locking = true;
  private boolean closed;

  CacheReader(Caches.Place place, int partition, Iterator<CachedBatch> handles, Schema schema, int[] columns) {
    this.place = place;
    this.partition = partition;
    this.handles = handles;
    this.schema = schema;
    this.columns = columns;
    blocks = new BlockReader(ALLOCATOR);
    task = TaskContext.get().taskAttemptId();
    OPEN.add(this);
    CacheRows.atEnd(this::close);
  }

  @Override
  public synchronized boolean hasNext() {
    return !ahead.isEmpty() || more();
  }

  @Override
  public synchronized ColumnarBatch next() {
    if (closed) {
      throw new NoSuchElementException("the task has ended");
    }
    letGo();
    while (ahead.size() < AHEAD && more()) {
      ahead.add((TierCachedBatch) handles.next());
    }
    TierCachedBatch handle = ahead.remove();
    if (columns.length == 0) {
      current = new ColumnarBatch(new org.apache.spark.sql.vectorized.ColumnVector[0], handle.numRows());
      return current;
    }
    try {
      ArrowBuf frame = handle.key == null ? copied(handle.bytes) : blocks.open(handle, stored());
      vectors = BatchFrame.vectors(frame, schema, columns, ALLOCATOR);
      current = CacheRows.batch(vectors, handle.numRows());
      return current;
    } catch (IOException e) {
      if (handle.key == null) {
        throw new UncheckedIOException(e);
      }
      throw Lost.batch(place, partition, handle.key, unlocked(), e);
    }
  }

  private boolean more() {
    locking = locking && handles.hasNext();
    return locking;
  }

  /** How many locks of the block this task has; they are given up. A join with itself reads a block twice at a time. */
  private int unlocked() {
    int found = 0;
    for (CacheReader other : OPEN) {
      if (other.task == task && other.partition == partition && other.place.rdd() == place.rdd() && other.locking) {
        other.locking = false;
        found++;
      }
    }
    return found;
  }

  /** Of the batch that was given last. */
  synchronized List<FieldVector> vectors() {
    return vectors;
  }

  /** Those that the next requests may be for. */
  private List<TierCachedBatch> stored() {
    List<TierCachedBatch> found = new ArrayList<>();
    for (TierCachedBatch handle : ahead) {
      if (handle.key != null) {
        found.add(handle);
      }
    }
    return found;
  }

  private static ArrowBuf copied(byte[] bytes) {
    ArrowBuf made = ALLOCATOR.buffer(bytes.length);
    made.setBytes(0, bytes);
    return made;
  }

  private void letGo() {
    if (current != null) {
      current.close();
      current = null;
    }
  }

  private synchronized void close() {
    if (!closed) {
      closed = true;
      OPEN.remove(this);
      letGo();
      blocks.close();
    }
  }
}
