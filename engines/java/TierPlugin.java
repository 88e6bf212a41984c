package io.tierstore.spark;

import java.io.IOException;
import java.util.Map;
import org.apache.spark.SparkConf;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.PluginContext;
import org.apache.spark.api.plugin.SparkPlugin;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** What users name in {@code spark.plugins}; it sets the rest. */
public final class TierPlugin implements SparkPlugin {
  @Override
  public DriverPlugin driverPlugin() {
    return new TierDriver();
  }

  @Override
  public ExecutorPlugin executorPlugin() {
    return new OnExecutor();
  }

  /** Starts the agent of an executor while its first tasks are on their way. */
  private static final class OnExecutor implements ExecutorPlugin {
    private static final Logger LOG = LoggerFactory.getLogger(TierPlugin.class);

    @Override
    public void init(PluginContext context, Map<String, String> extra) {
      SparkConf conf = context.conf();
      if ("driver".equals(context.executorID()) || Settings.of(conf).app.isEmpty()) {
        return;
      }
      Spills.watch(conf);
      Thread starter = new Thread(() -> {
        try {
          Agent.of(conf);
        } catch (IOException e) {
          LOG.warn("tierstore: {}; tasks will try again", e.getMessage());
        }
      }, "tierstore-first-agent");
      starter.setDaemon(true);
      starter.start();
    }

    @Override
    public void shutdown() {}
  }
}
