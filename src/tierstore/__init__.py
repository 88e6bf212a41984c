"""tierstore: columnar blocks kept across memory, persistent memory and disk, handed out without copying.

import tierstore as ts
store = ts.connect()                    # the node's daemon, else an embedded store
store.put("k", table)
table = store.get("k", columns=["a"])   # zero-copy
"""

from typing import TYPE_CHECKING, Any

from tierstore.cache.stream import StreamWriter
from tierstore.ringbuf.errors import (
    Closed,
    ConfigError,
    Conflict,
    CorruptionError,
    Expired,
    Full,
    InvalidKey,
    LostMaps,
    NotFound,
    PeerLost,
    TierstoreError,
)
from tierstore.service.client import connect, open  # noqa: A004
from tierstore.service.store import Store

if TYPE_CHECKING:
    from tierstore.cache.columns.dataset import Dataset
    from tierstore.shuffle.handle import Shuffle
    from tierstore.shuffle.receipt import Receipt

__version__ = "0.1.0"
__all__ = [
    "Closed",
    "ConfigError",
    "Conflict",
    "CorruptionError",
    "Dataset",
    "Expired",
    "Full",
    "InvalidKey",
    "LostMaps",
    "NotFound",
    "PeerLost",
    "Receipt",
    "Shuffle",
    "Store",
    "StreamWriter",
    "TierstoreError",
    "connect",
    "open",
]


def __getattr__(name: str) -> Any:
    """What costs time to import and most programs do not name: a Dataset is made by Store.dataset()."""
    if name == "Dataset":
        from tierstore.cache.columns.dataset import Dataset

        return Dataset
    if name == "Shuffle":
        from tierstore.shuffle.handle import Shuffle

        return Shuffle
    if name == "Receipt":
        from tierstore.shuffle.receipt import Receipt

        return Receipt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
