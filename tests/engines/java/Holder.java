package io.tierstore.spark;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.util.Random;
import org.apache.spark.SparkConf;

/** A JVM that does as it is told line by line, in place of Spark's: tests kill it, and its agent, at chosen moments. */
public final class Holder {
  private static final SparkConf CONF = new SparkConf(false);
  private static Lent lent;
  private static Answer begun;
  private static Agent agent;
  private static ByteBuffer memory;

  private Holder() {}

  public static void main(String[] settings) throws Exception {
    for (String setting : settings) {
      String[] pair = setting.split("=", 2);
      CONF.set(pair[0], pair[1]);
    }
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    String line;
    while ((line = lines.readLine()) != null) {
      String said;
      try {
        said = obey(line.split(" "));
      } catch (Exception e) {
        said = e.getClass().getSimpleName() + " " + String.valueOf(e.getMessage()).replace('\n', ' ');
      }
      System.out.println(said);
      System.out.flush();
    }
    System.exit(0);
  }

  private static String obey(String[] words) throws Exception {
    switch (words[0]) {
      case "agent":
        agent = words.length > 1 ? Agent.of(CONF, 0) : Agent.of(CONF);
        return agent.hello().number("pid") + " " + agent.hello().number("slot");
      case "setting":
        SparkConf conf = new SparkConf(false).set(words[1], words[2]);
        Settings.of(conf);
        return "fine";
      case "check": // of so many bytes of a seeded generator, in one piece and in several
        byte[] data = new byte[Integer.parseInt(words[1])];
        new Random(7).nextBytes(data);
        Chunks chunks = new Chunks(size -> { });
        for (int at = 0; at < data.length; at += 1000) {
          chunks.write(data, at, Math.min(1000, data.length - at));
        }
        long whole = Checks.of(data, 0, data.length);
        return Long.toHexString(whole) + " " + Long.toHexString(chunks.check());
      case "begin":
        lent = agent.lend();
        begun = lent.request(Connection.head("begin").put("key", words[1]).put("size", Integer.parseInt(words[2])));
        return "begun";
      case "enter": // and write a part
        agent.enter();
        memory = agent.memory(begun.number("arena"), begun.number("offset"), Integer.parseInt(words[1]), true);
        fill((byte) 'x');
        return "inside";
      case "write":
        fill((byte) 'y');
        return "written";
      case "exit":
        agent.exit();
        return "outside";
      case "seal":
        lent.request(Connection.head("seal").put("id", begun.number("id")));
        lent.clean();
        lent.close();
        return "sealed";
      case "keys":
        return "keys " + agent.call(Connection.head("keys").put("prefix", words[1])).head().path("keys").size();
      case "pin":
        Answer pinned = agent.call(Connection.head("pin").put("key", words[1]));
        return pinned.number("arena") + " " + pinned.number("size");
      default:
        return "what is " + words[0] + "?";
    }
  }

  private static void fill(byte value) {
    for (int at = 0; at < memory.capacity(); at++) {
      memory.put(at, value);
    }
  }
}
