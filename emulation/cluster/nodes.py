"""Two kinds of node: a plain function, and a node whose messages travel as frames of the daemon's protocol over streams."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from tierstore.service import protocol

from .events import (
    Bytes,
    Close,
    Connection,
    Ended,
    Event,
    Instruction,
    Make,
    Note,
    Open,
    Opened,
    Received,
    Send,
    SimulatedNode,
    Write,
)
from .trace import show

FRAMES_WAITING_MAX = 1000

# (node, event, now in virtual seconds) -> instructions; a pair (target, body) is short for Send.
Function = Callable[["Plain", Event, float], Iterable[Instruction | tuple[str, Any]] | None]


class Plain:
    """A node that is one function. memory: gone after a crash. durable: what was found at the start."""

    def __init__(self, function: Function, name: str, durable: dict[Any, Any]):
        self.name, self.memory, self.durable = name, dict[Any, Any](), durable
        self._function = function

    def handle(self, event: Event) -> Iterable[Instruction]:
        """What the function says."""
        for said in self._function(self, event, event.now_s) or ():
            yield Send(*said) if isinstance(said, tuple) else said


def plain(function: Function) -> Make:
    """A function as what starts a node."""
    return lambda name, durable: Plain(function, name, durable)


class Framed:
    """A node whose messages travel as frames over streams, so that the decoder sees them cut in any place.

    inner:   sends and receives messages; it has no streams of its own. Bodies must be JSON objects.
    decoder: makes what takes frames out of bytes.

    One stream per peer and direction, opened when needed. While it is being opened at most FRAMES_WAITING_MAX frames
    wait, then the oldest is dropped. When it breaks, what was on the way is lost. A message to itself stays a message.
    """

    def __init__(self, inner: SimulatedNode, name: str, decoder: Callable[[], Any] = protocol.Decoder):
        self.inner = inner
        self._name = name
        self._decoder = decoder
        self._frames = 0
        self._waiting: dict[str, deque[bytes]] = {}  # streams being opened
        self._out: dict[str, Connection] = {}
        self._in: dict[Connection, Any] = {}  # their decoders

    def handle(self, event: Event) -> Iterable[Instruction]:
        """Streams are handled here, all else by the inner node."""
        match event:
            case Opened(_, connection):
                if connection.opener == self._name:
                    self._out[connection.acceptor] = connection
                    frames = self._waiting.pop(connection.acceptor)
                    return [Write(connection, frame) for frame in frames]
                self._in[connection] = self._decoder()
                return []
            case Bytes():
                return self._bytes(event)
            case Ended(_, connection):
                self._forget(connection)
                return []
        return self._sent(self.inner.handle(event))

    def _bytes(self, event: Bytes) -> list[Instruction]:
        decoder, source = self._in.get(event.connection), event.connection.peer(self._name)
        if decoder is None:
            return []
        try:
            frames = decoder.feed(event.data)
        except protocol.ProtocolError as error:
            self._forget(event.connection)
            return [Note(f"from {source}: {error}"), Close(event.connection)]
        done: list[Instruction] = []
        for _, request, body in frames:
            done.append(Note(f"frame {request} from {source}: {show(body)}"))
            done += self._sent(self.inner.handle(Received(event.now_s, source, body)))
        return done

    def _sent(self, instructions: Iterable[Instruction]) -> list[Instruction]:
        """The inner node's instructions, with messages made into frames."""
        done: list[Instruction] = []
        for instruction in instructions:
            if not isinstance(instruction, Send) or instruction.target == self._name:
                done.append(instruction)
                continue
            body = instruction.body
            if not isinstance(body, dict) or json.loads(json.dumps(body)) != body:
                raise TypeError(
                    f"{self._name} sends {body!r}: in frames a body is an object that JSON gives back as it was"
                )
            self._frames += 1
            frame = protocol.encode(protocol.CALL, self._frames & 0xFFFFFFFF, body)
            target = instruction.target
            done.append(Note(f"frame {self._frames} to {target}: {show(body)}"))
            if target in self._out:
                done.append(Write(self._out[target], frame))
                continue
            if target not in self._waiting:
                self._waiting[target] = deque(maxlen=FRAMES_WAITING_MAX)
                done.append(Open(target))
            self._waiting[target].append(frame)
        return done

    def _forget(self, connection: Connection) -> None:
        self._in.pop(connection, None)
        if connection.opener == self._name:
            self._out.pop(connection.acceptor, None)
            self._waiting.pop(connection.acceptor, None)


def framed(make: Make) -> Make:
    """The same node, with its messages as frames over streams."""
    return lambda name, durable: Framed(make(name, durable), name)
