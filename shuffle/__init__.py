"""Rung 3, the remote shuffle store: partition numbers, runs ordered by partition, and checks of their slices."""
