"""Copies of committed attempts on other nodes: sent before the commit is acknowledged, received straight into segments.

    push   "shuffle_store": the manifest first, whose head describes the runs and names their pool; then each run's
           payload as it lies here
    there  each payload is received into the segment in which it stays; then the manifest is checked and published

A copy counts where it is in another store than all others: nodes are told which stores hold it already, as one store may
have several names.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import xxhash

from tierstore.cache.placing import put_placed, room_for
from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import ConfigError, CorruptionError, Full, NotFound, PeerLost, TierstoreError

from . import manifest as manifests
from .names import Attempt, check_attempt
from .network import Network

if TYPE_CHECKING:
    from .registry import Registry

KINDS = (layout.KIND_BATCH, layout.KIND_STREAM, layout.KIND_BYTES)
TROUBLES = (TierstoreError, PermissionError)
DEFAULT_POOL = "default"  # of copies, where their own is not configured
SAME_WAIT_S = 120.0  # for another push of the same attempt


class Replicator:
    """Sends attempts of one store to other nodes."""

    def __init__(self, registry: Registry, network: Network):
        self._registry, self._network = registry, network

    def copy(self, name: Attempt, raw: bytes, terms: dict[str, Any], durable: bool) -> list[str]:
        """Store an attempt on as many other nodes as are configured; their names. Raises PeerLost if too few took it.

        terms: of its application and shuffle.
        """
        names, own = self._network.names(), int(bool(self._network.node))
        # What is held here counts where others can read it; where they cannot, all copies are elsewhere.
        wanted = self._network.replicas - own if own or names or self._network.replicas > 1 else 0
        took: list[str] = []
        holders, refused = [self._registry.store_id], list[str]()
        for node in ranked(name.key, names) if wanted else []:
            if len(took) == wanted:
                break
            try:
                answer = self.push(node, name, raw, terms, durable, holders)
                if answer["store_id"] in holders:
                    refused.append(f"{node}: holds it under another name")
                    continue
                self._registry.tally.add(copies_given=1)
                took.append(node)
                holders.append(answer["store_id"])
            except TROUBLES as error:
                refused.append(f"{node}: {error}")
        if len(took) < wanted:
            self.discard(name, terms, took)
            reasons = "; ".join(refused) or "no other nodes are configured: set nodes"
            raise PeerLost(
                f"{len(took) + own} of {self._network.replicas} replicas of map {name.map_index} were stored: {reasons}"
            )
        return took

    def discard(self, name: Attempt, terms: dict[str, Any], nodes: list[str]) -> None:
        """Have copies deleted whose commit failed here."""
        self._registry.teller.tell("shuffle_discard", nodes, **name._asdict(), digest=terms["digest"])

    def move(self, name: Attempt, raw: bytes, terms: dict[str, Any]) -> str:
        """Store an attempt on the first other node that takes it; its name. Raises PeerLost if none does."""
        refused = []
        durable = manifests.decode(raw, name.key).durable
        for node in ranked(name.key, self._network.names()):
            try:
                answer = self.push(node, name, raw, terms, durable, [self._registry.store_id])
                if answer["store_id"] != self._registry.store_id:
                    self._registry.tally.add(copies_given=1)
                    return node
                refused.append(f"{node}: is this node under another name")
            except TROUBLES as error:
                refused.append(f"{node}: {error}")
        reasons = "; ".join(refused) or "no other nodes are configured: set nodes"
        raise PeerLost(f"map {name.map_index} of {name.app}/{name.shuffle} was taken by no other node: {reasons}")

    def push(
        self, node: str, name: Attempt, raw: bytes, terms: dict[str, Any], durable: bool, holders: list[str]
    ) -> dict[str, Any]:
        """Store an attempt on one node; what its commit answers there. Raises what the node answers."""
        arguments = {**name._asdict(), **terms, "durable": durable, "holders": holders}
        return dict(self._network.peer(node).push("shuffle_store", arguments, self._items(name, raw)))

    def _items(self, name: Attempt, raw: bytes) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """The manifest, then the runs one by one: on disk they are mapped, not read ahead."""
        parsed = manifests.decode(raw, name.key)
        keys = [name.run(sequence, parsed.nonce) for sequence in range(len(parsed.runs))]
        described = []
        for key in keys:
            root = self._registry.lean.root(key)
            if root is None:
                raise NotFound(f"{key!r} is not in the store")
            if root.block_count > 1:
                raise TierstoreError(f"{key!r} has a row or value larger than a segment, which cannot be copied")
            described.append([root.kind, root.rows, root.schema_bytes, root.payload_bytes])
        pool = self._registry.store.info(keys[0])["pool"] if keys else DEFAULT_POOL
        yield {"runs": described, "pool": pool}, [raw]
        for key in keys:
            root = self._registry.lean.root(key)
            if root is None:
                raise NotFound(f"{key!r} went meanwhile")
            payload = root.payload(False)
            yield {}, [memory_at(payload.address, payload.size)]


class Receiver:
    """Stores attempts that other nodes send. Any thread."""

    def __init__(self, registry: Registry):
        self._registry = registry
        self._under_way: set[str] = set()
        self._changed = threading.Condition()

    def store(self, call: Any) -> dict[str, Any]:
        """Receive one attempt and commit it; the answer of the commit. In a store that holds it already: its id only."""
        name = check_attempt(*(call.argument(f, k) for f, k in _NAME))
        terms = {field: call.argument(field, kind) for field, kind in _TERMS}
        if len(terms["digest"]) != 64:
            raise ValueError("digest: 64 hexadecimal digits")
        if self._registry.store_id in call.argument("holders", list):
            return {"store_id": self._registry.store_id}
        with self._alone(name.key):
            try:
                return self._store(call, name, terms, call.argument("durable", bool))
            except CorruptionError as error:  # its words name files of this machine
                raise TierstoreError(f"the copy of map {name.map_index} was damaged on the way or here") from error

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One push of an attempt at a time: a retry must not meet the end of the push that it repeats."""
        with self._changed:
            if not self._changed.wait_for(lambda: key not in self._under_way, SAME_WAIT_S):
                raise Full(f"another copy of {key!r} has been on its way for {SAME_WAIT_S:g} s; try again")
            self._under_way.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._under_way.discard(key)
                self._changed.notify_all()

    def _store(self, call: Any, name: Attempt, terms: dict[str, Any], durable: bool) -> dict[str, Any]:
        registry, raw = self._registry, bytearray()
        registry.open(name.app, name.shuffle, **terms, here=False)
        head = call.receive(lambda _, size: _grown(raw, size))
        parsed = manifests.decode(raw, f"the manifest of {name.key}")
        with registry.book.at_work(name.app):
            known = self._committed(name, bytes(raw), durable)
            if known is not None:
                return known
            runs = head["runs"] if isinstance(head.get("runs"), list) else []
            if len(runs) != len(parsed.runs):
                raise ValueError(f"{len(runs)} runs announced, {len(parsed.runs)} in the manifest")
            try:
                pools = registry.store._pools
                pool = head["pool"] if head.get("pool") in pools else DEFAULT_POOL
                for sequence, run in enumerate(runs):
                    self._receive_run(call, name, parsed.nonce, sequence, run, pool)
                if call.receive(_refuse) is not None:
                    raise ValueError("more runs than were announced")
                answer = registry.commit(*name, base64.b64encode(raw).decode(), durable, copies=False)
                registry.tally.add(copies_taken=1)
                return answer
            except BaseException:
                with contextlib.suppress(TierstoreError):
                    registry.abort(*name, parsed.nonce)
                raise

    def _committed(self, name: Attempt, raw: bytes, durable: bool) -> dict[str, Any] | None:
        """The answer of an earlier commit of the same: a retry needs no bytes."""
        try:
            if bytes(self._registry.store.get_bytes(name.key)) != raw:
                return None
        except NotFound:
            return None
        return self._registry.commit(*name, base64.b64encode(raw).decode(), durable, copies=False)

    def _receive_run(self, call: Any, name: Attempt, nonce: str, sequence: int, run: Any, pool: str) -> None:
        if not isinstance(run, list) or len(run) != 4 or not all(type(v) is int and v >= 0 for v in run):
            raise ValueError("each run is [kind, rows, bytes of the schema, bytes of the payload]")
        kind, rows, schema_bytes, size = run
        group = f"{name.app}/{name.shuffle}"
        _, empty = room_for(self._registry.store, 512, pool, group)
        if kind not in KINDS or size % 64 or schema_bytes > size:
            raise ValueError(f"a run of kind {kind} with {size} bytes, {schema_bytes} of them schema, cannot be")
        if size > empty:
            raise ConfigError("segment", empty, f"at least that of the node which sends runs of {size} bytes")
        if not self._registry.reserve(*name, sequence, size, nonce):
            raise Full(f"application {name.app!r} has used its quota on this node")

        def fill(address: int) -> None:
            def sink(_: dict[str, Any], found: int) -> memoryview:
                if found != size:
                    raise ValueError(f"a run of {found} bytes where {size} were announced")
                return memory_at(address, size)

            if call.receive(sink) is None:
                raise ValueError("fewer runs than were announced")

        key = name.run(sequence, nonce)
        put_placed(self._registry.store, key, kind, rows, size, schema_bytes, fill, pool=pool, group=group)


_NAME: list[tuple[str, Callable[..., Any]]] = [("app", str), ("shuffle", int), ("map_index", int), ("attempt", str)]
_TERMS: list[tuple[str, Callable[..., Any]]] = [
    ("partitions", int),
    ("lease_s", float),
    ("quota_bytes", int),
    ("digest", str),
]


def ranked(key: str, nodes: list[str]) -> list[str]:
    """Nodes for a key, best first: rendezvous hashing, see cache/columns/placement.py."""
    return sorted(nodes, key=lambda node: xxhash.xxh3_64_intdigest(f"{node} {key}".encode()), reverse=True)


def memory_at(address: int, size: int) -> memoryview:
    """Memory at an address, which the caller keeps."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _grown(raw: bytearray, size: int) -> memoryview:
    raw[:] = bytes(size)
    return memoryview(raw)


def _refuse(_: dict[str, Any], size: int) -> memoryview:
    raise ValueError(f"{size} bytes more than were announced")
