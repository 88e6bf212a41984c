"""Rung 2: blocks, tiers, cascade, recovery and the column cache."""
