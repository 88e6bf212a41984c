package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.ForeignAllocation;
import org.apache.arrow.memory.util.MemoryUtil;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;

/**
 * Finds blocks of a cache and maps them, some ahead.
 *
 * <p>A mapped block counts as inside the agent ({@link Agent#enter}) from when it is opened until its last vector is
 * closed. So if the agent dies meanwhile, this JVM keeps its share of the slot's lock, under which the daemon takes no
 * pin back, until nobody reads any more; a copy out would be as safe, but is what the mapping is to save. Blocks that
 * are only located are asked for again, of the next agent.
 */
final class BlockReader {
  /** arena: -1 if it was sent, as body. */
  private record Found(long id, long arena, long offset, int size, ByteBuffer body) {}

  private static final int ABSENT = -2;

  private final SparkConf conf = SparkEnv.get().conf();
  private final BufferAllocator allocator;
  private final Map<String, Found> found = new HashMap<>();
  private final List<Long> release = new ArrayList<>();
  private Agent agent;
  private Lent lent;

  BlockReader(BufferAllocator allocator) {
    this.allocator = allocator;
  }

  /** The bytes of a block. soon: those to find by the same request. Throws where it is not there, or there is no store. */
  ArrowBuf open(TierCachedBatch wanted, List<TierCachedBatch> soon) throws IOException {
    for (int left = 2; ; left--) {
      try {
        if (!found.containsKey(wanted.key)) {
          find(wanted, soon);
        }
        Found block = found.get(wanted.key);
        if (block.arena() == ABSENT) {
          throw new StoreException("NotFound", "key " + wanted.key + " is not in the store", new int[0]);
        }
        ArrowBuf opened = block.arena() < 0 ? copied(block) : mapped(block);
        found.remove(wanted.key);
        return opened;
      } catch (StoreException e) {
        throw e;
      } catch (IOException e) { // the agent ended: what it pinned and we have not opened is to be found again
        disconnect();
        if (left == 1) {
          throw e;
        }
      }
    }
  }

  private void find(TierCachedBatch wanted, List<TierCachedBatch> soon) throws IOException {
    if (lent == null) {
      agent = CacheStore.agent(conf);
      lent = agent.lend();
    }
    List<TierCachedBatch> asked = new ArrayList<>(List.of(wanted));
    asked.addAll(soon);
    ObjectNode head = Connection.head("map");
    ArrayNode keys = head.putArray("keys");
    ArrayNode hashes = head.putArray("hashes");
    for (TierCachedBatch one : asked) {
      keys.add(one.key);
      hashes.add(one.hash);
    }
    addReleases(head);
    Answer answer = lent.request(head);
    int at = 0;
    int number = 0;
    for (JsonNode block : answer.head().path("blocks")) {
      int size = block.path(3).asInt();
      boolean sent = block.path(1).asInt() == -1;
      ByteBuffer body = sent ? ByteBuffer.wrap(answer.body(), at, size).slice() : null;
      at += sent ? size : 0;
      found.put(asked.get(number++).key,
          new Found(block.path(0).asLong(), block.path(1).asLong(), block.path(2).asLong(), size, body));
    }
  }

  private synchronized void addReleases(ObjectNode head) {
    ArrayNode ids = head.putArray("release");
    release.forEach(ids::add);
    release.clear();
  }

  /** over: the connection that it was pinned over; numbers of pins mean nothing on another. */
  private synchronized void released(Agent of, Lent over, long id) {
    of.exit();
    if (over == lent) {
      release.add(id);
    }
  }

  private ArrowBuf copied(Found block) {
    ArrowBuf made = allocator.buffer(block.size());
    made.setBytes(0, block.body());
    return made;
  }

  private ArrowBuf mapped(Found block) throws IOException {
    Agent owner = agent;
    Lent over = lent;
    owner.enter();
    try {
      ByteBuffer memory = owner.memory(block.arena(), block.offset(), block.size(), false);
      return allocator.wrapForeignAllocation(new ForeignAllocation(block.size(), MemoryUtil.getByteBufferAddress(memory)) {
        private ByteBuffer kept = memory; // or the mapping could be collected

        @Override
        protected void release0() {
          kept = null;
          released(owner, over, block.id());
        }
      });
    } catch (IOException | RuntimeException e) {
      owner.exit();
      throw e;
    }
  }

  /** Nothing is open any more. */
  void close() {
    if (lent != null) {
      ObjectNode head = Connection.head("map");
      head.putArray("keys");
      head.putArray("hashes");
      found.values().forEach(block -> release.add(block.id()));
      addReleases(head);
      try {
        lent.request(head);
        lent.clean();
      } catch (IOException e) {
        // the connection is closed then, which ends the pins too
      }
    }
    disconnect();
  }

  /** Callers: when nothing is open, as pins end with their connection. */
  private synchronized void disconnect() {
    found.clear();
    release.clear();
    if (lent != null) {
      lent.close();
      lent = null;
    }
  }
}
