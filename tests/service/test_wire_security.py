"""Who is let in, and what everybody else is told."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tierstore.ringbuf.errors import ConfigError, PeerLost, TierstoreError
from tierstore.service.protocol import ProtocolError
from tierstore.service.wire.address import Address, parse_address, resolve
from tierstore.service.wire.client import Peer
from tierstore.service.wire.frames import AUTH, CALL, ERROR
from tierstore.service.wire.security import Security, read_token
from tierstore.service.wire.server import Listener, ListenerConfig
from tierstore.service.wire.stream import Stream

OURS = Security("correct-horse-battery-staple", "token")
WRONG = Security("wrong-horse-battery-staple-", "/etc/tierstore/wrong")


def refused(peer: Peer, *words: str, kind: type[TierstoreError] = ConfigError) -> None:
    """A call fails with an error that has all the words."""
    with pytest.raises(kind) as caught:
        peer.call("echo")
    assert all(word in str(caught.value) for word in (*words, str(peer.address))), caught.value


# --- the token ------------------------------------------------------------------------------------------------------------


def test_the_right_token(net: Any) -> None:
    assert net.peer(net.listen(OURS), OURS).call("echo", a=1) == {"a": 1}


@pytest.mark.parametrize(
    "security", [WRONG, Security(), Security("correct-horse-battery-stapl", "x"), Security("é" * 20, "x")]
)
def test_a_wrong_token_or_none(security: Security, net: Any, caplog: pytest.LogCaptureFixture) -> None:
    listener = net.listen(OURS, failed_delay_s=0.2)
    peer = net.peer(listener, security)
    began = time.monotonic()
    refused(peer, "token_file", str(security.token_file), "refused")
    assert time.monotonic() - began >= 0.2, "a wrong token is answered at once"
    assert "127.0.0.1:" in caplog.text and "failed to authenticate" in caplog.text
    for secret in (OURS.token, security.token):
        assert secret is None or secret not in caplog.text
    assert listener.stats()["calls"] == 0 and listener.stats()["refused"] == 1
    assert net.peer(listener, OURS).call("echo", a=1) == {"a": 1}


def test_a_daemon_without_a_token_takes_any(net: Any) -> None:
    listener = net.listen()
    for security in (Security(), WRONG):
        assert net.peer(listener, security).call("echo", a=1) == {"a": 1}


@pytest.mark.parametrize("token", [None, 5, ["correct-horse-battery-staple"], {"a": 1}, "", "\ud800"])
def test_tokens_of_other_types(token: Any, net: Any) -> None:
    stream = Stream(net.raw(net.listen(OURS)), "by hand", 5)
    stream.send(AUTH, 9, {"token": token})
    answer = stream.receive((ERROR,))
    assert answer.request == 9 and answer.body["kind"] == "PermissionError"
    with pytest.raises(PeerLost):
        stream.receive((ERROR,))


def test_nothing_before_the_token(net: Any) -> None:
    listener = net.listen(OURS)
    stream = Stream(net.raw(listener), "by hand", 5)
    stream.send(CALL, 1, {"name": "echo"})
    answer = stream.receive((ERROR,))
    assert answer.body["kind"] == "ProtocolError" and "only AUTH may come" in answer.body["message"]
    assert listener.stats()["calls"] == 0


def test_a_large_token_is_not_read(net: Any) -> None:
    from tierstore.service.wire import frames

    raw = net.raw(net.listen(OURS))
    raw.sendall(frames.HEADER.pack(b"TSF1", 1, AUTH, 1, 5000))
    answer = Stream(raw, "by hand", 5).receive((ERROR,))
    assert "announces 5000 bytes; at most 4096" in answer.body["message"]


def test_failures_are_logged_so_many_a_minute(net: Any, caplog: pytest.LogCaptureFixture) -> None:
    listener = net.listen(OURS, failed_delay_s=0.0)
    for _ in range(40):
        with pytest.raises(ConfigError):
            net.peer(listener, WRONG).call("echo")
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 20
    listener._complaints._minute -= 61
    refused(net.peer(listener, WRONG), "token_file")
    assert "20 more were not logged" in caplog.records[-1].getMessage()


def test_a_token_is_not_sent_in_clear_to_another_machine(net: Any) -> None:
    host = own_address()
    with socket.create_server((host, 0)) as server:
        seen: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                seen.append(connection.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        peer = Peer(Address(host, server.getsockname()[1]), OURS, 5)
        refused(peer, "tls_ca", "in clear text")
        thread.join()
        assert seen == [b""]


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_the_token_is_in_no_repr(certificates: Any) -> None:
    assert "horse" not in repr(OURS) + repr(ListenerConfig("127.0.0.1", 0, OURS)) + repr(certificates.daemon())


# --- TLS ------------------------------------------------------------------------------------------------------------------


def test_tls_is_1_3_and_1_2_at_least(net: Any, certificates: Any) -> None:
    listener = net.listen(certificates.daemon())
    for version, expected in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
        context = ssl.create_default_context(cafile=certificates.ca)
        context.maximum_version = version
        with context.wrap_socket(net.raw(listener), server_hostname="localhost") as secured:
            assert secured.version() == expected
    for context in (certificates.daemon().server_context(), certificates.caller().client_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    context = certificates.caller().client_context()
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED


def test_plain_to_a_tls_port(net: Any, certificates: Any) -> None:
    listener = net.listen(certificates.daemon())
    refused(net.peer(listener, OURS), "tls_ca", "its port speaks TLS")
    assert listener.stats()["refused"] == 1


def test_tls_to_a_plain_port(net: Any, certificates: Any) -> None:
    listener = net.listen(OURS)
    refused(net.peer(listener, certificates.caller()), "tls_ca", certificates.ca, "does not speak TLS")
    wait_for(lambda: listener.stats()["refused"] == 1)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("expired", ["tls_cert", "expired"]),
        ("elsewhere", ["nodes", "127.0.0.1", "is not for '127.0.0.1'"]),
        ("strange", ["tls_ca", "ca.pem", "authority that signed"]),
    ],
)
def test_certificates_of_a_daemon_that_cannot_be_trusted(
    pair: str, words: list[str], net: Any, certificates: Any
) -> None:
    listener = net.listen(certificates.daemon(pair))
    refused(net.peer(listener, certificates.caller()), *words)
    assert listener.stats()["calls"] == 0


def test_the_name_that_a_certificate_must_be_for(net: Any, certificates: Any) -> None:
    """An address found behind a name is verified by the name."""
    listener = net.listen(certificates.daemon("elsewhere"))
    address = dataclasses.replace(listener.address, name="elsewhere.example")
    with_name = Peer(address, certificates.caller(), 5)
    assert with_name.call("echo", a=1) == {"a": 1}
    with_name.close()
    refused(
        Peer(dataclasses.replace(address, name="other.example"), certificates.caller(), 5), "is not for 'other.example'"
    )


def test_without_tls_ca_the_system_is_trusted_and_not_the_daemon(net: Any, certificates: Any) -> None:
    cert, key = certificates.client
    peer = net.peer(net.listen(certificates.daemon()), Security(OURS.token, "token", cert, key))
    refused(peer, "tls_ca", "None", "authority that signed")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_client_certificates(version: ssl.TLSVersion, net: Any, certificates: Any) -> None:
    listener = net.listen(certificates.daemon(tls_ca=certificates.ca, tls_client_auth=True))

    def peer(pair: str | None) -> Peer:
        made: Peer = net.peer(listener, certificates.caller(pair))
        assert made._context is not None
        made._context.maximum_version = version
        return made

    assert peer("client").call("echo", a=1) == {"a": 1}
    refused(peer(None), "tls_cert", "tls_client_auth")
    refused(peer("strange"), "tls_cert", certificates.strange[0], "not signed by the daemon's tls_ca")
    assert listener.stats()["calls"] == 1


def test_a_client_certificate_does_not_replace_the_token(net: Any, certificates: Any) -> None:
    listener = net.listen(certificates.daemon(tls_ca=certificates.ca, tls_client_auth=True))
    refused(net.peer(listener, certificates.caller("client", token=WRONG.token)), "token_file")


# --- files and settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o640, 0o601, 0o666])
def test_secret_files_that_others_can_read(mode: int, token_file: str, certificates: Any, tmp_path: Path) -> None:
    os.chmod(token_file, mode)
    with pytest.raises(ConfigError, match=f"token_file.*only its owner.*{mode:04o}; chmod 600 {token_file}"):
        read_token(token_file)
    key = tmp_path / "key"
    key.write_bytes(Path(certificates.server[1]).read_bytes())
    key.chmod(mode)
    with pytest.raises(ConfigError, match=f"tls_key.*only its owner.*chmod 600 {key}"):
        Security(tls_cert=certificates.server[0], tls_key=str(key)).server_context()


@pytest.mark.parametrize(
    ("content", "sound"),
    [
        (b"0123456789abcdef", True),
        (b"  0123456789abcdef\r\n", True),
        (b"x" * 1024, True),
        (b"tiny", False),
        (b"", False),
        (b"x" * 1025, False),
        (b"two lines of it\nor three", False),
        (b"a blank inside it here", False),
        ("kein ascii: äöüäöüäöü".encode(), False),
        (b"\0" * 20, False),
    ],
    ids=itertools.count(),  # what is tried must not be part of the path
)
def test_what_a_token_may_be(content: bytes, sound: bool, token_file: str) -> None:
    Path(token_file).write_bytes(content)
    if sound:
        assert read_token(token_file) == content.decode().strip()
        return
    with pytest.raises(ConfigError, match=f"token_file = '{token_file}' cannot be used") as caught:
        read_token(token_file)
    assert not content or content.decode() not in str(caught.value)


def test_files_that_are_missing_or_something_else(certificates: Any, tmp_path: Path) -> None:
    cert, key = certificates.server
    nothing, garbage = str(tmp_path / "nothing"), tmp_path / "garbage"
    garbage.write_text("no certificate")
    garbage.chmod(0o600)
    encrypted = tmp_path / "encrypted"
    command = ["openssl", "rsa" if b"RSA" in Path(key).read_bytes() else "ec", "-aes256", "-passout", "pass:secret"]
    subprocess.run([*command, "-in", key, "-out", str(encrypted)], check=True, capture_output=True)
    encrypted.chmod(0o600)
    cases = [
        (Security(tls_cert=nothing, tls_key=key), "tls_cert", nothing),
        (Security(tls_cert=cert, tls_key=nothing), "tls_key", nothing),
        (Security(tls_cert=cert, tls_key=certificates.client[1]), "tls_key", certificates.client[1]),
        (Security(tls_cert=cert, tls_key=str(encrypted)), "tls_cert", "unencrypted"),
        (Security(tls_cert=str(garbage), tls_key=key), "tls_cert", str(garbage)),
        (Security(tls_cert=cert, tls_key=key, tls_ca=nothing, tls_client_auth=True), "tls_ca", nothing),
        (Security(tls_cert=cert, tls_key=key, tls_ca=str(garbage), tls_client_auth=True), "tls_ca", str(garbage)),
        (Security(tls_cert=cert, tls_key=key, tls_ca=str(tmp_path), tls_client_auth=True), "tls_ca", str(tmp_path)),
    ]
    for security, *words in cases:
        with pytest.raises(ConfigError) as caught:
            security.server_context()
        assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ConfigError, match="token_file"):
        read_token(nothing)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "store.example"])
@pytest.mark.parametrize("lacks", [("tls_cert", "tls_key"), ("token",), ("tls_cert", "tls_key", "token")])
def test_nothing_is_exposed_without_tls_and_a_token(host: str, lacks: tuple[str, ...], certificates: Any) -> None:
    security = dataclasses.replace(certificates.daemon(), **dict.fromkeys(lacks))
    with pytest.raises(ConfigError) as caught:
        Listener(ListenerConfig(host, 0, security), {})
    told = str(caught.value)
    assert "listen" in told and "loopback" in told and all(word in told for word in lacks)


def test_with_both_it_may_be_exposed(certificates: Any) -> None:
    listener = Listener(
        ListenerConfig("0.0.0.0", 0, certificates.daemon()), {"echo": lambda call: call.arguments}
    ).start()
    try:
        peer = Peer(Address("127.0.0.1", listener.address.port), certificates.caller(), 5)
        assert peer.call("echo", a=1) == {"a": 1}
        peer.close()
    finally:
        listener.stop()


def test_a_name_that_stands_for_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bound counts, not what it is called."""
    host = own_address()
    monkeypatch.setattr("tierstore.service.wire.server.socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", (host, 0))])
    with pytest.raises(ConfigError, match="loopback"):
        Listener(ListenerConfig("localhost", 0), {})


def test_an_address_that_is_taken_or_not_ours(net: Any, certificates: Any) -> None:
    taken = net.listen().address
    with pytest.raises(ConfigError, match=f"listen = '127.0.0.1:{taken.port}'.*in use"):
        Listener(ListenerConfig(taken.host, taken.port), {})
    with pytest.raises(ConfigError, match="listen = 'localhost.invalid:1'.*an address of this machine"):
        Listener(ListenerConfig("localhost.invalid", 1, certificates.daemon()), {})


def test_settings_that_contradict_each_other(certificates: Any) -> None:
    cert, key = certificates.server
    for security, word in (
        (Security(tls_cert=cert), "tls_key"),
        (Security(tls_key=key), "tls_cert"),
        (Security(tls_client_auth=True), "tls_client_auth"),
        (Security(tls_cert=cert, tls_key=key, tls_client_auth=True), "tls_client_auth"),
    ):
        with pytest.raises(ConfigError, match=word):
            Listener(ListenerConfig("127.0.0.1", 0, security), {})
        with pytest.raises(ConfigError, match=word):
            Peer("127.0.0.1:1", security)
    with pytest.raises(ConfigError, match="tls_cert.*tls_ca asks for TLS"):
        Listener(ListenerConfig("127.0.0.1", 0, Security(tls_ca=certificates.ca)), {})


# --- addresses ------------------------------------------------------------------------------------------------------------


def test_addresses() -> None:
    for text, host, port in (
        ("a-b.c:1", "a-b.c", 1),
        ("[::1]:65535", "::1", 65535),
        (" 10.0.0.1:9101 ", "10.0.0.1", 9101),
    ):
        address = parse_address(text, "nodes")
        assert (address.host, address.port) == (host, port) and str(address) == text.strip()
    for text in (
        "",
        ":1",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "::1:5",
        "[::1]",
        "[x]:1",
        "[127.0.0.1]:1",
        "a b:1",
        "h:-1",
        "h:+1",
        "h:１",
    ):  # noqa: E501
        with pytest.raises(ConfigError, match="nodes.*HOST:PORT"):
            parse_address(text, "nodes")


def test_names_are_resolved_to_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        if host == "later.example":
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [
            (2, 1, 6, "", ("10.0.0.2", port)),
            (10, 1, 6, "", ("fd00::1", port, 0, 0)),
            (2, 1, 6, "", ("10.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    found = resolve(["x:1", "dns:store.example:9101", "x:1", "dns:gone.example:1"])
    name = "store.example"
    assert found == [
        Address("x", 1),
        Address("10.0.0.1", 9101, name),
        Address("10.0.0.2", 9101, name),
        Address("fd00::1", 9101, name),
    ]
    assert [str(address) for address in found] == ["x:1", "10.0.0.1:9101", "10.0.0.2:9101", "[fd00::1]:9101"]
    with pytest.raises(OSError, match="try again"):
        resolve(["dns:later.example:1"])


# --- who answers is something else ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ["it speaks HTTP"]),
        (b"\x15\x03\x01\x00\x02\x02\x16" + bytes(9), ["it speaks TLS", "tls_ca"]),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ["is it the right port?"]),
        (b"TSF1\x02\x00\x10\x00" + bytes(8), ["version 2", "the same tierstore on both sides"]),
    ],
)
def test_the_port_of_something_else(said: bytes, words: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        peer = Peer(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=5)
        refused(peer, *words, kind=ProtocolError)
        thread.join()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(Peer(f"127.0.0.1:{port}", timeout_s=5), "nobody listens", "tierstore serve --listen", kind=PeerLost)
    refused(Peer("nothing.invalid:9101", timeout_s=5), "is not known", "nodes", kind=PeerLost)


def wait_for(condition: Any, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
