package io.tierstore.spark;

import java.io.IOException;
import scala.reflect.ClassTag;
import scala.reflect.ClassTag$;

/** Records on their way into partitions of bytes. One thread. */
abstract class Partitions {
  @SuppressWarnings("unchecked")
  static final ClassTag<Object> ANY = ClassTag$.MODULE$.Object();

  /** Bytes held, about. */
  abstract long held();

  /** Bytes that are waiting to be written, about. */
  abstract long waiting();

  abstract void add(int partition, Object key, Object value) throws IOException;

  /** All that was added since the last take, as serialized and wrapped bytes by partition; null where there are none. */
  abstract Chunks[] take() throws IOException;
}
