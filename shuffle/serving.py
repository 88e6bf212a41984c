"""What a daemon gives other nodes of its shuffles: descriptions, and slices, some at a time; see remote.py for their form."""

from __future__ import annotations

import base64
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tierstore.ringbuf.errors import CorruptionError, Expired, NotFound, TierstoreError

from .book import digest_of
from .elsewhere import SIZES_MAX
from .knowing import KNOWN_BYTES, Known, size_of
from .names import PARTITIONS_MAX, Attempt, check_attempt, check_name, check_number
from .output import Output, find_output
from .registry import Registry
from .replication import Receiver
from .sending import Call, Sending, Slice

log = logging.getLogger("tierstore")

OUTPUTS_MAX = 1 << 20
ENDS_MAX = 1024  # attempts that one request is answered for
MOST_BYTES = 64 << 20
COPIED_MAX = KNOWN_BYTES // 4  # larger manifests are read again for each request
_PATH = re.compile(r"(^|[\s'\"(=])/")


class _Named(NamedTuple):
    name: Attempt
    manifest_hash: int
    begin: int


class Serving:
    """Handlers of calls from other nodes. Any thread."""

    def __init__(self, registry: Callable[[], Registry]):
        self._find = registry
        self._known: Known[tuple[Attempt, int]] = Known()
        self._receiver: Receiver | None = None
        self._making = threading.Lock()

    @property
    def _registry(self) -> Registry:
        return self._find()

    def handlers(self) -> dict[str, Callable[[Any], Any]]:
        """By name."""
        handlers: dict[str, Callable[[Any], Any]] = {
            "shuffle_describe": self.describe,
            "shuffle_fetch": self.fetch,
            "shuffle_store": self.store,
            "shuffle_discard": self.discard,
            "shuffle_touch": self.touch,
            "shuffle_drop": self.drop,
            "shuffle_end": self.end,
        }
        return {name: _discreet(handler) for name, handler in handlers.items()}

    def _app(self, call: Call) -> str:
        """The application that a call is about, if the caller may."""
        app = check_name("app", call.argument("app", str))
        digest = call.argument("digest", str, "") or digest_of(call.argument("secret", str, ""))
        self._registry.authorize(app, digest)
        return app

    def store(self, call: Call) -> dict[str, Any]:
        """Take a copy of an attempt; see replication.py."""
        with self._making:
            self._receiver = self._receiver or Receiver(self._registry)
        return self._receiver.store(call)

    def discard(self, call: Call) -> None:
        """Delete a copy whose commit failed where it came from."""
        app = self._app(call)
        number, index = call.argument("shuffle", int), call.argument("map_index", int)
        self._registry.discard(check_attempt(app, number, index, call.argument("attempt", str)))

    def touch(self, call: Call) -> None:
        """Renew the lease of an application."""
        self._app(call)

    def drop(self, call: Call) -> int:
        """Delete what is here of a shuffle."""
        app, number, age_s = self._app(call), call.argument("shuffle", int), call.argument("age_s", float, 0.0)
        return self._registry.drop(app, number, everywhere=False, age_s=age_s)

    def end(self, call: Call) -> int:
        """Delete what is here of an application."""
        return self._registry.end(self._app(call), everywhere=False, age_s=call.argument("age_s", float, 0.0))

    def _named(self, call: Call) -> list[_Named]:
        """What was asked for; whether it is here is not known yet."""
        app, shuffle = self._app(call), call.argument("shuffle", int)
        entries = call.argument("outputs", list)
        if len(entries) > OUTPUTS_MAX:
            raise ValueError(f"{len(entries)} outputs in one request; at most {OUTPUTS_MAX}")
        named = []
        for entry in entries:
            if not isinstance(entry, list) or len(entry) != 4:
                raise ValueError("each output is [map index, attempt, hash of the manifest, first run]")
            name = check_attempt(app, shuffle, entry[0], entry[1])
            named.append(_Named(name, entry[2], check_number("first run", entry[3])))
        return named

    def _output(self, named: _Named) -> Output:
        """Raises NotFound, CorruptionError."""
        key = (named.name, named.manifest_hash)
        known = self._known.get(key)
        output = find_output(self._registry.lean, named.name, named.manifest_hash, known, COPIED_MAX)
        if known is None and size_of(output.manifest) <= COPIED_MAX:
            self._known.put(key, output.manifest)
        return output

    def _reason(self, name: Attempt, error: TierstoreError) -> list[str]:
        """Kind and reason of what is not here: said without paths of this machine."""
        if isinstance(error, CorruptionError):
            return ["CorruptionError", f"the output of map {name.map_index} is damaged"]
        try:
            why = self._registry.why(*name)
            missing = f"a part of the output of map {name.map_index} is missing"
            return ["NotFound", missing if why == "it is there" else why]
        except Expired as expired:
            return ["Expired", str(expired)]

    def describe(self, call: Call) -> dict[str, Any]:
        """Which attempts are here, and their schemas.

        With ``sizes``: also about how many bytes each partition from first to last has in all of them.
        """
        named, sizes = self._named(call), None
        if call.argument("sizes", bool, False):
            first, last = _range(call)
            if last - first > SIZES_MAX:
                raise ValueError(f"sizes of {last - first} partitions in one request; at most {SIZES_MAX}")
            sizes = np.zeros(last - first, "f8")
        numbers: dict[tuple[int, bytes], int] = {}
        outputs, lost = [], []
        for position, entry in enumerate(named):
            try:
                output = self._output(entry)
                if sizes is None:
                    output.check_there()
                else:
                    sizes += output.sizes(first, last)
            except (NotFound, CorruptionError) as error:
                outputs.append(-1)
                lost.append([position, *self._reason(entry.name, error)])
                continue
            kind = (output.manifest.kind, output.manifest.schema_message)
            outputs.append(numbers.setdefault(kind, len(numbers)))
        schemas = [[kind, base64.b64encode(message).decode()] for kind, message in numbers]
        answer = {"schemas": schemas, "outputs": outputs, "lost": lost}
        return (
            answer if sizes is None else {**answer, "sizes": base64.b64encode(sizes.astype("<u8").tobytes()).decode()}
        )

    def fetch(self, call: Call) -> dict[str, Any]:
        """Send partitions first to last of attempts, in the order they are named. Verified by who receives them.

        checked: who receives them compares the rows of each partition with its check, so payloads carry no other one.
        """
        first, last = _range(call)
        most = check_number("most_bytes", call.argument("most_bytes", int, MOST_BYTES))
        named = self._named(call)
        sending = Sending(call, 0 if call.argument("checked", bool, False) else None)
        try:
            return self._send(sending, named, first, last, most)
        finally:
            self._registry.tally.add(served_bytes=sending.bytes)

    def _send(self, sending: Sending, named: list[_Named], first: int, last: int, most: int) -> dict[str, Any]:
        """What was asked for, from the first position on; the result of the call."""
        for position, entry in enumerate(named):
            if position == ENDS_MAX:
                return sending.result([position, entry.begin])
            try:
                output = self._output(entry)
                if last > output.manifest.partitions:
                    raise ValueError(f"partitions up to {last} of {output.manifest.partitions}")
                before = output.rows(first, last, entry.begin)
                for piece in output.pieces(first, last, entry.begin, verify=False):
                    sending.add(Slice(position, before, output, first, last, piece))
                    before += piece.rows.num_rows
                    if sending.bytes >= most:
                        return sending.result([position, piece.sequence + 1])
                sending.ends.append([position, before])
            except (NotFound, CorruptionError) as error:
                sending.ends.append([position, *self._reason(entry.name, error)])
        return sending.result(None)


def _range(call: Call) -> tuple[int, int]:
    first, last = call.argument("first", int), call.argument("last", int)
    check_number("last", last, PARTITIONS_MAX)
    check_number("first", first, last)
    return first, last


def _discreet(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A handler whose errors name no path of this machine."""

    def handle(call: Any) -> Any:
        try:
            return handler(call)
        except CorruptionError as error:
            if not _PATH.search(str(error)):
                raise
            log.warning("found while another node was served: %s", str(error))
            raise TierstoreError("what was asked for is damaged here; the log of this node says where") from None

    return handle
