"""What a registry finds at start: applications and shuffles of earlier lives, from the keys in the store."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid

from tierstore.cache.engine import Engine
from tierstore.cache.store import Store
from tierstore.ringbuf.errors import NotFound, TierstoreError

from . import manifest as manifests
from .apps import App, Attempts
from .book import LOST
from .names import PREFIX, Parsed, app_key, parse

log = logging.getLogger("tierstore")

LEASE_S = 120.0
INCARNATION_KEY = PREFIX.rstrip("/")  # no application can have this key


def recover_apps(store: Store, now: float) -> dict[str, App]:
    """Applications by name; each gets its whole lease again. What cannot be read is left out. Cost: a walk over all keys."""
    apps: dict[str, App] = {}
    for key in store.keys(PREFIX):
        parsed = parse(key)
        if parsed is None:
            continue
        try:
            _recover(store, key, parsed, apps, now)
        except (TierstoreError, ValueError, KeyError, TypeError) as error:  # damaged, or not ours
            log.warning("%s cannot be read and is left out: %s", key, error)
    return {name: app for name, app in apps.items() if app.secret != LOST or app.shuffles}


def _recover(store: Store, key: str, parsed: Parsed, apps: dict[str, App], now: float) -> None:
    app = apps.get(parsed.app)
    if app is None:
        app = apps[parsed.app] = _terms(store, parsed.app, now)
    if parsed.shuffle is None:
        return
    if parsed.map_index is None:
        partitions = int(json.loads(bytes(store.get_bytes(key)))["partitions"])
        app.shuffles.setdefault(parsed.shuffle, Attempts(0, now)).partitions = partitions
        return
    assert parsed.attempt is not None
    if parsed.sequence is not None and parsed.nonce is not None:
        state = app.shuffles.setdefault(parsed.shuffle, Attempts(0, now)).attempt(parsed.map_index, parsed.attempt)
        state.runs[parsed.nonce] = max(state.runs.get(parsed.nonce, 0), parsed.sequence + 1)
        return
    raw = store.get_bytes(key)
    found = manifests.decode(raw, key)
    shuffle = app.shuffles.setdefault(parsed.shuffle, Attempts(0, now))
    shuffle.partitions = shuffle.partitions or found.partitions  # where the shuffle's own terms were lost
    state = shuffle.attempt(parsed.map_index, parsed.attempt)
    state.committed, state.bytes = len(raw), found.total_bytes


def _terms(store: Store, name: str, now: float) -> App:
    """An application as its object says; with default terms, and nobody's secret, where that was lost."""
    try:
        values = json.loads(bytes(store.get_bytes(app_key(name))))
        return App(float(values["lease_s"]), int(values["quota_bytes"]), now + values["lease_s"], str(values["secret"]))
    except (TierstoreError, ValueError, KeyError, TypeError):
        log.warning("the terms of application %r were lost; it gets a lease of %g s", name, LEASE_S)
        return App(LEASE_S, 0, now + LEASE_S, LOST)


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
