package io.tierstore.spark;

import java.io.IOException;

/** The agent ended. What was under way with it is lost; {@link Agent#of} starts another, so try again. */
public final class AgentLost extends IOException {
  private static final long serialVersionUID = 1;

  AgentLost(String message) {
    super(message);
  }
}
