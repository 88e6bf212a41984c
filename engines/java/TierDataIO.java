package io.tierstore.spark;

import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.spark.SparkConf;
import org.apache.spark.shuffle.api.ShuffleDataIO;
import org.apache.spark.shuffle.api.ShuffleDriverComponents;
import org.apache.spark.shuffle.api.ShuffleExecutorComponents;
import org.apache.spark.shuffle.sort.io.LocalDiskShuffleDriverComponents;
import org.apache.spark.shuffle.sort.io.LocalDiskShuffleExecutorComponents;

/** Tells Spark's scheduler that the output of map tasks outlives their executor, and when the application ends. */
public final class TierDataIO implements ShuffleDataIO {
  /** Whether a shuffle of this driver is Spark's own: then executors do lose output with them. */
  static final AtomicBoolean LOCAL = new AtomicBoolean();
  private final SparkConf conf;

  public TierDataIO(SparkConf conf) {
    this.conf = conf;
  }

  @Override
  public ShuffleExecutorComponents executor() {
    return new LocalDiskShuffleExecutorComponents(conf);
  }

  @Override
  public ShuffleDriverComponents driver() {
    LOCAL.set(false);
    return new LocalDiskShuffleDriverComponents() {
      @Override
      public boolean supportsReliableStorage() {
        return !LOCAL.get();
      }

      @Override
      public void cleanupApplication() {
        super.cleanupApplication();
        Application.end(conf);
      }
    };
  }
}
