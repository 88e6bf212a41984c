"""The daemon's side of shuffles: applications and their leases, commits, drops. One object per engine.

What is kept is in the store itself, as KEEP objects (names.py); this registry is an index of their keys, rebuilt from them
at start. A commit is the publication of its manifest, one store in the store's index: before it nothing of the attempt can
be read, after it everything can, and nothing can change it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tierstore.cache.engine import Engine
from tierstore.cache.inside import store_inside
from tierstore.cache.lean import Lean
from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import Conflict, Expired, Full, NotFound, Refused

from . import manifest as manifests
from .apps import App, Attempts, Gone, State, committed, listing, terms_of
from .matching import check_runs
from .names import (
    CALLS,
    PARTITIONS_MAX,
    Attempt,
    app_key,
    check_attempt,
    check_name,
    check_number,
    shuffle_key,
)
from .network import Alone, Network
from .recovering import LEASE_S, incarnation_of, recover_apps
from .replication import Replicator
from .telling import Teller

log = logging.getLogger("tierstore")

RENEWALS = 4  # of the leases of copies, in the time one lasts
LEASE_S_MIN, LEASE_S_MAX = 1.0, 30 * 86400.0
TICK_S = 0.5


class Registry:
    """Serves the calls ``shuffle_*``. Callers: any thread; they take turns.

    now: the clock of leases.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        network: Network | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests, self._now, self._network = requests, now, network or Alone()
        self._replicator = Replicator(self, self._network)
        self.store = store_inside(engine, requests)
        self.lean = Lean(self.store)
        self._turn = threading.RLock()
        self._gone = Gone()
        self._draining = False
        self._step = engine.mutator.trap
        self.store_id = engine.mutator.store_id.hex()
        self._apps = recover_apps(self.store, now())
        self.incarnation = incarnation_of(engine, self.store)
        self._teller = Teller(self._network)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tierstore-shuffle", daemon=True)
        self._thread.start()
        requests.table.update(self.calls())
        requests.at_close.append(self.close)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """The requests it serves, by name."""
        return {name: getattr(self, name.removeprefix("shuffle_")) for name in CALLS}

    def close(self) -> None:
        """Stop counting leases, and give the handle up."""
        self._stop.set()
        self._thread.join()
        self._teller.close()
        self.store.close()

    # --- leases ---------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self.expire()
                self._renew_copies()
            except Exception:  # the next round tries again
                log.exception("dropping expired shuffles failed")

    def expire(self) -> None:
        """Drop the applications whose lease has ended."""
        with self._turn:
            for name in [name for name, app in self._apps.items() if app.until <= self._now()]:
                log.info("application %s: its lease ended, its shuffles are dropped", name)
                self._end(name, f"its lease of {self._apps[name].lease_s:g} s ended")

    def _renew_copies(self) -> None:
        """Let leases of copies on other nodes last as long as those here."""
        if self._network.replicas == 1 and self._network.node:
            return
        with self._turn:
            for name, app in self._apps.items():
                if app.renewed_copies + app.lease_s / RENEWALS < app.until - app.lease_s:
                    app.renewed_copies = app.until - app.lease_s
                    self._teller.tell("shuffle_touch", app=name, digest=app.secret)

    def open(
        self,
        app: str,
        shuffle: int,
        partitions: int,
        lease_s: float = LEASE_S,
        quota_bytes: int = 0,
        secret: str = "",
        digest: str = "",
    ) -> dict[str, Any]:
        """Begin a shuffle, or find it; the first of an application sets its terms. Raises Conflict, PermissionError.

        digest: of the secret, from other nodes.
        """
        digest = digest or digest_of(secret)
        check_name("app", app)
        check_number("shuffle", shuffle)
        check_number("partitions", partitions, PARTITIONS_MAX)
        if partitions == 0:
            raise ValueError("partitions 0 cannot be used: at least 1")
        if not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
            raise ValueError(f"lease_s {lease_s!r} cannot be used: {LEASE_S_MIN:g} to {LEASE_S_MAX:g} seconds")
        with self._turn:
            found = self._apps.get(app)
            if found is None:
                terms = {"lease_s": lease_s, "quota_bytes": quota_bytes, "secret": digest}
                self.store.put_bytes(app_key(app), json.dumps(terms).encode(), keep=True)
                found = self._apps[app] = App(lease_s, quota_bytes, 0.0, digest)
                self._gone.forget(app)
            self._authorize(app, digest)
            found.until = self._now() + found.lease_s
            known = found.shuffles.get(shuffle)
            if known is not None and known.partitions != partitions:
                raise Conflict(
                    f"shuffle {shuffle} of application {app!r} has {known.partitions} partitions, not {partitions}; "
                    "use another shuffle number, or drop it first"
                )
            if known is None:
                terms = {"partitions": partitions}
                self.store.put_bytes(shuffle_key(app, shuffle), json.dumps(terms).encode(), keep=True)
                found.shuffles[shuffle] = Attempts(partitions)
                self._gone.forget(app, shuffle)
            return {
                "lease_s": found.lease_s,
                "store_id": self.store_id,
                "incarnation": self.incarnation,
                "node": self._network.node,
                "nodes": self._network.names(),
            }

    def authorize(self, app: str, digest: str) -> None:
        """Let only those use an application who know the digest of its secret; renews its lease. Raises Refused, Expired."""
        with self._turn:
            self._authorize(app, digest)
            self.touch(app)

    def _authorize(self, app: str, digest: str) -> None:
        if not hmac.compare_digest(self._app(app).secret, digest):
            raise Refused(f"application {app!r} was opened with another secret")

    def touch(self, app: str) -> dict[str, Any]:
        """Renew an application's lease. Raises Expired, NotFound."""
        with self._turn:
            found = self._app(app)
            found.until = self._now() + found.lease_s
            return {"lease_s": found.lease_s, "incarnation": self.incarnation}

    def _app(self, app: str) -> App:
        found = self._apps.get(app)
        if found is None:
            reason = self._gone.reason(app)
            if reason is not None:
                raise Expired(f"application {app!r} is gone: {reason}; start it again under another name")
            raise NotFound(f"application {app!r} is not known here; open a shuffle of it first")
        return found

    def _shuffle(self, app: str, shuffle: int) -> tuple[App, Attempts]:
        found = self._app(app)
        attempts = found.shuffles.get(shuffle)
        if attempts is None:
            reason = self._gone.reason(app, shuffle)
            if reason is not None:
                raise Expired(f"shuffle {shuffle} of application {app!r} is gone: {reason}")
            raise NotFound(f"shuffle {shuffle} of application {app!r} is not known here; open it first")
        return found, attempts

    # --- attempts -------------------------------------------------------------------------------------------------------------

    def reserve(self, app: str, shuffle: int, map_index: int, attempt: str, sequence: int, size: int) -> bool:
        """Before a run is written: False where the application's quota has no room for it now.

        Raises: Conflict if the attempt is committed, Full if the run can never fit, Expired, NotFound.
        """
        check_attempt(app, shuffle, map_index, attempt)
        with self._turn:
            owner, attempts = self._shuffle(app, shuffle)
            owner.until = self._now() + owner.lease_s
            if self._draining:
                raise Full("this node is being drained and takes nothing new; write on another")
            state = attempts.attempt(map_index, attempt)
            if state.committed:
                raise Conflict(f"attempt {attempt!r} of map {map_index} is committed; nothing can be added to it")
            if owner.quota_bytes and size > owner.quota_bytes:
                raise Full(f"a run of {size} bytes exceeds the quota of application {app!r}, {owner.quota_bytes} bytes")
            if owner.quota_bytes and owner.used() + size > owner.quota_bytes:
                return False
            state.bytes += size
            state.runs = max(state.runs, sequence + 1)
            return True

    def commit(
        self,
        app: str,
        shuffle: int,
        map_index: int,
        attempt: str,
        manifest: str,
        durable: bool = False,
        copies: bool = True,
    ) -> dict[str, Any]:
        """Check a manifest (base64) against what is held, publish it, acknowledge it. The same again: the same answer.

        copies: store it on other nodes first, as configured.
        Raises: Expired, NotFound, PeerLost (too few took a copy), CorruptionError,
        Conflict (another manifest was committed, or runs are not what it says).
        """
        name = check_attempt(app, shuffle, map_index, attempt)
        raw = base64.b64decode(manifest, validate=True)
        parsed = manifests.decode(raw, f"the manifest of map {map_index}, attempt {attempt}")
        with self._turn:
            owner, attempts = self._shuffle(app, shuffle)
            owner.until = self._now() + owner.lease_s
            if parsed.partitions != attempts.partitions:
                raise Conflict(f"a manifest of {parsed.partitions} partitions in a shuffle of {attempts.partitions}")
            self._check(name, attempts, parsed, raw)
        # Not in turn: this may take long. What is copied cannot change, and who commits it twice stores the same twice.
        replicas = self._replicator.copy(name, raw, terms_of(owner, attempts), durable) if copies else []
        with self._turn:
            owner, attempts = self._shuffle(app, shuffle)
            if not self._check(name, attempts, parsed, raw):
                self._publish(name, attempts.attempt(map_index, attempt), parsed, raw, durable)
            if durable:
                self._requests.flush(name.key)
            return {
                "durability": "durable" if durable else "volatile",
                "incarnation": self.incarnation,
                "store_id": self.store_id,
                "node": self._network.node,
                "replicas": replicas,
            }

    def _check(self, name: Attempt, attempts: Attempts, parsed: manifests.Manifest, raw: bytes) -> bool:
        """Whether an attempt is committed, with this manifest; if it is not, it can be. Raises Conflict."""
        if attempts.attempt(name.map_index, name.attempt).committed:
            if bytes(self.store.get_bytes(name.key)) != raw:
                raise Conflict(f"attempt {name.attempt!r} of map {name.map_index} is committed with another manifest")
            return True
        check_runs(self._requests, name, parsed)
        return False

    def _publish(self, name: Attempt, state: State, parsed: manifests.Manifest, raw: bytes, durable: bool) -> None:
        """Runs first, so that what a manifest names is as durable as it is."""
        self._step("shuffle.checked")
        if durable:
            for sequence in range(len(parsed.runs)):
                self._requests.flush(name.run(sequence))
        self.store.put_bytes(name.key, raw, keep=True)
        self._step("shuffle.published")
        state.committed, state.bytes, state.runs = len(raw), parsed.total_bytes, len(parsed.runs)

    def abort(self, app: str, shuffle: int, map_index: int, attempt: str) -> None:
        """Give an attempt up: its runs go. Raises Conflict if it is committed."""
        name = check_attempt(app, shuffle, map_index, attempt)
        with self._turn:
            _, attempts = self._shuffle(app, shuffle)
            state = attempts.states.get((map_index, attempt))
            if state is None:
                return
            if state.committed:
                raise Conflict(f"attempt {attempt!r} of map {map_index} is committed; drop the shuffle instead")
            self._delete_attempt(name, state.runs)
            del attempts.states[map_index, attempt]

    # --- ends -----------------------------------------------------------------------------------------------------------------

    def drop(self, app: str, shuffle: int, everywhere: bool = True) -> int:
        """Delete a shuffle; how many attempts it had here. Cost: a delete per run, which are segments, not partitions.

        everywhere: on the other nodes too, soon.
        """
        with self._turn:
            owner, attempts = self._shuffle(app, shuffle)
            if everywhere:
                self._teller.tell("shuffle_drop", app=app, shuffle=shuffle, digest=owner.secret)
            return self._drop(app, owner, shuffle, attempts, "it was dropped")

    def _drop(self, app: str, owner: App, shuffle: int, attempts: Attempts, reason: str) -> int:
        self._gone.note(reason, app, shuffle)
        for (map_index, attempt), state in attempts.states.items():
            self._delete_attempt(Attempt(app, shuffle, map_index, attempt), state.runs)
            self._step("shuffle.dropping")
        self._delete(shuffle_key(app, shuffle))
        del owner.shuffles[shuffle]
        return len(attempts.states)

    def _delete_attempt(self, name: Attempt, runs: int) -> None:
        """The manifest first: what is named by one is whole."""
        self._delete(name.key)
        for sequence in range(runs):
            self._delete(name.run(sequence))

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            self.store.delete(key)

    def end(self, app: str, everywhere: bool = True) -> int:
        """An application is over: delete all it has; how many shuffles that were here.

        everywhere: on the other nodes too, soon.
        """
        with self._turn:
            owner = self._app(app)
            if everywhere:
                self._teller.tell("shuffle_end", app=app, digest=owner.secret)
            return self._end(app, "it ended")

    def _end(self, app: str, reason: str) -> int:
        owner = self._apps[app]
        count = len(owner.shuffles)
        for shuffle, attempts in list(owner.shuffles.items()):
            self._drop(app, owner, shuffle, attempts, reason)
        self._delete(app_key(app))
        del self._apps[app]
        self._gone.note(reason, app)
        return count

    # --- drain ----------------------------------------------------------------------------------------------------------------

    def drain(self, on: bool = True) -> list[list[Any]]:
        """Take nothing new from now on (or again); the committed attempts that move() is to bring elsewhere."""
        with self._turn:
            self._draining = on
            return committed(self._apps)

    def move(self, app: str, shuffle: int, map_index: int, attempt: str) -> str:
        """Store an attempt on another node; its name. Readers that find it gone here ask there. Raises PeerLost, NotFound."""
        name = check_attempt(app, shuffle, map_index, attempt)
        with self._turn:
            terms = terms_of(*self._shuffle(app, shuffle))
        return self._replicator.move(name, bytes(self.store.get_bytes(name.key)), terms)

    # --- questions ------------------------------------------------------------------------------------------------------------

    def why(self, app: str, shuffle: int, map_index: int, attempt: str) -> str:
        """Why the output of an attempt is not there. Raises Expired where it went with its owner's lease."""
        check_attempt(app, shuffle, map_index, attempt)
        with self._turn:
            try:
                _, attempts = self._shuffle(app, shuffle)
            except Expired:
                raise
            except NotFound as error:
                return str(error)
            state = attempts.states.get((map_index, attempt))
            if state is None:
                return "no such attempt was written here, or it was lost with an earlier life of the store"
            return "it is there" if state.committed else "it was never committed"

    def list(self) -> list[dict[str, Any]]:
        """Applications, their shuffles and what these hold."""
        with self._turn:
            return listing(self._apps, self._now())


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(b"tierstore shuffle " + secret.encode()).hexdigest()
