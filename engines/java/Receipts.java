package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import org.apache.spark.storage.BlockManagerId;
import scala.Option;

/**
 * Receipts of attempts, as Spark's MapStatus carries them: in the location of the map's output.
 *
 * <p>The executor id is "tierstore-STORE-INCARNATION", so that when a store has lost something Spark runs again what it
 * had in that life of that store, and no executor's end takes it away. The rest of the receipt is the topology info:
 * "HASH NODE REPLICA,REPLICA".
 */
final class Receipts {
  private static final String MARK = "tierstore-";
  private static final int PORT = 1; // none is asked; Spark wants one

  private Receipts() {}

  static BlockManagerId location(JsonNode receipt, String host) {
    StringBuilder replicas = new StringBuilder();
    for (JsonNode replica : receipt.path("replicas")) {
      replicas.append(replicas.length() == 0 ? "" : ",").append(replica.asText());
    }
    String hash = Long.toHexString(receipt.path("manifest_hash").bigIntegerValue().longValue());
    String rest = hash + " " + receipt.path("node").asText() + " " + replicas;
    String id = MARK + receipt.path("store_id").asText() + "-" + receipt.path("incarnation").asText();
    return BlockManagerId.apply(id, host, PORT, Option.apply(rest));
  }

  /** Whether an output is in the store. */
  static boolean isOurs(BlockManagerId location) {
    return location.executorId().startsWith(MARK) && location.topologyInfo().isDefined();
  }

  /** What the request {@code read} takes of one attempt: map, attempt, hash, store, incarnation, node, replicas. */
  static void add(ArrayNode receipts, BlockManagerId location, int mapIndex, long mapId) {
    String[] id = location.executorId().substring(MARK.length()).split("-", 2);
    String[] rest = location.topologyInfo().get().split(" ", -1);
    ArrayNode fields = receipts.addArray();
    fields.add(mapIndex).add(attempt(mapId)).add(rest[0]).add(id[0]).add(id[1]).add(rest[1]);
    ArrayNode replicas = fields.addArray();
    for (String replica : rest[2].split(",")) {
      if (!replica.isEmpty()) {
        replicas.add(replica);
      }
    }
  }

  /** The name of an attempt: Spark's id of the task attempt, which is unique in an application. */
  static String attempt(long mapId) {
    return Long.toString(mapId);
  }
}
