package io.tierstore.spark;

import java.io.IOException;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskContext;
import org.apache.spark.storage.BlockManager;
import org.apache.spark.storage.RDDBlockId;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import scala.Option;

/** What happens when a cached batch is not in the store any more: Spark forgets the partition and computes it again. */
final class Lost {
  private static final Logger LOG = LoggerFactory.getLogger(Lost.class);

  private Lost() {}

  /**
   * Have Spark forget the block; then throw what this returns, and the next attempt of the task makes it anew.
   *
   * <p>locks: how often this task holds the block's read lock; with one of them the removal would wait for ever.
   */
  static IllegalStateException batch(Caches.Place place, int partition, String key, int locks, Exception why) {
    SparkEnv env = SparkEnv.get();
    BlockManager blocks = env.blockManager();
    RDDBlockId id = new RDDBlockId(place.rdd(), partition);
    if (blocks.getStatus(id).isDefined()) {
      for (int left = locks; left > 0; left--) {
        blocks.releaseLock(id, Option.apply(TaskContext.get()));
      }
      blocks.removeBlock(id, true);
    } else {
      blocks.master().removeBlock(id); // handles of another executor, whose store is not ours
    }
    forget(env.conf(), key);
    return new IllegalStateException("a batch of " + id + " is not in the store any more ("
        + (why == null ? key : why.getMessage()) + "); the next attempt of this task computes the partition again", why);
  }

  /** Delete what the attempt that wrote a key has in the store. */
  static void forget(SparkConf conf, String key) {
    try {
      CacheStore.agent(conf).call(Connection.head("forget").put("key", key));
    } catch (IOException e) {
      LOG.debug("tierstore: {} stays until its cache is dropped: {}", key, e.getMessage());
    }
  }
}
