package io.tierstore.spark;

import org.apache.spark.sql.connector.metric.CustomSumMetric;
import org.apache.spark.sql.connector.metric.CustomTaskMetric;

/** What Spark shows of a scan: how many bytes of buffers it read in place, and how many were sent to it. */
public final class ScanMetrics {
  static final String MAPPED = "tierstoreMappedBytes";
  static final String SENT = "tierstoreSentBytes";

  private ScanMetrics() {}

  /** Made by Spark, by name. */
  public static final class Mapped extends CustomSumMetric {
    @Override
    public String name() {
      return MAPPED;
    }

    @Override
    public String description() {
      return "bytes of columns in the store";
    }
  }

  /** Made by Spark, by name. */
  public static final class Sent extends CustomSumMetric {
    @Override
    public String name() {
      return SENT;
    }

    @Override
    public String description() {
      return "bytes of columns sent by the agent";
    }
  }

  record Value(String name, long value) implements CustomTaskMetric {}
}
