package io.tierstore.spark;

import java.io.IOException;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.spark.SparkConf;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The agent that scans ask: that of the node's daemon, or without a daemon one that reads files. */
final class ScanAgent {
  private static final Logger LOG = LoggerFactory.getLogger(ScanAgent.class);
  private static final AtomicBoolean WARNED = new AtomicBoolean();

  private ScanAgent() {}

  static Agent of(SparkConf conf) throws IOException {
    try {
      return CacheStore.agent(conf);
    } catch (IOException e) {
      boolean wrong = e instanceof StoreException error && error.kind.equals("ConfigError");
      if (wrong || !Settings.of(conf).fallback) {
        throw e;
      }
      Agent found = Agent.ofFiles(conf);
      if (WARNED.compareAndSet(false, true)) {
        LOG.warn("tierstore: {}; format(\"tierstore\") reads the files until a daemon answers (spark.tierstore.fallback = auto)",
            e.getMessage());
      }
      return found;
    }
  }
}
