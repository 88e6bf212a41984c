package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayDeque;
import java.util.Deque;

/**
 * Partitions of committed attempts, piece by piece, as the agent finds and checks them.
 *
 * <p>One thread reads. Another may close: tasks that feed Python are read by a thread of their own, and end without asking it.
 * Case: the task ends, close() lets the agent give the pins up, the memory is used for something else, and the reading
 * thread takes that for a record of two gigabytes. So a copy counts only if the reader is not closed after it was made;
 * close() says so before it gives anything up.
 */
final class PieceReader implements AutoCloseable {
  /** Bytes of one partition, of one run of one attempt. here: in this node's store, not sent. */
  record Piece(int receipt, int partition, ByteBuffer data, boolean here) {}

  private final Lent lent;
  private final Agent agent;
  private final int first;
  private final Deque<Piece> ready = new ArrayDeque<>();
  private boolean over;
  private boolean ended;
  private volatile boolean closed;

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

  /** Copy bytes of a piece. Throws once the reader is closed. */
  void copy(Piece piece, ByteBuffer data, byte[] target, int from, int size) throws IOException {
    if (!piece.here()) {
      data.get(target, from, size);
      return;
    }
    agent.enter();
    try {
      data.get(target, from, size);
    } finally {
      agent.exit();
    }
    if (closed) {
      throw new IOException("the task has ended");
    }
  }

  /** The next piece, null at the end. What was read of those before must be done with. */
  synchronized Piece next() throws IOException {
    while (ready.isEmpty()) {
      if (over || closed) {
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
    closed = true;
    synchronized (this) {
      if (!ended) {
        ended = true;
        end();
      }
    }
  }

  private void end() {
    ready.clear();
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
