package io.tierstore.spark;

import java.util.Map;
import org.apache.spark.SparkEnv;
import org.apache.spark.sql.connector.catalog.Table;
import org.apache.spark.sql.connector.catalog.TableProvider;
import org.apache.spark.sql.connector.expressions.Transform;
import org.apache.spark.sql.execution.datasources.v2.python.PythonDataSourceV2;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.util.CaseInsensitiveStringMap;

/** Tables of {@code format("tierstore")}: Parquet files, or a table under a key of the store. */
public class TierSource implements TableProvider {
  static final String NAME = "tierstore";
  private static final String PYTHON_NAME = "tierstore_python";

  @Override
  public StructType inferSchema(CaseInsensitiveStringMap options) {
    if (isElsewhere(options.asCaseSensitiveMap())) {
      return python().inferSchema(options);
    }
    return ScanQuery.of(options.asCaseSensitiveMap()).plan(false).schema();
  }

  /** schema: as inferred; as the user or the catalog says; or of what is to be written. */
  @Override
  public Table getTable(StructType schema, Transform[] partitioning, Map<String, String> properties) {
    Map<String, String> options = new CaseInsensitiveStringMap(properties).asCaseSensitiveMap();
    return isElsewhere(options) ? python().getTable(schema, partitioning, properties) : new TierTable(schema, options);
  }

  @Override
  public boolean supportsExternalMetadata() {
    return true; // or what is written would have to be there already
  }

  /** Whether another daemon is meant than the one of this JVM's agent: then Python workers ask that one. */
  private static boolean isElsewhere(Map<String, String> options) {
    String asked = new CaseInsensitiveStringMap(options).get("socket");
    return asked != null && !asked.equals(Settings.of(SparkEnv.get().conf()).socket);
  }

  /** The source in Python. */
  static PythonDataSourceV2 python() {
    if (!Shims.hasPythonSource(PYTHON_NAME)) {
      throw new UnsupportedOperationException("tierstore: writing, and reading by way of another socket, are done by Python:"
          + " call tierstore.spark.register(spark) first");
    }
    PythonDataSourceV2 made = new PythonDataSourceV2();
    made.setShortName(PYTHON_NAME);
    return made;
  }
}
