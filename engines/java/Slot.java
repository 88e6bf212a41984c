package io.tierstore.spark;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.HashMap;
import java.util.Map;

/**
 * This JVM's share of the lock on its agent's slot. While it is held the daemon takes nothing back that the agent leased
 * or pinned, also if the agent is killed: this JVM may still be writing or reading there.
 *
 * <p>Closing any channel of a lock file drops all locks that this JVM has on it (POSIX). So there is one channel per file,
 * which is never closed, and it is used only by threads that nobody interrupts: an interrupt closes a channel.
 */
final class Slot {
  private static final Map<Object, FileChannel> CHANNELS = new HashMap<>();
  private final FileLock lock;

  private Slot(FileLock lock) {
    this.lock = lock;
  }

  /** Share the lock on a byte of a file. Callers: a thread that is never interrupted. */
  static Slot hold(Path file, long slot) throws IOException {
    synchronized (CHANNELS) {
      Object key = Files.readAttributes(file, BasicFileAttributes.class).fileKey();
      FileChannel channel = CHANNELS.get(key);
      if (channel == null) {
        channel = FileChannel.open(file, StandardOpenOption.READ);
        CHANNELS.put(key, channel);
      }
      FileLock lock = channel.tryLock(slot, 1, true);
      if (lock == null) {
        throw new AgentLost("slot " + slot + " was given to another client: the agent ended");
      }
      return new Slot(lock);
    }
  }

  /** Give the share back; nothing may be written or read there any more. Callers: as hold(). */
  void release() throws IOException {
    lock.release();
  }
}
