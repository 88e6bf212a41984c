package io.tierstore.spark;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.spark.ShuffleDependency;
import org.apache.spark.SparkConf;
import org.apache.spark.TaskContext;
import org.apache.spark.shuffle.ShuffleHandle;
import org.apache.spark.shuffle.ShuffleReadMetricsReporter;
import org.apache.spark.shuffle.ShuffleReader;
import org.apache.spark.shuffle.ShuffleWriteMetricsReporter;
import org.apache.spark.shuffle.ShuffleWriter;
import org.apache.spark.shuffle.sort.SortShuffleManager;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Shuffles in the store. A subclass of Spark's own manager: that is one class for Spark 4.0 to 4.3 (whose traits differ),
 * and what cannot be in the store is Spark's, shuffle by shuffle.
 */
public final class TierShuffleManager extends SortShuffleManager {
  private static final Logger LOG = LoggerFactory.getLogger(TierShuffleManager.class);
  /** Errors of a store that may serve later shuffles: away, or without room. */
  private static final Set<String> PASSING = Set.of("PeerLost", "Full");
  private static final int TRIES = 3;
  private static final long PAUSE_MS = 200;
  private final SparkConf conf;
  private final Settings settings;
  /** Shuffles of the store that this process has registered, written or read. */
  private final Set<Integer> known = ConcurrentHashMap.newKeySet();

  public TierShuffleManager(SparkConf conf, boolean isDriver) {
    super(conf);
    this.conf = conf;
    settings = Settings.of(conf);
    if (settings.app.isEmpty()) {
      throw new IllegalStateException("spark.shuffle.manager = " + TierShuffleManager.class.getName()
          + " does not work alone: set spark.plugins = " + TierPlugin.class.getName() + ", which sets this too");
    }
  }

  Settings settings() {
    return settings;
  }

  /** The agent of this JVM, which knows the shuffle. */
  Agent agent() throws IOException {
    if (Application.ended(settings.app)) {
      throw new IOException("application " + settings.app + " has ended");
    }
    return Agent.of(conf);
  }

  /** A request that may be asked twice: an agent that died, or whose store is gone, is replaced. */
  private void ask(ObjectNode head) throws IOException {
    for (int left = TRIES - 1; ; left--) {
      try {
        agent().call(head);
        return;
      } catch (IOException e) {
        if (left == 0 || e instanceof StoreException error && !error.kind.equals("PeerLost")) {
          throw e;
        }
        LOG.info("tierstore: {}; asking again", e.getMessage());
        pause();
      }
    }
  }

  private static void pause() throws IOException {
    try {
      Thread.sleep(PAUSE_MS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IOException("interrupted while an agent was waited for", e);
    }
  }

  /** The request that opens a shuffle: cheap where it is open. */
  ObjectNode opening(ShuffleDependency<?, ?, ?> dependency) {
    return name("shuffle", dependency.shuffleId())
        .put("partitions", dependency.partitioner().numPartitions())
        .put("lease_s", (double) settings.leaseSeconds).put("quota", settings.quota).put("pool", settings.pool);
  }

  /** A request about a shuffle. */
  ObjectNode name(String op, int shuffle) {
    return Connection.head(op).put("app", settings.app).put("shuffle", shuffle);
  }

  @Override
  public <K, V, C> ShuffleHandle registerShuffle(int shuffleId, ShuffleDependency<K, V, C> dependency) {
    try {
      ask(opening(dependency));
      known.add(shuffleId);
      return new TierShuffleHandle<>(shuffleId, dependency);
    } catch (IOException e) {
      boolean wrong = e instanceof StoreException error && !PASSING.contains(error.kind);
      if (wrong || !settings.fallback) {
        throw new IllegalStateException("shuffle " + shuffleId + " cannot be in the store: " + e.getMessage(), e);
      }
      if (TierDataIO.LOCAL.compareAndSet(false, true)) {
        LOG.warn("tierstore: {}; shuffles that begin meanwhile are Spark's own (spark.tierstore.fallback = auto)",
            e.getMessage());
      }
      return super.registerShuffle(shuffleId, dependency);
    }
  }

  @Override
  public <K, V> ShuffleWriter<K, V> getWriter(
      ShuffleHandle handle, long mapId, TaskContext context, ShuffleWriteMetricsReporter metrics) {
    if (handle instanceof TierShuffleHandle<?, ?, ?> ours) {
      known.add(handle.shuffleId());
      @SuppressWarnings("unchecked")
      ShuffleDependency<K, V, ?> dependency = (ShuffleDependency<K, V, ?>) ours.dependency();
      return new TierShuffleWriter<>(this, dependency, mapId, context, metrics);
    }
    return super.getWriter(handle, mapId, context, metrics);
  }

  @Override
  public <K, C> ShuffleReader<K, C> getReader(ShuffleHandle handle, int startMap, int endMap, int startPartition,
      int endPartition, TaskContext context, ShuffleReadMetricsReporter metrics) {
    if (handle instanceof TierShuffleHandle<?, ?, ?> ours) {
      known.add(handle.shuffleId());
      @SuppressWarnings("unchecked")
      ShuffleDependency<K, ?, C> dependency = (ShuffleDependency<K, ?, C>) ours.dependency();
      Wanted wanted = new Wanted(dependency.shuffleId(), startMap, endMap, startPartition, endPartition);
      return new TierShuffleReader<>(this, dependency, wanted, context, metrics);
    }
    return super.getReader(handle, startMap, endMap, startPartition, endPartition, context, metrics);
  }

  @Override
  public boolean unregisterShuffle(int shuffleId) {
    if (known.remove(shuffleId) && !Application.ended(settings.app)) {
      try {
        ask(name("drop", shuffleId));
      } catch (IOException e) {
        LOG.warn("tierstore: shuffle {} was not dropped and goes with its application: {}", shuffleId, e.getMessage());
      }
    }
    return super.unregisterShuffle(shuffleId);
  }
}
