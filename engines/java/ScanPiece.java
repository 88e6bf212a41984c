package io.tierstore.spark;

import org.apache.spark.sql.connector.read.InputPartition;

/** A piece of a table, of one task. text: for the agent; hosts: where it would best be read. */
record ScanPiece(String text, String[] hosts) implements InputPartition {
  @Override
  public String[] preferredLocations() {
    return hosts;
  }
}
