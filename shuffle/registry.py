"""The daemon's side of shuffles: applications and their leases, commits, drops. One object per engine.

What is kept is in the store itself, as KEEP objects (names.py); this registry is an index of their keys, rebuilt from them
at start. A commit is the publication of its manifest, one store in the store's index: before it nothing of the attempt can
be read, after it everything can, and nothing can change it.

Locks: ``book.turn`` guards what is remembered, and is never held while anything is waited for; ``_changing`` orders what
opens, drops and sweeps.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tierstore.cache.engine import Engine
from tierstore.cache.inside import store_inside
from tierstore.cache.lean import Lean
from tierstore.cache.placing import end_group
from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import Conflict, Full, NotFound

from . import manifest as manifests
from .apps import App, Attempts, State, committed, listing, terms_of
from .book import LOST, Book, digest_of
from .committing import Committer
from .names import (
    CACHE_FIRST,
    CALLS,
    PARTITIONS_MAX,
    PREFIX,
    RUNS_MAX,
    Attempt,
    app_key,
    check_attempt,
    check_name,
    check_number,
    parse,
    shuffle_key,
)
from .network import Alone, Network
from .recovering import LEASE_S, incarnation_of, recover_apps
from .replication import Replicator
from .tally import Tally
from .telling import Teller

log = logging.getLogger("tierstore")

RENEWALS = 4  # on other nodes, in the time a lease lasts
LEASE_S_MIN, LEASE_S_MAX = 1.0, 30 * 86400.0
TICK_S = 0.5
# After something was dropped its keys are looked for twice more: a writer may have been about to publish.
SWEEPS_S = (5.0, 60.0)


class Registry:
    """Serves the calls ``shuffle_*``. Callers: any thread. now: the clock of leases."""

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        network: Network | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.network, self.step = network or Alone(), engine.mutator.trap
        self.store, self.store_id = store_inside(engine, requests), engine.mutator.store_id.hex()
        try:
            self.book = Book(recover_apps(self.store, now()), now)
            self.incarnation = incarnation_of(engine, self.store)
        except BaseException:
            self.store.close()  # or the registries that later calls make take all slots
            raise
        self.lean, self.tally = Lean(self.store), Tally()
        self.teller = Teller(self.network)
        self.replicator = Replicator(self, self.network)
        self._committer = Committer(self, requests)
        self._changing = threading.RLock()
        self._draining, self._sweeps = False, list[float]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tierstore-shuffle", daemon=True)
        self._thread.start()
        requests.table.update(self.calls())
        requests.counters["shuffle"] = self.tally.counts
        requests.at_close.append(self.close)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """The requests it serves, by name."""
        others = {"shuffle_count": self.tally.add_read}
        return {name: others.get(name) or getattr(self, name.removeprefix("shuffle_")) for name in CALLS}

    def close(self) -> None:
        """Stop counting leases, and give the handle up."""
        self._stop.set()
        self._thread.join()
        self.teller.close()
        self.store.close()

    # --- leases ---------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(TICK_S):
            late = time.monotonic() - last - TICK_S
            if late > TICK_S:
                self.book.forgive(late)
            try:
                self.expire()
                self._renew_elsewhere()
                if self._sweeps and self._sweeps[0] <= time.monotonic():
                    self._sweeps.pop(0)
                    self.sweep()
            except Exception:  # the next round tries again
                log.exception("dropping expired shuffles failed")
            last = time.monotonic()

    def expire(self) -> None:
        """Drop the applications whose lease has ended."""
        with self.book.turn:
            due = {name: self.book.apps[name].lease_s for name in self.book.due()}
        for name, lease_s in due.items():
            log.info("application %s: its lease ended, its shuffles are dropped", name)
            self.tally.add(leases_ended=1)
            self._end(name, f"its lease of {lease_s:g} s ended", due_only=True)

    def _renew_elsewhere(self) -> None:
        """What processes of this node hold of an application on other nodes lasts as long as they renew it here."""
        with self.book.turn:
            due = [
                app for app in self.book.apps.items() if app[1].renewed_here > app[1].told + app[1].lease_s / RENEWALS
            ]
            for _, app in due:
                app.told = app.renewed_here
        for name, app in due:
            self.teller.tell("shuffle_touch", app=name, digest=app.secret)

    def open(
        self,
        app: str,
        shuffle: int,
        partitions: int,
        lease_s: float = LEASE_S,
        quota_bytes: int = 0,
        secret: str = "",
        digest: str = "",
        here: bool = True,
    ) -> dict[str, Any]:
        """Begin a shuffle, or find it; the first of an application sets its terms. Raises Conflict, Refused, ValueError.

        digest: of the secret, from other nodes.  here: whether a process of this node opens it.
        """
        check_name("app", app)
        check_number("shuffle", shuffle)
        if check_number("partitions", partitions, PARTITIONS_MAX) == 0:
            raise ValueError("partitions 0 cannot be used: at least 1")
        if not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
            raise ValueError(f"lease_s {lease_s!r} cannot be used: {LEASE_S_MIN:g} to {LEASE_S_MAX:g} seconds")
        digest = digest or digest_of(secret)
        with self._changing:
            with self.book.turn:
                owner = self.book.apps.get(app)
            if owner is None or (owner.secret == LOST and here):
                self._begin_app(app, lease_s, quota_bytes, digest)
            with self.book.turn:
                owner = self.book.authorize(app, digest)
                self.book.renew(owner, here)
                known = owner.shuffles.get(shuffle)
            if known is not None and known.partitions != partitions:
                raise Conflict(
                    f"shuffle {shuffle} of application {app!r} has {known.partitions} partitions, not {partitions}; "
                    "use another shuffle number, or drop it first"
                )
            if known is None:
                self._put(shuffle_key(app, shuffle), {"partitions": partitions})
                with self.book.turn:
                    owner.shuffles[shuffle] = Attempts(partitions, self.book.now())
                    self.book.gone.forget(app, shuffle)
        return {
            "lease_s": owner.lease_s,
            "quota_bytes": owner.quota_bytes,
            "store_id": self.store_id,
            "incarnation": self.incarnation,
            "node": self.network.node,
            "nodes": self.network.names(),
        }

    def _begin_app(self, app: str, lease_s: float, quota_bytes: int, digest: str) -> None:
        self._put(app_key(app), {"lease_s": lease_s, "quota_bytes": quota_bytes, "secret": digest})
        with self.book.turn:
            owner = self.book.apps.setdefault(app, App(lease_s, quota_bytes, 0.0, digest))
            owner.lease_s, owner.quota_bytes, owner.secret = lease_s, quota_bytes, digest
            self.book.renew(owner)
            self.book.gone.forget(app)

    def _put(self, key: str, terms: dict[str, Any]) -> None:
        self.store.put_bytes(key, json.dumps(terms).encode(), keep=True)

    def touch(self, app: str) -> dict[str, Any]:
        """Renew an application's lease. Raises Expired, NotFound."""
        with self.book.turn:
            found = self.book.app(app)
            self.book.renew(found)
            return {"lease_s": found.lease_s, "incarnation": self.incarnation}

    def authorize(self, app: str, digest: str) -> None:
        """As Book.authorize(), for other nodes; renews the lease."""
        with self.book.turn:
            self.book.renew(self.book.authorize(app, digest), here=False)

    # --- attempts -------------------------------------------------------------------------------------------------------------

    def reserve(
        self, app: str, shuffle: int, map_index: int, attempt: str, sequence: int, size: int, nonce: str
    ) -> bool:
        """Before a run is written: False where the application's quota has no room for it now.

        Raises: Conflict if the attempt is committed, Full if the run can never fit, Expired, NotFound.
        """
        check_attempt(app, shuffle, map_index, attempt)
        check_number("sequence", sequence, RUNS_MAX - 1)
        if len(nonce) != 16 or not set(nonce) <= set("0123456789abcdef"):
            raise ValueError(f"nonce {nonce!r:.40} cannot be used: 16 hexadecimal digits")
        with self.book.turn:
            owner, attempts = self.book.shuffle(app, shuffle)
            self.book.renew(owner)
            if self._draining:
                raise Full("this node is being drained and takes nothing new; write on another")
            state = attempts.attempt(map_index, attempt)
            if state.committed:
                raise Conflict(f"attempt {attempt!r} of map {map_index} is committed; nothing can be added to it")
            if owner.quota_bytes and size > owner.quota_bytes:
                raise Full(f"a run of {size} bytes exceeds the quota of application {app!r}, {owner.quota_bytes} bytes")
            if owner.quota_bytes and owner.used() + size > owner.quota_bytes:
                self.tally.add(quota_waits=1)
                return False
            state.bytes += size
            state.runs[nonce] = max(state.runs.get(nonce, 0), sequence + 1)
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
        with self.book.at_work(app):
            return self._committer.commit(name, parsed, raw, durable or parsed.durable, copies)

    def abort(self, app: str, shuffle: int, map_index: int, attempt: str, nonce: str = "") -> None:
        """Give an attempt up: its runs go; those of one writer, if its nonce is given. Raises Conflict if it is committed."""
        name = check_attempt(app, shuffle, map_index, attempt)
        with self.book.turn:
            _, attempts = self.book.shuffle(app, shuffle)
            state = attempts.states.get((map_index, attempt))
            if state is None:
                return
            if state.committed or state.publishing:
                raise Conflict(f"attempt {attempt!r} of map {map_index} is committed; drop the shuffle instead")
            runs = {key: state.runs.pop(key) for key in [nonce or key for key in list(state.runs)] if key in state.runs}
            if not state.runs:
                del attempts.states[map_index, attempt]
        self._delete_runs(name, runs)
        self.tally.add(attempts_aborted=1)

    # --- ends -----------------------------------------------------------------------------------------------------------------

    def drop(self, app: str, shuffle: int, everywhere: bool = True, age_s: float = 0.0) -> int:
        """Delete a shuffle; how many attempts it had here. Cost: a delete per run, which are segments, not partitions.

        everywhere: on the other nodes too, soon.  age_s: how long ago this was asked for; what was opened since stays.
        """
        with self._changing:
            with self.book.turn:
                owner, attempts = self.book.shuffle(app, shuffle)
                if attempts.since > self.book.now() - age_s:
                    return 0
            if everywhere:
                self.teller.tell("shuffle_drop", app=app, shuffle=shuffle, digest=owner.secret)
            return self._drop(app, shuffle, "it was dropped")

    def _drop(self, app: str, shuffle: int, reason: str) -> int:
        attempts = self.book.forget(app, shuffle, reason)
        if attempts is None:
            return 0
        for (map_index, attempt), state in list(attempts.states.items()):
            self.delete_attempt(Attempt(app, shuffle, map_index, attempt), state)
            self.step("shuffle.dropping")
        self._delete(shuffle_key(app, shuffle))
        end_group(self.store, f"{app}/{shuffle}")
        self._sweeps = [time.monotonic() + wait_s for wait_s in SWEEPS_S]
        self.tally.add(attempts_dropped=len(attempts.states))
        return len(attempts.states)

    def _delete_runs(self, name: Attempt, runs: dict[str, int]) -> None:
        for nonce, count in runs.items():
            for sequence in range(count):
                self._delete(name.run(sequence, nonce))

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            self.store.delete(key)

    def discard(self, name: Attempt) -> None:
        """Delete a copy that another node sent, whose commit there failed."""
        with self.book.turn:
            _, attempts = self.book.shuffle(name.app, name.shuffle)
            state = attempts.states.pop((name.map_index, name.attempt), None)
        if state is not None:
            self.delete_attempt(name, state)

    def delete_attempt(self, name: Attempt, state: State) -> None:
        """Delete all keys of an attempt; the manifest first: what is named by one is whole."""
        self._delete(name.key)
        self._delete_runs(name, state.runs)

    def end(self, app: str, everywhere: bool = True, age_s: float = 0.0) -> int:
        """An application is over: delete all it has; how many shuffles that were here. Arguments as of drop()."""
        with self._changing:
            with self.book.turn:
                owner = self.book.app(app)
                newest = max((attempts.since for attempts in owner.shuffles.values()), default=0.0)
                if newest > self.book.now() - age_s:
                    return 0
            if everywhere:
                self.teller.tell("shuffle_end", app=app, digest=owner.secret)
            return self._end(app, "it ended")

    def _end(self, app: str, reason: str, due_only: bool = False) -> int:
        with self._changing:
            with self.book.turn:
                if app not in (self.book.due() if due_only else self.book.apps):
                    return 0
                shuffles = list(self.book.apps[app].shuffles)
            for number in shuffles:
                self._drop(app, number, reason)
            self._delete(app_key(app))
            with self.book.turn:
                del self.book.apps[app]
                self.book.gone.note(reason, app)
            return len(shuffles)

    def sweep(self) -> None:
        """Delete what is there and belongs to nothing: published by writers after it was dropped."""
        with self._changing:
            for key in self.store.keys(PREFIX):
                parsed = parse(key)
                with self.book.turn:
                    known = parsed is None or self.book.knows(parsed)
                if not known:
                    self._delete(key)

    # --- drain ----------------------------------------------------------------------------------------------------------------

    def drain(self, on: bool = True) -> dict[str, Any]:
        """Take nothing new from now on (or again). attempts: the committed, for move(); open: how many may be; cached: never."""
        with self.book.turn:
            self._draining = on
            shuffles = [entry for app in listing(self.book.apps, self.book.now()) for entry in app["shuffles"]]
            cached = sum(entry["open_attempts"] for entry in shuffles if entry["shuffle"] >= CACHE_FIRST)
            waiting = sum(entry["open_attempts"] for entry in shuffles) - cached
            return {"attempts": committed(self.book.apps), "open": waiting, "cached": cached}

    def move(self, app: str, shuffle: int, map_index: int, attempt: str) -> str:
        """Store an attempt on another node; its name. Readers that find it gone here ask there. Raises PeerLost, NotFound."""
        name = check_attempt(app, shuffle, map_index, attempt)
        with self.book.at_work(app):
            terms = terms_of(*self.book.shuffle(app, shuffle))
            return self.replicator.move(name, bytes(self.store.get_bytes(name.key)), terms)

    # --- questions ------------------------------------------------------------------------------------------------------------

    def why(self, app: str, shuffle: int, map_index: int, attempt: str) -> str:
        """Why the output of an attempt is not there. Raises Expired where it went with its owner's lease."""
        check_attempt(app, shuffle, map_index, attempt)
        with self.book.turn:
            return self.book.why(app, shuffle, (map_index, attempt))

    def list(self) -> list[dict[str, Any]]:
        """Applications, their shuffles and what these hold."""
        with self.book.turn:
            return listing(self.book.apps, self.book.now())
