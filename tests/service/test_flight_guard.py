"""Who may use the Flight endpoint, what it refuses to start with, its limits, and its end."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import tierstore
from tierstore.service.config import StoreConfig, load_config
from tierstore.service.flight.endpoint import Endpoint, endpoint_of
from tierstore.service.wire.security import Security
from tierstore.shuffle.late import Late
from tierstore.shuffle.network import Alone

flight = pytest.importorskip("pyarrow.flight")


# --- settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('flight = "9102"', ["flight", "9102", "HOST:PORT"]),
        ("flight = 9102", ["flight", "9102", "HOST:PORT in quotes"]),
        ('flight = "127.0.0.1:70000"', ["flight", "ports are 0 to 65535"]),
        ('flight = "0.0.0.0:9102"', ["flight", "loopback", "tls_cert and tls_key and token_file"]),
        ('flight = "[::]:9102"\ntoken_file = "/t"', ["flight", "loopback", "set tls_cert and tls_key too"]),
        ('flight = "node-1:9102"\ntls_cert = "/c"\ntls_key = "/k"', ["flight", "node-1", "set token_file too"]),
        ('flight = "127.0.0.1:1"\ntls_ca = "/c"', ["tls_cert", "flight is '127.0.0.1:1'", "tls_ca asks for TLS"]),
        ('flights = "127.0.0.1:1"', ["flights", "did you mean 'flight'"]),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(text: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(tierstore.ConfigError) as caught:
        load_config(str(file), environ={}).resolve()
    assert all(word in str(caught.value) for word in words), caught.value


def test_settings_from_file_environment_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('flight = "127.0.0.1:1"')
    assert load_config(str(file), environ={}).flight == "127.0.0.1:1"
    assert load_config(str(file), environ={"TIERSTORE_FLIGHT": "[::1]:2"}).flight == "[::1]:2"
    assert load_config(str(file), environ={}, flags={"flight": "localhost:3"}).flight == "localhost:3"
    assert endpoint_of(StoreConfig()) is None


def test_a_pyarrow_without_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tierstore.service.flight.")]:
        if not name.endswith(("endpoint", "commands", "connections")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow._flight", None)
    monkeypatch.delitem(sys.modules, "pyarrow.flight", raising=False)
    monkeypatch.delattr(pa, "flight", raising=False)
    with pytest.raises(tierstore.ConfigError, match="flight = '127.0.0.1:0'.*pip install pyarrow"):
        endpoint_of(StoreConfig(flight="127.0.0.1:0"))


def test_it_is_not_loaded_where_it_is_not_asked_for() -> None:
    code = (
        "import sys, tierstore.service.cli, tierstore.service.daemon\n"
        "print([name for name in sys.modules if 'flight' in name and not name.startswith('tierstore.')])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_port_that_is_taken(certificates: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(tierstore.ConfigError, match="flight = .*free port"):
            endpoint_of(StoreConfig(flight=f"127.0.0.1:{port}"))


def test_files_that_cannot_be_used(certificates: Any, tmp_path: Path) -> None:
    cert, key = certificates.server
    other = tmp_path / "key"
    other.write_text("no key")
    other.chmod(0o600)
    for more, words in (
        ({"tls_cert": cert, "tls_key": str(other)}, "tls_cert|tls_key"),
        ({"tls_cert": cert, "tls_key": certificates.client[1]}, "tls_key.*the key of the certificate"),
        ({"tls_cert": "/nowhere", "tls_key": key}, "tls_cert.*/nowhere"),
        ({"token_file": "/nowhere"}, "token_file.*/nowhere"),
    ):
        with pytest.raises(tierstore.ConfigError, match=words):
            endpoint_of(StoreConfig(flight="127.0.0.1:0", **more))


# --- who may call -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def secured(certificates: Any, token_file: str) -> list[str]:
    cert, key = certificates.server
    return ["--token-file", token_file, "--tls-cert", cert, "--tls-key", key, "--tls-ca", certificates.ca]


def bearer(token: str) -> Any:
    return flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())], timeout=10)


@pytest.fixture
def guarded(
    talk: Any, flight_node: Any, tmp_path: Path, secured: list[str], certificates: Any
) -> Iterator[Callable[[bool], Any]]:
    """Daemons with TLS and a token, with certificates of clients or without."""
    made = []

    def make(client_auth: bool) -> Any:
        folder = tmp_path / f"node-{client_auth}"
        folder.mkdir()
        made.append(type(flight_node)(folder, *secured, *["--tls-client-auth"] * client_auth, tls=True))
        return made[-1]

    yield make
    for node in made:
        node.daemon.end()


@pytest.mark.slow
def test_the_token(guarded: Any, talk: Any, certificates: Any, token_file: str, table: pa.Table) -> None:
    node, token = guarded(False), Path(token_file).read_text().strip()
    ca = Path(certificates.ca).read_bytes()
    with node.client(tls_root_certs=ca) as client:
        mine = type(talk)(client)
        answer = mine.put("k", table, options=bearer(token))
        assert answer["object"]["rows"] == 3000 and mine.get("k", bearer(token)).equals(table)
        wrong = [None, bearer(token[:-1]), bearer(token + "x"), bearer(""), bearer(token.upper())]
        wrong.append(flight.FlightCallOptions(headers=[(b"authorization", token.encode())]))
        wrong.append(flight.FlightCallOptions(headers=[(b"authorization", b"Basic " + token.encode())]))
        twice = [(b"authorization", b"Bearer " + token.encode()), (b"authorization", b"Bearer " + token.encode())]
        wrong.append(flight.FlightCallOptions(headers=twice))
        for options in wrong:
            for call in (
                lambda o: mine.get("k", o),
                lambda o: mine.put("x", table, options=o),
                lambda o: mine.act("ping", o),
                lambda o: list(client.list_flights(b"", o)),
                client.list_actions,
                lambda o: client.get_flight_info(mine.descriptor("k"), o),
            ):
                error = mine.refused(call, options, kind="PermissionError", words="authorization: Bearer")
                assert isinstance(error, flight.FlightUnauthenticatedError)
        assert sum(1 for _ in client.list_flights(b"", bearer(token))) == 1, "nothing was stored"
    stats = node.stats()
    assert stats["tls"] and stats["token"] and not stats["client_auth"] and stats["refused"] == 6 * len(wrong)
    told = node.daemon.log.read_text()
    assert "serving Arrow Flight at 127.0.0.1:" in told and "(TLS, token)" in told
    assert 1 <= told.count("failed to authenticate") <= 20 and token not in told


def cannot_connect(client: Any, token: str) -> None:
    with client, pytest.raises((flight.FlightUnavailableError, flight.FlightTimedOutError)):
        list(client.list_flights(b"", bearer(token)))


@pytest.mark.slow
def test_certificates(guarded: Any, talk: Any, certificates: Any, token_file: str) -> None:
    node, token = guarded(True), Path(token_file).read_text().strip()
    ca, other = Path(certificates.ca).read_bytes(), Path(certificates.other_ca).read_bytes()
    own = {name: [Path(p).read_bytes() for p in getattr(certificates, name)] for name in ("client", "strange")}

    def pair(name: str) -> dict[str, bytes]:
        return {"cert_chain": own[name][0], "private_key": own[name][1]}

    with node.client(tls_root_certs=ca, **pair("client")) as client:
        assert list(client.list_flights(b"", bearer(token))) == []
        type(talk)(client).refused(client.list_actions, kind="PermissionError")
    cannot_connect(node.client(tls_root_certs=ca), token)
    cannot_connect(node.client(tls_root_certs=ca, **pair("strange")), token)
    cannot_connect(node.client(tls_root_certs=other, **pair("client")), token)
    cannot_connect(flight.FlightClient(f"grpc://{node.address}"), token)
    assert node.stats()["client_auth"] and node.stats()["calls"] == 1
    assert "handshake" not in node.daemon.log.read_text().lower(), "strangers do not fill the log"


@pytest.mark.slow
def test_tls_on_a_plain_port(flight_node: Any, talk: Any, certificates: Any) -> None:
    ca = Path(certificates.ca).read_bytes()
    cannot_connect(flight.FlightClient(f"grpc+tls://{flight_node.address}", tls_root_certs=ca), "x")


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_nothing(flight_node: Any, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    base = ["serve", "--dram", "16MiB", "--segment", "1MiB", "--ephemeral", "--socket", other, "--flight"]
    for address, words in ((flight_node.address, ["flight", "in use"]), ("0.0.0.0:0", ["flight", "loopback"])):
        line = [sys.executable, "-m", "tierstore.service.cli", *base, address]
        answer = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert answer.returncode == 1 and all(word in answer.stderr for word in words), answer.stderr
        assert "Traceback" not in answer.stderr and not Path(other).exists()


@pytest.mark.slow
def test_what_is_not_offered(talk: Any) -> None:
    descriptor = talk.descriptor("k")
    with pytest.raises(OSError, match="BadCommand: GET_SCHEMA is not offered: use get_flight_info") as caught:
        talk.client.get_schema(descriptor)
    assert "Traceback" not in str(caught.value)

    def exchange() -> None:
        writer, _ = talk.client.do_exchange(descriptor)  # where it fails is a matter of time
        writer.close()

    talk.refused(exchange, kind="BadCommand", words="DO_EXCHANGE is not offered")
    with pytest.raises((flight.FlightError, pa.ArrowException, OSError)) as caught:
        talk.client.authenticate_basic_token("user", "password")
    assert "Traceback" not in str(caught.value)


# --- limits, in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def inside(talk: Any, store: Any) -> Iterator[Callable[..., tuple[Endpoint, Any]]]:
    """Endpoints of an embedded store, with other limits, and a client of each."""
    with contextlib.ExitStack() as ends:

        def make(**limits: Any) -> tuple[Endpoint, Any]:
            made = Endpoint(StoreConfig(flight="localhost:0"), Security(), **{"calls_max": 8, "idle_s": 30} | limits)
            ends.callback(made.stop)
            engine, requests = store._control.engine, store._control.requests
            made.start(engine, requests, Late(engine, requests), Alone())
            return made, type(talk)(ends.enter_context(flight.FlightClient(f"grpc://{made.address}")))

        yield make


@pytest.mark.slow
def test_so_many_calls_at_once(inside: Any, table: pa.Table) -> None:
    endpoint, mine = inside(calls_max=3)
    writers = [mine.client.do_put(mine.descriptor(f"{n}"), table.schema)[0] for n in range(3)]
    for writer in writers:
        writer.write_table(table)
    wait_for(lambda: endpoint.stats()["calls_now"] == 3)
    error = mine.refused(mine.get, "0", kind="Full", words="3 Flight calls at once")
    assert isinstance(error, flight.FlightUnavailableError)
    writers[0].close()
    wait_for(lambda: endpoint.stats()["calls_now"] == 2)
    assert mine.get("0").equals(table)
    for writer in writers[1:]:
        writer.close()


@pytest.mark.slow
def test_a_stream_in_which_nothing_moves_is_cut(inside: Any, store: Any, table: pa.Table) -> None:
    endpoint, mine = inside(idle_s=0.4)
    with flight.FlightClient(f"grpc://{endpoint.address}") as client:
        writer, _ = client.do_put(mine.descriptor("k"), table.schema)
        writer.write_table(table)
        began = time.monotonic()
        wait_for(lambda: endpoint.stats()["calls_now"] == 1)
        wait_for(lambda: endpoint.stats()["calls_now"] == 0)
        assert 0.3 < time.monotonic() - began < 5
        with pytest.raises((flight.FlightUnavailableError, flight.FlightError)):
            writer.close()
    assert "k" not in store and endpoint.stats()["failed_calls"] == 1


@pytest.mark.slow
def test_a_slow_stream_is_not_cut(inside: Any, store: Any, table: pa.Table) -> None:
    _, mine = inside(idle_s=0.5)
    writer, _ = mine.client.do_put(mine.descriptor("k"), table.schema)
    for batch in table.to_batches(500):
        writer.write_batch(batch)
        time.sleep(0.2)
    writer.close()
    assert store.get("k").equals(table)


@pytest.mark.slow
def test_a_store_that_is_full(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, mine = inside()
    endpoint._store._session.lease_wait_s = 0.2
    huge = pa.table({"n": range(6 << 20)})
    error = mine.refused(
        mine.put, {"object": {"key": "k", "keep": True}}, huge, kind="Full", words="no segment became free"
    )
    assert isinstance(error, flight.FlightUnavailableError)


@pytest.mark.slow
def test_a_batch_beyond_the_limit(inside: Any, store: Any, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mine = inside()
    monkeypatch.setattr("tierstore.service.flight.streams.MESSAGE_BYTES_MAX", 20_000)
    mine.refused(mine.put, "k", table, kind="BadCommand", words="max_chunksize")
    assert store.keys() == []
    assert mine.put("k", table, rows=500)["object"]["rows"] == 3000


@pytest.mark.slow
def test_a_fault_is_told_by_a_number_only(
    inside: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, mine = inside()

    def fail(*_: Any) -> None:
        raise FileNotFoundError(2, "no such file", "/secret/path")

    monkeypatch.setattr("tierstore.service.flight.objects.ObjectStream", fail)
    with caplog.at_level(logging.ERROR, "tierstore"):
        error = mine.refused(mine.get, "k", kind="InternalError", words="its log says why, under ")
    number = str(error).partition("under ")[2][:8]
    assert isinstance(error, flight.FlightInternalError) and "/secret" not in str(error)
    assert f"fault {number} in the Flight call DO_GET" in caplog.text and "/secret/path" in caplog.text
    caplog.clear()  # its records hold the handler's frames, and so the store


@pytest.mark.slow
def test_damage_is_told_without_paths(
    inside: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, mine = inside()

    def fail(*_: Any) -> None:
        raise tierstore.CorruptionError("/secret/arena", 5, "a", "b")

    monkeypatch.setattr("tierstore.service.flight.objects.ObjectStream", fail)
    assert "/secret" not in str(mine.refused(mine.get, "k", kind="CorruptionError"))
    caplog.clear()


# --- the end ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_daemon_that_stops_ends_all_streams(talk: Any, flight_node: Any, tmp_path: Path, table: pa.Table) -> None:
    node = type(flight_node)(tmp_path)
    with contextlib.ExitStack() as ends:
        ends.callback(node.daemon.end)
        clients = [ends.enter_context(node.client()) for _ in range(3)]
        with node.daemon.connect() as store:
            store.put("k", pa.table({"n": range(2_000_000)}))
        unread = clients[0].do_get(flight.Ticket(b'{"object": {"key": "k", "message_bytes": 65536}}'))
        unread.read_chunk()
        silent, _ = clients[1].do_put(talk.descriptor("silent"), table.schema)
        silent.write_table(table)
        trouble: list[Exception] = []

        def write() -> None:
            moving, _ = clients[2].do_put(talk.descriptor("moving"), table.schema)
            try:
                while True:
                    moving.write_table(table.slice(0, 10))
                    time.sleep(0.005)
            except Exception as error:
                trouble.append(error)
            try:
                moving.close()
            except Exception as error:
                trouble.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        wait_for(lambda: node.stats()["calls_now"] == 3)
        began = time.monotonic()
        node.daemon.process.send_signal(signal.SIGTERM)
        assert node.daemon.process.wait(20) == 0
        assert time.monotonic() - began < 10
        thread.join(10)
        assert not thread.is_alive() and any("stopping" in str(error) for error in trouble), trouble
        with pytest.raises((flight.FlightUnavailableError, flight.FlightError)):
            unread.read_all()
        with pytest.raises((flight.FlightUnavailableError, flight.FlightError)):
            silent.write_table(table)
            silent.close()
    assert "Traceback" not in node.daemon.log.read_text()


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_errors_fit_into_headers() -> None:
    from tierstore.service.flight.errors import MAPS_BYTES_MAX, TEXT_BYTES_MAX, flight_error

    error = flight_error(tierstore.LostMaps("й" * 5000, range(0, 20_000, 2)), "here")
    assert len(str(error).encode()) <= TEXT_BYTES_MAX and len(error.extra_info) < MAPS_BYTES_MAX + 100
    assert json.loads(error.extra_info)["complete"] is False
