package io.tierstore.spark;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.spark.sql.connector.expressions.filter.Predicate;
import org.apache.spark.sql.connector.read.Scan;
import org.apache.spark.sql.connector.read.SupportsPushDownRequiredColumns;
import org.apache.spark.sql.connector.read.SupportsPushDownV2Filters;
import org.apache.spark.sql.types.StructField;
import org.apache.spark.sql.types.StructType;

/**
 * Takes the columns and the conditions of a query. Conditions only exclude row groups, by statistics: Spark applies them all
 * itself, in place, where the agent would have to copy what is left.
 */
final class TierScanBuilder implements SupportsPushDownRequiredColumns, SupportsPushDownV2Filters {
  private final ScanQuery table;
  private final StructType schema;
  private StructType wanted;
  private Predicate[] pushed = {};

  TierScanBuilder(ScanQuery table, StructType schema) {
    this.table = table;
    this.schema = schema;
    wanted = schema;
  }

  /** required: may have some of a struct's fields only; whole columns are read. */
  @Override
  public void pruneColumns(StructType required) {
    List<StructField> fields = new ArrayList<>();
    for (StructField field : required.fields()) {
      fields.add(schema.apply(field.name()));
    }
    wanted = new StructType(fields.toArray(new StructField[0]));
  }

  @Override
  public Predicate[] pushPredicates(Predicate[] predicates) {
    pushed = Arrays.stream(predicates).filter(one -> ScanTerms.of(one) != null).toArray(Predicate[]::new);
    return predicates;
  }

  @Override
  public Predicate[] pushedPredicates() {
    return pushed;
  }

  @Override
  public Scan build() {
    List<String> terms = Arrays.stream(pushed).map(one -> ScanTerms.of(one).toString()).toList();
    return new TierScan(table.with(List.of(wanted.fieldNames()), terms), wanted);
  }
}
