package io.tierstore.spark;

import java.util.Map;
import java.util.TreeMap;
import org.apache.spark.SparkConf;
import org.apache.spark.network.util.JavaUtils;
import org.apache.spark.network.util.ByteUnit;
import scala.Tuple2;

/** The settings {@code spark.tierstore.*}: all that there are, checked. */
final class Settings {
  static final String PREFIX = "spark.tierstore.";
  /** Name: what it takes. */
  static final Map<String, String> KNOWN = new TreeMap<>(Map.ofEntries(
      Map.entry("socket", "the path of the daemon's socket on every node"),
      Map.entry("python", "the Python that runs the agents"),
      Map.entry("pythonpath", "where that Python finds tierstore, if it is not installed"),
      Map.entry("dram", "a size such as 4GiB: nodes where no daemon answers start one with so much memory"),
      Map.entry("fallback", "auto (without a daemon: Spark's own shuffle) or never (an error)"),
      Map.entry("shuffle", "true or false: whether shuffles go to the store"),
      Map.entry("cache", "true or false: whether df.cache() keeps data in the store"),
      Map.entry("timeout", "a time such as 60s, at least 5s: how long an agent may say nothing about a request"),
      Map.entry("gc", "true or false: whether the driver collects garbage when the store fills"),
      Map.entry("lease", "a time such as 120s, at least 20s: how long data outlive the driver"),
      Map.entry("quota", "a size such as 10g, or 0 for none: the most that the application may hold"),
      Map.entry("spill", "a size such as 20g, or 0 for any: the most of Spark's own files below spark.local.dir on a node"),
      Map.entry("pool", "the name of a pool of the store"),
      Map.entry("durable", "true or false: whether a commit must survive power loss"),
      Map.entry("buffer", "a size from 1m to 1g: what a task holds before it writes"),
      Map.entry("app", "set by the plugin; not yours")));
  private static final double LEASE_MIN_S = 20;
  private static final double TIMEOUT_MIN_S = 5;

  final String socket;
  final String python;
  final String pythonPath;
  final String dram;
  final boolean fallback;
  final boolean shuffle;
  final boolean cache;
  final boolean gc;
  final long timeoutSeconds;
  final long leaseSeconds;
  final long quota;
  final long spill;
  final String pool;
  final boolean durable;
  final long buffer;
  final String app;

  private Settings(SparkConf conf) {
    for (Tuple2<String, String> pair : conf.getAllWithPrefix(PREFIX)) {
      if (!KNOWN.containsKey(pair._1())) {
        throw new IllegalArgumentException(PREFIX + pair._1() + " = " + pair._2()
            + " cannot be used: there is no such setting, but " + String.join(", ", KNOWN.keySet()));
      }
    }
    socket = conf.get(PREFIX + "socket", environment("TIERSTORE_SOCKET", ""));
    String worker = conf.get("spark.pyspark.python", environment("PYSPARK_PYTHON", "python3"));
    python = conf.get(PREFIX + "python", worker);
    pythonPath = conf.get(PREFIX + "pythonpath", "");
    dram = conf.get(PREFIX + "dram", "");
    fallback = choice(conf, "fallback", "auto", "auto", "never").equals("auto");
    shuffle = choice(conf, "shuffle", "true", "true", "false").equals("true");
    cache = choice(conf, "cache", "true", "true", "false").equals("true");
    gc = choice(conf, "gc", "true", "true", "false").equals("true");
    durable = choice(conf, "durable", "false", "true", "false").equals("true");
    pool = conf.get(PREFIX + "pool", "default");
    timeoutSeconds = seconds(conf, "timeout", "60s", TIMEOUT_MIN_S);
    leaseSeconds = seconds(conf, "lease", "120s", LEASE_MIN_S);
    quota = number(conf, "quota", "0", true);
    spill = number(conf, "spill", "0", true);
    buffer = number(conf, "buffer", "32m", true);
    if (buffer < 1 << 20 || buffer > 1 << 30) {
      throw impossible("buffer", conf.get(PREFIX + "buffer"));
    }
    app = conf.get(PREFIX + "app", "");
  }

  /** The settings of a configuration. Throws IllegalArgumentException, which names the setting and what it takes. */
  static Settings of(SparkConf conf) {
    return new Settings(conf);
  }

  private static String environment(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }

  private static String choice(SparkConf conf, String name, String otherwise, String... allowed) {
    String value = conf.get(PREFIX + name, otherwise);
    for (String one : allowed) {
      if (one.equals(value)) {
        return value;
      }
    }
    throw impossible(name, value);
  }

  private static long seconds(SparkConf conf, String name, String otherwise, double least) {
    long found = number(conf, name, otherwise, false);
    if (found < least) {
      throw impossible(name, conf.get(PREFIX + name));
    }
    return found;
  }

  private static long number(SparkConf conf, String name, String otherwise, boolean bytes) {
    String value = conf.get(PREFIX + name, otherwise);
    try {
      long found = bytes ? JavaUtils.byteStringAs(value, ByteUnit.BYTE) : JavaUtils.timeStringAsSec(value);
      if (found < 0) {
        throw impossible(name, value);
      }
      return found;
    } catch (NumberFormatException e) {
      throw impossible(name, value);
    }
  }

  private static IllegalArgumentException impossible(String name, String value) {
    return new IllegalArgumentException(PREFIX + name + " = " + value + " cannot be used: " + KNOWN.get(name));
  }
}
