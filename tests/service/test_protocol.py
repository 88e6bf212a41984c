"""Frames out of any bytes, and the daemon's decisions as lists."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, dictionaries, integers, lists, text

from tierstore.ringbuf import errors
from tierstore.service import protocol
from tierstore.service.node import (
    PENDING_MAX,
    Admit,
    Answer,
    Arrived,
    Connected,
    Finished,
    Hang,
    Lost,
    Node,
    Reap,
    Renew,
    Run,
)

UID = 1000


def frame(**changed: int | bytes) -> bytes:
    given = {"magic": b"TSF1", "version": 1, "operation": 3, "request": 7, "body": b"{}"} | changed
    body = given["body"]
    length = given.get("length", len(body))  # type: ignore[arg-type]
    return protocol.HEADER.pack(given["magic"], given["version"], given["operation"], given["request"], length) + body  # type: ignore[operator]


@given(lists(dictionaries(text(), integers()), max_size=5), integers(1, 20))
@settings(derandomize=True, database=None, deadline=None)
def test_frames_come_out_however_they_are_cut(bodies: list[dict[str, int]], step: int) -> None:
    stream = b"".join(protocol.encode(3, number, body) for number, body in enumerate(bodies))
    decoder, found = protocol.Decoder(), []
    for start in range(0, len(stream), step):
        found += decoder.feed(stream[start : start + step])
    assert found == [(3, number, body) for number, body in enumerate(bodies)]


@given(binary(max_size=200))
@settings(derandomize=True, database=None, deadline=None)
def test_random_bytes_are_an_error_or_wait_for_more(data: bytes) -> None:
    for stream in (data, frame() + data, b"TSF1" + data, frame(body=data)):
        try:
            for _, _, body in protocol.Decoder().feed(stream):
                assert isinstance(body, dict)
        except protocol.ProtocolError:
            pass


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame(magic=b"HTTP"), "does not speak"),
        (frame(version=2), "version 2"),
        (frame(length=protocol.BODY_BYTES_MAX + 1), "at most"),
        (frame(length=2**32 - 1), "at most"),
        (frame(body=b"{"), "not JSON"),
        (frame(body=b"\xff\xfe"), "not JSON"),
        (frame(body=b"[1]"), "list"),
        (frame(body=b"[" * 200_000), "not JSON"),
    ],
)
def test_a_bad_frame_says_what_is_wrong(bad: bytes, message: str) -> None:
    with pytest.raises(protocol.ProtocolError, match=message):
        protocol.Decoder().feed(bad)


def test_a_truncated_frame_waits() -> None:
    decoder, whole = protocol.Decoder(), frame(body=b'{"a": 1}')
    assert decoder.feed(whole[:-1]) == [] and decoder.feed(whole[-1:]) == [(3, 7, {"a": 1})]
    with pytest.raises(protocol.ProtocolError, match="larger"):
        protocol.encode(3, 1, {"a": "x" * protocol.BODY_BYTES_MAX})


@pytest.mark.parametrize("kind", [errors.Full, errors.NotFound, errors.PeerLost, errors.InvalidKey, errors.Closed])
def test_errors_cross_the_socket(kind: type[errors.TierstoreError]) -> None:
    with pytest.raises(kind, match="^the message$"):
        protocol.raise_error(protocol.error_body(kind("the message")))


def test_odd_errors_cross_the_socket() -> None:
    with pytest.raises(errors.ConfigError, match="one of a, b") as caught:
        protocol.raise_error(protocol.error_body(errors.ConfigError("tier", "x", "one of a, b")))
    assert caught.value.key == "tier"
    with pytest.raises(errors.TierstoreError, match="arena at byte 5"):
        protocol.raise_error(protocol.error_body(errors.CorruptionError("arena", 5, 1, 2)))
    for body in ({"kind": "annotations", "message": "m"}, {"kind": "SystemExit", "message": "m"}, {}):
        with pytest.raises(errors.TierstoreError):
            protocol.raise_error(body)


def connected() -> Node:
    node = Node(UID)
    assert node.handle(Connected(1, UID, 50)) == []
    return node


def test_hello_renew_and_bye() -> None:
    node = connected()
    assert node.handle(Arrived(1, protocol.HELLO, 4, {"pid": 99})) == [Admit(1, 4, 50)], "the kernel's pid counts"
    assert node.handle(Arrived(1, protocol.RENEW, 5, {})) == [Renew(1, 5)]
    assert node.handle(Arrived(1, protocol.BYE, 6, {})) == [Hang(1), Reap()]


def test_calls() -> None:
    node = connected()
    call = {"name": "keys", "arguments": {"prefix": "a"}}
    assert node.handle(Arrived(1, protocol.CALL, 8, call)) == [Run(1, 8, "keys", {"prefix": "a"}, False)]
    assert node.handle(Finished(1, 8, ["a"], None)) == [Answer(1, protocol.REPLY, 8, {"result": ["a"]})]
    assert node.handle(Arrived(1, protocol.CALL, 9, {"name": "stats"})) == [Run(1, 9, "stats", {}, True)]
    failed = node.handle(Finished(1, 9, None, errors.Full("full")))
    assert failed == [Answer(1, protocol.ERROR, 9, {"kind": "Full", "message": "full"})]


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (protocol.CALL, {}),
        (protocol.CALL, {"name": "close"}),
        (protocol.CALL, {"name": ["keys"]}),
        (protocol.CALL, {"name": "keys", "arguments": [1]}),
        (99, {"name": "keys"}),
        (protocol.REPLY, {"name": "keys"}),
    ],
)
def test_an_unknown_call_is_an_error(operation: int, body: dict[str, object]) -> None:
    (answer,) = connected().handle(Arrived(1, operation, 3, body))
    assert isinstance(answer, Answer) and (answer.operation, answer.request) == (protocol.ERROR, 3)


def test_other_users_are_refused() -> None:
    node = Node(UID)
    refused, hang = node.handle(Connected(1, UID + 1, 50))
    assert isinstance(refused, Answer) and refused.body["kind"] == "PermissionError" and hang == Hang(1)
    assert node.handle(Arrived(1, protocol.HELLO, 1, {})) == [Hang(1)]
    assert node.handle(Connected(2, 0, 51)) == []


def test_pending_calls_are_bounded() -> None:
    node = connected()
    for number in range(PENDING_MAX):
        assert isinstance(node.handle(Arrived(1, protocol.CALL, number, {"name": "keys"}))[0], Run)
    (busy,) = node.handle(Arrived(1, protocol.CALL, 999, {"name": "keys"}))
    assert isinstance(busy, Answer) and "under way" in busy.body["message"]
    node.handle(Finished(1, 0, [], None))
    assert isinstance(node.handle(Arrived(1, protocol.CALL, 1000, {"name": "keys"}))[0], Run)


def test_a_lost_peer_is_forgotten() -> None:
    node = connected()
    node.handle(Arrived(1, protocol.CALL, 1, {"name": "keys"}))
    assert node.handle(Lost(1)) == [Reap()] and node.handle(Finished(1, 1, [], None)) == []
    assert node.handle(Lost(1)) == [Reap()] and node.handle(Arrived(1, protocol.HELLO, 1, {})) == [Hang(1)]
