package io.tierstore.spark;

import java.util.HashMap;
import java.util.Map;
import org.apache.spark.SparkConf;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerStageSubmitted;
import org.apache.spark.scheduler.SparkListenerUnpersistRDD;
import org.apache.spark.storage.RDDInfo;
import scala.jdk.javaapi.CollectionConverters;

/**
 * Drops a cache when Spark unpersists its RDD: asked to, or because nobody refers to it any more. A serializer is not
 * told; and it does not know the persisted RDD, which Spark makes of the one that fills the cache. Stages name both.
 */
final class CacheListener extends SparkListener {
  private final SparkConf conf;
  private final Map<Integer, Integer> numbers = new HashMap<>(); // by persisted RDD; Spark calls us by one thread

  CacheListener(SparkConf conf) {
    this.conf = conf;
  }

  @Override
  public void onStageSubmitted(SparkListenerStageSubmitted event) {
    Iterable<RDDInfo> infos = CollectionConverters.asJava(event.stageInfo().rddInfos());
    Map<Integer, Integer> filling = new HashMap<>();
    for (RDDInfo info : infos) {
      int number = Caches.numberOf(info.name());
      if (number >= 0) {
        filling.put(info.id(), number);
      }
    }
    if (filling.isEmpty()) {
      return;
    }
    for (RDDInfo info : infos) {
      for (Object parent : CollectionConverters.asJava(info.parentIds())) {
        Integer number = filling.get((Integer) parent);
        if (number != null) {
          numbers.put(info.id(), number);
        }
      }
    }
  }

  @Override
  public void onUnpersistRDD(SparkListenerUnpersistRDD event) {
    Integer number = numbers.remove(event.rddId());
    if (number != null) {
      Caches.drop(conf, number);
    }
  }
}
