"""A registry that is made when it is first needed: most stores never have a shuffle."""

from __future__ import annotations

from collections.abc import Callable

from tierstore.cache.engine import Engine
from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import Closed

from .network import Network
from .registry import Registry


class Late:
    """Makes the registry at the first call ``shuffle_*`` (see Requests.late), or at get()."""

    def __init__(self, engine: Engine, requests: Requests, network: Network | None = None):
        self._requests = requests
        self._made: Registry | None = None
        self._make: Callable[[], Registry] | None = lambda: Registry(engine, requests, network)
        requests.late["shuffle"] = self._begin
        requests.at_close.append(self._forget)

    def _begin(self) -> None:
        assert self._make is not None
        self._made = self._make()

    def _forget(self) -> None:
        self._make = self._made = None  # with the circle open, the engine's memory goes with the last view

    def get(self) -> Registry:
        """The registry. Any thread."""
        self._requests.add_late("shuffle")
        if self._made is None:
            raise Closed("the daemon is stopping")
        return self._made

    def used(self) -> bool:
        """Whether it holds anything of an application. Any thread."""
        return self._made is not None and bool(self._made.book.apps)
