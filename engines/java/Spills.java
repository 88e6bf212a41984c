package io.tierstore.spark;

import java.io.File;
import java.io.IOException;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What Spark itself writes below its local directories (sorted runs, hash maps, broadcasts, cached blocks), where
 * spark.tierstore.spill says how much that may be. A folder has no quota, so a thread adds the files up each second; while
 * they are too many, tasks that write or read a shuffle of the store fail, which lets go of what they spilled.
 */
final class Spills {
  private static final Logger LOG = LoggerFactory.getLogger(Spills.class);
  private static final long LOOK_MS = 1000;
  private static Spills current;
  /** Whether there was too much at the last look. */
  private static volatile boolean full;

  private final Set<Path> roots;
  private final long most;

  private Spills(Set<Path> roots, long most) {
    this.roots = roots;
    this.most = most;
  }

  /** Begin to watch, in place of what was watched for an application before. Callers: the plugin, once Spark has its directories. */
  static synchronized void watch(SparkConf conf) {
    end();
    long most = Settings.of(conf).spill;
    if (most > 0) {
      Spills made = new Spills(roots(conf), most);
      current = made;
      Thread thread = new Thread(made::run, "tierstore-spills");
      thread.setDaemon(true);
      thread.start();
    }
  }

  static synchronized void end() {
    current = null;
    full = false;
  }

  /** Callers: tasks, often. */
  static void check() throws IOException {
    if (full) {
      refuse();
    }
  }

  /** Looks again: tasks that failed have let go of theirs meanwhile, and those that are tried again must not fail for them. */
  private static synchronized void refuse() throws IOException {
    if (current == null) {
      return;
    }
    long size = current.size();
    full = size > current.most;
    if (full) {
      throw new IOException("Spark's own files below " + current.roots + " take " + size
          + " bytes, more than spark.tierstore.spill = " + current.most + ": allow more, or give executors more memory");
    }
  }

  /** This JVM's own directories, which its agent removes where the JVM is killed. */
  static List<String> own(Settings settings) {
    List<String> found = new ArrayList<>();
    SparkEnv env = SparkEnv.get();
    if (settings.spill > 0 && env != null) {
      for (File directory : env.blockManager().diskBlockManager().localDirs()) {
        found.add(directory.getAbsolutePath());
      }
    }
    return found;
  }

  /** spark.local.dir, and so all JVMs of this node; where Spark was told another place, what this JVM has there. */
  private static Set<Path> roots(SparkConf conf) {
    Set<Path> found = new TreeSet<>();
    for (String own : own(Settings.of(conf))) {
      Path root = Path.of(own).getParent();
      for (String told : conf.get("spark.local.dir", "").split(",")) {
        root = !told.isEmpty() && Path.of(own).startsWith(told) ? Path.of(told) : root;
      }
      found.add(root);
    }
    return found;
  }

  private void run() {
    try {
      while (true) {
        long size = size();
        synchronized (Spills.class) {
          if (current != this) {
            return;
          }
          if (size > most && !full) {
            LOG.warn("tierstore: {} bytes of Spark's own files below {}, spark.tierstore.spill = {}", size, roots, most);
          }
          full = size > most;
        }
        Thread.sleep(LOOK_MS);
      }
    } catch (InterruptedException e) {
      // nobody has a reason to
    }
  }

  private long size() {
    long size = 0;
    for (Path root : roots) {
      size += size(root);
    }
    return size;
  }

  private static long size(Path root) {
    long[] size = {0};
    try {
      Files.walkFileTree(root, new SimpleFileVisitor<>() {
        @Override
        public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) {
          size[0] += attributes.size();
          return FileVisitResult.CONTINUE;
        }

        @Override
        public FileVisitResult visitFileFailed(Path file, IOException e) {
          return FileVisitResult.CONTINUE; // it has been removed meanwhile
        }

        @Override
        public FileVisitResult postVisitDirectory(Path directory, IOException e) {
          return FileVisitResult.CONTINUE;
        }
      });
    } catch (IOException e) {
      LOG.debug("tierstore: {}", e.toString());
    }
    return size[0];
  }
}
