"""What a registry finds at start: applications and shuffles of earlier lives, from the keys in the store."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid

from tierstore.cache.engine import Engine
from tierstore.cache.store import Store
from tierstore.ringbuf.errors import NotFound

from . import manifest as manifests
from .apps import App, Attempts
from .names import PREFIX, app_key, parse

log = logging.getLogger("tierstore")

LEASE_S = 120.0
INCARNATION_KEY = PREFIX.rstrip("/")  # no application can have this key


def recover_apps(store: Store, now: float) -> dict[str, App]:
    """Applications by name; each gets its whole lease again. Cost: a walk over the keys of the store."""
    apps: dict[str, App] = {}
    for key in store.keys(PREFIX):
        parsed = parse(key)
        if parsed is None:
            continue
        app = apps.get(parsed.app)
        if app is None:
            app = apps[parsed.app] = _terms(store, parsed.app, now)
        if parsed.shuffle is None:
            continue
        shuffle = app.shuffles.setdefault(parsed.shuffle, Attempts(0))
        if parsed.map_index is None:
            shuffle.partitions = int(json.loads(bytes(store.get_bytes(key)))["partitions"])
        elif parsed.attempt is not None:
            state = shuffle.attempt(parsed.map_index, parsed.attempt)
            if parsed.sequence is None:
                raw = store.get_bytes(key)
                state.committed, state.bytes = len(raw), manifests.total_bytes_of(raw)
            else:
                state.runs = max(state.runs, parsed.sequence + 1)
    return apps


def _terms(store: Store, name: str, now: float) -> App:
    """An application as its object says; with default terms, and nobody's secret, where that was lost."""
    try:
        values = json.loads(bytes(store.get_bytes(app_key(name))))
        return App(values["lease_s"], values["quota_bytes"], now + values["lease_s"], values["secret"])
    except (NotFound, KeyError, ValueError):
        log.warning("the terms of application %r were lost; it gets a lease of %g s", name, LEASE_S)
        return App(LEASE_S, 0, now + LEASE_S, "unknown")


def incarnation_of(engine: Engine, store: Store) -> str:
    """The life of this store's KEEP data: a new one when any of it could not be recovered.

    What was in memory is not counted as lost where memory began empty; so that alone makes a new one too.
    """
    if engine.mutator.arenas[0].warm and engine.recovery.lost_keep == 0 and not engine.recovery.damaged:
        with contextlib.suppress(NotFound):
            return bytes(store.get_bytes(INCARNATION_KEY)).decode()
    made = uuid.uuid4().hex
    store.put_bytes(INCARNATION_KEY, made.encode(), keep=True)
    return made
