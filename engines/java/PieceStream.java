package io.tierstore.spark;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;

/** A piece as a stream: each read copies out of the store's memory, between enter() and exit() of the agent. */
final class PieceStream extends InputStream {
  private final Agent agent;
  private final ByteBuffer data;
  private final boolean here;

  PieceStream(Agent agent, PieceReader.Piece piece) {
    this.agent = agent;
    data = piece.data().duplicate();
    here = piece.here();
  }

  @Override
  public int read() throws IOException {
    byte[] one = new byte[1];
    return read(one, 0, 1) < 0 ? -1 : one[0] & 0xFF;
  }

  @Override
  public int read(byte[] target, int from, int size) throws IOException {
    if (size == 0) {
      return 0;
    }
    int taken = Math.min(size, data.remaining());
    if (taken == 0) {
      return -1;
    }
    if (!here) {
      data.get(target, from, taken);
      return taken;
    }
    agent.enter();
    try {
      data.get(target, from, taken);
    } finally {
      agent.exit();
    }
    return taken;
  }

  @Override
  public long skip(long count) {
    int taken = (int) Math.max(0, Math.min(count, data.remaining()));
    data.position(data.position() + taken);
    return taken;
  }

  @Override
  public int available() {
    return data.remaining();
  }
}
