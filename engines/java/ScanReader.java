package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.apache.spark.sql.connector.metric.CustomTaskMetric;
import org.apache.spark.sql.connector.read.PartitionReader;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.vectorized.ColumnVector;
import org.apache.spark.sql.vectorized.ColumnarBatch;

/**
 * The batches of a piece, each valid until the next is asked for. Any thread, one at a time.
 *
 * <p>From its first batch to its end a reader counts as inside the agent ({@link Agent#enter}), as readers of cached data
 * do. If the agent dies, the batch at hand stays; the next is asked of another agent, which leaves out the rows given.
 */
final class ScanReader implements PartitionReader<ColumnarBatch> {
  private static final int TRIES = 3;

  private final SparkConf conf = SparkEnv.get().conf();
  private final String plan;
  private final StructType schema;
  private final ScanPiece piece;
  private Agent agent;
  private Lent lent;
  private ColumnarBatch current;
  private long given;
  private long mapped;
  private long sent;
  private boolean closed;

  ScanReader(String plan, StructType schema, ScanPiece piece) {
    this.plan = plan;
    this.schema = schema;
    this.piece = piece;
  }

  @Override
  public synchronized boolean next() throws IOException {
    for (int left = TRIES; ; left--) {
      if (closed) {
        return false; // the task has ended
      }
      try {
        open();
        Answer answer = lent.request(Connection.head("scan_next"));
        current = answer.number("rows") < 0 ? null : batch(answer);
        return current != null;
      } catch (IOException e) {
        letGo();
        if (e instanceof StoreException || left == 1 || Thread.currentThread().isInterrupted()) { // which closes connections
          throw e;
        }
      }
    }
  }

  private void open() throws IOException {
    if (lent != null) {
      return;
    }
    Agent found = ScanAgent.of(conf);
    found.enter();
    agent = found;
    lent = found.lend();
    ObjectNode head = Connection.head("scan_open").put("plan", plan).put("piece", piece.text()).put("skip", given);
    ArrayNode columns = head.putArray("columns");
    for (String name : schema.fieldNames()) {
      columns.add(name);
    }
    lent.request(head);
  }

  private ColumnarBatch batch(Answer answer) throws IOException {
    int rows = (int) answer.number("rows");
    JsonNode told = answer.head().path("columns");
    Columns columns = new Columns(agent, answer.body(), rows);
    ColumnVector[] made = new ColumnVector[schema.size()];
    for (int number = 0; number < made.length; number++) {
      made[number] = columns.of(told.path(number), schema.fields()[number].dataType());
      mapped += told.path(number).path("bytes").asLong();
    }
    given += rows;
    sent += answer.body().length;
    return new ColumnarBatch(made, rows);
  }

  @Override
  public ColumnarBatch get() {
    return current;
  }

  @Override
  public CustomTaskMetric[] currentMetricsValues() {
    return new CustomTaskMetric[] {
      new ScanMetrics.Value(ScanMetrics.MAPPED, mapped), new ScanMetrics.Value(ScanMetrics.SENT, sent)
    };
  }

  @Override
  public synchronized void close() {
    if (closed) {
      return;
    }
    closed = true;
    if (lent != null) {
      try {
        lent.request(Connection.head("scan_end"));
        lent.clean();
      } catch (IOException e) {
        // the connection is closed then, which ends the read too
      }
    }
    letGo();
  }

  private void letGo() {
    current = null;
    if (lent != null) {
      lent.close();
      lent = null;
    }
    if (agent != null) {
      agent.exit();
      agent = null;
    }
  }
}
