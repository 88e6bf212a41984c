package io.tierstore.spark;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;

/**
 * A connection on loan. Closing it drops what was begun and not finished over it; after {@link #clean}, when nothing is
 * unfinished, it is given back for others instead.
 */
public final class Lent implements AutoCloseable {
  private final Agent agent;
  private final Connection connection;
  private boolean clean;
  private boolean closed;

  Lent(Agent agent, Connection connection) {
    this.agent = agent;
    this.connection = connection;
  }

  /** As {@link Connection#request}. */
  public Answer request(ObjectNode head, ByteBuffer... body) throws IOException {
    if (closed) { // it may be somebody else's by now
      throw new IOException("this connection was given back");
    }
    clean = false;
    return connection.request(head, body);
  }

  /** Nothing that was begun over it is unfinished. */
  public void clean() {
    clean = true;
  }

  @Override
  public void close() {
    if (closed) {
      return;
    }
    closed = true;
    if (clean) {
      agent.giveBack(connection);
    } else {
      connection.close();
    }
  }
}
