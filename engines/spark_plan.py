"""What a read over the store is: its options, its plan and pieces, and the hosts that they prefer.

Plans and pieces go to Python workers as they are, and to agents of other JVMs as text.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tierstore.cache import object_pieces
from tierstore.cache.columns import pieces
from tierstore.cache.columns.pieces import PIECE_BYTES
from tierstore.cache.columns.placement import Placement
from tierstore.cache.columns.prune import columns_of
from tierstore.ringbuf.errors import ConfigError, NotFound, PeerLost
from tierstore.service.config import parse_size
from tierstore.service.store import Store

from .spark_worker import ObjectPlan, Plan

OPTIONS = ("path", "paths", "key", "columns", "piece", "socket")
_ENDINGS = (".parquet", ".parq", ".pq")
Piece = pieces.FilePiece | object_pieces.ObjectPiece


@dataclass(frozen=True)
class Options:
    """Of ``format("tierstore")``: files or the key of a table, of which columns, in pieces of which size, by which daemon."""

    target: str | list[str]
    key: str | None
    columns: list[str] | None
    piece_bytes: int
    socket: str | None


def options_of(given: Mapping[str, str]) -> Options:
    """Options by name. Raises ConfigError.

    A key comes before a path, because Spark's catalog gives every table a path.
    """
    told = {name.lower(): value for name, value in given.items()}
    unknown = sorted(name for name in given if name.lower() not in OPTIONS)
    if unknown:
        raise ConfigError("option", unknown[0], f"options are {', '.join(OPTIONS)}")
    columns, key = told.get("columns"), told.get("key") or None
    target = key or _local(told.get("path")) or [_local(path) for path in _listed(told.get("paths"))]
    if not target:
        raise ConfigError("option", "path", 'Parquet files: load("t/*.parquet"), or .option("key", ...)')
    names = [name.strip() for name in columns.split(",")] if columns else None
    return Options(target, key, names, parse_size(told.get("piece") or PIECE_BYTES, "piece"), told.get("socket"))


def _local(path: str | None) -> str:
    """A path without the "file:" that Spark's catalog puts before it."""
    path = path or ""
    return path.removeprefix("file:") if path.startswith("file:/") and not path.startswith("file://") else path


def _listed(text: str | None) -> list[str]:
    """What load(["a", "b"]) becomes."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError("paths", str(text), 'a list in JSON: ["a.parquet", "b.parquet"]')
    return found


def plan_of(
    source: Any, columns: Sequence[str] | None, filter: Any, piece_bytes: int, store: Callable[[], Store]
) -> tuple[Plan, list[Any]]:
    """What all tasks have in common, and the piece of each.

    store: gives the node's store, or raises PeerLost; called only where ``source`` may be a key.
    """
    if not isinstance(source, str) or source.lower().endswith(_ENDINGS):
        return pieces.plan(source, columns, filter, piece_bytes)
    reason: Exception
    try:
        return _plan_of_key(source, columns, filter, piece_bytes, store())
    except (NotFound, PeerLost, OSError) as error:
        reason = error
    if not _is_path(source) and isinstance(reason, PeerLost):
        raise reason
    try:
        return pieces.plan(source, columns, filter, piece_bytes)
    except FileNotFoundError as error:
        raise NotFound(
            f"{source!r:.200} is neither a table in the store ({reason}) nor are there files ({error})"
        ) from None


def _is_path(text: str) -> bool:
    return "/" in text or "*" in text or os.path.exists(text)


def _plan_of_key(
    key: str, columns: Sequence[str] | None, filter: Any, piece_bytes: int, store: Store
) -> tuple[Plan, list[Any]]:
    schema, planned = object_pieces.pieces_of(store, key, piece_bytes)
    if filter is not None:
        columns_of(filter, schema)  # raises here what would be raised in each task
    for name in columns or ():
        if schema.get_field_index(name) < 0:
            raise ConfigError("columns", name, f"this table has {', '.join(schema.names)}")
    chosen = schema if columns is None else schema.empty_table().select(list(columns)).schema
    return ObjectPlan(key, chosen, filter), list(planned)


def hosts_of(places: Sequence[str], driver: str) -> list[str]:
    """The hosts of executors, of all "HOST:PORT" that hold blocks: the driver is one of these, and runs tasks if it is alone."""
    hosts = [place.rpartition(":")[0] for place in places]
    if len(hosts) > 1 and driver in hosts:
        hosts.remove(driver)
    return sorted(set(hosts))


def preferred(planned: Sequence[Any], hosts: Sequence[str]) -> list[list[str]]:
    """The hosts that each piece prefers: on several hosts all pieces of a file the same two, else none."""
    paths = [str(getattr(one, "path", "")) for one in planned]
    if len(hosts) < 2 or not any(paths):
        return [[] for _ in paths]
    placement = Placement(hosts)
    known = {path: placement.nodes_for(path) for path in set(paths)}
    return [known[path] for path in paths]


# --- as text ----------------------------------------------------------------------------------------------------------------------


def plan_text(plan: Plan) -> str:
    """A plan of which no filter is to be applied, for plan_from()."""
    whole = plan.schema if isinstance(plan, ObjectPlan) else plan.whole
    told = {"name": plan.name, "whole": base64.b64encode(whole.serialize().to_pybytes()).decode()}
    return json.dumps(told | ({"key": True} if isinstance(plan, ObjectPlan) else {"options": list(plan.options)}))


def plan_from(text: str, columns: Sequence[str]) -> Plan:
    """The plan of a text, for some of its columns. Raises ValueError."""
    try:
        told = json.loads(text)
        whole = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["whole"], validate=True)))
        chosen = pa.schema([whole.field(_text(name)) for name in columns])
        if told.get("key"):
            return ObjectPlan(str(told["name"]), chosen, None)
        options = tuple((str(name), value) for name, value in told["options"])
        return pieces.Plan(str(told["name"]), whole, chosen, None, options)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise ValueError(f"{text!r:.100} is no plan: {error!r:.200}") from None


def piece_text(piece: Piece) -> str:
    """A piece, for piece_from()."""
    if isinstance(piece, object_pieces.ObjectPiece):
        return json.dumps([piece.key, piece.version, piece.blocks])
    return json.dumps([piece.path, piece.token, piece.row_groups, piece.partition])


def piece_from(text: str) -> Piece:
    """The piece of a text. Raises ValueError."""
    try:
        name, version, numbers, *rest = json.loads(text)
        members = tuple(_whole(number) for number in numbers)
        if not rest:
            return object_pieces.ObjectPiece(_text(name), _whole(version), members)
        partition = tuple((_text(column), value) for column, value in rest[0])
        return pieces.FilePiece(_text(name), _text(version), members, partition)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r:.100} is no piece: {error!r:.200}") from None


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.50} is no number of something")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.50} is no text")
    return value
