"""The engine inside the user's own process, for when no daemon runs."""

from __future__ import annotations

import os
from typing import Any

from tierstore.ringbuf.client import Session
from tierstore.ringbuf.errors import Closed

from .engine import Engine, EngineConfig
from .requests import Requests
from .store import Store


class EmbeddedControl:
    """Calls the engine directly."""

    def __init__(self, engine: Engine):
        self.engine, self.requests = engine, Requests(engine)
        self._pid, self._closed = os.getpid(), False

    def call(self, name: str, **arguments: Any) -> Any:
        """One request."""
        return self.requests.call(name, arguments)

    def alive(self) -> None:
        """The mutator is a thread of this process: it answers unless the store was closed or this is a forked child."""
        if self._closed or os.getpid() != self._pid:
            raise Closed("the embedded store of this handle was closed or belongs to the parent process; open another")

    def renew(self, session: Session) -> None:
        """There is never a new daemon."""

    def close(self) -> None:
        """Stop the engine."""
        if not self._closed and os.getpid() == self._pid:
            self._closed = True
            self.requests.close()
            self.engine.close()


def open_embedded(config: EngineConfig) -> Store:
    """Start an engine in this process and return its store; closing the store ends the engine."""
    engine = Engine(config)
    control = EmbeddedControl(engine)
    engine.start()
    session = Session(engine.admit(os.getpid(), own=True))
    return Store(session, control, engine.pools)
