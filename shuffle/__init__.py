"""Rung 3, the remote shuffle store: nothing is implemented here yet."""
