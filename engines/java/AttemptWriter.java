package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;

/** One attempt of a map task in the store: runs of partitions, then commit() or close(). One thread. */
final class AttemptWriter implements AutoCloseable {
  private final Agent agent;
  private final Lent lent;
  private final int partitions;
  private long left;
  private long most;

  /** opening: of the shuffle. attempt: the request that begins the attempt. */
  AttemptWriter(Agent agent, ObjectNode opening, ObjectNode attempt, int partitions) throws IOException {
    this.agent = agent;
    this.partitions = partitions;
    lent = agent.lend();
    try {
      lent.request(opening);
      room(lent.request(attempt));
    } catch (IOException e) {
      lent.close();
      throw e;
    }
  }

  private void room(Answer answer) {
    left = answer.number("left");
    most = answer.number("most");
  }

  /** How many bytes a run should have, so that no room is left over in the store. */
  long room() {
    return left;
  }

  /** Write partitions, of which some are null; as one run where it fits, else as several. */
  void write(Chunks[] parts) throws IOException {
    int first = 0;
    while (first < partitions) {
      long size = 0;
      int end = first;
      while (end < partitions && (size == 0 || size + size(parts[end]) <= most)) {
        size += size(parts[end++]);
      }
      if (size > 0) {
        run(parts, first, end, Math.toIntExact(size));
      }
      first = end;
    }
  }

  private static int size(Chunks part) {
    return part == null ? 0 : part.size();
  }

  private void run(Chunks[] parts, int first, int end, int size) throws IOException {
    ByteBuffer table = ByteBuffer.allocate(4 * (partitions + 1) + 8 * partitions);
    long empty = Checks.of(new byte[0], 0, 0);
    int start = 0;
    for (int partition = 0; partition <= partitions; partition++) {
      table.putInt(start);
      start += partition >= first && partition < end ? size(parts[partition]) : 0;
    }
    for (int partition = 0; partition < partitions; partition++) {
      boolean there = partition >= first && partition < end && size(parts[partition]) > 0;
      table.putLong(there ? parts[partition].check() : empty);
    }
    table.flip();
    if (size > most || !agent.writable()) {
      ByteBuffer data = ByteBuffer.allocate(size);
      copy(parts, first, end, data);
      room(lent.request(Connection.head("run_put"), table, data.flip()));
      return;
    }
    Answer begun = lent.request(Connection.head("run").put("size", size));
    agent.enter();
    try {
      copy(parts, first, end, agent.memory(begun.number("arena"), begun.number("offset"), size, true));
    } finally {
      agent.exit();
    }
    room(lent.request(Connection.head("run_seal"), table));
  }

  private static void copy(Chunks[] parts, int first, int end, ByteBuffer target) {
    for (int partition = first; partition < end; partition++) {
      if (size(parts[partition]) > 0) {
        parts[partition].copyTo(target);
      }
    }
  }

  /** Make it all readable, at once; the receipt. */
  JsonNode commit(long records) throws IOException {
    Answer answer = lent.request(Connection.head("commit").put("records", records));
    lent.clean();
    return answer.head().path("receipt");
  }

  /** After commit(): nothing. Else all that was written is dropped. */
  @Override
  public void close() {
    lent.close();
  }
}
