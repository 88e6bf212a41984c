package io.tierstore.spark;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.util.Iterator;
import java.util.NoSuchElementException;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.VectorUnloader;
import org.apache.arrow.vector.ipc.message.ArrowRecordBatch;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.catalyst.expressions.UnsafeRow;
import org.apache.spark.sql.columnar.CachedBatch;
import org.apache.spark.sql.execution.arrow.ArrowWriter;
import org.apache.spark.sql.types.StructType;

/** Writes the rows of a partition into the store, batch by batch, and gives the handles. One thread. */
final class CacheWriter implements Iterator<CachedBatch> {
  /** As Spark's own cached batches. */
  private static final long BATCH_BYTES = 4 << 20;
  /** Rows between looks at the size of vectors, for rows that do not tell theirs. */
  private static final int LOOK_ROWS = 64;

  private final Iterator<InternalRow> rows;
  private final int most;
  private final ArrowWriter writer;
  private final BatchStatistics statistics;
  private final BlockWriter blocks;

  CacheWriter(Caches.Place place, int partition, Iterator<InternalRow> rows, StructType stored, int most) {
    this.rows = rows;
    this.most = most;
    statistics = new BatchStatistics(stored);
    writer = CacheTypes.writer(stored);
    blocks = new BlockWriter(place, partition);
    CacheRows.atEnd(() -> {
      writer.root().close();
      blocks.close();
    });
  }

  @Override
  public boolean hasNext() {
    boolean more = rows.hasNext();
    if (!more) {
      blocks.finish();
    }
    return more;
  }

  @Override
  public CachedBatch next() {
    if (!rows.hasNext()) {
      throw new NoSuchElementException();
    }
    writer.reset();
    long room = blocks.most(BATCH_BYTES);
    int count = 0;
    long size = 0;
    while (count < most && size < room && rows.hasNext()) {
      InternalRow row = rows.next();
      statistics.add(row);
      writer.write(row);
      count++;
      if (row instanceof UnsafeRow packed) {
        size += packed.getSizeInBytes();
      } else if (count % LOOK_ROWS == 0) {
        size = sizeOf(count);
      }
    }
    writer.finish();
    return written(count, statistics.take(count));
  }

  private long sizeOf(int count) {
    long size = 0;
    for (FieldVector vector : writer.root().getFieldVectors()) {
      size += vector.getBufferSizeFor(count);
    }
    return size;
  }

  private CachedBatch written(int count, InternalRow stats) {
    try (ArrowRecordBatch record = new VectorUnloader(writer.root()).getRecordBatch()) {
      BatchFrame frame = new BatchFrame(record);
      BlockWriter.Written made = blocks.write(frame);
      if (made != null) {
        return new TierCachedBatch(made.key(), made.hash(), null, count, frame.size(), stats);
      }
      ByteBuffer kept = ByteBuffer.allocate(Math.toIntExact(frame.size()));
      frame.writeTo(kept);
      return new TierCachedBatch(null, null, kept.array(), count, frame.size(), stats);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
