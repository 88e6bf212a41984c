package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkContext;
import org.apache.spark.SparkEnv;
import org.apache.spark.sql.connector.catalog.TableCatalog;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.StructType;
import scala.jdk.javaapi.CollectionConverters;

/**
 * What is asked of a table: its options, the columns, and terms by which row groups are excluded. The driver's agent plans it.
 *
 * @param columns null for all
 * @param terms conditions in JSON, see engines/spark_terms.py
 */
record ScanQuery(Map<String, String> options, List<String> columns, List<String> terms) {
  /** What was planned. text: for the agents of executors. */
  record Planned(StructType schema, long rows, long bytes, String text, List<ScanPiece> pieces) {}

  /** What Spark's catalog adds to the options of a table, beside copies of them. */
  private static final Set<String> CATALOG = Set.of("location", "provider", "owner", "external", "is_managed_location",
      "comment", "collation", "view.default.collation");
  private static final String COPY = TableCatalog.OPTION_PREFIX;

  /** options: of a reader, or properties of a table of the catalog. */
  static ScanQuery of(Map<String, String> options) {
    Map<String, String> own = new TreeMap<>(String.CASE_INSENSITIVE_ORDER);
    String location = options.get(TableCatalog.PROP_LOCATION);
    if (location != null) {
      own.put("path", location);
    }
    options.forEach((name, value) -> {
      if (!name.startsWith(COPY) && !CATALOG.contains(name)) {
        own.put(name, value);
      }
    });
    return new ScanQuery(own, null, List.of());
  }

  ScanQuery with(List<String> columns, List<String> terms) {
    return new ScanQuery(options, columns, terms);
  }

  /** What is read, for people. */
  String target() {
    return options.getOrDefault("key", options.getOrDefault("path", options.getOrDefault("paths", "a table")));
  }

  /** Ask the agent. pieces: whether they are wanted too. Callers: the driver. */
  Planned plan(boolean pieces) {
    SparkConf conf = SparkEnv.get().conf();
    try {
      Answer answer = ScanAgent.of(conf).call(request(conf, pieces));
      List<ScanPiece> found = new ArrayList<>();
      for (JsonNode piece : answer.head().path("pieces")) {
        List<String> hosts = new ArrayList<>();
        piece.path(1).forEach(host -> hosts.add(host.asText()));
        found.add(new ScanPiece(piece.path(0).asText(), hosts.toArray(new String[0])));
      }
      StructType schema = (StructType) DataType.fromJson(answer.head().path("schema").toString());
      return new Planned(schema, answer.number("rows"), answer.number("bytes"), answer.text("plan"), found);
    } catch (IOException e) {
      throw new IllegalArgumentException("tierstore: " + target() + " cannot be read: " + e.getMessage(), e);
    }
  }

  private ObjectNode request(SparkConf conf, boolean pieces) throws IOException {
    ObjectNode head = Connection.head("scan_plan");
    ObjectNode given = head.putObject("options");
    options.forEach(given::put);
    if (columns != null) {
      columns.forEach(head.putArray("columns")::add);
    }
    ArrayNode filters = head.putArray("filters");
    for (String term : terms) {
      filters.add(Connection.parse(term));
    }
    if (pieces) {
      ArrayNode places = head.put("pieces", true).putArray("places");
      for (String place : CollectionConverters.asJava(SparkContext.getOrCreate().getExecutorMemoryStatus()).keySet()) {
        places.add(place);
      }
      head.put("driver", conf.get("spark.driver.host", ""));
    }
    return head;
  }
}
