"""Rung 3, the shuffle store: map output in runs ordered by partition, committed by manifests, read by receipts."""
