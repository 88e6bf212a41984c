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
import uuid
from collections.abc import Callable
from typing import Any

from tierstore.cache.engine import Engine
from tierstore.cache.inside import root_of, store_inside
from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import Conflict, Expired, Full, NotFound

from . import manifest as manifests
from .apps import App, Attempts, Gone
from .names import (
    CALLS,
    PARTITIONS_MAX,
    PREFIX,
    Attempt,
    app_key,
    check_attempt,
    check_name,
    check_number,
    parse,
    shuffle_key,
)

log = logging.getLogger("tierstore")

LEASE_S = 120.0
LEASE_S_MIN, LEASE_S_MAX = 1.0, 30 * 86400.0
TICK_S = 0.5
INCARNATION_KEY = PREFIX.rstrip("/")  # no application can have this key


class Registry:
    """Serves the calls ``shuffle_*``. Callers: any thread; they take turns.

    node: "host:port" at which other nodes reach this store, "" if they do not.  now: the clock of leases.
    """

    def __init__(
        self, engine: Engine, requests: Requests, node: str = "", now: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests, self._now, self.node = requests, now, node
        self.store = store_inside(engine, requests)
        self._turn = threading.RLock()
        self._apps: dict[str, App] = {}
        self._gone = Gone()
        self._step = engine.mutator.trap
        self.store_id = engine.mutator.store_id.hex()
        self._recover()
        self.incarnation = self._incarnation(engine)
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
        self.store.close()

    # --- start ----------------------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find what earlier lives left: applications get their whole lease again."""
        for key in self.store.keys(PREFIX):
            parsed = parse(key)
            if parsed is None:
                continue
            app = self._apps.get(parsed.app)
            if app is None:
                app = self._apps[parsed.app] = self._recovered(parsed.app)
            if parsed.shuffle is None:
                continue
            shuffle = app.shuffles.setdefault(parsed.shuffle, Attempts(0))
            if parsed.map_index is None:
                shuffle.partitions = int(json.loads(bytes(self.store.get_bytes(key)))["partitions"])
            elif parsed.attempt is not None:
                name = (parsed.map_index, parsed.attempt)
                state = shuffle.attempt(*name)
                if parsed.sequence is None:
                    state.committed = int(self.store.info(key)["bytes"])
                    state.bytes = manifests.HEADER.unpack_from(self.store.get_bytes(key))[6]
                else:
                    state.runs = max(state.runs, parsed.sequence + 1)

    def _recovered(self, name: str) -> App:
        """An application as its object says; with default terms where that was lost."""
        try:
            values = json.loads(bytes(self.store.get_bytes(app_key(name))))
            return App(values["lease_s"], values["quota_bytes"], self._now() + values["lease_s"], values["secret"])
        except (NotFound, KeyError, ValueError):
            log.warning("the terms of application %r were lost; it gets a lease of %g s", name, LEASE_S)
            return App(LEASE_S, 0, self._now() + LEASE_S, "unknown")

    def _incarnation(self, engine: Engine) -> str:
        """The life of this store's KEEP data: a new one when any of it could not be recovered.

        What was in memory is not counted as lost where memory began empty; so that alone makes a new one too.
        """
        if engine.mutator.arenas[0].warm and engine.recovery.lost_keep == 0 and not engine.recovery.damaged:
            with contextlib.suppress(NotFound):
                return bytes(self.store.get_bytes(INCARNATION_KEY)).decode()
        made = uuid.uuid4().hex
        self.store.put_bytes(INCARNATION_KEY, made.encode(), keep=True)
        return made

    # --- leases ---------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self.expire()
            except Exception:  # the next round tries again
                log.exception("dropping expired shuffles failed")

    def expire(self) -> None:
        """Drop the applications whose lease has ended."""
        with self._turn:
            for name in [name for name, app in self._apps.items() if app.until <= self._now()]:
                log.info("application %s: its lease ended, its shuffles are dropped", name)
                self._end(name, f"its lease of {self._apps[name].lease_s:g} s ended")

    def open(
        self,
        app: str,
        shuffle: int,
        partitions: int,
        lease_s: float = LEASE_S,
        quota_bytes: int = 0,
        secret: str = "",
    ) -> dict[str, Any]:
        """Begin a shuffle, or find it; the first of an application sets its terms. Raises Conflict, PermissionError."""
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
                terms = {"lease_s": lease_s, "quota_bytes": quota_bytes, "secret": _digest(secret)}
                self.store.put_bytes(app_key(app), json.dumps(terms).encode(), keep=True)
                found = self._apps[app] = App(lease_s, quota_bytes, 0.0, _digest(secret))
                self._gone.forget(app)
            self.authorize(app, secret)
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
            place = {"store_id": self.store_id, "incarnation": self.incarnation, "node": self.node}
            return {"lease_s": found.lease_s, **place}

    def authorize(self, app: str, secret: str) -> None:
        """Let only those who know an application's secret, if it has one, use it. Raises PermissionError, Expired, NotFound."""
        with self._turn:
            if not hmac.compare_digest(self._app(app).secret, _digest(secret)):
                raise PermissionError(f"application {app!r} was opened with another secret")

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
        self, app: str, shuffle: int, map_index: int, attempt: str, manifest: str, durable: bool = False
    ) -> dict[str, Any]:
        """Check a manifest (base64) against what is held, publish it, acknowledge it. The same again: the same answer.

        Raises: Conflict (another manifest was committed, or runs are not what it says), CorruptionError, Expired, NotFound.
        """
        name = check_attempt(app, shuffle, map_index, attempt)
        raw = base64.b64decode(manifest, validate=True)
        parsed = manifests.decode(raw, f"the manifest of map {map_index}, attempt {attempt}")
        with self._turn:
            owner, attempts = self._shuffle(app, shuffle)
            owner.until = self._now() + owner.lease_s
            state = attempts.attempt(map_index, attempt)
            if parsed.partitions != attempts.partitions:
                raise Conflict(f"a manifest of {parsed.partitions} partitions in a shuffle of {attempts.partitions}")
            if state.committed:
                if bytes(self.store.get_bytes(name.key)) != raw:
                    raise Conflict(f"attempt {attempt!r} of map {map_index} is committed with another manifest")
            else:
                self._check_runs(name, parsed)
                self._step("shuffle.checked")
                if durable:
                    for sequence in range(len(parsed.runs)):
                        self._requests.flush(name.run(sequence))
                self.store.put_bytes(name.key, raw, keep=True)
                self._step("shuffle.published")
                state.committed, state.bytes, state.runs = len(raw), parsed.total_bytes, len(parsed.runs)
            if durable:
                self._requests.flush(name.key)
            return {
                "durability": "durable" if durable else "volatile",
                "incarnation": self.incarnation,
                "store_id": self.store_id,
                "node": self.node,
            }

    def _check_runs(self, name: Attempt, parsed: manifests.Manifest) -> None:
        for sequence, run in enumerate(parsed.runs):
            found = root_of(self._requests, name.run(sequence))
            if found is None:
                raise Conflict(f"run {sequence} of {name.key!r} is not here: the attempt cannot be committed")
            rows = found[1] if parsed.kind == manifests.ROWS else found[2]
            fewer = parsed.kind == manifests.BYTES and rows - run.rows < 64  # bytes are padded to whole lines
            if found[0] != run.payload_hash or not (rows == run.rows or fewer):
                raise Conflict(
                    f"run {sequence} of {name.key!r} is not what its manifest says: "
                    f"{rows} rows with hash {found[0]:#x}, not {run.rows} with {run.payload_hash:#x}"
                )

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

    def drop(self, app: str, shuffle: int) -> int:
        """Delete a shuffle; how many attempts it had. Cost: a delete per run, which are segments, not partitions."""
        with self._turn:
            owner, attempts = self._shuffle(app, shuffle)
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

    def end(self, app: str) -> int:
        """An application is over: delete all it has; how many shuffles that were."""
        with self._turn:
            self._app(app)
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
            now = self._now()
            return [
                {
                    "app": name,
                    "lease_s": app.lease_s,
                    "lease_left_s": round(app.until - now, 1),
                    "quota_bytes": app.quota_bytes,
                    "used_bytes": app.used(),
                    "shuffles": [
                        {"shuffle": number, "partitions": attempts.partitions, **attempts.summary()}
                        for number, attempts in sorted(app.shuffles.items())
                    ],
                }
                for name, app in sorted(self._apps.items())
            ]


def install(engine: Engine, requests: Requests, node: str = "") -> None:
    """Serve the calls ``shuffle_*`` from the first of them on; see Requests.late."""
    requests.late["shuffle"] = lambda: Registry(engine, requests, node)


def _digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(b"tierstore shuffle " + secret.encode()).hexdigest()
