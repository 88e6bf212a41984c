package io.tierstore.spark;

/** Which part of a shuffle a reducer reads: map indexes and partitions, each without its end. */
record Wanted(int shuffleId, int startMap, int endMap, int startPartition, int endPartition) {}
