"""The daemon's loop: sockets and workers around the pure node and the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import selectors
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tierstore.cache.engine import Engine
from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import ConfigError
from tierstore.shuffle.late import Late
from tierstore.shuffle.names import PREFIX
from tierstore.shuffle.serving import Serving

from . import node, protocol
from .config import StoreConfig
from .flight.endpoint import endpoint_of
from .layout import engine_config, mark_ephemeral, remove_dead
from .network import Nodes, listener_of
from .wire.server import Call

log = logging.getLogger("tierstore")

WORKERS = 4
SEND_TIMEOUT_S = 10.0


class Daemon:
    """One node's daemon. run() serves until stop() or a signal.

    handlers: what other nodes may call, by name, where the daemon listens for them; to be added to before run().
    """

    def __init__(self, config: StoreConfig):
        self.config = config
        assert config.socket is not None
        self._path = config.socket
        remove_dead(config)
        try:
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError("socket", self._path, f"a path in a folder that can be made ({error.strerror})") from None
        made = engine_config(config)
        self.engine = Engine(made)
        if config.ephemeral:
            mark_ephemeral(made.folder, [arena.path for arena in made.arenas[1:]])
        self.requests = Requests(self.engine)
        self._node = node.Node(os.getuid())
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, tuple[socket.socket, protocol.Decoder]] = {}
        self._numbers = 0
        self._slots: dict[int, list[int]] = {}  # connection -> slots granted over it
        self._done: queue.SimpleQueue[node.Finished] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._workers = ThreadPoolExecutor(WORKERS, "tierstore-call")
        self._stopping = threading.Event()
        self.handlers: dict[str, Callable[[Call], Any]] = {"ping": self._ping, "stats": self._told_stats}
        self.listener = self.flight = None
        try:
            self.listener = listener_of(config, self.handlers)
            self.flight = endpoint_of(config)
            self._nodes = nodes = Nodes(config, self.listener)
            self.requests.at_close.append(nodes.close)
            self.shuffles = Late(self.engine, self.requests, nodes)
            self.handlers |= Serving(self.shuffles.get).handlers()
            self._listen()
        except BaseException:  # nobody could use the engine: what it made in memory must not stay behind
            self._stop_serving()
            self.requests.close()
            self.engine.close(unused=True)
            raise

    def _listen(self) -> None:
        """Take the socket's place: a path of a dead daemon is replaced, a living one is not (the engine's lock knows)."""
        if os.path.exists(self._path) and not stat.S_ISSOCK(os.stat(self._path).st_mode):
            raise ConfigError(
                "socket", self._path, "a path that is free, or a socket of a dead daemon; a file is there"
            )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._listener.bind(self._path)
        except OSError as error:
            raise ConfigError(
                "socket",
                self._path,
                f"a path that can be bound ({error.strerror}); its length must be "
                "under 108 bytes and its folder writable",
            ) from None
        os.chmod(self._path, 0o600)
        self._listener.listen(512)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, -1)
        self._selector.register(self._wake, selectors.EVENT_READ, -2)

    def run(self) -> None:
        """Serve. Returns after stop(); then everything is closed."""
        self.engine.start()
        self._workers.submit(self._resume_shuffles)
        if self.listener is not None:
            self.listener.start()
        if self.flight is not None:
            self.flight.start(self.engine, self.requests, self.shuffles, self._nodes)
        try:
            while not self._stopping.is_set():
                for key, _ in self._selector.select():
                    self._ready(int(key.data))
        finally:
            self._close()

    def _resume_shuffles(self) -> None:
        """Where an earlier life left shuffles: count the leases of their applications on."""
        if self.requests.holds(PREFIX):
            self.shuffles.get()

    def stop(self, *_: object) -> None:
        """Make run() return; safe in a signal handler."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)

    def listen_to_signals(self, fd: int) -> None:
        """Wake up when a signal handler is due; its byte stays unread, the handlers end the loop."""
        self._selector.register(fd, selectors.EVENT_READ, -3)

    def _ready(self, number: int) -> None:
        if number == -1:
            self._accept()
        elif number == -3:
            return  # Python runs the handler by itself as soon as the main thread does anything
        elif number == -2:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            while not self._done.empty():
                self._carry_out(self._node.handle(self._done.get()))
        else:
            self._read(number)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: the peer waits in the queue
            log.warning("a client could not be accepted: %s; raise the limit of open files", error)
            time.sleep(0.05)
            return
        with contextlib.suppress(OSError):
            connection.settimeout(SEND_TIMEOUT_S)
            pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            self._numbers += 1
            self._connections[self._numbers] = (connection, protocol.Decoder())
            self._selector.register(connection, selectors.EVENT_READ, self._numbers)
            self._carry_out(self._node.handle(node.Connected(self._numbers, uid, pid)))

    def _read(self, number: int) -> None:
        if number not in self._connections:  # hung up earlier in this round
            return
        connection, decoder = self._connections[number]
        try:
            data = connection.recv(1 << 16)
            frames = decoder.feed(data) if data else None
        except (OSError, protocol.ProtocolError) as error:
            if isinstance(error, protocol.ProtocolError):
                self._carry_out([node.Answer(number, protocol.ERROR, 0, protocol.error_body(error))])
            frames = None
        if frames is None:
            self._hang(number)
            self._carry_out(self._node.handle(node.Lost(number)))
            return
        for operation, request, body in frames:
            self._carry_out(self._node.handle(node.Arrived(number, operation, request, body)))

    def _carry_out(self, instructions: list[node.Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case node.Admit():
                    self._admit(instruction)
                case node.Renew():
                    self._renew(instruction)
                case node.Run(quick=True):
                    self._call(instruction)
                case node.Run():
                    self._workers.submit(self._call, instruction)
                case node.Answer():
                    self._send(instruction.connection, _frame(instruction))
                case node.Hang():
                    self._hang(instruction.connection)
                case node.Reap():
                    self._workers.submit(self.engine.reap_dead)

    def _call(self, run: node.Run) -> None:
        try:
            stats = run.name == "stats" and not run.arguments
            result = self._stats() if stats else self.requests.call(run.name, run.arguments)
            finished = node.Finished(run.connection, run.request, result, None)
        except Exception as error:  # whatever a call raises belongs to its caller
            finished = node.Finished(run.connection, run.request, None, error)
        if run.quick:
            self._carry_out(self._node.handle(finished))
            return
        self._done.put(finished)
        os.eventfd_write(self._wake, 1)

    def _stats(self) -> Any:
        network = self.listener.stats() if self.listener is not None else None
        flight = self.flight.stats() if self.flight is not None else None
        more = {"network": network, "flight": flight, "nodes": list(self.config.nodes)}
        return self.requests.call("stats", {}) | more

    def _told_stats(self, call: Call) -> Any:
        """As stats, without what only this machine's users need to know."""
        stats = self._stats()
        for tier in stats["tiers"].values():
            del tier["paths"]
        return stats

    def _ping(self, call: Call) -> dict[str, Any]:
        from tierstore import __version__

        mutator = self.engine.mutator
        return {"store_id": mutator.store_id.hex(), "version": __version__, "epoch": mutator.epoch}

    def _admit(self, admit: node.Admit) -> None:
        try:
            grant = self.engine.admit(admit.pid)
        except Exception as error:
            frame = protocol.encode(protocol.ERROR, admit.request, protocol.error_body(error))
            self._send(admit.connection, frame)
            return
        self._slots.setdefault(admit.connection, []).append(grant.slot)
        body = dataclasses.asdict(grant)
        for name in ("control_fd", "clients_fd", "index_fd", "locks_fd", "arena_fds", "write_fds"):
            del body[name]
        body["writable"] = [fd >= 0 for fd in grant.write_fds]
        body["pools"] = self.engine.pools
        writing = [fd for fd in grant.write_fds if fd >= 0]
        owned = [grant.control_fd, grant.clients_fd, grant.index_fd, *grant.arena_fds, *writing]
        passed = [grant.control_fd, grant.clients_fd, grant.index_fd, grant.locks_fd, *grant.arena_fds, *writing]
        self._send(admit.connection, protocol.encode(protocol.REPLY, admit.request, {"result": body}), passed)
        for fd in owned:  # not the lock file's: closing it here would drop the daemon's own lock
            os.close(fd)

    def _renew(self, renew: node.Renew) -> None:
        mutator = self.engine.mutator
        body = {
            "result": {
                "epoch": mutator.epoch,
                "index_bytes": mutator.index_bytes,
                "store_id": mutator.store_id.hex(),
                "segment_count": mutator.segment_count,
            }
        }
        fd = os.open(os.path.join(mutator.folder, f"index-{mutator.epoch}"), os.O_RDONLY | os.O_CLOEXEC)
        self._send(renew.connection, protocol.encode(protocol.REPLY, renew.request, body), [fd])
        os.close(fd)

    def _send(self, number: int, frame: bytes, descriptors: list[int] | None = None) -> None:
        entry = self._connections.get(number)
        if entry is None:
            return
        try:
            protocol.send(entry[0], frame, descriptors)
        except OSError as error:  # a peer that does not read, or is gone
            log.info("connection %d: %s", number, error)
            self._hang(number)
            self._carry_out(self._node.handle(node.Lost(number)))

    def _hang(self, number: int) -> None:
        entry = self._connections.pop(number, None)
        for slot in self._slots.pop(number, []):
            self.engine.leave(slot)
        if entry is not None:
            self._selector.unregister(entry[0])
            entry[0].close()

    def _stop_serving(self) -> None:
        """End what the network asked for."""
        for served in (self.flight, self.listener):
            if served is not None:
                served.stop()

    def _close(self) -> None:
        self._stop_serving()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._listener.close()
        for number in list(self._connections):
            self._hang(number)
        self._workers.shutdown(wait=True, cancel_futures=True)
        self.requests.close()
        self.engine.close()
        self._selector.close()
        os.close(self._wake)


def _frame(answer: node.Answer) -> bytes:
    """An answer as a frame; one that cannot be sent becomes an error that says so."""
    try:
        return protocol.encode(answer.operation, answer.request, answer.body)
    except (protocol.ProtocolError, TypeError, ValueError) as error:
        return protocol.encode(protocol.ERROR, answer.request, protocol.error_body(error))


def serve(config: StoreConfig, ready: Any = None) -> None:
    """Run a daemon in the foreground until SIGTERM or SIGINT. ready: called once clients can connect."""
    daemon = Daemon(config)
    # The kernel may hand a signal to any thread, which does not end the main thread's wait; a byte in this pipe does.
    waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waking[1], warn_on_full_buffer=False)
    daemon.listen_to_signals(waking[0])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.stop)
    try:
        if ready is not None:
            ready(daemon)
        daemon.run()
    finally:
        signal.set_wakeup_fd(-1)
        for fd in waking:
            os.close(fd)
