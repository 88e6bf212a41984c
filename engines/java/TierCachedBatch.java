package io.tierstore.spark;

import java.io.Serializable;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.columnar.SimpleMetricsCachedBatch;

/**
 * What Spark keeps of a cached batch: where it lies in the store. Only where the store could not take it the bytes are
 * here, and Spark's to keep in memory or on disk.
 */
final class TierCachedBatch implements SimpleMetricsCachedBatch, Serializable {
  private static final long serialVersionUID = 1;

  /** In the store; null if it is not there. */
  final String key;
  /** What the agent said when it was sealed. */
  final String hash;
  /** Null if it is in the store. */
  final byte[] bytes;
  private final int rows;
  private final long size;
  private final InternalRow stats;

  TierCachedBatch(String key, String hash, byte[] bytes, int rows, long size, InternalRow stats) {
    this.key = key;
    this.hash = hash;
    this.bytes = bytes;
    this.rows = rows;
    this.size = size;
    this.stats = stats;
  }

  @Override
  public int numRows() {
    return rows;
  }

  /** Of the data, by which Spark plans; wherever they are. */
  @Override
  public long sizeInBytes() {
    return size;
  }

  @Override
  public InternalRow stats() {
    return stats;
  }
}
