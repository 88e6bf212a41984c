"""Spark: ``from tierstore.spark import configure, map_batches, register``; see docs/SPARK.md."""

from tierstore.engines.spark import configure, map_batches, register

__all__ = ["configure", "map_batches", "register"]
