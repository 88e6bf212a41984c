package io.tierstore.spark;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.spark.ShuffleDependency;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskContext;
import org.apache.spark.serializer.SerializerInstance;
import org.apache.spark.serializer.SerializerManager;
import org.apache.spark.shuffle.FetchFailedException;
import org.apache.spark.shuffle.ShuffleReadMetricsReporter;
import org.apache.spark.storage.BlockId;
import org.apache.spark.storage.BlockManagerId;
import org.apache.spark.storage.ShuffleBlockId;
import scala.Tuple2;
import scala.Tuple3;
import scala.collection.AbstractIterator;
import scala.collection.Iterator;
import scala.collection.Seq;

/** The records of a range of partitions, stream after stream. One thread reads; another may close. */
final class Records extends AbstractIterator<Tuple2<Object, Object>> implements AutoCloseable {
  /** One attempt that is read. */
  private record Source(BlockManagerId location, long mapId, int mapIndex) {}

  private final TierShuffleManager manager;
  private final ShuffleDependency<?, ?, ?> dependency;
  private final Wanted wanted;
  private final TaskContext context;
  private final ShuffleReadMetricsReporter metrics;
  private final SerializerInstance serializer;
  private final SerializerManager wrapping;
  private List<Source> sources;
  private volatile PieceReader pieces;
  private Iterator<Tuple2<Object, Object>> current;
  private volatile boolean closed;

  Records(TierShuffleManager manager, ShuffleDependency<?, ?, ?> dependency, Wanted wanted, TaskContext context,
      ShuffleReadMetricsReporter metrics) {
    this.manager = manager;
    this.dependency = dependency;
    this.wanted = wanted;
    this.context = context;
    this.metrics = metrics;
    serializer = dependency.serializer().newInstance();
    wrapping = SparkEnv.get().serializerManager();
  }

  @Override
  public boolean hasNext() {
    while (current == null || !current.hasNext()) {
      if (closed) {
        return false;
      }
      current = following();
      if (current == null) {
        close();
        return false;
      }
    }
    return true;
  }

  @Override
  public Tuple2<Object, Object> next() {
    Tuple2<Object, Object> record = current.next();
    metrics.incRecordsRead(1);
    return record;
  }

  /** The records of the next piece, null at the end. */
  private Iterator<Tuple2<Object, Object>> following() {
    long began = System.nanoTime();
    PieceReader.Piece piece;
    try {
      Spills.check();
      if (pieces == null) {
        pieces = open();
        if (closed) { // meanwhile: close() did not see it
          pieces.close();
        }
      }
      piece = pieces.next();
    } catch (IOException e) {
      throw failed(e);
    } finally {
      metrics.incFetchWaitTime((System.nanoTime() - began) / 1_000_000);
    }
    if (piece == null) {
      return null;
    }
    int size = piece.data().remaining();
    if (piece.here()) {
      metrics.incLocalBytesRead(size);
      metrics.incLocalBlocksFetched(1);
    } else {
      metrics.incRemoteBytesRead(size);
      metrics.incRemoteBlocksFetched(1);
    }
    ShuffleBlockId id = new ShuffleBlockId(wanted.shuffleId(), sources.get(piece.receipt()).mapId(), piece.partition());
    return serializer.deserializeStream(wrapping.wrapStream(id, new PieceStream(pieces, piece)))
        .asKeyValueIterator();
  }

  private PieceReader open() throws IOException {
    ObjectNode read = manager.name("read", wanted.shuffleId())
        .put("first", wanted.startPartition()).put("last", wanted.endPartition());
    ArrayNode receipts = read.putArray("receipts");
    sources = new ArrayList<>(chosen().values());
    for (Source source : sources) {
      Receipts.add(receipts, source.location(), source.mapIndex(), source.mapId());
    }
    return new PieceReader(manager.agent(), manager.opening(dependency), read, wanted.startPartition());
  }

  /** The attempts that Spark chose and that have something for us. Spark leaves out what is empty. */
  private Map<Long, Source> chosen() throws IOException {
    Map<Long, Source> found = new LinkedHashMap<>();
    Iterator<Tuple2<BlockManagerId, Seq<Tuple3<BlockId, Object, Object>>>> told =
        SparkEnv.get().mapOutputTracker().getMapSizesByExecutorId(wanted.shuffleId(), wanted.startMap(),
            wanted.endMap(), wanted.startPartition(), wanted.endPartition());
    while (told.hasNext()) {
      Tuple2<BlockManagerId, Seq<Tuple3<BlockId, Object, Object>>> blocks = told.next();
      if (!Receipts.isOurs(blocks._1())) {
        throw new IOException("the output at " + blocks._1() + " is not in the store");
      }
      Iterator<Tuple3<BlockId, Object, Object>> each = blocks._2().iterator();
      while (each.hasNext()) {
        Tuple3<BlockId, Object, Object> block = each.next();
        long mapId = ((ShuffleBlockId) block._1()).mapId();
        found.putIfAbsent(mapId, new Source(blocks._1(), mapId, ((Number) block._3()).intValue()));
      }
    }
    return found;
  }

  /** What to tell Spark: that a map must run again, with its true number, or that this task failed. */
  private RuntimeException failed(IOException error) {
    if (error instanceof StoreException told && sources != null && !sources.isEmpty()
        && (told.kind.equals("LostMaps") || told.kind.equals("Expired") || told.kind.equals("NotFound"))) {
      Source lost = sources.get(0);
      for (Source source : sources) {
        if (told.maps.length > 0 && source.mapIndex() == told.maps[0]) {
          lost = source;
        }
      }
      return thrown(new FetchFailedException(lost.location(), wanted.shuffleId(), lost.mapId(), lost.mapIndex(),
          wanted.startPartition(), "tierstore: " + error.getMessage(), error));
    }
    context.killTaskIfInterrupted(); // an interrupt closes connections
    return thrown(error);
  }

  @SuppressWarnings("unchecked")
  private static <T extends Throwable> RuntimeException thrown(Throwable error) throws T {
    throw (T) error;
  }

  @Override
  public void close() {
    closed = true; // perhaps by the task's thread while another reads
    PieceReader open = pieces;
    if (open != null) {
      open.close();
    }
  }
}
