package io.tierstore.spark;

import java.util.OptionalLong;
import org.apache.spark.sql.connector.metric.CustomMetric;
import org.apache.spark.sql.connector.read.Batch;
import org.apache.spark.sql.connector.read.InputPartition;
import org.apache.spark.sql.connector.read.PartitionReaderFactory;
import org.apache.spark.sql.connector.read.Scan;
import org.apache.spark.sql.connector.read.Statistics;
import org.apache.spark.sql.connector.read.SupportsReportStatistics;
import org.apache.spark.sql.types.StructField;
import org.apache.spark.sql.types.StructType;

/** One scan; it is planned once, when Spark first asks for its size or its pieces. */
final class TierScan implements Scan, Batch, SupportsReportStatistics {
  private final ScanQuery query;
  private final StructType schema;
  private ScanQuery.Planned planned;

  TierScan(ScanQuery query, StructType schema) {
    this.query = query;
    this.schema = schema;
  }

  private synchronized ScanQuery.Planned planned() {
    if (planned == null) {
      ScanQuery.Planned found = query.plan(true);
      for (StructField field : schema.fields()) {
        StructField now = found.schema().apply(field.name());
        if (!now.dataType().equals(field.dataType().asNullable())) {
          throw new IllegalArgumentException("tierstore: column " + field.name() + " of "
              + query.target() + " is " + now.dataType().sql() + " and not " + field.dataType().sql()
              + ": read it without that schema, and cast it; or, if the files have changed, read them anew");
        }
      }
      planned = found;
    }
    return planned;
  }

  @Override
  public StructType readSchema() {
    return schema;
  }

  @Override
  public String description() {
    return TierSource.NAME + " " + query.target() + " " + String.join(", ", query.columns())
        + (query.terms().isEmpty() ? "" : ", statistics " + String.join(" ", query.terms()));
  }

  @Override
  public Batch toBatch() {
    return this;
  }

  @Override
  public Statistics estimateStatistics() {
    ScanQuery.Planned found = planned();
    return new Statistics() {
      @Override
      public OptionalLong sizeInBytes() {
        return OptionalLong.of(found.bytes());
      }

      @Override
      public OptionalLong numRows() {
        return OptionalLong.of(found.rows());
      }
    };
  }

  @Override
  public CustomMetric[] supportedCustomMetrics() {
    return new CustomMetric[] {new ScanMetrics.Mapped(), new ScanMetrics.Sent()};
  }

  @Override
  public InputPartition[] planInputPartitions() {
    return planned().pieces().toArray(new InputPartition[0]);
  }

  @Override
  public PartitionReaderFactory createReaderFactory() {
    return new ScanReaders(planned().text(), schema);
  }

  /** Spark reads equal scans once. */
  @Override
  public boolean equals(Object other) {
    return other instanceof TierScan scan && scan.query.equals(query) && scan.schema.equals(schema);
  }

  @Override
  public int hashCode() {
    return query.hashCode();
  }
}
