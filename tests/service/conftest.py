"""What the tests of the network share: certificates, and listeners and peers that end with the test."""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tierstore.emulation.procs import Daemon
from tierstore.ringbuf import errors
from tierstore.service.wire.client import Peer
from tierstore.service.wire.frames import AUTH, REPLY
from tierstore.service.wire.security import Security
from tierstore.service.wire.server import Call, Handler, Listener, ListenerConfig
from tierstore.service.wire.stream import Stream

TOKEN = "correct-horse-battery-staple"
ROOM_BYTES = 8 << 20  # of what "take" takes at once


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority and what it signed; another authority that nobody trusts, and what that signed."""

    ca: str
    other_ca: str
    server: tuple[str, str]  # for localhost and 127.0.0.1
    elsewhere: tuple[str, str]  # for another host
    expired: tuple[str, str]
    client: tuple[str, str]
    strange: tuple[str, str]  # signed by the other authority

    def daemon(self, pair: str = "server", **more: Any) -> Security:
        """Of a daemon with one of the certificates."""
        cert, key = getattr(self, pair)
        return Security(TOKEN, "token", cert, key, **more)

    def caller(self, pair: str | None = None, **more: Any) -> Security:
        """Of a client that trusts the authority, perhaps with a certificate of its own."""
        cert, key = getattr(self, pair) if pair else (None, None)
        return replace(Security(TOKEN, "token", cert, key, self.ca), **more)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    import trustme

    folder = tmp_path_factory.mktemp("certificates")
    ca, other = trustme.CA(), trustme.CA()

    def authority(made: Any, name: str) -> str:
        made.cert_pem.write_to_path(str(folder / name))
        return str(folder / name)

    def pair(made: Any, name: str) -> tuple[str, str]:
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        key.chmod(0o600)
        return str(cert), str(key)

    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return Certificates(
        authority(ca, "ca.pem"),
        authority(other, "other.pem"),
        pair(ca.issue_cert("localhost", "127.0.0.1", "::1"), "server"),
        pair(ca.issue_cert("elsewhere.example"), "elsewhere"),
        pair(ca.issue_cert("localhost", "127.0.0.1", not_after=yesterday), "expired"),
        pair(ca.issue_cert("client.example"), "client"),
        pair(other.issue_cert("client.example", "localhost", "127.0.0.1"), "strange"),
    )


class Net:
    """Listeners with the handlers below, and peers of them; end() closes everything."""

    def __init__(self, certificates: Certificates, tls: bool = False):
        self.certificates, self.tls = certificates, tls
        self.log: list[str] = []  # what handlers saw
        self.gate = threading.Event()  # what "wait" waits for
        self._ends: list[Callable[[], Any]] = []

    def listen(
        self, security: Security | None = None, handlers: dict[str, Handler] | None = None, **limits: Any
    ) -> Listener:
        if security is None:
            security = self.certificates.daemon() if self.tls else Security()
        limits = {"failed_delay_s": 0.05} | limits
        listener = Listener(ListenerConfig("127.0.0.1", 0, security, **limits), handlers or self.handlers())
        self._ends.append(listener.stop)
        return listener.start()

    def peer(self, listener: Listener, security: Security | None = None, timeout_s: float = 20, **more: Any) -> Peer:
        if security is None:
            security = self.certificates.caller() if self.tls else Security()
        made = Peer(listener.address, security, timeout_s, **more)
        self._ends.append(made.close)
        return made

    def raw(self, listener: Listener, timeout_s: float = 10) -> socket.socket:
        """A bare TCP connection."""
        made = socket.create_connection((listener.address.host, listener.address.port), timeout_s)
        self._ends.append(made.close)
        return made

    def stream(self, listener: Listener, token: str | None = None) -> Stream:
        """A plain connection that has authenticated itself, to speak frames on by hand."""
        made = Stream(self.raw(listener), "by hand", 10)
        made.send(AUTH, 1, {"token": token})
        assert made.receive((REPLY,)).request == 1
        return made

    def end(self) -> None:
        self.gate.set()
        while self._ends:
            self._ends.pop()()

    def handlers(self) -> dict[str, Handler]:
        return {"echo": _echo, "give": _give, "take": self._take, "fail": _fail, "wait": self._wait, "look": self._look}

    def _take(self, call: Call) -> dict[str, Any]:
        """Receive everything: sizes, and the sum of all bytes."""
        sizes, total, heads = [], 0, []
        memory = bytearray()

        def sink(head: dict[str, Any], size: int) -> memoryview:
            nonlocal memory
            if head.get("refuse") or size > ROOM_BYTES:  # a length is no more than a claim
                raise errors.Full("no room for this one")
            memory = bytearray(size)
            return memoryview(memory)

        try:
            while (head := call.receive(sink)) is not None:
                heads.append(head)
                sizes.append(len(memory))
                total += sum(memory[:: max(1, len(memory) // 1000)])
                if head.get("enough"):
                    return {"sizes": sizes, "early": True}
        except errors.PeerLost:
            self.log.append("lost")
            raise
        return {"sizes": sizes, "sampled": total, "heads": heads}

    def _wait(self, call: Call) -> str:
        self.log.append("waiting")
        self.gate.wait(30)
        return "waited"

    def _look(self, call: Call) -> None:
        """Work until the caller is gone."""
        self.log.append("looking")
        try:
            while not self.gate.wait(0.01):
                call.check()
        except errors.PeerLost:
            self.log.append("gone")
            raise


def _echo(call: Call) -> Any:
    return call.arguments


def _give(call: Call) -> str:
    """Send ``count`` payloads of ``size`` bytes, in ``pieces`` buffers each; payload i is filled with i."""
    count, size, pieces = call.argument("count", int, 1), call.argument("size", int, 0), call.argument("pieces", int, 1)
    for number in range(count):
        data = memoryview(bytes([number % 251])) if size == 1 else memoryview(bytes([number % 251]) * size)
        step = -(-size // pieces) if size else 1
        call.send(
            {"number": number},
            [data[start : start + step] for start in range(0, size, step)],
            call.argument("check", int, None),
        )
        if number == call.argument("fail_after", int, -1):
            raise errors.NotFound("map 7 is not here")
    return "given"


def _fail(call: Call) -> Any:
    kind = call.argument("kind", str)
    if kind == "secret":
        with open("/nowhere/secret/path") as file:
            return file.read()
    if kind == "unsendable":
        return {"a": object()}
    if kind == "config":
        raise errors.ConfigError("tier", "x", "one of a, b")
    raise getattr(errors, kind)("in its own words")


@pytest.fixture
def net(certificates: Certificates) -> Iterator[Net]:
    """Plain."""
    made = Net(certificates)
    yield made
    made.end()


@pytest.fixture(params=["plain", "tls"])
def both(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Net]:
    """Plain, and with TLS and a token."""
    made = Net(certificates, request.param == "tls")
    yield made
    made.end()


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    os.chmod(path, 0o600)
    return str(path)


# --- Arrow Flight -----------------------------------------------------------------------------------------------------


class FlightNode:
    """A daemon with a Flight endpoint, and plain pyarrow.flight clients of it."""

    def __init__(self, folder: Path, *arguments: str, tls: bool = False):
        self.daemon = Daemon(folder, "--dram", "32MiB", "--ephemeral", "--flight", "127.0.0.1:0", *arguments)
        self.daemon.start()
        with self.daemon.connect() as store:
            self.address: str = store.stats()["flight"]["address"]
        self.location = f"grpc+tls://{self.address}" if tls else f"grpc://{self.address}"

    def client(self, **options: Any) -> Any:
        from pyarrow import flight

        return flight.FlightClient(self.location, **options)

    def stats(self) -> dict[str, Any]:
        with self.daemon.connect() as store:
            return store.stats()["flight"]

    def idle(self) -> None:
        """Wait until no call is under way."""
        deadline = time.monotonic() + 10
        while self.stats()["calls_now"]:
            assert time.monotonic() < deadline, self.stats()
            time.sleep(0.01)


class FlightTalk:
    """What a Flight client says and hears, in short."""

    def __init__(self, client: Any):
        from pyarrow import flight

        self.client, self.flight = client, flight

    def descriptor(self, what: str | dict[str, Any] | bytes | list[str]) -> Any:
        """Of a key, a path, or a command."""
        if isinstance(what, str):
            what = ["objects", what]
        if isinstance(what, list):
            return self.flight.FlightDescriptor.for_path(*what)
        return self.flight.FlightDescriptor.for_command(what if isinstance(what, bytes) else json.dumps(what).encode())

    def put(self, what: Any, table: pa.Table, rows: int | None = None, options: Any = None) -> dict[str, Any]:
        """Write a table in batches of so many rows; the answer."""
        writer, answers = self.client.do_put(self.descriptor(what), table.schema, options)
        try:
            writer.write_table(table, max_chunksize=rows)
            writer.done_writing()
            answer = answers.read()
        finally:
            writer.close()  # raises what the daemon said
        return json.loads(answer.to_pybytes())

    def get(self, what: str | dict[str, Any] | bytes, options: Any = None) -> pa.Table:
        """Read what a key or a command stands for."""
        if isinstance(what, str):
            what = {"object": {"key": what}}
        raw = what if isinstance(what, bytes) else json.dumps(what).encode()
        return self.client.do_get(self.flight.Ticket(raw), options).read_all()

    def act(self, name: str, options: Any = None, **body: Any) -> dict[str, Any]:
        """An action's answer."""
        (result,) = self.client.do_action(self.flight.Action(name, json.dumps(body).encode()), options)
        return json.loads(result.body.to_pybytes())

    def refused(self, call: Callable[..., Any], *arguments: Any, kind: str, words: str = "", **more: Any) -> Any:
        """The error of a call, which has to be of that kind and say these words, and nothing that is not its business."""
        with pytest.raises(self.flight.FlightError) as caught:
            call(*arguments, **more)
        told = json.loads(caught.value.extra_info)
        assert told["kind"] == kind and words in str(caught.value), (told, str(caught.value))
        assert "Traceback" not in str(caught.value) and ".py" not in str(caught.value)
        return caught.value


@pytest.fixture(scope="module")
def flight_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlightNode]:
    """A daemon with a Flight endpoint, for all tests of a module. Verified after them."""
    pytest.importorskip("pyarrow.flight")
    folder = tmp_path_factory.mktemp("flight")
    (folder / "disk").mkdir()
    made = FlightNode(folder, "--disk", f"{folder / 'disk'}:32MiB")
    try:
        yield made
        with made.daemon.connect() as store:
            report = store.verify(payloads=True)
        assert report["ok"], report["problems"]
    finally:
        made.daemon.end()


@pytest.fixture(scope="module")
def talk(flight_node: FlightNode) -> Iterator[FlightTalk]:
    """A client of it. gRPC keeps some descriptors of a process from its first client on."""
    with flight_node.client() as client:
        assert list(client.list_flights()) == []
        yield FlightTalk(client)


@pytest.fixture
def table() -> pa.Table:
    count = 3000
    return pa.table({"n": range(count), "w": [f"row {i}" if i % 7 else None for i in range(count)]})
