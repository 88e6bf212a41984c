package io.tierstore.spark;

import java.io.IOException;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkContext;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.PluginContext;
import org.apache.spark.sql.execution.columnar.InMemoryRelation$;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The driver's half of the plugin: checks the settings, finds the daemon, and sets what Spark needs to use it. */
final class TierDriver implements DriverPlugin {
  static final String MANAGER = "spark.shuffle.manager";
  static final String DATA_IO = "spark.shuffle.sort.io.plugin.class";
  static final String SERIALIZER = "spark.sql.cache.serializer";
  static final String TRACKING = "spark.dynamicAllocation.shuffleTracking.enabled";
  /** What will not become right by itself: settings, and versions that do not go together. */
  private static final Set<String> WRONG = Set.of("ConfigError", "ProtocolError");
  private static final Logger LOG = LoggerFactory.getLogger(TierDriver.class);
  private SparkConf conf;
  private Garbage garbage;

  @Override
  public Map<String, String> init(SparkContext context, PluginContext plugin) {
    conf = context.conf();
    InMemoryRelation$.MODULE$.clearSerializer(); // of an application before this one in the same JVM
    Settings settings = Settings.of(conf);
    Spills.watch(conf);
    try {
      Agent.of(conf, 0);
    } catch (IOException e) {
      boolean wrong = e instanceof StoreException error && WRONG.contains(error.kind);
      if (wrong || !settings.fallback) {
        throw new IllegalStateException("tierstore cannot be used: " + e.getMessage()
            + (wrong ? "" : " (spark.tierstore.fallback = auto would use Spark's own shuffle)"), e);
      }
      LOG.warn("tierstore: {}; this application uses Spark's own shuffle (spark.tierstore.fallback = auto)",
          e.getMessage());
      return Map.of();
    }
    // Not spark.app.id, which a driver that is started again may share.
    conf.set(Settings.PREFIX + "app", "spark-" + UUID.randomUUID());
    if (settings.shuffle) {
      use(MANAGER, TierShuffleManager.class.getName());
      use(DATA_IO, TierDataIO.class.getName());
      conf.setIfMissing(TRACKING, "false"); // it would keep idle executors for output that is not theirs
    }
    if (settings.cache) {
      use(SERIALIZER, TierCacheSerializer.class.getName());
      context.addSparkListener(new CacheListener(conf));
    }
    if (settings.gc) {
      garbage = new Garbage(context);
      garbage.start();
    }
    return Map.of();
  }

  /** Set what the user did not set. */
  private void use(String name, String value) {
    if (conf.contains(name) && !conf.get(name).equals(value)) {
      LOG.warn("tierstore: {} is set to {} and stays so; {} would be needed for data in the store", name,
          conf.get(name), value);
      return;
    }
    conf.set(name, value);
  }

  @Override
  public void shutdown() {
    if (garbage != null) {
      garbage.end();
    }
    if (conf != null) {
      Application.end(conf);
      Agent.stop();
      Spills.end();
    }
  }
}
