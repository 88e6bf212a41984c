package io.tierstore.spark;

import org.apache.spark.shuffle.checksum.RowBasedChecksum;

/** Checksums of rows, by which Spark (from 4.1 on) notices that a map ran again with another result. Not loaded by 4.0. */
final class RowChecks {
  private final RowBasedChecksum[] sums;

  RowChecks(Object[] sums) {
    this.sums = (RowBasedChecksum[]) sums;
  }

  void update(int partition, Object key, Object value) {
    sums[partition].update(key, value);
  }

  long total() {
    return RowBasedChecksum.getAggregatedChecksumValue(sums);
  }
}
