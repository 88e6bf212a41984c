package io.tierstore.spark;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import java.util.Map;
import org.apache.spark.sql.connector.expressions.Expression;
import org.apache.spark.sql.connector.expressions.Literal;
import org.apache.spark.sql.connector.expressions.NamedReference;
import org.apache.spark.sql.connector.expressions.filter.Predicate;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DateType;
import org.apache.spark.sql.types.Decimal;
import org.apache.spark.sql.types.TimestampNTZType;
import org.apache.spark.sql.types.TimestampType;
import org.apache.spark.unsafe.types.UTF8String;

/** Spark's predicates as terms of engines/spark_terms.py. */
final class ScanTerms {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;
  /** What a comparison becomes when its sides change places. */
  private static final Map<String, String> TURNED = Map.of("=", "=", "<", ">", "<=", ">=", ">", "<", ">=", "<=", "<>", "<>");

  private ScanTerms() {}

  /** A predicate as a term; null where there is none. The agent may still find no use for it. */
  static ArrayNode of(Expression expression) {
    if (!(expression instanceof Predicate predicate)) {
      return null;
    }
    Expression[] children = predicate.children();
    return switch (predicate.name()) {
      case "AND", "OR" -> both(predicate.name().toLowerCase(java.util.Locale.ROOT), of(children[0]), of(children[1]));
      case "NOT" -> negated(of(children[0]));
      case "IS_NULL" -> on("null", children[0], null);
      case "IS_NOT_NULL" -> on("valid", children[0], null);
      case "IN" -> among(children);
      case "<>" -> negated(comparison("=", children));
      case "=", "<", "<=", ">", ">=" -> comparison(predicate.name(), children);
      default -> null;
    };
  }

  private static ArrayNode both(String op, ArrayNode left, ArrayNode right) {
    return left == null || right == null ? null : JSON.arrayNode().add(op).add(left).add(right);
  }

  private static ArrayNode negated(ArrayNode term) {
    return term == null ? null : JSON.arrayNode().add("not").add(term);
  }

  private static ArrayNode comparison(String op, Expression[] sides) {
    if (sides[0] instanceof Literal<?> literal) {
      return value(literal) == null ? null : on(TURNED.get(op), sides[1], value(literal));
    }
    return sides[1] instanceof Literal<?> literal && value(literal) != null ? on(op, sides[0], value(literal)) : null;
  }

  private static ArrayNode among(Expression[] children) {
    ArrayNode values = JSON.arrayNode();
    for (int number = 1; number < children.length; number++) {
      JsonNode value = children[number] instanceof Literal<?> literal ? value(literal) : null;
      if (value == null) {
        return null;
      }
      values.add(value);
    }
    return on("in", children[0], values);
  }

  private static ArrayNode on(String op, Expression column, JsonNode value) {
    if (!(column instanceof NamedReference reference) || reference.fieldNames().length != 1) {
      return null;
    }
    ArrayNode made = JSON.arrayNode().add(op).add(reference.fieldNames()[0]);
    return value == null ? made : made.add(value);
  }

  /** A value; null for null, and for what is not compared. */
  private static JsonNode value(Literal<?> literal) {
    Object value = literal.value();
    DataType type = literal.dataType();
    if (value instanceof UTF8String text) {
      return JSON.textNode(text.toString());
    }
    if (value instanceof Boolean truth) {
      return JSON.booleanNode(truth);
    }
    if (type instanceof DateType && value instanceof Integer days) {
      return JSON.objectNode().put("date", days);
    }
    if ((type instanceof TimestampType || type instanceof TimestampNTZType) && value instanceof Long micros) {
      return JSON.objectNode().put("us", micros);
    }
    if (value instanceof Decimal number) {
      return JSON.objectNode().put("decimal", number.toJavaBigDecimal().toPlainString());
    }
    if (value instanceof Float || value instanceof Double) {
      double number = ((Number) value).doubleValue();
      return Double.isFinite(number) ? JSON.numberNode(number) : null;
    }
    boolean whole = value instanceof Long || value instanceof Integer || value instanceof Short || value instanceof Byte;
    return whole && isWhole(type) ? JSON.numberNode(((Number) value).longValue()) : null;
  }

  /** Whether values of a type are the numbers that they look like; intervals are not. */
  private static boolean isWhole(DataType type) {
    return switch (type.typeName()) {
      case "byte", "short", "integer", "long" -> true;
      default -> false;
    };
  }
}
