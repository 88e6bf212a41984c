package tierstore;

import io.tierstore.spark.TierSource;

/**
 * What {@code format("tierstore")} and {@code USING tierstore} find: Spark looks for a class of this name where no service has
 * the name, before it looks among the sources that Python registered. A service entry would find TierSource as well, but
 * Spark refuses a name that both a service and a Python source have, and a jar can come to a session that has the latter.
 */
public final class DefaultSource extends TierSource {}
