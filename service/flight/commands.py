"""What Flight clients say: JSON in descriptors, tickets, actions and metadata, and paths. Checked here, whoever sent it.

Every field is named and of its type, nothing unknown is accepted, and nothing is done before all of it was read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tierstore.cache.columns import chunks
from tierstore.cache.keys import check_key
from tierstore.ringbuf.errors import TierstoreError
from tierstore.shuffle import names
from tierstore.shuffle.receipt import Receipt

COMMAND_BYTES_MAX = 16 << 20
RECEIPTS_MAX = 1 << 16
OBJECTS = "objects"  # the first part of a path
RESERVED = (names.PREFIX, chunks.PREFIX)
MESSAGE_BYTES_MIN, MESSAGE_BYTES_DEFAULT = 64 << 10, 64 << 20
_MISSING: Any = object()


class BadCommand(TierstoreError, ValueError):
    """A command that cannot be carried out as it is; the message says what is allowed."""


@dataclass(frozen=True)
class GetObject:
    """Read an object. message_bytes: about the largest message sent."""

    key: str
    columns: tuple[str, ...] | None = None
    message_bytes: int = MESSAGE_BYTES_DEFAULT


@dataclass(frozen=True)
class PutObject:
    """Write an object. rows: their number, if it is known; counted: a message that says it comes at the end."""

    key: str
    keep: bool = False
    ttl: float | None = None
    pool: str = "default"
    durable: bool = False
    rows: int | None = None
    counted: bool = False


@dataclass(frozen=True)
class GetShuffle:
    """Read partitions first to last (one behind the last) of the attempts that the receipts name; None: all."""

    app: str
    number: int
    receipts: tuple[Receipt, ...]
    partitions: tuple[int, int] | None = None
    secret: str = ""
    partition_count: int | None = None
    verify: bool = True
    message_bytes: int = MESSAGE_BYTES_DEFAULT


@dataclass(frozen=True)
class PutShuffle:
    """Write one attempt. by: columns to hash; partition: of all rows; neither: each batch says its own."""

    app: str
    number: int
    partitions: int
    map_index: int
    attempt: str
    by: tuple[str, ...] | None = None
    partition: int | None = None
    secret: str = ""
    pool: str = "default"
    durable: bool = False
    rows: int | None = None
    counted: bool = False


def parse_get(path: Sequence[bytes] | None, command: bytes | None) -> GetObject | GetShuffle:
    """A path, or a command of a descriptor or ticket, that reads. Raises BadCommand, InvalidKey."""
    if path is not None:
        return GetObject(key_of_path(path))
    kind, fields = _of_kind(command or b"")
    if kind == "object":
        key = _key(fields)
        columns = fields.take("columns", list, None)
        message_bytes = _message_bytes(fields)
        fields.end()
        return GetObject(key, None if columns is None else _names("columns", columns), message_bytes)
    app, number = _app(fields), _number(fields, "number")
    receipts = _receipts(fields.take("receipts", list))
    made = GetShuffle(
        app,
        number,
        receipts,
        _range(fields.take("partitions", list, None)),
        fields.take("secret", str, ""),
        _number(fields, "partition_count", names.PARTITIONS_MAX, None),
        fields.take("verify", bool, True),
        _message_bytes(fields),
    )
    fields.end()
    return made


def parse_put(path: Sequence[bytes] | None, command: bytes | None) -> PutObject | PutShuffle:
    """A path, or a command of a descriptor, that writes. Raises BadCommand, InvalidKey."""
    if path is not None:
        return PutObject(key_of_path(path))
    kind, fields = _of_kind(command or b"")
    common = {
        "pool": fields.take("pool", str, "default"),
        "durable": fields.take("durable", bool, False),
        "rows": _number(fields, "rows", 1 << 62, None),
        "counted": fields.take("counted", bool, False),
    }
    if kind == "object":
        ttl = fields.take("ttl", (int, float), None)
        if ttl is not None and not 0 < ttl < float("inf"):
            raise BadCommand(f"ttl {ttl!r} cannot be used: a positive number of seconds")
        made: PutObject | PutShuffle = PutObject(_key(fields), fields.take("keep", bool, False), ttl, **common)
    else:
        by = fields.take("by", list, None)
        made = PutShuffle(
            _app(fields),
            _number(fields, "number"),
            _number(fields, "partitions", names.PARTITIONS_MAX),
            _number(fields, "map_index"),
            _checked(names.check_name, "attempt", fields.take("attempt", str)),
            None if by is None else _names("by", by),
            _number(fields, "partition", names.PARTITIONS_MAX, None),
            fields.take("secret", str, ""),
            **common,
        )
        if made.by is not None and made.partition is not None:
            raise BadCommand("by and partition cannot both be given: rows are hashed, or all go to one partition")
        if made.by == ():
            raise BadCommand("by [] cannot be used: at least one column")
    fields.end()
    return made


def key_of_path(path: Sequence[bytes]) -> str:
    """The key in the path ["objects", KEY]."""
    if len(path) != 2 or bytes(path[0]) != OBJECTS.encode():
        raise BadCommand(f'the path has to be ["{OBJECTS}", KEY], with the whole key, slashes and all, as one part')
    return check_users_key(text_of(path[1], "the key"))


def check_users_key(key: str) -> str:
    """A key that clients may use: those of shuffles and of the column cache are the store's own."""
    check_key(key)
    if is_reserved(key):
        raise BadCommand(
            f"key {key!r:.60} cannot be used: those that begin with {' or '.join(RESERVED)} are the store's"
        )
    return key


def is_reserved(key: str) -> bool:
    """Whether a key is the store's own."""
    return key.startswith(RESERVED) or f"{key}/" in RESERVED


def text_of(raw: bytes, what: str) -> str:
    """Bytes of a client as text."""
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadCommand(f"{what} is not UTF-8") from None


class Fields:
    """The fields of a JSON object, taken one by one. end(): refuses what nobody took."""

    def __init__(self, values: dict[str, Any], what: str):
        self._values, self._what = dict(values), what
        self._known: list[str] = []

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
        """One field, of a type."""
        self._known.append(name)
        if name not in self._values:
            if default is _MISSING:
                raise BadCommand(f"{self._what} needs {name!r}")
            return default
        value = self._values.pop(name)
        if value is None and default is None:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(one.__name__ for one in kinds)
            raise BadCommand(f"{name!r} of {self._what} has to be {wanted}, not {value!r:.60}")
        return value

    def end(self) -> None:
        """Refuse fields that are not known."""
        if self._values:
            raise BadCommand(
                f"{self._what} has no {min(self._values)!r:.60}; known are {', '.join(sorted(self._known))}"
            )


def fields_of(raw: bytes, what: str) -> Fields:
    """A JSON object. Raises BadCommand."""
    if len(raw) > COMMAND_BYTES_MAX:
        raise BadCommand(f"{what} has {len(raw)} bytes; at most {COMMAND_BYTES_MAX}")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadCommand(f"{what} is not JSON") from None
    if not isinstance(values, dict):
        raise BadCommand(f"{what} is not a JSON object")
    return Fields(values, what)


def _of_kind(raw: bytes) -> tuple[str, Fields]:
    """The one entry of a command: its kind and its fields."""
    outer = fields_of(raw, "the command")
    found = {kind: outer.take(kind, dict, None) for kind in ("object", "shuffle")}
    outer.end()
    given = [(kind, values) for kind, values in found.items() if values is not None]
    if len(given) != 1:
        raise BadCommand('the command has to be {"object": {...}} or {"shuffle": {...}}')
    kind, values = given[0]
    return kind, Fields(values, f"the command {kind!r}")


def _key(fields: Fields) -> str:
    return check_users_key(fields.take("key", str))


def _app(fields: Fields) -> str:
    return str(_checked(names.check_name, "app", fields.take("app", str)))


def _number(fields: Fields, name: str, limit: int = names.NUMBER_MAX, default: Any = _MISSING) -> Any:
    value = fields.take(name, int, default)
    return value if value is None else _checked(names.check_number, name, value, limit)


def _checked(check: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return check(*arguments)
    except ValueError as error:
        raise BadCommand(str(error)) from None


def _names(what: str, values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values) or len(set(values)) != len(values):
        raise BadCommand(f"{what} {values!r:.60} cannot be used: a list of different names of columns")
    return tuple(values)


def _range(values: list[Any] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) != 2 or any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise BadCommand(f"partitions {values!r:.60} cannot be read: [first, one behind the last]")
    if not 0 <= values[0] < values[1] <= names.PARTITIONS_MAX:
        raise BadCommand(f"partitions {values!r:.60} cannot be read: the first has to be below the second")
    return values[0], values[1]


_RECEIPT_KINDS = {"replicas": list, "rows": int, "bytes": int, "manifest_hash": int}
_RECEIPT_KINDS |= dict.fromkeys(("durability", "store_id", "incarnation", "node"), str)


def _receipts(values: list[Any]) -> tuple[Receipt, ...]:
    if len(values) > RECEIPTS_MAX:
        raise BadCommand(f"{len(values)} receipts in one command; at most {RECEIPTS_MAX}")
    made = []
    for value in values:
        if not isinstance(value, dict):
            raise BadCommand("receipts have to be what puts answered, as they are")
        for name, kind in _RECEIPT_KINDS.items():
            if not isinstance(value.get(name), kind) or isinstance(value.get(name), bool):
                raise BadCommand(f"a receipt needs {name!r}, a {kind.__name__}")
        if not all(isinstance(node, str) for node in value["replicas"]):
            raise BadCommand("the replicas of a receipt have to be names of nodes")
        made.append(_checked(Receipt.from_dict, value))
    return tuple(made)


def _message_bytes(fields: Fields) -> int:
    size = int(fields.take("message_bytes", int, MESSAGE_BYTES_DEFAULT))
    if not MESSAGE_BYTES_MIN <= size <= MESSAGE_BYTES_DEFAULT:
        raise BadCommand(f"message_bytes {size} cannot be used: {MESSAGE_BYTES_MIN} to {MESSAGE_BYTES_DEFAULT}")
    return size
