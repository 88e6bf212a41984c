package io.tierstore.spark;

import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Looks after what may take for ever: a thread of this JVM that counts, twice a second, who has waited for how long.
 *
 * <p>It counts its own looks and does not compare times: where the whole JVM stood still (stopped, suspended with its
 * machine), what it waited for has had no chance to come, and has its time from then on.
 */
final class Watch {
  private static final long LOOK_MS = 500;
  private static final Set<Patience> WAITING = ConcurrentHashMap.newKeySet();

  static {
    Thread thread = new Thread(Watch::run, "tierstore-watch");
    thread.setDaemon(true);
    thread.start();
  }

  private Watch() {}

  private static void run() {
    while (true) {
      try {
        Thread.sleep(LOOK_MS);
      } catch (InterruptedException e) {
        continue; // nobody has a reason to
      }
      for (Patience one : WAITING) {
        one.look();
      }
    }
  }

  /** How long somebody waits. One thread begins, renews and ends; the watch looks. */
  static final class Patience {
    final long seconds;
    private final long looks;
    private final Runnable work;
    private final AtomicLong seen = new AtomicLong();
    private volatile boolean over;

    /** work: done once, by the watch's thread, if nothing is heard for so many seconds. */
    Patience(long seconds, Runnable work) {
      this.seconds = seconds;
      this.work = work;
      looks = seconds * 1000 / LOOK_MS;
    }

    void begin() {
      seen.set(0);
      WAITING.add(this);
    }

    /** Something was heard. */
    void renew() {
      seen.set(0);
    }

    void end() {
      WAITING.remove(this);
    }

    /** Whether it came to an end. */
    boolean over() {
      return over;
    }

    private void look() {
      if (seen.incrementAndGet() > looks && WAITING.remove(this)) {
        over = true;
        work.run();
      }
    }
  }
}
