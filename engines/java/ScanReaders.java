package io.tierstore.spark;

import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.connector.read.InputPartition;
import org.apache.spark.sql.connector.read.PartitionReader;
import org.apache.spark.sql.connector.read.PartitionReaderFactory;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.vectorized.ColumnarBatch;

/** Goes to the executors: what all pieces of a scan have in common. */
record ScanReaders(String plan, StructType schema) implements PartitionReaderFactory {
  @Override
  public boolean supportColumnarReads(InputPartition piece) {
    return true;
  }

  @Override
  public PartitionReader<InternalRow> createReader(InputPartition piece) {
    throw new IllegalStateException("supportColumnarReads() is true");
  }

  @Override
  public PartitionReader<ColumnarBatch> createColumnarReader(InputPartition piece) {
    return new ScanReader(plan, schema, (ScanPiece) piece);
  }
}
