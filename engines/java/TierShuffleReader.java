package io.tierstore.spark;

import org.apache.spark.Aggregator;
import org.apache.spark.InterruptibleIterator;
import org.apache.spark.ShuffleDependency;
import org.apache.spark.TaskContext;
import org.apache.spark.shuffle.ShuffleReadMetricsReporter;
import org.apache.spark.shuffle.ShuffleReader;
import org.apache.spark.util.TaskCompletionListener;
import org.apache.spark.util.collection.ExternalSorter;
import scala.Product2;
import scala.collection.Iterator;

/** Reads a range of partitions of exactly those attempts that Spark chose. */
final class TierShuffleReader<K, C> implements ShuffleReader<K, C> {
  private final TierShuffleManager manager;
  private final ShuffleDependency<K, ?, C> dependency;
  private final Wanted wanted;
  private final TaskContext context;
  private final ShuffleReadMetricsReporter metrics;

  TierShuffleReader(TierShuffleManager manager, ShuffleDependency<K, ?, C> dependency, Wanted wanted,
      TaskContext context, ShuffleReadMetricsReporter metrics) {
    this.manager = manager;
    this.dependency = dependency;
    this.wanted = wanted;
    this.context = context;
    this.metrics = metrics;
  }

  @Override
  @SuppressWarnings({"unchecked", "rawtypes"})
  public Iterator<Product2<K, C>> read() {
    Records records = new Records(manager, dependency, wanted, context, metrics);
    context.addTaskCompletionListener((TaskCompletionListener) done -> {
      records.close();
      context.taskMetrics().mergeShuffleReadMetrics();
    });
    Iterator rows = new InterruptibleIterator(context, records);
    if (dependency.aggregator().isDefined()) {
      Aggregator aggregator = dependency.aggregator().get();
      rows = dependency.mapSideCombine()
          ? aggregator.combineCombinersByKey(rows, context)
          : aggregator.combineValuesByKey(rows, context);
    }
    if (dependency.keyOrdering().isDefined()) {
      ExternalSorter sorter = Shims.sorter(context, dependency);
      rows = sorter.insertAllAndUpdateMetrics(rows);
    }
    return rows instanceof InterruptibleIterator ? rows : new InterruptibleIterator(context, rows);
  }
}
