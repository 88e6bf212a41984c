package io.tierstore.spark;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;

/** A piece as a stream: each read copies out of the store's memory. */
final class PieceStream extends InputStream {
  private final PieceReader reader;
  private final PieceReader.Piece piece;
  private final ByteBuffer data;

  PieceStream(PieceReader reader, PieceReader.Piece piece) {
    this.reader = reader;
    this.piece = piece;
    data = piece.data().duplicate();
  }

  @Override
  public int read() throws IOException {
    byte[] one = new byte[1];
    return read(one, 0, 1) < 0 ? -1 : one[0] & 0xFF;
  }

  @Override
  public int read(byte[] target, int from, int size) throws IOException {
    int taken = Math.min(size, data.remaining());
    if (taken == 0) {
      return size == 0 ? 0 : -1;
    }
    reader.copy(piece, data, target, from, taken);
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
