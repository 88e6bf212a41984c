"""Who has what until when: applications, their leases and shuffles, in memory only. The data are in the store."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator

from tierstore.ringbuf.errors import Expired, NotFound, Refused

from .apps import App, Attempts, Gone
from .names import Parsed

LOST = ""  # the digest of a secret that was lost; nobody's is like it


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(b"tierstore shuffle " + secret.encode()).hexdigest()


class Book:
    """Applications by name. Whoever reads or changes them holds ``turn``, which is never held while anything is waited for.

    now: the clock of leases.
    """

    def __init__(self, apps: dict[str, App], now: Callable[[], float]):
        self.apps, self.now, self.gone = apps, now, Gone()
        self.turn = threading.RLock()

    def app(self, name: str) -> App:
        """An application. Raises Expired, NotFound."""
        found = self.apps.get(name)
        if found is None:
            reason = self.gone.reason(name)
            if reason is not None:
                raise Expired(f"application {name!r} is gone: {reason}; start it again under another name")
            raise NotFound(f"application {name!r} is not known here; open a shuffle of it first")
        return found

    def shuffle(self, app: str, number: int) -> tuple[App, Attempts]:
        """A shuffle and its application. Raises Expired, NotFound."""
        found = self.app(app)
        attempts = found.shuffles.get(number)
        if attempts is None:
            reason = self.gone.reason(app, number)
            if reason is not None:
                raise Expired(f"shuffle {number} of application {app!r} is gone: {reason}")
            raise NotFound(f"shuffle {number} of application {app!r} is not known here; open it first")
        return found, attempts

    def why(self, app: str, number: int, attempt: tuple[int, str]) -> str:
        """Why the output of an attempt is not there. Raises Expired."""
        try:
            _, attempts = self.shuffle(app, number)
        except NotFound as error:
            if isinstance(error, Expired):
                raise
            return str(error)
        state = attempts.states.get(attempt)
        if state is None:
            return "no such attempt was written here, or it was lost with an earlier life of the store"
        return "it is there" if state.committed else "it was never committed"

    def renew(self, app: App, here: bool = True) -> None:
        """The lease begins anew. here: a process of this node asked for it, so other nodes are to be told."""
        app.until = self.now() + app.lease_s
        if here:
            app.renewed_here = self.now()

    @contextlib.contextmanager
    def at_work(self, name: str) -> Iterator[App]:
        """Within this an application's lease does not end. Raises Expired, NotFound."""
        with self.turn:
            app = self.app(name)
            app.busy += 1
        try:
            yield app
        finally:
            with self.turn:
                app.busy -= 1
                self.renew(app)

    def due(self) -> list[str]:
        """Applications whose lease has ended."""
        now = self.now()
        return [name for name, app in self.apps.items() if app.until <= now and not app.busy]

    def forgive(self, seconds: float) -> None:
        """This process stood still for so long: nobody could renew anything."""
        with self.turn:
            for app in self.apps.values():
                app.until += seconds

    def authorize(self, name: str, digest: str) -> App:
        """An application, for those who know the digest of its secret. Raises Refused, Expired, NotFound."""
        app = self.app(name)
        if app.secret == LOST or not hmac.compare_digest(app.secret, digest):
            raise Refused(f"application {name!r} was opened with another secret")
        return app

    def forget(self, app: str, number: int, reason: str) -> Attempts | None:
        """Take a shuffle out, and say from now on why it is gone; what it had."""
        with self.turn:
            self.gone.note(reason, app, number)
            owner = self.apps.get(app)
            return owner.shuffles.pop(number, None) if owner is not None else None

    def knows(self, key: Parsed) -> bool:
        """Whether a key belongs to something. Those of applications alone always do: they may be about to be opened."""
        if key.shuffle is None:
            return True
        owner = self.apps.get(key.app)
        attempts = owner.shuffles.get(key.shuffle) if owner is not None else None
        if attempts is None or key.map_index is None or key.attempt is None:
            return attempts is not None
        state = attempts.states.get((key.map_index, key.attempt))
        if state is None or key.sequence is None or key.nonce is None:
            return state is not None
        return key.sequence < state.runs.get(key.nonce, 0)
