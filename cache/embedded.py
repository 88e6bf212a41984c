"""The engine inside the user's own process, for when no daemon runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

from tierstore.ringbuf.client import Session
from tierstore.ringbuf.errors import Closed

from .engine import Engine, EngineConfig
from .requests import Requests
from .store import Store

S = TypeVar("S", bound=Store)


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

    def answers(self) -> bool:
        """Whether the engine runs."""
        return not self._closed and os.getpid() == self._pid

    def renew(self, session: Session) -> None:
        """There is never a new daemon."""

    def close(self) -> None:
        """Stop the engine and give its memory back; pmem and disk files stay. Views handed out keep their mappings."""
        if not self._closed and os.getpid() == self._pid:
            self._closed = True
            self.requests.close()
            self.engine.close()
            shutil.rmtree(self.engine.config.folder, ignore_errors=True)
            del self.requests, self.engine  # and with them the mappings, unless views still need them


def open_embedded(config: EngineConfig, make: Callable[[Session, EmbeddedControl, dict[str, int]], S]) -> S:
    """Start an engine in this process and return its store, which ``make`` makes; closing the store ends the engine."""
    try:
        engine = Engine(config)
    except BaseException:
        shutil.rmtree(config.folder, ignore_errors=True)
        raise
    control = EmbeddedControl(engine)
    engine.start()
    session = Session(engine.admit(os.getpid(), own=True))
    return make(session, control, engine.pools)
