package io.tierstore.spark;

import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.SparkConf;
import org.apache.spark.api.java.JavaRDD;
import org.apache.spark.rdd.RDD;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.catalyst.expressions.Attribute;
import org.apache.spark.sql.columnar.CachedBatch;
import org.apache.spark.sql.columnar.SimpleMetricsCachedBatchSerializer;
import org.apache.spark.sql.execution.columnar.DefaultCachedBatchSerializer;
import org.apache.spark.sql.internal.SQLConf;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.vectorized.ColumnarBatch;
import org.apache.spark.storage.StorageLevel;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;

/**
 * {@code df.cache()} in the store: Spark's block manager keeps small handles, the store the data as Arrow, and readers
 * map them. Filters on the bounds of batches are Spark's own.
 *
 * <p>What Arrow cannot hold, and everything once the store was away when a cache was begun, is left to Spark's own
 * serializer. Which it was is seen in the lineage of what is read, so plans that were made before stay right.
 */
public final class TierCacheSerializer extends SimpleMetricsCachedBatchSerializer {
  private static final long serialVersionUID = 1;
  private final DefaultCachedBatchSerializer plain = new DefaultCachedBatchSerializer();

  @Override
  public boolean supportsColumnarInput(Seq<Attribute> schema) {
    return false; // rows are written to Arrow as they come; Spark's columnar sources are not Arrow either
  }

  /** Nested values come to Spark's operators faster by rows, see StoredValue; its own serializer gives them so too. */
  @Override
  public boolean supportsColumnarOutput(StructType schema) {
    StructType stored = Caches.wanted() ? CacheTypes.stored(schema) : null;
    return plain.supportsColumnarOutput(schema)
        || stored != null && Arrays.stream(stored.fields()).noneMatch(field -> StoredValue.nested(field.dataType()));
  }

  @Override
  public RDD<CachedBatch> convertColumnarBatchToCachedBatch(
      RDD<ColumnarBatch> input, Seq<Attribute> schema, StorageLevel level, SQLConf conf) {
    throw new IllegalStateException("supportsColumnarInput() is false");
  }

  @Override
  public RDD<CachedBatch> convertInternalRowToCachedBatch(
      RDD<InternalRow> input, Seq<Attribute> schema, StorageLevel level, SQLConf conf) {
    StructType stored = CacheTypes.stored(schema);
    Caches.Place place = stored == null ? null : Caches.begin(input.sparkContext().conf());
    if (place == null) {
      return plain.convertInternalRowToCachedBatch(input, schema, level, conf);
    }
    int rows = conf.columnBatchSize();
    JavaRDD<CachedBatch> made = input.toJavaRDD().mapPartitionsWithIndex(
        (partition, found) -> new CacheWriter(place, partition, found, stored, rows), true);
    return made.rdd().setName(Caches.NAME + place.number());
  }

  @Override
  public RDD<ColumnarBatch> convertCachedBatchToColumnarBatch(
      RDD<CachedBatch> input, Seq<Attribute> cached, Seq<Attribute> selected, SQLConf conf) {
    Caches.Place place = Caches.of(input, input.sparkContext().conf());
    StructType stored = CacheTypes.stored(cached);
    if (place != null) {
      int[] columns = positions(cached, selected);
      return input.toJavaRDD().mapPartitionsWithIndex(
          (partition, found) -> batches(place, partition, found, stored, columns), true).rdd();
    }
    if (plain.supportsColumnarOutput(CacheRows.schema(cached))) {
      return plain.convertCachedBatchToColumnarBatch(input, cached, selected, conf);
    }
    // Planned while it was to be ours.
    int rows = conf.columnBatchSize();
    StructType chosen = CacheTypes.stored(selected);
    return plain.convertCachedBatchToInternalRow(input, cached, selected, conf).toJavaRDD().mapPartitions(
        found -> CacheRows.batches(found, chosen, rows), true).rdd();
  }

  @Override
  public RDD<InternalRow> convertCachedBatchToInternalRow(
      RDD<CachedBatch> input, Seq<Attribute> cached, Seq<Attribute> selected, SQLConf conf) {
    Caches.Place place = Caches.of(input, input.sparkContext().conf());
    if (place == null) {
      return plain.convertCachedBatchToInternalRow(input, cached, selected, conf);
    }
    StructType stored = CacheTypes.stored(cached);
    StructType chosen = CacheTypes.stored(selected);
    int[] columns = positions(cached, selected);
    return input.toJavaRDD().mapPartitionsWithIndex((partition, found) ->
        CacheRows.rows(batches(place, partition, found, stored, columns), chosen), true).rdd();
  }

  private static CacheReader batches(
      Caches.Place place, int partition, Iterator<CachedBatch> found, StructType stored, int[] columns) {
    return new CacheReader(place, partition, found, CacheTypes.arrow(stored), columns);
  }

  private static int[] positions(Seq<Attribute> cached, Seq<Attribute> selected) {
    List<Attribute> all = CollectionConverters.asJava(cached);
    List<Attribute> wanted = CollectionConverters.asJava(selected);
    int[] found = new int[wanted.size()];
    for (int number = 0; number < found.length; number++) {
      int position = 0;
      while (!all.get(position).exprId().equals(wanted.get(number).exprId())) {
        position++;
      }
      found[number] = position;
    }
    return found;
  }
}
