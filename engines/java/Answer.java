package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;

/** An answer of the agent: its head, and its body, which may be empty. */
public record Answer(JsonNode head, byte[] body) {
  /** A number of the head. */
  public long number(String name) {
    return head.path(name).asLong();
  }

  /** A text of the head. */
  public String text(String name) {
    return head.path(name).asText();
  }
}
