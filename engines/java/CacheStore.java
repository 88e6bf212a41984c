package io.tierstore.spark;

import java.io.IOException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.spark.SparkConf;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Whether this JVM's cached data can go to the store. After a failure nobody tries for a while: a task that waits for a
 * daemon does nothing useful, and its data can be Spark's to keep.
 */
final class CacheStore {
  private static final Logger LOG = LoggerFactory.getLogger(CacheStore.class);
  private static final long DOWN_MS = 30_000;
  /** Partitions that begin so soon after one for which there was no room do not wait for some. */
  private static final long FULL_MS = 10_000;
  private static final double WAIT_S = 3;
  private static final AtomicBoolean WARNED = new AtomicBoolean();
  private static final AtomicLong NO_AGENT_UNTIL = new AtomicLong(Long.MIN_VALUE);
  private static final AtomicLong NO_WRITES_UNTIL = new AtomicLong(Long.MIN_VALUE);

  private static final AtomicLong FULL_UNTIL = new AtomicLong(Long.MIN_VALUE);

  private CacheStore() {}

  /** Whether there was no room a short time ago. */
  static boolean full() {
    return now() < FULL_UNTIL.get();
  }

  /** The agent, to read; it needs no daemon for what it has mapped. */
  static Agent agent(SparkConf conf) throws IOException {
    if (now() < NO_AGENT_UNTIL.get()) {
      throw new AgentLost("no agent could be started a short time ago");
    }
    try {
      return Agent.of(conf, WAIT_S);
    } catch (IOException e) {
      NO_AGENT_UNTIL.set(now() + DOWN_MS);
      throw e;
    }
  }

  /** The agent, to write. */
  static Agent writing(SparkConf conf) throws IOException {
    if (now() < NO_WRITES_UNTIL.get()) {
      throw new AgentLost("the store took no cached data a short time ago");
    }
    return agent(conf);
  }

  /** A write failed for good. */
  static void failed(IOException why) {
    boolean away = !(why instanceof StoreException error) || error.kind.equals("PeerLost");
    if (away) {
      NO_WRITES_UNTIL.set(now() + DOWN_MS);
    } else if (((StoreException) why).kind.equals("Full")) {
      FULL_UNTIL.set(now() + FULL_MS);
    }
    if (WARNED.compareAndSet(false, true)) {
      LOG.warn("tierstore: {}; cached data that the store cannot take are Spark's to keep", why.getMessage());
    }
  }

  private static long now() {
    return System.nanoTime() / 1_000_000;
  }
}
