"""connect() and open(): a Store over the node's daemon, or over an engine of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tierstore.ringbuf import layout
from tierstore.ringbuf.client import ArenaInfo, Grant, Session
from tierstore.ringbuf.errors import Closed, ConfigError, PeerLost
from tierstore.ringbuf.native import kernels
from tierstore.ringbuf.tier import Tier

from . import protocol
from .store import Store

if TYPE_CHECKING:
    from .config import StoreConfig

CONNECT_TIMEOUT_S = 10.0
RESTART_WAIT_S = 10.0


class SocketControl:
    """Sends requests to the daemon; connects again when the daemon was restarted."""

    def __init__(self, path: str):
        self._path = path
        self._lock = threading.RLock()
        self._request = 0
        self._pid, self._closed = os.getpid(), False
        self.store_id: str | None = None  # of the store whose memory this process has mapped
        self._connect()

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(CONNECT_TIMEOUT_S)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise PeerLost(
                f"no daemon answers at {self._path} ({error.strerror}); start one with "
                f"`tierstore serve --socket {self._path}`"
            ) from None
        connection.settimeout(None)
        self._connection, self._decoder = connection, protocol.Decoder()

    def _exchange(self, operation: int, body: dict[str, Any]) -> tuple[Any, list[int]]:
        with self._lock:
            self._check()
            self._request += 1
            try:
                # A daemon that refused us hung up, but its reason is there to be read.
                with contextlib.suppress(BrokenPipeError):
                    protocol.send(self._connection, protocol.encode(operation, self._request, body))
                kind, answer, descriptors = self._answer(self._request)
            except OSError as error:
                raise PeerLost(f"the daemon at {self._path} is gone ({error})") from None
        if kind == protocol.ERROR:
            protocol.raise_error(answer)
        return answer["result"], descriptors

    def _answer(self, request: int) -> tuple[int, dict[str, Any], list[int]]:
        """The answer to a request; those to requests that were given up (Ctrl-C) are thrown away."""
        while True:
            kind, number, answer, descriptors = protocol.receive(self._connection, self._decoder)
            if number in (request, 0):
                return kind, answer, descriptors
            for fd in descriptors:
                os.close(fd)

    def _check(self) -> None:
        if self._closed or os.getpid() != self._pid:
            raise Closed("this connection was closed, or belongs to the parent of this forked process; connect again")

    def hello(self) -> tuple[Grant, dict[str, int]]:
        """A slot, and the pools by number."""
        body, descriptors = self._exchange(protocol.HELLO, {"pid": os.getpid()})
        arenas = [ArenaInfo(**arena) for arena in body.pop("arenas")]
        writable, pools = body.pop("writable"), body.pop("pools")
        control, clients, index, locks = descriptors[:4]
        reading, writing = descriptors[4 : 4 + len(arenas)], iter(descriptors[4 + len(arenas) :])
        grant = Grant(
            **body,
            arenas=arenas,
            control_fd=control,
            clients_fd=clients,
            index_fd=index,
            locks_fd=locks,
            arena_fds=reading,
            write_fds=[next(writing) if flag else -1 for flag in writable],
        )
        return grant, pools

    def call(self, name: str, **arguments: Any) -> Any:
        """One request, once more after a restart of the daemon."""
        body = {"name": name, "arguments": arguments}
        try:
            return self._exchange(protocol.CALL, body)[0]
        except PeerLost:
            self.alive()
            return self._exchange(protocol.CALL, body)[0]

    def alive(self) -> None:
        """Return once a daemon answers, waiting up to RESTART_WAIT_S for one that is being restarted."""
        self._check()
        deadline = time.monotonic() + RESTART_WAIT_S
        while True:
            with self._lock:
                if self._peer_there():
                    return
                try:
                    self._connection.close()
                    self._connect()
                    self._check_store()
                    return
                except PeerLost:
                    if self._closed or time.monotonic() > deadline:
                        raise
            time.sleep(0.05)

    def _check_store(self) -> None:
        """Raise PeerLost, for good, if the daemon that answers now serves another store: ours was in memory only."""
        if self.store_id is not None:
            body, descriptors = self._exchange(protocol.RENEW, {})
            for fd in descriptors:
                os.close(fd)
            if body["store_id"] != self.store_id:
                self.close()
                raise PeerLost(f"the daemon at {self._path} serves another store now; connect again")

    def answers(self) -> bool:
        """Whether the daemon's end of the connection is open."""
        with self._lock:
            return not self._closed and self._peer_there()

    def _peer_there(self) -> bool:
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def renew(self, session: Session) -> None:
        """Map the index of the daemon that runs now."""
        with self._lock:
            if not session.stale:
                return
            try:
                body, descriptors = self._exchange(protocol.RENEW, {})
            except PeerLost:
                self.alive()
                body, descriptors = self._exchange(protocol.RENEW, {})
            if (body["store_id"], body["segment_count"]) != (session.store_id, session.grant.segment_count):
                session.close()
                os.close(descriptors[0])
                raise PeerLost(f"the daemon at {self._path} serves another store now; connect again")
            session.map_index(descriptors[0], body["index_bytes"], body["epoch"])

    def close(self) -> None:
        """Say goodbye."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                if os.getpid() == self._pid:
                    protocol.send(self._connection, protocol.encode(protocol.BYE, 0, {}))
            self._connection.close()


# Configuration and engine are imported where they are used: a client of a daemon needs neither, and starts a tenth sooner.


def _default_socket() -> str:
    from .config import load_config

    socket = load_config().resolve().socket
    assert socket is not None
    return socket


def connect(path: str | None = None) -> Store:
    """The store of this node's daemon; without one (and without a path), an embedded store.

    path:   of the daemon's socket; default: TIERSTORE_SOCKET, then the configuration's.
    Cost:   3 ms once the kernels are built on this machine (some seconds the first time).
    Raises: PeerLost if a path was given and nobody serves it, Full if the daemon has no client slot left.
    """
    named = path or os.environ.get("TIERSTORE_SOCKET")
    target = named or _default_socket()
    try:
        control = SocketControl(target)
    except PeerLost:
        if named:
            raise
        return open()
    kernels()  # may take seconds the first time; a slot is asked for after that
    try:
        grant, pools = control.hello()
        _check_layout(grant)
    except BaseException:
        control.close()
        raise
    session = Session(grant)
    control.store_id = session.store_id
    return Store(session, control, pools)


def _check_layout(grant: Grant) -> None:
    """What the daemon hands out is laid out as we read it. Raises ConfigError."""
    (found,) = struct.unpack("<Q", os.pread(grant.control_fd, 8, layout.C_VERSION))
    if found != layout.LAYOUT_VERSION:
        for fd in (
            grant.control_fd,
            grant.clients_fd,
            grant.index_fd,
            grant.locks_fd,
            *grant.arena_fds,
            *grant.write_fds,
        ):
            if fd >= 0:
                os.close(fd)
        allowed = f"this tierstore knows version {layout.LAYOUT_VERSION}; install the same tierstore on both sides"
        raise ConfigError("layout version of the daemon", found, allowed)


def open(
    *,
    dram: str | int | None = None,
    pmem: str | None = None,
    disk: str | list[str] | None = None,
    disk_lz4: bool = False,
    pmem_profile: str = "none",
    disk_profile: str = "none",
    segment: str | int = 0,
    pools: dict[str, str | int] | None = None,
    clients: int = 16,
    tiers: Sequence[Callable[[int], Tier]] = (),
) -> Store:
    """A store inside this process, for as long as it is open.

    dram: size, "1GiB"; pmem: "PATH:SIZE"; disk: "DIR:SIZE" or several; disk_lz4: compress what moves to disk. Data on
    pmem and disk paths that you name stays there and is found again by the next open(); memory is given back by close().
    tiers: makers of more tiers (see tierstore.ringbuf.tier), called with the bytes of a segment; each tier takes its
    place behind those of its kind.
    Raises: ConfigError, Full.
    """
    flags: dict[str, object] = {
        "dram": dram,
        "pmem": pmem,
        "disk": disk,
        "disk_lz4": disk_lz4,
        "pmem_profile": pmem_profile,
        "disk_profile": disk_profile,
        "segment": segment,
        "clients": clients,
    }
    given = {name: value for name, value in flags.items() if value not in (None, 0, False)}
    if pools:
        given["pools"] = pools
    from .config import load_config

    return open_config(load_config(flags=given).resolve(), tiers)


def open_config(config: StoreConfig, tiers: Sequence[Callable[[int], Tier]] = ()) -> Store:
    """An embedded store of a checked configuration, with more tiers if there are any."""
    from dataclasses import replace

    from tierstore.cache.embedded import EmbeddedControl, open_embedded
    from tierstore.shuffle.late import Late

    from .layout import engine_config, mark_ephemeral, remove_dead
    from .network import Nodes

    config = replace(config, socket=None)
    remove_dead(config)
    made = engine_config(config)
    made.arenas = sorted([*made.arenas, *(make(made.segment_bytes) for make in tiers)], key=lambda tier: tier.kind)
    mark_ephemeral(made.folder, [])

    def store(session: Session, control: EmbeddedControl, pools: dict[str, int]) -> Store:
        nodes = Nodes(config)
        control.requests.at_close.append(nodes.close)
        Late(control.engine, control.requests, nodes)
        return Store(session, control, pools, config)

    return open_embedded(made, store)


__all__ = ["connect", "open", "open_config"]
