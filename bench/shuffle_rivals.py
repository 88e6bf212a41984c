"""What the shuffle benchmark compares the network with: Arrow Flight and bare sockets, plain and under TLS.

One process holds the same batches as the store and gives them by Flight (do_get) and by sendall; the one that receives
keeps its connections, and receives bare bytes into memory that was touched before, going round it.
"""

from __future__ import annotations

import mmap
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import tierstore
from tierstore.shuffle.receipt import Receipt

from .data import MIB
from .shuffle_tasks import bit_sum

HOST = "127.0.0.1"
TOKEN = "only-for-this-benchmark"
RING_BYTES = 128 * MIB


def certificates(folder: Path) -> dict[str, str]:
    """Files of an authority, a certificate for this machine with its key, and a token."""
    import trustme

    authority = trustme.CA()
    pair = authority.issue_cert("localhost", HOST)
    files = {name: str(folder / name) for name in ("ca", "cert", "key", "token")}
    authority.cert_pem.write_to_path(files["ca"])
    Path(files["cert"]).write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
    for name, data in (("key", pair.private_key_pem.bytes()), ("token", TOKEN.encode())):
        Path(files[name]).touch(0o600)
        Path(files[name]).write_bytes(data)
    return files


def own_copy(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch in memory of this process."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)


def digest(batches: list[pa.RecordBatch]) -> dict[str, int]:
    """Rows, and the sum of all bits."""
    return {"rows": sum(batch.num_rows for batch in batches), "sum": bit_sum(batches)}


class Rival:
    """The process that gives."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._servers: list[Any] = []
        self._kept: list[pa.RecordBatch] = []

    def hold(self, socket: str, number: int, partitions: int, receipts: list[dict[str, Any]]) -> dict[str, int]:
        """Copy what a shuffle holds, batch by batch."""
        with tierstore.connect(socket) as store, store.shuffle("bench", number, partitions) as shuffle:
            chosen = [Receipt.from_dict(receipt) for receipt in receipts]
            self._batches = [own_copy(batch) for batch in shuffle.read(receipts=chosen)]
        return digest(self._batches)

    def kept(self) -> dict[str, int]:
        """What was pushed, which is then forgotten."""
        found, self._kept = digest(self._kept), []
        return found

    def serve_flight(self, files: dict[str, str] | None) -> int:
        """A Flight server; its port."""
        from pyarrow import flight

        rival = self

        class Server(flight.FlightServerBase):  # type: ignore[misc]
            def do_get(self, context: Any, ticket: Any) -> Any:
                reader = pa.RecordBatchReader.from_batches(rival._batches[0].schema, rival._batches)
                return flight.RecordBatchStream(reader)

            def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
                rival._kept += [chunk.data for chunk in reader]

        if files is None:
            server = Server(f"grpc://{HOST}:0")
        else:
            pair = Path(files["cert"]).read_bytes(), Path(files["key"]).read_bytes()
            server = Server(f"grpc+tls://{HOST}:0", tls_certificates=[pair])
        self._servers.append(server)
        return int(server.port)

    def serve_bare(self, files: dict[str, str] | None) -> int:
        """A bare socket that sends all buffers for every byte it gets; its port."""
        server = socket.create_server((HOST, 0))
        context = None
        if files is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files["cert"], files["key"])

        def serve() -> None:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            while connection.recv(1):
                for batch in self._batches:
                    for column in batch.columns:
                        connection.sendall(memoryview(column.buffers()[1])[: 8 * len(column)])

        threading.Thread(target=serve, daemon=True).start()
        return int(server.getsockname()[1])


def flight_client(port: int, files: dict[str, str] | None) -> Any:
    """A connected client."""
    from pyarrow import flight

    if files is None:
        return flight.connect(f"grpc://{HOST}:{port}")
    return flight.connect(f"grpc+tls://localhost:{port}", tls_root_certs=Path(files["ca"]).read_bytes())


def flight_batches(client: Any) -> Callable[[Callable[[pa.RecordBatch], None]], None]:
    """What gets all batches, each given to a function."""
    from pyarrow import flight

    def get(each: Callable[[pa.RecordBatch], None]) -> None:
        for chunk in client.do_get(flight.Ticket(b"")):
            each(chunk.data)

    return get


class BareReceiver:
    """The receiving end of a bare socket."""

    def __init__(self, port: int, files: dict[str, str] | None):
        self._memory = memoryview(mmap.mmap(-1, RING_BYTES))
        np.frombuffer(self._memory, "u1")[:] = 1
        self._connection: socket.socket = socket.create_connection((HOST, port))
        if files is not None:
            context = ssl.create_default_context(cafile=files["ca"])
            self._connection = context.wrap_socket(self._connection, server_hostname=HOST)

    def receive(self, size: int, add: bool) -> int:
        """Receive so many bytes, a multiple of 8; with add their sum as words, else 0."""
        self._connection.sendall(b"?")
        total = have = 0
        while have < size:
            place = self._memory[: min(RING_BYTES, size - have)]
            filled = 0
            while filled < len(place):
                count = self._connection.recv_into(place[filled:])
                if not count:
                    raise ConnectionError("the other side closed the connection")
                filled += count
            have += filled
            if add:
                total += int(np.frombuffer(place, np.uint64).sum())
        return total & (1 << 64) - 1
