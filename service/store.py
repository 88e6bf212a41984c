"""The store with everything that packages above the cache add to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tierstore.cache.store import Control
from tierstore.cache.store import Store as CacheStore
from tierstore.ringbuf.client import Session

if TYPE_CHECKING:
    from tierstore.shuffle.handle import Shuffle

    from .config import StoreConfig
    from .network import Nodes


class Store(CacheStore):
    """All tiers of one node, seen from one process; see tierstore.cache.store."""

    def __init__(self, session: Session, control: Control, pools: Mapping[str, int], config: StoreConfig | None = None):
        """config: to reach other nodes with; default: what load_config() finds."""
        super().__init__(session, control, pools)
        self._config = config
        self._nodes: Nodes | None = None

    def shuffle(
        self,
        app: str,
        number: int,
        partitions: int,
        *,
        lease_s: float = 120.0,
        quota: str | int = 0,
        pool: str = "default",
        renew: bool = True,
        secret: str = "",
    ) -> Shuffle:
        """A shuffle of an application: writers of its map tasks and readers of its partitions. Begins it, or finds it.

        app:     unique to one run of one application; all it has goes when it ends.  number: of the shuffle in it.
        lease_s: the application's data live so long after the last process that renews its lease is gone.
        secret:  who opens the application again, or reads it from another node, must know it.
        quota:   most bytes the application may hold, "10GiB"; 0: no limit. The first opening of an application sets
                 lease and quota.  pool: whose room the data take.  renew: whether this process renews the lease.
        Cost:    one call to the daemon.
        Raises:  Conflict (it is there with another number of partitions), ConfigError, ValueError.
        """
        from tierstore.shuffle.handle import Shuffle

        from .config import load_config, parse_size
        from .network import Nodes

        self._check_open()
        if self._nodes is None:
            self._nodes = Nodes(self._config or load_config().resolve())
            self.at_close.append(self._nodes.close)
        limit = quota if isinstance(quota, int) else parse_size(quota, "quota")
        return Shuffle(self, app, number, partitions, lease_s, limit, pool, renew, secret, self._nodes)
