"""Rung 5, adapters for query engines: nothing is implemented here yet."""
