"""A commit, step by step: check, copy, make durable, publish, answer. Nothing is locked while anything is waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import Conflict, NotFound, TierstoreError

from .apps import State, terms_of
from .manifest import Manifest
from .matching import check_runs
from .names import Attempt, app_key, shuffle_key

if TYPE_CHECKING:
    from .registry import Registry

POLL_S = 0.005


class Committer:
    """Commits attempts of one registry. Any thread; the application is at work meanwhile (Book.at_work)."""

    def __init__(self, registry: Registry, requests: Requests):
        self._registry, self._book, self._requests = registry, registry.book, requests

    def commit(self, name: Attempt, parsed: Manifest, raw: bytes, durable: bool, copies: bool) -> dict[str, Any]:
        """See Registry.commit()."""
        try:
            return self._commit(name, parsed, raw, durable, copies)
        except Conflict:
            self._registry.tally.add(attempts_refused=1)
            raise

    def _commit(self, name: Attempt, parsed: Manifest, raw: bytes, durable: bool, copies: bool) -> dict[str, Any]:
        registry = self._registry
        with self._book.turn:
            owner, attempts = self._book.shuffle(name.app, name.shuffle)
            terms = terms_of(owner, attempts)
        if parsed.partitions != terms["partitions"]:
            raise Conflict(f"a manifest of {parsed.partitions} partitions in a shuffle of {terms['partitions']}")
        if not self._is_committed(name, raw):
            check_runs(self._requests, name, parsed)
        # What is copied cannot change, and who commits it twice stores the same twice.
        replicas = registry.replicator.copy(name, raw, terms, durable) if copies else []
        registry.step("shuffle.checked")
        try:
            if durable:  # runs first, so that what a manifest names is as durable as it is
                for sequence in range(len(parsed.runs)):
                    self._requests.flush(name.run(sequence, parsed.nonce))
            self._publish(name, parsed, raw)
        except TierstoreError:
            registry.replicator.discard(name, terms, replicas)
            raise
        registry.step("shuffle.published")
        if durable:
            for key in (name.key, shuffle_key(name.app, name.shuffle), app_key(name.app)):
                self._requests.flush(key)
        return {
            "durability": "durable" if durable else "volatile",
            "incarnation": registry.incarnation,
            "store_id": registry.store_id,
            "node": registry.network.node,
            "replicas": replicas,
        }

    def _is_committed(self, name: Attempt, raw: bytes) -> bool:
        """Whether an attempt is committed, with this manifest. Raises Conflict if with another; Expired."""
        while True:
            with self._book.turn:
                _, attempts = self._book.shuffle(name.app, name.shuffle)
                state = attempts.states.get((name.map_index, name.attempt))
                publishing = state is not None and state.publishing
                committed = state is not None and state.committed > 0
            if not publishing:
                break
            time.sleep(POLL_S)
        if committed and bytes(self._registry.store.get_bytes(name.key)) != raw:
            raise Conflict(f"attempt {name.attempt!r} of map {name.map_index} is committed with another manifest")
        return committed

    def _publish(self, name: Attempt, parsed: Manifest, raw: bytes) -> None:
        """The one store that makes all of it readable."""
        while True:
            if self._is_committed(name, raw):
                return
            with self._book.turn:
                _, attempts = self._book.shuffle(name.app, name.shuffle)
                state = attempts.attempt(name.map_index, name.attempt)
                if not state.publishing and not state.committed:
                    state.publishing = True
                    break
        try:
            self._registry.store.put_bytes(name.key, raw, keep=True)
        except BaseException:
            with self._book.turn:
                state.publishing = False
            raise
        self._note(name, parsed, raw, state)

    def _note(self, name: Attempt, parsed: Manifest, raw: bytes, state: State) -> None:
        """The attempt is committed, unless its shuffle went meanwhile: then what was published goes too. Raises Expired."""
        with self._book.turn:
            state.publishing = False
            state.committed, state.bytes = len(raw), parsed.total_bytes
            state.runs[parsed.nonce] = len(parsed.runs)
            try:
                _, attempts = self._book.shuffle(name.app, name.shuffle)
                if attempts.states.get((name.map_index, name.attempt)) is state:
                    self._registry.tally.add(attempts_committed=1, bytes_committed=parsed.total_bytes)
                    return
                gone: NotFound = NotFound(
                    f"shuffle {name.shuffle} of application {name.app!r} was dropped and opened again"
                )
            except NotFound as error:
                gone = error
        self._registry.delete_attempt(name, state)
        raise gone
