"""The connections of a server in this process that cannot be told to end them: found among our descriptors, and cut."""

from __future__ import annotations

import os
import socket
import stat
from urllib.parse import unquote


def cut_connections(port: int, peers: set[str] | None = None) -> int:
    """Cut the TCP connections to a local port; how many there were. Their owner finds them closed by the other side.

    peers: only those, as gRPC names them.
    """
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            copy = os.dup(int(name))
        except OSError:  # closed meanwhile
            continue
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            continue  # the number went to a file between the two: closing a copy would drop the locks on that
        with socket.socket(fileno=copy) as found:
            try:
                if found.family not in (socket.AF_INET, socket.AF_INET6) or found.getsockname()[1] != port:
                    continue
                peer = _name(found.getpeername())
                if peers is None or peer in peers:
                    found.shutdown(socket.SHUT_RDWR)
                    count += 1
            except OSError:  # not connected
                continue
    return count


def plain_name(peer: str) -> str:
    """ "host:port" of a peer as gRPC names it: ipv4:127.0.0.1:5, ipv6:%5B::1%5D:5."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return f"{host.strip('[]').removeprefix('::ffff:')}:{port}"


def _name(address: tuple[str, int]) -> str:
    return f"{address[0].removeprefix('::ffff:')}:{address[1]}"
