package io.tierstore.spark;

import java.io.IOException;

/** What the agent answered instead of a result: one of the errors of tierstore.ringbuf.errors, by name. */
public final class StoreException extends IOException {
  private static final long serialVersionUID = 1;

  /** The class of the error: "Full", "NotFound", "Expired", "LostMaps", "ConfigError", "PeerLost", ... */
  public final String kind;
  /** For LostMaps: the indexes of the maps to run again; else empty. */
  public final int[] maps;

  StoreException(String kind, String message, int[] maps) {
    super(kind + ": " + message);
    this.kind = kind;
    this.maps = maps;
  }
}
