"""How near to a bare socket do payloads come from another node, plain and under TLS?

One process sends 1 GiB from mapped memory in frames of a segment's size, another receives them into mapped memory: through
a Listener and a Peer, through a bare socket (sendall, recv_into of the same sizes), and through Arrow Flight (do_get of
record batches of the same sizes), in turns, over loopback, one connection each. Connections are open and memory is touched
before the time is taken; what arrived is compared afterwards.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tierstore.service.wire.client import Peer
from tierstore.service.wire.frames import checksum
from tierstore.service.wire.security import Security
from tierstore.service.wire.server import Call, Listener, ListenerConfig
from tierstore.service.wire.stream import tune

from .data import GIB, MIB, size_text
from .harness import Bench, at_least, in_turns, ratios
from .node import clients, folder

HOST = "127.0.0.1"
TOKEN = "only-for-this-benchmark"
MEMORY_BYTES = 256 * MIB  # of each side, used round and round
ASK = struct.Struct("<QQ")  # of the bare servers: bytes of a frame, frames


def memory_of(size: int, seed: int) -> Any:
    """Mapped memory with known content; seed 0: zeros, all pages there."""
    mapped = mmap.mmap(-1, size)
    words = np.frombuffer(mapped, "<u8")
    words[:] = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 63, len(words), "<u8") if seed else 0
    return memoryview(mapped)


def security_of(files: dict[str, str] | None, server: bool) -> Security:
    """Of either side of a connection; without files: plain."""
    if files is None:
        return Security(TOKEN)
    return Security(TOKEN, None, files["cert"], files["key"]) if server else Security(TOKEN, tls_ca=files["ca"])


class Sender:
    """The process that sends: our listeners, bare servers and Flight over the same memory."""

    def __init__(self) -> None:
        self._memory: Any = None
        self._kept: list[Any] = []
        self._checks: dict[tuple[int, int], int] = {}

    def serve(self, size: int, files: dict[str, str] | None) -> dict[str, int]:
        """Listen in every way there is; the ports."""
        self._memory = memory_of(size, 1)
        ports = {"ours": self._listener(None), "bare": self._bare(None)}
        if files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files["cert"], files["key"])
            ports |= {"ours tls": self._listener(files), "bare tls": self._bare(context)}
        with contextlib.suppress(ImportError):
            ports["flight"] = self._flight()
        return ports

    def cpu(self) -> float:
        """Processor time of this process, seconds."""
        return time.process_time()

    def piece(self, size: int, number: int) -> Any:
        """The memory of one frame."""
        start = number * size % len(self._memory)
        return self._memory[start : start + size]

    def check(self, size: int, number: int) -> int:
        """The check of a frame, as it is known of a block whose header has its hash."""
        key = (size, number * size % len(self._memory))
        if key not in self._checks:
            self._checks[key] = checksum([self.piece(size, number)])
        return self._checks[key]

    def _listener(self, files: dict[str, str] | None) -> int:
        def give(call: Call) -> None:
            size, how = call.argument("size", int), call.argument("check", str)
            for number in range(call.argument("count", int)):
                check = {"computed": None, "none": 0}.get(how) if how != "known" else self.check(size, number)
                call.send({"number": number}, [self.piece(size, number)], check)

        handlers = {"give": give, "echo": lambda call: call.arguments}
        listener = Listener(ListenerConfig(HOST, 0, security_of(files, True)), handlers).start()
        self._kept.append(listener)
        return listener.address.port

    def _bare(self, context: ssl.SSLContext | None) -> int:
        server = socket.create_server((HOST, 0))

        def serve() -> None:
            connection, _ = server.accept()
            tune(connection)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            while asked := connection.recv(ASK.size):
                size, count = ASK.unpack(asked)
                for number in range(count):
                    connection.sendall(self.piece(size, number))

        threading.Thread(target=serve, daemon=True).start()
        return int(server.getsockname()[1])

    def _flight(self) -> int:
        import pyarrow as pa
        from pyarrow import flight

        sender = self

        class Server(flight.FlightServerBase):  # type: ignore[misc]
            def do_get(self, context: Any, ticket: Any) -> Any:
                size, count = ASK.unpack(ticket.ticket)
                pieces = [pa.py_buffer(sender.piece(size, number)) for number in range(count)]
                arrays = [pa.Array.from_buffers(pa.int64(), size // 8, [None, piece]) for piece in pieces]
                batches = [pa.RecordBatch.from_arrays([array], ["a"]) for array in arrays]
                return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(batches[0].schema, batches))

        server = Server(f"grpc://{HOST}:0")
        self._kept.append(server)
        return int(server.port)


class Receiver:
    """The side that receives and takes the time."""

    def __init__(self, ports: dict[str, int], files: dict[str, str] | None, size: int):
        self.memory = memory_of(size, 0)
        self.peers = {"ours": Peer(f"{HOST}:{ports['ours']}", security_of(None, False))}
        self._sockets = {"bare": socket.create_connection((HOST, ports["bare"]))}
        if files:
            self.peers["ours tls"] = Peer(f"{HOST}:{ports['ours tls']}", security_of(files, False))
            context = ssl.create_default_context(cafile=files["ca"])
            plain = socket.create_connection((HOST, ports["bare tls"]))
            self._sockets["bare tls"] = context.wrap_socket(plain, server_hostname=HOST)
        for connection in self._sockets.values():
            tune(connection)
        self._flight = None
        if "flight" in ports:
            from pyarrow import flight

            self._flight = flight.FlightClient(f"grpc://{HOST}:{ports['flight']}")

    def piece(self, size: int, number: int) -> Any:
        """The memory for one frame."""
        start = number * size % len(self.memory)
        return self.memory[start : start + size]

    def ours(self, name: str, size: int, count: int, check: str = "none") -> None:
        """Fetch through a Peer."""
        arguments = {"size": size, "count": count, "check": check}
        self.peers[name].fetch("give", arguments, lambda head, payload: self.piece(payload, head["number"]))

    def bare(self, name: str, size: int, count: int) -> None:
        """Receive from a bare socket."""
        connection = self._sockets[name]
        connection.sendall(ASK.pack(size, count))
        for number in range(count):
            view, have = self.piece(size, number), 0
            while have < size:
                have += connection.recv_into(view[have:])

    def flight(self, size: int, count: int) -> int:
        """Receive record batches, wherever Flight puts them; their bytes."""
        from pyarrow import flight

        assert self._flight is not None
        found = 0
        for chunk in self._flight.do_get(flight.Ticket(ASK.pack(size, count))):
            found += chunk.data.nbytes
        return found

    def close(self) -> None:
        """Close everything."""
        for kept in (*self.peers.values(), *self._sockets.values(), self._flight):
            if kept is not None:
                kept.close()


@contextlib.contextmanager
def certificates() -> Iterator[dict[str, str] | None]:
    """PEM files for this machine; None where trustme is not installed."""
    try:
        import trustme
    except ImportError:
        yield None
        return
    authority = trustme.CA()
    made = authority.issue_cert(HOST)
    with folder() as place:
        files = {name: place / f"{name}.pem" for name in ("cert", "key", "ca")}
        files["cert"].write_bytes(made.cert_chain_pems[0].bytes())
        files["key"].write_bytes(made.private_key_pem.bytes())
        files["key"].chmod(0o600)
        authority.cert_pem.write_to_path(str(files["ca"]))
        yield {name: str(Path(path)) for name, path in files.items()}


def run(bench: Bench) -> None:
    """Each frame size, and a small call."""
    total = bench.parameter("total_bytes", 8 * MIB, GIB)
    sizes = bench.parameter("frame_bytes", [MIB], [8 * MIB, 32 * MIB])
    rounds = bench.parameter("rounds", 2, 15)
    calls = bench.parameter("calls", 20, 2000)
    memory = min(MEMORY_BYTES, total)
    with certificates() as files, clients("wire.Sender", 1) as (sender,):
        receiver = Receiver(sender.call("serve", size=memory, files=files), files, memory)
        try:
            for size in sizes:
                _frames(
                    bench,
                    receiver,
                    lambda: time.process_time() + float(sender.call("cpu")),
                    size,
                    total // size,
                    rounds,
                )
            _calls(bench, receiver, calls)
        finally:
            receiver.close()


def _frames(bench: Bench, receiver: Receiver, cpu_s: Callable[[], float], size: int, count: int, rounds: int) -> None:
    """One frame size, all ways in turns."""

    cpu: dict[str, list[float]] = {}

    def speed(name: str, action: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            used, began = cpu_s(), time.perf_counter()
            action()
            elapsed = time.perf_counter() - began
            cpu.setdefault(name, []).append(cpu_s() - used)
            return size * count / elapsed / 1e9

        return measure

    variants = {
        "bare": lambda: receiver.bare("bare", size, count),
        "computed": lambda: receiver.ours("ours", size, count, "computed"),
        "known": lambda: receiver.ours("ours", size, count, "known"),
        "none": lambda: receiver.ours("ours", size, count),
    }
    secure = "ours tls" in receiver.peers
    if secure:
        variants["bare tls"] = lambda: receiver.bare("bare tls", size, count)
        variants["ours tls"] = lambda: receiver.ours("ours tls", size, count)
    if receiver._flight is not None:
        variants["flight"] = lambda: receiver.flight(size, count)
    for name, variant in variants.items():  # once before, and what arrives is right
        receiver.memory[:] = bytes(len(receiver.memory))
        found = variant()
        right = found == size * count if name == "flight" else receiver.memory == memory_of(len(receiver.memory), 1)
        assert right, f"{name}: something else arrived"
    samples = in_turns({name: speed(name, variant) for name, variant in variants.items()}, rounds)
    what = f"in frames of {size_text(size)}"
    bench.report(f"fetch {what}, plain, check known to the sender", samples["known"], "GB/s")
    ways = {"computed": "check computed by both", "known": "check known to the sender", "none": "not checked"}
    for name, words in ways.items():
        figure = f"fetch {what}, plain, {words}: share of a bare socket's speed"
        above = ratios(samples[name], samples["bare"])
        bench.report(figure, above, "x", at_least(0.8), "sendall and recv_into, in turns")
        figure = f"fetch {what}, plain, {words}: processor time of both sides"
        bench.report(figure, ratios(cpu[name], cpu["bare"]), "x", None, "sendall and recv_into, in turns")
    if secure:
        bench.report(f"fetch {what}, TLS", samples["ours tls"], "GB/s")
        above = ratios(samples["ours tls"], samples["bare tls"])
        figure = f"fetch {what}, TLS: share of a bare TLS socket's speed"
        bench.report(figure, above, "x", at_least(0.8), "bare TLS socket, in turns")
        figure = f"fetch {what}, TLS: processor time of both sides"
        bench.report(figure, ratios(cpu["ours tls"], cpu["bare tls"]), "x", None, "bare TLS socket, in turns")
    else:
        bench.skip(f"fetch {what}, TLS", "trustme is not installed, which makes the certificates")
    if "flight" in samples:
        above = ratios(samples["known"], samples["flight"])
        figure = f"fetch {what}, plain, check known to the sender: times as fast as Flight"
        bench.report(figure, above, "x", None, "Flight do_get, plain, into memory of its own, in turns")
    else:
        bench.skip(f"fetch {what} against Flight", "this pyarrow has no Flight")


def _calls(bench: Bench, receiver: Receiver, calls: int) -> None:
    """Small calls on a connection that is kept."""
    for name, words in (("ours", "plain"), ("ours tls", "TLS")):
        if name not in receiver.peers:
            continue
        peer, samples = receiver.peers[name], []
        for _ in range(calls):
            began = time.perf_counter()
            peer.call("echo", a=1)
            samples.append((time.perf_counter() - began) * 1e6)
        bench.report(f"a call without data, {words}", samples, "us")
