"""tierstore: columnar blocks kept across memory, persistent memory and disk, handed out without copying.

import tierstore as ts
store = ts.connect()                    # the node's daemon, else an embedded store
store.put("k", table)
table = store.get("k", columns=["a"])   # zero-copy
"""

from typing import TYPE_CHECKING, Any

from tierstore.cache.store import Store
from tierstore.cache.stream import StreamWriter
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

if TYPE_CHECKING:
    from tierstore.cache.columns.dataset import Dataset

__version__ = "0.1.0"
__all__ = [
    "Closed",
    "ConfigError",
    "CorruptionError",
    "Dataset",
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


def __getattr__(name: str) -> Any:
    """What costs time to import and most programs do not name: a Dataset is made by Store.dataset()."""
    if name == "Dataset":
        from tierstore.cache.columns.dataset import Dataset

        return Dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
