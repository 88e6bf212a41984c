"""A store handle inside the process that runs the engine, beside its users': for what packages above keep themselves."""

from __future__ import annotations

import ctypes
import os
from typing import Any, NamedTuple

from tierstore.ringbuf import layout
from tierstore.ringbuf.client import Session

from .engine import Engine
from .requests import Requests
from .store import Store


class _Inside:
    """The control of a store that calls its engine directly, and does not end it."""

    def __init__(self, requests: Requests):
        self._requests = requests

    def call(self, name: str, **arguments: Any) -> Any:
        return self._requests.call(name, arguments)

    def alive(self) -> None:
        """The mutator is a thread of this process."""

    def answers(self) -> bool:
        return True

    def renew(self, session: Session) -> None:
        """There is never a new daemon."""

    def close(self) -> None:
        pass


def store_inside(engine: Engine, requests: Requests) -> Store:
    """A handle of its own slot. Close it before the engine."""
    return Store(Session(engine.admit(os.getpid(), own=True)), _Inside(requests), engine.pools)


class Root(NamedTuple):
    """What the header of an object's root says. payload_hash: None where it is of compressed bytes; size, rows: of the object."""

    payload_hash: int | None
    blocks: int
    rows: int
    size: int


def root_of(requests: Requests, key: str) -> Root | None:
    """The root of an object; None if it is not there. Cost: microseconds; where it is on disk, one read of the block."""
    block = requests.find_root(key)
    if block is None:
        return None
    head = ctypes.create_string_buffer(requests.header(block))
    at = ctypes.addressof(head)
    fields = (layout.R_PAYLOAD_HASH, layout.R_OBJECT_ROWS, layout.R_OBJECT_BYTES)
    payload_hash, rows, size = (ctypes.c_uint64.from_address(at + field).value for field in fields)
    raw = ctypes.c_uint8.from_address(at + layout.R_CODEC).value == layout.CODEC_RAW
    return Root(payload_hash if raw else None, block.block_count, rows, size)
