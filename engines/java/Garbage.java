package io.tierstore.spark;

import java.io.IOException;
import org.apache.spark.SparkContext;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerJobEnd;

/**
 * Has the driver's garbage collected while the store fills. Spark drops a shuffle or a cache when its collector finds that
 * nobody refers to it any more, which takes half an hour where a driver's heap has room; a store that is memory is full long
 * before that. Runs in the driver.
 */
final class Garbage extends Thread {
  private static final long LOOK_MS = 1000;
  /** A collection may take this share of the time. */
  private static final int SHARE = 20;
  /** It is worth while for this part of the first tier. */
  private static final int GROWN = 64;

  private boolean ended;
  private volatile boolean jobEnded;
  /** The least that the store held since the last collection. */
  private long least;

  Garbage(SparkContext context) {
    super("tierstore-garbage");
    setDaemon(true);
    context.addSparkListener(new SparkListener() {
      @Override
      public void onJobEnd(SparkListenerJobEnd job) {
        jobEnded = true;
      }
    });
  }

  @Override
  public void run() {
    while (waited(LOOK_MS)) {
      if (jobEnded && filling()) {
        jobEnded = false;
        long began = System.nanoTime();
        System.gc();
        long took = (System.nanoTime() - began) / 1_000_000;
        least = Long.MAX_VALUE;
        if (!waited(LOOK_MS)) { // shuffles that were found are dropped meanwhile
          return;
        }
        filling();
        if (!waited(SHARE * took)) {
          return;
        }
      }
    }
  }

  private synchronized boolean waited(long pause) {
    try {
      if (!ended) {
        wait(pause);
      }
    } catch (InterruptedException e) {
      return false;
    }
    return !ended;
  }

  /** Look no more. Not by an interrupt, which would close what the agent shares with this JVM. */
  void end() {
    synchronized (this) {
      ended = true;
      notifyAll();
    }
    try {
      join(2 * LOOK_MS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Whether the first tier is more than half full, and the store has more than it had at its emptiest. */
  private boolean filling() {
    Agent agent = Agent.present();
    if (agent == null) {
      return false;
    }
    try {
      Answer fill = agent.call(Connection.head("fill"));
      long used = fill.number("used");
      long size = fill.number("size");
      least = Math.min(least, used);
      return fill.number("free") < size / 2 && used > least + size / GROWN;
    } catch (IOException e) {
      return false; // whoever needs the store says so
    }
  }
}
