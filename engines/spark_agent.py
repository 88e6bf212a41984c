"""The agent of a JVM: a client of the node's daemon that a Spark driver or executor starts as its child.

    python -m tierstore.engines.spark_agent --directory PRIVATE [--socket PATH] [--wait SECONDS] [--dram SIZE]

It prints one line of JSON: where it listens, or why it cannot. It ends when its standard input does, so with its JVM, however
that ends. Data do not go through it: it tells its JVM where in the arenas' files to write and read.

Why the slot's lock is shared: if the agent alone held it, the daemon would take its segments back when it is killed, and give
them to others while the JVM still writes there. So the JVM takes a shared lock on the same byte before it may ask for
anything; the daemon reclaims a slot when nobody holds its byte. Tempting and wrong is to have the JVM stop at the agent's
death: it learns of that only after the daemon may have acted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import tierstore
from tierstore.cache.placing import room_for
from tierstore.ringbuf.errors import ConfigError, LostMaps, NotFound, PeerLost, TierstoreError
from tierstore.service.client import connect
from tierstore.service.config import parse_size
from tierstore.service.store import Store

from .node_daemon import started
from .spark_agent_beats import Beats
from .spark_agent_calls import Answer, Calls, Shared
from .spark_agent_wire import receive, send
from .spark_worker import socket_path

PROTOCOL = 2  # of the requests; the jar speaks one
TOUCH_S = 5.0  # between renewals of leases; the shortest lease that the jar takes is 20 s
RETRY_S = 0.1
GONE = 3  # exit code where the store is gone for good


class Agent:
    """Serves one JVM. Callers: one. store: None to read files without one; then there is no slot, and nothing is mapped."""

    def __init__(self, store: Store | None, directory: str):
        self._store, self._shared = store, Shared(store)
        self._beats = Beats()
        self._held = threading.Event()  # the JVM holds the slot's lock too
        self.path = os.path.join(directory, "agent")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._locks_fd = -1 if store is None else store._session.share_slot()

    def run(self) -> None:
        """Take connections, a thread each."""
        threading.Thread(target=self._renew, name="tierstore-lease", daemon=True).start()
        threading.Thread(target=self._beats.run, name="tierstore-beats", daemon=True).start()
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        calls = Calls(self._shared)
        try:
            while (frame := receive(connection)) is not None:
                with self._beats.during(connection, str(frame[0].get("op"))):
                    head, parts = self._answer(calls, *frame)
                send(connection, head, parts)
                if self._gone():
                    os._exit(GONE)
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError):
                print(f"tierstore agent: {error}", file=sys.stderr)
        finally:
            calls.close()
            connection.close()

    def _answer(self, calls: Calls, head: dict[str, Any], body: bytearray) -> Answer:
        try:
            if head.get("op") == "hello":
                return self._hello(), []
            if head.get("op") == "held":
                self._held.set()
                return {}, []
            if self._store is not None and not self._held.is_set():
                raise ValueError("the JVM must share the slot's lock first")
            return calls.handle(head, body)
        except LostMaps as error:
            return {"error": "LostMaps", "message": str(error), "maps": error.maps}, []
        except (TierstoreError, ValueError) as error:
            if isinstance(error, NotFound):
                calls.expired()
            return {"error": type(error).__name__, "message": str(error)}, []
        except OSError as error:
            return {"error": "OSError", "message": str(error)}, []

    def _hello(self) -> dict[str, Any]:
        told = {"protocol": PROTOCOL, "version": tierstore.__version__, "pid": os.getpid()}
        if self._store is None:
            return told | {"slot": -1, "locks": "", "store": "", "segment": 0, "arenas": []}
        session = self._store._session
        grant, me = session.grant, f"/proc/{os.getpid()}/fd"
        arenas = []
        for arena, read_fd, write_fd in zip(grant.arenas, grant.arena_fds, grant.write_fds, strict=True):
            status = os.fstat(read_fd)
            # A JVM maps regular files only; blocks elsewhere are sent over the socket.
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            write = f"{me}/{write_fd}" if write_fd >= 0 else ""
            arenas.append({"path": arena.path, "read": f"{me}/{read_fd}", "write": write, "size": size})
        return told | {
            "slot": grant.slot,
            "locks": f"{me}/{self._locks_fd}",
            "store": session.store_id,
            "segment": room_for(self._store, 512, "default", "")[1],
            "arenas": arenas,
        }

    def _renew(self) -> None:
        """Renew the leases of the JVM's applications; end where the store that we have mapped will never answer again."""
        while self._store is not None:
            time.sleep(TOUCH_S)
            for app in list(self._shared.apps):
                try:
                    self._store._control.call("shuffle_touch", app=app)
                except NotFound:
                    self._shared.forget(app)
                except TierstoreError as error:
                    print(f"tierstore agent: the lease of {app} was not renewed: {error}", file=sys.stderr)
            if self._gone():
                os._exit(GONE)

    def _gone(self) -> bool:
        """Whether another store is served now where ours was: the JVM starts an agent that maps that one."""
        store = self._store
        return store is not None and (store._closed or bool(getattr(store._control, "_closed", False)))


def _connected(path: str, wait_s: float, dram: str) -> Store:
    """The daemon's store; a daemon that is being started is waited for. dram: then start one with so much memory."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return connect(path)
        except (PeerLost, OSError):
            if time.monotonic() < deadline:
                time.sleep(RETRY_S)
            elif dram:
                parse_size(dram, "spark.tierstore.dram")
                started(path, dram=dram)
                dram = ""
            else:
                raise


def _watch(directory: str, remove: Sequence[str]) -> None:
    """End with the JVM. What connections began is nobody's then; the daemon takes it back when the slot's lock goes."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    for path in remove:  # which a JVM that was killed has left
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, "agent"))
        os.rmdir(directory)
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """The agent, until standard input ends."""
    parser = argparse.ArgumentParser(prog="tierstore.engines.spark_agent")
    parser.add_argument("--directory", required=True, help="a folder that only this user can enter")
    parser.add_argument("--socket", default="", help="of the daemon; default: as configured")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for the daemon")
    parser.add_argument("--dram", default="", help="start a daemon of this size where none answers")
    parser.add_argument("--files", action="store_true", help="without a daemon: read files, past any store")
    parser.add_argument("--remove", action="append", default=[], help="a folder of the JVM's that is to go with it")
    told = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    try:
        store = None if told.files else _connected(socket_path(told.socket or None), told.wait, told.dram)
        agent = Agent(store, told.directory)
    except (TierstoreError, OSError) as error:
        kind = "ConfigError" if isinstance(error, ConfigError) else type(error).__name__
        print(json.dumps({"error": kind, "message": str(error)}), flush=True)
        sys.exit(GONE)
    print(json.dumps({"socket": agent.path}), flush=True)
    threading.Thread(target=_watch, args=(told.directory, told.remove), daemon=True).start()
    agent.run()


if __name__ == "__main__":
    main()
