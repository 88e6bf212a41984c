"""The Arrow Flight endpoint: the store and its shuffles for any Arrow client; docs/FLIGHT.md is its reference.

endpoint.py (life), server.py (calls), commands.py (what clients say), objects.py and shuffles.py (what is done),
streams.py (both directions), errors.py. All but endpoint.py and commands.py import pyarrow.flight, which is loaded only where
an endpoint is configured.
"""
