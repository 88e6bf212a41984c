"""Rung 5, adapters for query engines."""
