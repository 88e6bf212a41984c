package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedDeque;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.spark.SparkConf;

/**
 * This JVM's way to the store of its node: a child process that is a client of the daemon, and mappings of the store's
 * files. Any thread.
 *
 * <pre>
 *   Agent agent = Agent.of(conf);
 *   try (Lent lent = agent.lend()) {                       // a connection; given back at the end
 *     Answer begun = lent.request(Connection.head("begin").put("key", key).put("size", size));
 *     agent.fill(begun, bytes);                            // into the store's memory
 *     lent.request(Connection.head("seal").put("id", begun.number("id")));
 *   }
 * </pre>
 *
 * <p>docs/SPARK.md lists the requests. Memory of the store is touched between {@link #enter} and {@link #exit} only, for
 * short times: when the agent has died, its slot is given back as soon as nobody is in between, and a new one is started
 * by the next {@link #of}.
 */
public final class Agent {
  /** How long an agent waits for a daemon that is being started again. */
  static final double RESTART_WAIT_S = 15;
  private static volatile Agent current;
  /** One that has no daemon and reads files. */
  private static Agent ofFiles;

  private final AgentProcess process;
  private final Arena[] arenas;
  private final Settings settings;
  private final AtomicInteger inside = new AtomicInteger();
  private final ConcurrentLinkedDeque<Connection> idle = new ConcurrentLinkedDeque<>();
  private volatile boolean retired;

  private Agent(AgentProcess process, Settings settings) {
    this.process = process;
    this.settings = settings;
    List<Arena> found = new ArrayList<>();
    for (JsonNode arena : process.hello.head().path("arenas")) {
      found.add(new Arena(arena.path("read").asText(), arena.path("write").asText(), arena.path("size").asLong()));
    }
    arenas = found.toArray(new Arena[0]);
    process.atEnd(this::retire);
  }

  /** The agent of this JVM; started at the first call, and again where it has died. */
  public static Agent of(SparkConf conf) throws IOException {
    // Nobody is waited for where a daemon can be started; but one that was there may come back, with its data.
    return of(conf, current == null && !Settings.of(conf).dram.isEmpty() ? 0 : RESTART_WAIT_S);
  }

  static synchronized Agent of(SparkConf conf, double waitSeconds) throws IOException {
    Settings settings = Settings.of(conf);
    if (current != null && current.alive() && current.settings.socket.equals(settings.socket)) {
      return current;
    }
    stopCurrent();
    current = new Agent(AgentProcess.start(settings, waitSeconds), settings);
    return current;
  }

  /** The agent of this JVM if there is one that works; else null. */
  static synchronized Agent present() {
    return current != null && current.alive() ? current : null;
  }

  /** An agent that knows no daemon, and reads files for scans. */
  static synchronized Agent ofFiles(SparkConf conf) throws IOException {
    if (ofFiles == null || !ofFiles.alive()) {
      Settings settings = Settings.of(conf);
      ofFiles = new Agent(AgentProcess.start(settings, -1), settings);
    }
    return ofFiles;
  }

  /** End the agents of this JVM, if there are any. */
  static synchronized void stop() {
    stopCurrent();
    if (ofFiles != null) {
      ofFiles.process.end();
      ofFiles = null;
    }
  }

  private static void stopCurrent() {
    if (current != null) {
      current.process.end();
      current = null;
    }
  }

  private boolean alive() {
    return !retired && process.alive();
  }

  /** What it said when it was started: version, store, segment (the most bytes of an object that is filled in place). */
  public Answer hello() {
    return process.hello;
  }

  /** Whether objects can be filled in place; else they are sent, by {@code put} and {@code run_put}. */
  public boolean writable() {
    return arenas.length > 0 && arenas[0].writable();
  }

  /** A connection, for one thread. */
  public Lent lend() throws IOException {
    Connection connection;
    do {
      connection = idle.poll();
    } while (connection != null && !connection.usable());
    if (retired) {
      throw new AgentLost("the agent ended; a new one is started by the next attempt");
    }
    return new Lent(this, connection == null ? process.connect() : connection);
  }

  void giveBack(Connection connection) {
    if (connection.usable() && !retired) {
      idle.push(connection);
    } else {
      connection.close();
    }
  }

  /** One request on a connection of its own. */
  public Answer call(ObjectNode head, ByteBuffer... body) throws IOException {
    try (Lent lent = lend()) {
      Answer answer = lent.request(head, body);
      lent.clean();
      return answer;
    }
  }

  /** Before memory of the store is touched. Then exit(), soon. */
  public void enter() throws AgentLost {
    inside.incrementAndGet();
    if (retired) { // looked at after the increment: retire() sets it, then waits for zero
      inside.decrementAndGet();
      throw new AgentLost("the agent ended, and with it what this task had mapped");
    }
  }

  /** After memory of the store was touched. */
  public void exit() {
    inside.decrementAndGet();
  }

  /** Memory of the store that an answer names by {@code arena} and {@code offset}. Touch it between enter() and exit(). */
  public ByteBuffer memory(long arena, long offset, int length, boolean writable) throws IOException {
    if (arena < 0 || arena >= arenas.length) {
      throw new IOException("there is no arena " + arena);
    }
    return arenas[(int) arena].range(offset, length, writable);
  }

  /** Fill an object that was begun; then seal it. */
  public void fill(Answer begun, ByteBuffer... parts) throws IOException {
    int size = 0;
    for (ByteBuffer part : parts) {
      size = Math.addExact(size, part.remaining());
    }
    enter();
    try {
      ByteBuffer target = memory(begun.number("arena"), begun.number("offset"), size, true);
      for (ByteBuffer part : parts) {
        target.put(part);
      }
    } finally {
      exit();
    }
  }

  /** The agent is dead: nobody enters any more; when the last one has left, its slot goes back to the daemon. */
  private void retire() {
    retired = true;
    try {
      while (inside.get() > 0) {
        Thread.sleep(1);
      }
    } catch (InterruptedException e) {
      return; // then the slot is held until this JVM ends, which is safe
    }
    Connection connection;
    while ((connection = idle.poll()) != null) {
      connection.close();
    }
    process.release();
  }
}
