package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import org.apache.spark.Aggregator;
import org.apache.spark.Partitioner;
import org.apache.spark.ShuffleDependency;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskContext;
import org.apache.spark.scheduler.MapStatus;
import org.apache.spark.serializer.SerializerInstance;
import org.apache.spark.serializer.SerializerManager;
import org.apache.spark.shuffle.ShuffleWriteMetricsReporter;
import org.apache.spark.shuffle.ShuffleWriter;
import org.apache.spark.storage.BlockManagerId;
import scala.Option;
import scala.Product2;
import scala.collection.Iterator;

/** Writes the output of one try of a map task into the store. What is not committed cannot be read by anybody. */
final class TierShuffleWriter<K, V> extends ShuffleWriter<K, V> {
  /** With more partitions than this, records are put in order instead of going to a stream each. */
  static final int STREAMS_MAX = 200;
  /** Runs are written once they are about as long as this part of the room there is. */
  private static final double FULL = 0.95;

  private final TierShuffleManager manager;
  private final ShuffleDependency<K, V, ?> dependency;
  private final long mapId;
  private final TaskContext context;
  private final ShuffleWriteMetricsReporter metrics;
  private final long[] lengths;
  private final Partitions partitions;
  private final Buffers buffers;
  private AttemptWriter attempt;
  private MapStatus status;
  private long records;
  private boolean stopped;

  TierShuffleWriter(TierShuffleManager manager, ShuffleDependency<K, V, ?> dependency, long mapId, TaskContext context,
      ShuffleWriteMetricsReporter metrics) {
    this.manager = manager;
    this.dependency = dependency;
    this.mapId = mapId;
    this.context = context;
    this.metrics = metrics;
    int count = dependency.partitioner().numPartitions();
    lengths = new long[count];
    SerializerInstance serializer = dependency.serializer().newInstance();
    SerializerManager wrapping = SparkEnv.get().serializerManager();
    boolean sorted = count > STREAMS_MAX && dependency.serializer().supportsRelocationOfSerializedObjects();
    partitions = sorted
        ? new SortedPartitions(serializer, wrapping, dependency.shuffleId(), mapId, count)
        : new OpenPartitions(serializer, wrapping, dependency.shuffleId(), mapId, count);
    buffers = new Buffers(context.taskMemoryManager(), this::flush);
  }

  @Override
  @SuppressWarnings({"unchecked", "rawtypes"})
  public void write(Iterator<Product2<K, V>> given) throws IOException {
    Iterator<? extends Product2<?, ?>> rows = given;
    if (dependency.mapSideCombine()) {
      rows = ((Aggregator) dependency.aggregator().get()).combineValuesByKey((Iterator) given, context);
    }
    begin();
    Object[] sums = Shims.rowChecksums(dependency);
    RowChecks checks = sums == null ? null : new RowChecks(sums);
    Partitioner partitioner = dependency.partitioner();
    long most = 2 * manager.settings().buffer;
    while (rows.hasNext()) {
      Spills.check();
      Product2<?, ?> row = rows.next();
      int partition = partitioner.getPartition(row._1());
      if (checks != null) {
        checks.update(partition, row._1(), row._2());
      }
      buffers.adding(true);
      partitions.add(partition, row._1(), row._2());
      buffers.adding(false);
      records++;
      long held = partitions.held();
      if (partitions.waiting() > FULL * target() || held > most || held > buffers.getUsed() && !buffers.allows(held)) {
        flush();
      }
    }
    flush();
    JsonNode receipt = attempt.commit(records);
    metrics.incRecordsWritten(records);
    String host = SparkEnv.get().blockManager().blockManagerId().host();
    BlockManagerId location = Receipts.location(receipt, host);
    status = Shims.mapStatus(location, lengths, mapId, checks == null ? 0 : checks.total());
  }

  private void begin() throws IOException {
    attempt = new AttemptWriter(manager.agent(), manager.opening(dependency),
        manager.name("attempt", dependency.shuffleId()).put("map", context.partitionId())
            .put("attempt", Receipts.attempt(mapId)).put("durable", manager.settings().durable),
        lengths.length);
    // A task that is killed outside write() never comes to stop().
    context.addTaskCompletionListener((org.apache.spark.util.TaskCompletionListener) done -> release());
  }

  private long target() {
    return Math.min(attempt.room(), manager.settings().buffer);
  }

  /** Write what is held as a run. */
  private long flush() throws IOException {
    long held = partitions.held();
    if (held > 0) {
      long began = System.nanoTime();
      Chunks[] taken = partitions.take();
      attempt.write(taken);
      long written = 0;
      for (int partition = 0; partition < taken.length; partition++) {
        int size = taken[partition] == null ? 0 : taken[partition].size();
        lengths[partition] += size;
        written += size;
      }
      metrics.incBytesWritten(written);
      metrics.incWriteTime(System.nanoTime() - began);
    }
    long freed = buffers.getUsed();
    buffers.letGo();
    return freed;
  }

  @Override
  public Option<MapStatus> stop(boolean success) {
    if (stopped) {
      return Option.empty();
    }
    stopped = true;
    release();
    return success ? Option.apply(status) : Option.empty();
  }

  /** Uncommitted, it is dropped: the agent does that at the end of the connection. */
  private void release() {
    if (attempt != null) {
      attempt.close();
      attempt = null;
      buffers.letGo();
    }
  }

  @Override
  public long[] getPartitionLengths() {
    return lengths;
  }
}
