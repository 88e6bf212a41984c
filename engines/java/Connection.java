package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.EOFException;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.file.Path;

/**
 * One connection to the agent: a request, its answer, the next. Not for several threads at once.
 *
 * <p>What was begun over it and not finished (objects, an attempt, a read) goes when it is closed. Frames are those of
 * engines/spark_agent_wire.py. While the agent works on a request it says so every second; where it says nothing for
 * too long, {@link Watch} has it killed.
 */
public final class Connection implements AutoCloseable {
  private static final ObjectMapper JSON = new ObjectMapper();
  private static final int HEAD_MAX = 64 << 20;
  private final SocketChannel channel;
  private final Watch.Patience patience;
  private boolean broken;

  /** silent: what to do where the agent says nothing for so many seconds. */
  Connection(Path socket, long seconds, Runnable silent) throws IOException {
    channel = SocketChannel.open(StandardProtocolFamily.UNIX);
    patience = new Watch.Patience(seconds, () -> {
      silent.run();
      close(); // which ends the thread that waits, also if the agent cannot be killed
    });
    patience.begin();
    try {
      channel.connect(UnixDomainSocketAddress.of(socket)); // waits where the agent takes no connections
    } catch (IOException e) {
      channel.close();
      throw patience.over() ? unanswered("a connection", e) : e;
    } finally {
      patience.end();
    }
  }

  private AgentLost unanswered(String what, IOException cause) {
    AgentLost lost = new AgentLost("the agent lives but said nothing about " + what + " for " + patience.seconds
        + " s (spark.tierstore.timeout), so it was killed; the next attempt starts another");
    lost.initCause(cause);
    return lost;
  }

  /** The head of a request, to be filled in. */
  public static ObjectNode head(String op) {
    return JSON.createObjectNode().put("op", op);
  }

  static JsonNode parse(String text) throws IOException {
    return JSON.readTree(text);
  }

  /**
   * Send a request and return its answer.
   *
   * @throws StoreException where the agent answers with an error; the connection is good for more
   * @throws IOException where the agent does not answer, or is ending; the connection is of no more use
   */
  public Answer request(ObjectNode head, ByteBuffer... body) throws IOException {
    Answer answer = null;
    patience.begin();
    try {
      byte[] raw = JSON.writeValueAsBytes(head);
      int size = 0;
      for (ByteBuffer part : body) {
        size = Math.addExact(size, part.remaining());
      }
      ByteBuffer prefix = ByteBuffer.allocate(8 + raw.length).putInt(raw.length).putInt(size).put(raw).flip();
      write(prefix);
      for (ByteBuffer part : body) {
        write(part);
      }
      Answer said;
      do {
        said = frame();
      } while (said.head().has("working"));
      answer = said;
    } catch (IOException e) {
      throw patience.over() ? unanswered("`" + head.path("op").asText() + "`", e) : e;
    } finally {
      patience.end();
      broken = answer == null;
    }
    if (answer.text("error").equals("Closed")) { // another thread of it was told first that its store is gone: it is ending
      broken = true;
      throw new AgentLost("the agent is ending, because its daemon has another store now; the next attempt starts another");
    }
    if (answer.head().has("error")) {
      JsonNode maps = answer.head().path("maps");
      int[] numbers = new int[maps.size()];
      for (int i = 0; i < numbers.length; i++) {
        numbers[i] = maps.get(i).asInt();
      }
      throw new StoreException(answer.text("error"), answer.text("message"), numbers);
    }
    return answer;
  }

  private Answer frame() throws IOException {
    ByteBuffer lengths = read(8);
    int told = lengths.getInt();
    int sent = lengths.getInt();
    if (told < 0 || told > HEAD_MAX || sent < 0) {
      throw new IOException("the agent sent what is no frame");
    }
    JsonNode said = JSON.readTree(read(told).array());
    return new Answer(said, read(sent).array());
  }

  private void write(ByteBuffer data) throws IOException {
    while (data.hasRemaining()) {
      channel.write(data);
      patience.renew();
    }
  }

  private ByteBuffer read(int size) throws IOException {
    ByteBuffer data = ByteBuffer.allocate(size);
    while (data.hasRemaining()) {
      if (channel.read(data) < 0) {
        throw new EOFException("the agent hung up");
      }
      patience.renew();
    }
    return data.flip();
  }

  /** Whether requests can be sent: none was left without its answer. */
  boolean usable() {
    return !broken && channel.isOpen();
  }

  @Override
  public void close() {
    broken = true;
    try {
      channel.close();
    } catch (IOException e) {
      // nothing is lost with it
    }
  }
}
