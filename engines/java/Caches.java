package io.tierstore.spark;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.Serializable;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.spark.Dependency;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.apache.spark.rdd.RDD;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The caches of an application: what belongs to one cached DataFrame. In the store each is a shuffle that is never
 * committed (engines/spark_agent_cache.py), so the application's lease and quota hold for it.
 */
final class Caches {
  /** The RDD that fills a cache has this and the cache's number as its name; its child is the one that Spark persists. */
  static final String NAME = "tierstore cache ";
  private static final Logger LOG = LoggerFactory.getLogger(Caches.class);
  /** Of shuffles, Spark's numbers are far below. */
  private static final int FIRST = 1 << 30;
  private static final AtomicInteger LAST = new AtomicInteger();
  /** Applications whose caches are Spark's own from now on. */
  private static final Set<String> WITHOUT = ConcurrentHashMap.newKeySet();
  /** Caches that are not wanted any more, of drivers in this JVM: late tasks must not begin them anew. */
  private static final Set<Integer> DROPPED = ConcurrentHashMap.newKeySet();

  /** A cache, as tasks know it. rdd: the persisted one, -1 when it is being filled. */
  record Place(String app, int number, int rdd) implements Serializable {
    /** A request about it. */
    ObjectNode request(String op) {
      return Connection.head(op).put("app", app).put("shuffle", number);
    }

    ObjectNode opening(Settings settings) {
      return request("shuffle").put("partitions", 1).put("lease_s", (double) settings.leaseSeconds)
          .put("quota", settings.quota).put("pool", settings.pool);
    }

    boolean dropped() {
      return DROPPED.contains(number) || Application.ended(app);
    }
  }

  private Caches() {}

  /** Whether this JVM's application wants its caches in the store. */
  static boolean wanted() {
    SparkEnv env = SparkEnv.get();
    if (env == null) {
      return false;
    }
    Settings settings = Settings.of(env.conf());
    return settings.cache && !settings.app.isEmpty() && !Application.ended(settings.app);
  }

  /** A new cache; null where the store is away: then Spark's own from now on, or an error. Callers: the driver. */
  static Place begin(SparkConf conf) {
    Settings settings = Settings.of(conf);
    if (!wanted() || WITHOUT.contains(settings.app)) {
      return null;
    }
    Place place = new Place(settings.app, FIRST + LAST.incrementAndGet(), -1);
    try {
      CacheStore.writing(conf).call(place.opening(settings));
      return place;
    } catch (IOException e) {
      boolean wrong = e instanceof StoreException error && !error.kind.equals("PeerLost");
      if (wrong || !settings.fallback) {
        throw new IllegalStateException("data cannot be cached in the store: " + e.getMessage(), e);
      }
      if (WITHOUT.add(settings.app)) {
        LOG.warn("tierstore: {}; df.cache() is Spark's own from now on (spark.tierstore.fallback = auto)",
            e.getMessage());
      }
      return null;
    }
  }

  /** The cache that an RDD reads; null if it is none of ours. */
  static Place of(RDD<?> reading, SparkConf conf) {
    RDD<?> at = reading;
    int child = -1;
    while (numberOf(at.name()) < 0) {
      child = at.id();
      if (at.dependencies().length() != 1) {
        return null;
      }
      at = ((Dependency<?>) at.dependencies().head()).rdd();
    }
    return new Place(Settings.of(conf).app, numberOf(at.name()), child);
  }

  /** Of a cache that an RDD of this name fills; -1 for any other. */
  static int numberOf(String name) {
    return name != null && name.matches(NAME + "[0-9]{1,10}") ? Integer.parseInt(name.substring(NAME.length())) : -1;
  }

  /** A cache is not wanted any more. */
  static void drop(SparkConf conf, int number) {
    Place place = new Place(Settings.of(conf).app, number, -1);
    if (place.dropped()) {
      return;
    }
    DROPPED.add(number);
    try {
      CacheStore.agent(conf).call(place.request("uncache"));
    } catch (IOException e) {
      LOG.warn("tierstore: a cache was not dropped and goes with its application: {}", e.getMessage());
    }
  }
}
