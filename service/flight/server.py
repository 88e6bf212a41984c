"""The calls of Flight clients: who may call, how many at once, and which handler answers."""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pyarrow import flight

from tierstore.ringbuf.errors import Closed, Full

from ..wire.security import Security
from ..wire.server import Complaints
from .commands import BadCommand, GetObject, PutObject, fields_of, parse_get, parse_put, text_of
from .errors import flight_error, refusal
from .objects import Objects
from .shuffles import Shuffles
from .streams import Call, Incoming

log = logging.getLogger("tierstore")

LOG_LINES = 20  # a minute, of failed authentications
START_S = 10.0
CALL = "call"
NOT_OFFERED = {
    "HANDSHAKE": "send the token with each call, as the header `authorization: Bearer TOKEN`",
    "GET_SCHEMA": "use get_flight_info, which has the schema",
    "DO_EXCHANGE": "use do_put and do_get",
}
ACTIONS = {
    "ping": "{}: version and store of the daemon",
    "object-delete": '{"key"}: remove an object',
    "shuffle-open": '{"app", "number", "partitions", "lease_s", "quota_bytes", "secret"}: begin a shuffle, or find it',
    "shuffle-touch": '{"app", "secret"}: renew the lease of an application',
    "shuffle-drop": '{"app", "number", "secret"}: delete a shuffle',
    "shuffle-end": '{"app", "secret"}: delete all an application has',
}


class Gate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Stands before each call: the token, the limit of calls, the daemon's start and stop; and remembers who is in."""

    def __init__(self, security: Security, calls_max: int):
        self._security, self._calls_max = security, calls_max
        self._lock = threading.Lock()
        self._complaints = Complaints(LOG_LINES)
        self.serving, self.stopping = threading.Event(), threading.Event()
        self.calls: set[Call] = set()
        self.counters = dict.fromkeys(("calls", "failed_calls", "refused", "bytes_in", "bytes_out"), 0)

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[str]]) -> flight.ServerMiddleware:
        """Let a call in, or raise a Flight error."""
        method = info.method.name
        try:
            if not self._security.accepts(bearer(headers)):
                self._complaints.say("a Flight client failed to authenticate: its token is not the daemon's")
                raise refusal("the token is missing or not the daemon's: send the header `authorization: Bearer TOKEN`")
            if method in NOT_OFFERED:
                raise BadCommand(f"{method} is not offered: {NOT_OFFERED[method]}")
            if not self.serving.wait(START_S) or self.stopping.is_set():
                raise Closed("the daemon is starting or stopping; try again later")
            call = Call(method, self.stopping.is_set)
            with self._lock:
                if len(self.calls) >= self._calls_max:
                    raise Full(f"the daemon serves {self._calls_max} Flight calls at once; try again later")
                self.calls.add(call)
        except Exception as error:
            with self._lock:
                self.counters["refused"] += 1
            raise flight_error(error, method) from None
        return _Passed(self, call)

    def end(self, call: Call, failed: bool) -> None:
        """A call is over."""
        for close in call.at_end:
            try:
                close()
            except Exception:
                log.exception("the end of a Flight call failed")
        with self._lock:
            self.calls.discard(call)
            self.counters["calls"] += 1
            self.counters["failed_calls"] += failed
            self.counters["bytes_in"] += call.bytes_in
            self.counters["bytes_out"] += call.bytes_out

    def silent(self, idle_s: float) -> set[str]:
        """Peers of streams in which nothing has moved for so long."""
        before = time.monotonic() - idle_s
        with self._lock:
            return {call.peer for call in self.calls if call.peer and call.moved < before}

    def stats(self) -> dict[str, int]:
        """Counters, of ended calls but for the bytes."""
        with self._lock:
            made = {"calls_now": len(self.calls), **self.counters}
            for name in ("bytes_in", "bytes_out"):
                made[name] += sum(getattr(call, name) for call in self.calls)
            return made


def bearer(headers: dict[str, list[str]]) -> str | None:
    """The token in the headers of a call."""
    values = headers.get("authorization", [])
    if len(values) != 1 or not isinstance(values[0], str):
        return None
    scheme, _, token = values[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class _Passed(flight.ServerMiddleware):  # type: ignore[misc]
    """One call that was let in."""

    def __init__(self, gate: Gate, call: Call):
        self._gate, self.call = gate, call

    def call_completed(self, exception: Exception | None) -> None:
        self._gate.end(self.call, exception is not None)


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that is given the Call, and raises nothing but Flight's errors."""

    @functools.wraps(method)
    def run(self: Server, context: flight.ServerCallContext, *arguments: Any) -> Any:
        call: Call = context.get_middleware(CALL).call
        call.peer = context.peer()
        try:
            return method(self, call, context, *arguments)
        except Exception as error:
            raise flight_error(error, f"{call.method} of {call.peer}") from None

    return run


class Server(flight.FlightServerBase):  # type: ignore[misc]
    """Answers from the moment it is made, but each call waits until the gate serves. open(): what it serves."""

    objects: Objects
    shuffles: Shuffles
    ping: Callable[[], dict[str, Any]]

    def open(self, objects: Objects, shuffles: Shuffles, ping: Callable[[], dict[str, Any]]) -> None:
        """To be called before the gate serves."""
        self.objects, self.shuffles, self.ping = objects, shuffles, ping

    @_guarded
    def list_flights(self, call: Call, context: Any, criteria: bytes) -> list[flight.FlightInfo]:
        """Tables and bytes whose keys begin with the criteria."""
        return self.objects.list(call, text_of(criteria, "the prefix"))

    @_guarded
    def get_flight_info(self, call: Call, context: Any, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        """Schema and ticket."""
        command = parse_get(*_parts(descriptor))
        if isinstance(command, GetObject):
            return self.objects.info(command, descriptor)
        return self.shuffles.info(call, command, descriptor, descriptor.command)

    @_guarded
    def do_get(self, call: Call, context: Any, ticket: flight.Ticket) -> flight.FlightDataStream:
        """Rows."""
        command = parse_get(None, ticket.ticket)
        return self.objects.get(call, command) if isinstance(command, GetObject) else self.shuffles.get(call, command)

    @_guarded
    def do_put(self, call: Call, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Store rows; what became of them is the metadata that comes back."""
        command = parse_put(*_parts(descriptor))
        incoming = Incoming(call, context, reader, command.rows, command.counted)
        if isinstance(command, PutObject):
            answer = self.objects.put(command, incoming)
        else:
            answer = self.shuffles.put(call, command, incoming)
        try:
            writer.write(json.dumps(answer).encode())
        except OSError:
            log.info("%s did not wait for the answer to its put", call.peer)

    @_guarded
    def list_actions(self, call: Call, context: Any) -> list[tuple[str, str]]:
        """Names and arguments."""
        return list(ACTIONS.items())

    @_guarded
    def do_action(self, call: Call, context: Any, action: flight.Action) -> list[bytes]:
        """One JSON object in, one out."""
        body = action.body.to_pybytes() or b"{}"
        fields = fields_of(body, f"the body of {action.type!r:.60}")
        handlers = {
            "object-delete": self.objects.delete,
            "shuffle-open": self.shuffles.open,
            "shuffle-touch": self.shuffles.touch,
            "shuffle-drop": self.shuffles.drop,
            "shuffle-end": self.shuffles.end,
        }
        if action.type == "ping":
            fields.end()
            answer = self.ping()
        elif action.type in handlers:
            answer = handlers[action.type](fields)
        else:
            raise BadCommand(f"there is no action {action.type!r:.60}; actions are {', '.join(ACTIONS)}")
        return [json.dumps(answer).encode()]


def _parts(descriptor: flight.FlightDescriptor) -> tuple[list[bytes] | None, bytes | None]:
    """The path of a descriptor, or its command."""
    if descriptor.descriptor_type == flight.DescriptorType.PATH:
        return list(descriptor.path), None
    if descriptor.descriptor_type == flight.DescriptorType.CMD:
        return None, descriptor.command
    raise BadCommand("the descriptor has to be a path or a command")
