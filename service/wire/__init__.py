"""The network between nodes: the daemon's frames over TCP, plain or TLS, with a token.

frames.py (what goes over), stream.py (one connection), server.py (Listener), client.py (Peer), security.py and address.py.
What is asked for and answered is not known here: a Listener is given handlers, a Peer is given names.
"""
