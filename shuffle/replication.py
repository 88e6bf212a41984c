"""Copies of committed attempts on other nodes: sent before the commit is acknowledged, received straight into segments.

push   "shuffle_store": the manifest first, whose head describes the runs; then each run's payload as it lies here
there  each payload is received into the segment in which it stays; then the manifest is checked and published
"""

from __future__ import annotations

import base64
import ctypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import xxhash

from tierstore.cache.placing import block_of, put_placed, room_for
from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import ConfigError, NotFound, PeerLost, TierstoreError

from . import manifest as manifests
from .names import Attempt, check_attempt
from .network import Network

if TYPE_CHECKING:
    from .registry import Registry

KINDS = (layout.KIND_BATCH, layout.KIND_STREAM, layout.KIND_BYTES)
TROUBLES = (PeerLost, TierstoreError, PermissionError)


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
        refused: list[str] = []
        for node in ranked(name.key, names) if wanted else []:
            if len(took) == wanted:
                break
            try:
                self.push(node, name, raw, terms, durable)
                took.append(node)
            except TROUBLES as error:
                refused.append(f"{node}: {error}")
        if len(took) < wanted:
            reasons = "; ".join(refused) or "no other nodes are configured: set nodes"
            raise PeerLost(
                f"{len(took) + own} of {self._network.replicas} replicas of map {name.map_index} were stored: {reasons}"
            )
        return took

    def move(self, name: Attempt, raw: bytes, terms: dict[str, Any]) -> str:
        """Store an attempt on the first other node that takes it; its name. Raises PeerLost if none does."""
        refused = []
        for node in ranked(name.key, self._network.names()):
            try:
                self.push(node, name, raw, terms, False)
                return node
            except TROUBLES as error:
                refused.append(f"{node}: {error}")
        reasons = "; ".join(refused) or "no other nodes are configured: set nodes"
        raise PeerLost(f"map {name.map_index} of {name.app}/{name.shuffle} was taken by no other node: {reasons}")

    def push(self, node: str, name: Attempt, raw: bytes, terms: dict[str, Any], durable: bool) -> None:
        """Store an attempt on one node. Raises what it answers."""
        arguments = {**name._asdict(), **terms, "durable": durable}
        self._network.peer(node).push("shuffle_store", arguments, self._items(name, raw))

    def _items(self, name: Attempt, raw: bytes) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        count = len(manifests.decode(raw, name.key).runs)
        blocks = [block_of(self._registry.store, name.run(sequence)) for sequence in range(count)]
        described = [[block.kind, block.rows, block.schema_bytes, block.payload_bytes] for block in blocks]
        yield {"runs": described}, [raw]
        for block in blocks:
            yield {}, [memory_at(block.address, block.payload_bytes)]


class Receiver:
    """Stores attempts that other nodes send. One call at a time for each connection."""

    def __init__(self, registry: Registry):
        self._registry = registry

    def store(self, call: Any) -> dict[str, Any]:
        """Receive one attempt and commit it; the answer of the commit."""
        name = check_attempt(*(call.argument(f, k) for f, k in _NAME))
        terms = {field: call.argument(field, kind) for field, kind in _TERMS}
        durable, pool = call.argument("durable", bool), "default"
        registry = self._registry
        registry.open(name.app, name.shuffle, **terms)
        raw = bytearray()
        head = call.receive(lambda _, size: _grown(raw, size))
        parsed = manifests.decode(raw, f"the manifest of {name.key}")
        known = self._committed(name, bytes(raw), durable)
        if known is not None:
            return known
        runs = head["runs"] if isinstance(head.get("runs"), list) else []
        if len(runs) != len(parsed.runs):
            raise ValueError(f"{len(runs)} runs announced, {len(parsed.runs)} in the manifest")
        try:
            for sequence, run in enumerate(runs):
                self._receive_run(call, name, sequence, run, pool)
            if call.receive(_refuse) is not None:
                raise ValueError("more runs than were announced")
            return registry.commit(*name, base64.b64encode(raw).decode(), durable, copies=False)
        except BaseException:
            try:
                registry.abort(*name)
            except TierstoreError:
                pass
            raise

    def _committed(self, name: Attempt, raw: bytes, durable: bool) -> dict[str, Any] | None:
        """The answer of an earlier commit of the same: a retry needs no bytes."""
        try:
            if bytes(self._registry.store.get_bytes(name.key)) != raw:
                return None
        except NotFound:
            return None
        return self._registry.commit(*name, base64.b64encode(raw).decode(), durable, copies=False)

    def _receive_run(self, call: Any, name: Attempt, sequence: int, run: Any, pool: str) -> None:
        if not isinstance(run, list) or len(run) != 4 or not all(type(v) is int and v >= 0 for v in run):
            raise ValueError("each run is [kind, rows, bytes of the schema, bytes of the payload]")
        kind, rows, schema_bytes, size = run
        _, empty = room_for(self._registry.store, 512, pool, _group(name))
        if kind not in KINDS or size % 64 or schema_bytes > size:
            raise ValueError(f"a run of kind {kind} with {size} bytes, {schema_bytes} of them schema, cannot be")
        if size > empty:
            raise ConfigError("segment", empty, f"at least that of the node which sends runs of {size} bytes")
        self._registry.reserve(*name, sequence, size)

        def fill(address: int) -> None:
            def sink(_: dict[str, Any], found: int) -> memoryview:
                if found != size:
                    raise ValueError(f"a run of {found} bytes where {size} were announced")
                return memory_at(address, size)

            if call.receive(sink) is None:
                raise ValueError("fewer runs than were announced")

        key, group = name.run(sequence), _group(name)
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


def _group(name: Attempt) -> str:
    return f"{name.app}/{name.shuffle}"


def _grown(raw: bytearray, size: int) -> memoryview:
    raw[:] = bytes(size)
    return memoryview(raw)


def _refuse(_: dict[str, Any], size: int) -> memoryview:
    raise ValueError(f"{size} bytes more than were announced")
