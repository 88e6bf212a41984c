package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The agent as a child process. It ends with this JVM, because its standard input does. */
final class AgentProcess {
  private static final Logger LOG = LoggerFactory.getLogger(AgentProcess.class);
  private static final String PROGRAM = "from tierstore.engines.spark_agent import main; main()";
  private static final int PROTOCOL = 2;
  private static final long END_S = 10;
  /** What the start of a daemon may take, which may have to compile its kernels: engines/node_daemon.py. */
  private static final long DAEMON_S = 120;
  /** Starts agents and holds their locks: a thread that nobody interrupts, see Slot. */
  private static final ExecutorService STARTER = Executors.newSingleThreadExecutor(work -> {
    Thread thread = new Thread(work, "tierstore-agent");
    thread.setDaemon(true);
    return thread;
  });

  final Answer hello;
  private final Path socket;
  private final Path directory;
  private final Process process;
  private final Slot slot; // null without a store
  private final long timeoutSeconds;
  private volatile boolean givenUp;

  private AgentProcess(Path directory, Process process, Path socket, Answer hello, Slot slot, long timeoutSeconds) {
    this.directory = directory;
    this.process = process;
    this.socket = socket;
    this.hello = hello;
    this.slot = slot;
    this.timeoutSeconds = timeoutSeconds;
  }

  /** waitSeconds: for the daemon; negative for an agent that reads files, without one. */
  static AgentProcess start(Settings settings, double waitSeconds) throws IOException {
    try {
      return CompletableFuture.supplyAsync(() -> {
        try {
          return launch(settings, waitSeconds);
        } catch (IOException e) {
          throw new CompletionException(e);
        }
      }, STARTER).join();
    } catch (CompletionException e) {
      if (e.getCause() instanceof IOException cause) {
        throw cause;
      }
      throw e;
    }
  }

  private static AgentProcess launch(Settings settings, double waitSeconds) throws IOException {
    Path directory = Files.createTempDirectory("tierstore-",
        PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
    Process process = null;
    try {
      List<String> command = new ArrayList<>(List.of(settings.python, "-c", PROGRAM,
          "--directory", directory.toString(), "--socket", settings.socket));
      command.addAll(waitSeconds < 0 ? List.of("--files") : List.of("--wait", Double.toString(waitSeconds)));
      if (!settings.dram.isEmpty()) {
        command.addAll(List.of("--dram", settings.dram));
      }
      for (String own : waitSeconds < 0 ? List.<String>of() : Spills.own(settings)) { // one agent's task
        command.addAll(List.of("--remove", own));
      }
      ProcessBuilder builder = new ProcessBuilder(command);
      builder.redirectError(ProcessBuilder.Redirect.INHERIT);
      builder.environment().put("PYTHONSAFEPATH", "1");
      if (!settings.pythonPath.isEmpty()) {
        builder.environment().merge("PYTHONPATH", settings.pythonPath, (own, more) -> more + File.pathSeparator + own);
      }
      Process started = builder.start();
      process = started;
      long waits = (long) Math.ceil(Math.max(0, waitSeconds)) + (settings.dram.isEmpty() ? 0 : DAEMON_S);
      JsonNode said = firstLine(process, settings, settings.timeoutSeconds + waits);
      Path socket = Path.of(said.path("socket").asText());
      try (Connection connection = new Connection(socket, settings.timeoutSeconds, started::destroyForcibly)) {
        Answer hello = connection.request(Connection.head("hello"));
        check(hello);
        Slot slot = waitSeconds < 0 ? null : Slot.hold(Path.of(hello.text("locks")), hello.number("slot"));
        connection.request(Connection.head("held"));
        return new AgentProcess(directory, process, socket, hello, slot, settings.timeoutSeconds);
      }
    } catch (IOException | RuntimeException e) {
      if (process != null) {
        process.destroyForcibly();
      }
      Files.deleteIfExists(directory.resolve("agent"));
      Files.deleteIfExists(directory);
      throw e;
    }
  }

  private static JsonNode firstLine(Process process, Settings settings, long seconds) throws IOException {
    String line;
    BufferedReader reader = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
    Watch.Patience patience = new Watch.Patience(seconds, process::destroyForcibly);
    patience.begin();
    try {
      line = reader.readLine();
    } finally {
      patience.end();
    }
    if (patience.over()) {
      throw new AgentLost("the agent did not start within " + seconds + " s, so it was killed (spark.tierstore.timeout)");
    }
    if (line == null) {
      throw new IOException("the agent did not start; does `" + settings.python + " -c 'import tierstore'` work here? "
          + "Settings: spark.tierstore.python, spark.tierstore.pythonpath");
    }
    JsonNode said = Connection.parse(line);
    if (said.has("error")) {
      throw new StoreException(said.path("error").asText(), said.path("message").asText(), new int[0]);
    }
    return said;
  }

  /** The jar and the Python package must be of one build. */
  private static void check(Answer hello) throws IOException {
    String ours = Version.text();
    if (hello.number("protocol") != PROTOCOL || !hello.text("version").equals(ours)) {
      throw new StoreException("ConfigError", "the jar is of tierstore " + ours + " and the Python package on this host of "
          + hello.text("version") + " (protocols " + PROTOCOL + " and " + hello.number("protocol")
          + "): install one version everywhere, and use the jar that `tierstore spark` names", new int[0]);
    }
  }

  boolean alive() {
    return !givenUp && process.isAlive();
  }

  /** A connection for one thread. */
  Connection connect() throws IOException {
    return new Connection(socket, timeoutSeconds, this::giveUp);
  }

  /** It does not answer. Its end, however late that comes, is dealt with as any other: see atEnd(). */
  private void giveUp() {
    givenUp = true;
    LOG.warn("tierstore: agent {} has not answered for {} s and is killed", process.pid(), timeoutSeconds);
    process.destroyForcibly();
  }

  /** What to do when it has ended, however. */
  void atEnd(Runnable work) {
    process.onExit().thenRunAsync(work, task -> {
      Thread thread = new Thread(task, "tierstore-agent-end");
      thread.setDaemon(true);
      thread.start();
    });
  }

  /** Nobody touches what it leased or pinned any more. */
  void release() {
    STARTER.execute(() -> {
      try {
        if (slot != null) {
          slot.release();
        }
        Files.deleteIfExists(directory.resolve("agent"));
        Files.deleteIfExists(directory);
      } catch (IOException e) {
        LOG.warn("after the end of the agent: {}", e.toString());
      }
    });
  }

  /** Have it end, and wait for that. */
  void end() {
    try {
      process.getOutputStream().close();
      if (!process.waitFor(END_S, TimeUnit.SECONDS)) {
        process.destroyForcibly();
      }
    } catch (IOException e) {
      process.destroyForcibly();
    } catch (InterruptedException e) {
      process.destroyForcibly();
      Thread.currentThread().interrupt();
    }
  }
}
