"""What a daemon gives other nodes of its shuffles: descriptions, and streams of slices; see remote.py for their form."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from tierstore.cache.block import encoder_of
from tierstore.ringbuf.errors import CorruptionError, Expired, NotFound, TierstoreError

from .book import digest_of
from .manifest import BYTES
from .names import PARTITIONS_MAX, Attempt, check_attempt, check_name, check_number
from .output import Output, Piece, load_output
from .receipt import Receipt
from .registry import Registry
from .remote import checks_at, frame_meta_bytes
from .replication import Receiver, memory_at

# Slices are sent together until they are so many bytes, or so many slices.
FRAME_BYTES = 8 << 20
FRAME_SLICES = 1024
# A slice below this is copied into a frame with others; larger ones are sent from where they are, in frames of their own.
JOINED_BYTES = 1 << 20
OUTPUTS_MAX = 1 << 20


class Call(Protocol):
    """What is needed of a call from another node; see service/wire/call.py."""

    def argument(self, name: str, kind: Callable[..., Any], default: Any = ...) -> Any:
        """One argument, of a type."""

    def send(self, head: dict[str, Any], parts: Any, check: int | None = None) -> None:
        """Send data."""


class _Slice(NamedTuple):
    position: int
    output: Output
    first: int
    last: int
    piece: Piece


class Serving:
    """Handlers of calls from other nodes. Any thread."""

    def __init__(self, registry: Callable[[], Registry]):
        self._find = registry
        self._receiver: Receiver | None = None
        self._making = threading.Lock()

    @property
    def _registry(self) -> Registry:
        return self._find()

    def handlers(self) -> dict[str, Callable[[Any], Any]]:
        """By name."""
        return {
            "shuffle_describe": self.describe,
            "shuffle_fetch": self.fetch,
            "shuffle_store": self.store,
            "shuffle_discard": self.discard,
            "shuffle_touch": self.touch,
            "shuffle_drop": self.drop,
            "shuffle_end": self.end,
        }

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

    def _outputs(self, call: Call) -> tuple[list[Output | None], list[list[int]], list[list[Any]]]:
        """What was asked for and is here; begins; and [position, kind, reason] of what is not."""
        app, shuffle = self._app(call), call.argument("shuffle", int)
        named = call.argument("outputs", list)
        if len(named) > OUTPUTS_MAX:
            raise ValueError(f"{len(named)} outputs in one request; at most {OUTPUTS_MAX}")
        outputs: list[Output | None] = []
        lost: list[list[Any]] = []
        for position, entry in enumerate(named):
            if not isinstance(entry, list) or len(entry) != 4:
                raise ValueError("each output is [map index, attempt, hash of the manifest, first run]")
            name = check_attempt(app, shuffle, entry[0], entry[1])
            check_number("first run", entry[3])
            try:
                outputs.append(self._output(name, entry[2]))
            except (NotFound, CorruptionError) as error:
                outputs.append(None)
                lost.append([position, *self._reason(name, error)])
        return outputs, named, lost

    def _output(self, name: Attempt, manifest_hash: int) -> Output:
        receipt = Receipt(*name, 0, 0, manifest_hash, "", "", "")
        return load_output(self._registry.lean, receipt)

    def _reason(self, name: Attempt, error: TierstoreError) -> list[str]:
        """Kind and reason of what is not here: said without paths of this machine."""
        if isinstance(error, CorruptionError):
            return ["CorruptionError", f"the output of map {name.map_index} is damaged"]
        try:
            why = self._registry.why(*name)
            return ["NotFound", str(error) if why == "it is there" else why]
        except Expired as expired:
            return ["Expired", str(expired)]

    def describe(self, call: Call) -> dict[str, Any]:
        """Which attempts are here, and their schemas."""
        outputs, _, lost = self._outputs(call)
        numbers: dict[tuple[int, bytes], int] = {}
        named = []
        for output in outputs:
            if output is None:
                named.append(-1)
                continue
            kind = (output.manifest.kind, output.manifest.schema_message)
            named.append(numbers.setdefault(kind, len(numbers)))
        schemas = [[kind, base64.b64encode(message).decode()] for kind, message in numbers]
        return {"schemas": schemas, "outputs": named, "lost": lost}

    def fetch(self, call: Call) -> dict[str, Any]:
        """Send partitions first to last of attempts, in the order they are named. Verified by who receives them.

        checked: who receives them compares the rows of each partition with its check, so payloads carry no other one.
        """
        first, last = call.argument("first", int), call.argument("last", int)
        check = 0 if call.argument("checked", bool, False) else None
        check_number("last", last, PARTITIONS_MAX)
        check_number("first", first, last)
        outputs, named, lost = self._outputs(call)
        if lost:
            return {"lost": lost}
        held: list[_Slice] = []
        size = 0
        for item in self._slices(outputs, named, first, last, lost):
            own = item.piece.rows.nbytes
            if held and (size + own > FRAME_BYTES or len(held) == FRAME_SLICES or not _can_join(held[0], item)):
                _send(call, held, check)
                held, size = [], 0
            held.append(item)
            size += own
            if own >= JOINED_BYTES:
                _send(call, held, check)
                held, size = [], 0
        if held:
            _send(call, held, check)
        return {"lost": lost}

    def _slices(
        self, outputs: Sequence[Output | None], named: list[list[int]], first: int, last: int, lost: list[list[Any]]
    ) -> Iterator[_Slice]:
        for position, output in enumerate(outputs):
            assert output is not None
            if last > output.manifest.partitions:
                raise ValueError(f"partitions up to {last} of {output.manifest.partitions}")
            try:
                for piece in output.pieces(first, last, named[position][3], verify=False):
                    yield _Slice(position, output, first, last, piece)
            except (NotFound, CorruptionError) as error:
                lost.append([position, *self._reason(output.name, error)])
                return


def _can_join(one: _Slice, other: _Slice) -> bool:
    """Whether rows can be sent in one batch; those with dictionaries, which may differ, are sent alone."""
    same = one.output.manifest.schema_message == other.output.manifest.schema_message
    return same and (one.output.manifest.kind == BYTES or not encoder_of(one.piece.rows.schema).stream)


def _send(call: Call, slices: list[_Slice], check: int | None) -> None:
    """One frame. check: of its payload, see Call.send()."""
    count = slices[0].last - slices[0].first
    each = frame_meta_bytes(1, count)
    total = frame_meta_bytes(len(slices), count)
    meta = bytearray(-(-total // 64) * 64)
    for number, item in enumerate(slices):
        at, run = number * each, item.output.manifest.runs[item.piece.sequence]
        meta[at : at + 4 * (count + 1)] = item.piece.starts.astype("<u4").tobytes()
        checks = np.ascontiguousarray(run.checks[item.first : item.last], "<u8").tobytes()
        meta[at + checks_at(count) : at + checks_at(count) + len(checks)] = checks
    batches = [item.piece.rows for item in slices]
    rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    head = {"slices": [[item.position, item.piece.sequence, item.piece.rows.num_rows] for item in slices]}
    if slices[0].output.manifest.kind == BYTES:
        data = rows.column(0)
        parts: list[Any] = [data.buffers()[1].slice(data.offset, len(data))]
        call.send(head, [meta, *parts], check)
        return
    payload = encoder_of(rows.schema).encode(rows, root=False)
    pairs = list(payload.pieces[: 2 * payload.piece_count])
    parts = []
    for address, size in zip(pairs[::2], pairs[1::2], strict=True):
        parts.append(memory_at(address, size))
        if size % 64:
            parts.append(bytes(64 - size % 64))
    call.send(head, [meta, *parts], check)
