"""tierstore: columnar blocks kept across memory, persistent memory and disk, handed out without copying.

import tierstore as ts
store = ts.connect()                    # the node's daemon, else an embedded store
store.put("k", table)
table = store.get("k", columns=["a"])   # zero-copy
"""

from tierstore.cache.store import Store, StreamWriter
from tierstore.ringbuf.errors import (
    Closed,
    ConfigError,
    CorruptionError,
    Full,
    InvalidKey,
    NotFound,
    PeerLost,
    TierstoreError,
)
from tierstore.service.client import connect, open  # noqa: A004

__version__ = "0.1.0"
__all__ = [
    "Closed",
    "ConfigError",
    "CorruptionError",
    "Full",
    "InvalidKey",
    "NotFound",
    "PeerLost",
    "Store",
    "StreamWriter",
    "TierstoreError",
    "connect",
    "open",
]
