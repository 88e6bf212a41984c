"""Rung 4: the daemon, its protocol, the client, metrics and the command line."""
