"""Compiled loops of the shuffle: partition numbers, scatter into place, checks. Loaded by ..native, never imported else."""
