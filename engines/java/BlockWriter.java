package io.tierstore.spark;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.concurrent.ThreadLocalRandom;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskContext;

/**
 * The blocks that one task puts into the store for one partition of a cache. If the task fails they are deleted; if the
 * store fails, the rest of the partition is not for it. One thread.
 */
final class BlockWriter {
  /** Where a block is, and what to compare it with. */
  record Written(String key, String hash) {}

  private final SparkConf conf = SparkEnv.get().conf();
  private final Settings settings = Settings.of(conf);
  private final Caches.Place place;
  private final int partition;
  private final String attempt;
  private Agent agent;
  private Lent lent;
  private String nonce;
  private int sequence;
  private String first;
  private boolean finished;
  private boolean useless = CacheStore.full();

  BlockWriter(Caches.Place place, int partition) {
    this.place = place;
    this.partition = partition;
    attempt = "t" + TaskContext.get().taskAttemptId();
  }

  /** How large blocks are to be: so many bytes, but two to a segment; what does not fit one is sent to readers, not mapped. */
  long most(long wanted) {
    useless = useless || place.dropped();
    try {
      if (!useless) {
        open();
        return Math.min(wanted, agent.hello().number("segment") / 2);
      }
    } catch (IOException e) {
      disconnect(); // write() will find it so too
    }
    return wanted;
  }

  /** Put a block into the store; null where that is not possible. */
  Written write(BatchFrame frame) throws IOException {
    useless = useless || place.dropped();
    for (int left = 2; !useless && left > 0; left--) {
      try {
        open();
        Written made = put(frame);
        first = first == null ? made.key() : first;
        return made;
      } catch (StoreException e) {
        left = 0; // what the store says it will say again
        useless(e);
      } catch (IOException e) { // the agent ended: try with another
        disconnect();
        if (left == 1) {
          useless(e);
        }
      }
    }
    return null;
  }

  private void useless(IOException why) {
    useless = true;
    disconnect();
    CacheStore.failed(why);
  }

  private void open() throws IOException {
    if (lent == null) {
      agent = CacheStore.writing(conf);
      lent = agent.lend();
      lent.request(place.opening(settings));
      nonce = String.format("%016x", ThreadLocalRandom.current().nextLong());
      sequence = 0;
    }
  }

  private Written put(BatchFrame frame) throws IOException {
    int size = Math.toIntExact(frame.size());
    ObjectNode head = place.request("block").put("map", partition).put("attempt", attempt).put("sequence", sequence)
        .put("nonce", nonce).put("pool", settings.pool);
    sequence++;
    if (!agent.writable() || size > agent.hello().number("segment")) {
      ByteBuffer whole = ByteBuffer.allocate(size);
      frame.writeTo(whole);
      Answer sent = lent.request(head.put("op", "block_put"), whole.rewind());
      return new Written(sent.text("key"), sent.text("hash"));
    }
    Answer begun = lent.request(head.put("size", size));
    agent.enter();
    try {
      frame.writeTo(agent.memory(begun.number("arena"), begun.number("offset"), size, true));
    } finally {
      agent.exit();
    }
    Answer sealed = lent.request(Connection.head("seal").put("id", begun.number("id")));
    return new Written(begun.text("key"), sealed.text("hash"));
  }

  /** There are no more rows: what was written is to stay. */
  void finish() {
    finished = true;
    if (lent != null) {
      lent.clean();
      disconnect();
    }
  }

  /** The task ended. What it finished may be in Spark's block manager by now, also if the task failed later. */
  void close() {
    if (first != null && !finished) {
      Lost.forget(conf, first);
    }
    disconnect();
  }

  private void disconnect() {
    if (lent != null) {
      lent.close();
      lent = null;
    }
  }
}
