package io.tierstore.spark;

import java.io.IOException;
import java.util.HashSet;
import java.util.Set;
import org.apache.spark.SparkConf;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The end of an application: all it has in the store goes, once. If this fails, it goes with its lease. */
final class Application {
  private static final Logger LOG = LoggerFactory.getLogger(Application.class);
  private static final Set<String> ENDED = new HashSet<>();

  private Application() {}

  static void end(SparkConf conf) {
    String app = Settings.of(conf).app;
    synchronized (ENDED) {
      if (app.isEmpty() || !ENDED.add(app)) {
        return;
      }
    }
    try {
      Agent.of(conf, 0).call(Connection.head("end").put("app", app));
    } catch (IOException e) {
      LOG.warn("tierstore: the data of {} were not dropped and go with its lease: {}", app, e.getMessage());
    }
  }

  /** Whether it ended in this JVM: what its last tasks still want is in vain. */
  static boolean ended(String app) {
    synchronized (ENDED) {
      return ENDED.contains(app);
    }
  }
}
