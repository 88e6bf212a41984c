package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayDeque;
import java.util.Deque;

/** Partitions of committed attempts, piece by piece, as the agent finds and checks them. One thread. */
final class PieceReader implements AutoCloseable {
  /** Bytes of one partition, of one run of one attempt. here: in this node's store, not sent. */
  record Piece(int receipt, int partition, ByteBuffer data, boolean here) {}

  private final Lent lent;
  private final Agent agent;
  private final int first;
  private final Deque<Piece> ready = new ArrayDeque<>();
  private boolean over;

  /** opening: of the shuffle. read: names the attempts. */
  PieceReader(Agent agent, ObjectNode opening, ObjectNode read, int first) throws IOException {
    this.agent = agent;
    this.first = first;
    lent = agent.lend();
    try {
      lent.request(opening);
      lent.request(read);
    } catch (IOException e) {
      lent.close();
      throw e;
    }
  }

  Agent agent() {
    return agent;
  }

  /** The next piece, null at the end. What was read of those before must be done with. */
  Piece next() throws IOException {
    while (ready.isEmpty()) {
      if (over) {
        return null;
      }
      Answer answer = lent.request(Connection.head("next"));
      int at = 0;
      for (JsonNode piece : answer.head().path("pieces")) {
        at += add(piece, answer.body(), at);
      }
      over = ready.isEmpty();
    }
    return ready.poll();
  }

  /** How many bytes of the body were its. */
  private int add(JsonNode piece, byte[] body, int at) throws IOException {
    JsonNode starts = piece.path(3);
    int count = starts.size() - 1;
    int size = starts.get(count).asInt();
    boolean here = piece.path(1).asInt() >= 0;
    ByteBuffer data = here
        ? agent.memory(piece.path(1).asLong(), piece.path(2).asLong(), size, false)
        : ByteBuffer.wrap(body, at, size).slice();
    for (int number = 0; number < count; number++) {
      int start = starts.get(number).asInt();
      int length = starts.get(number + 1).asInt() - start;
      if (length > 0) {
        ready.add(new Piece(piece.path(0).asInt(), first + number, data.slice(start, length), here));
      }
    }
    return here ? 0 : size;
  }

  @Override
  public void close() {
    ready.clear();
    over = true;
    try {
      lent.request(Connection.head("read_end"));
      lent.clean();
    } catch (IOException e) {
      // the connection is closed then, which ends it too
    } finally {
      lent.close();
    }
  }
}
