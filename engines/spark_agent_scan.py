"""What an agent does for scans of its JVM (``format("tierstore")``): it plans them, and tells where their columns lie.

Columns are handed out in the form in which they are kept, wherever the JVM can read that (spark_types.is_in_place). Buffers that
lie in an arena are named by their place; others, of what could not be admitted or had to be cast, are sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tierstore.cache import object_pieces
from tierstore.cache.columns import pieces
from tierstore.cache.columns.filling import FileChanged
from tierstore.cache.columns.forms import CODES, is_text, stored_type
from tierstore.cache.columns.scanning import Arrays, in_type
from tierstore.cache.columns.tables import Unit
from tierstore.cache.placing import arena_of
from tierstore.ringbuf.errors import PeerLost, TierstoreError
from tierstore.service.store import Store

from .spark_columns import Batch, Constant, batches
from .spark_plan import (
    hosts_of,
    options_of,
    piece_from,
    piece_text,
    plan_from,
    plan_of,
    plan_text,
    preferred,
)
from .spark_terms import pruning
from .spark_types import is_in_place, known, spark_schema
from .spark_worker import ObjectPlan, Plan

if TYPE_CHECKING:
    from .spark_agent_calls import Answer, Calls


@dataclass
class Scanning:
    """A piece that a connection reads: what is left of it, and the batch that its JVM has now."""

    left: Iterator[Batch]
    held: Batch | None = None


def scan_plan(
    calls: Calls,
    _: bytearray,
    options: Mapping[str, str],
    columns: Sequence[str] | None = None,
    filters: Sequence[Any] = (),
    pieces: bool = False,
    places: Sequence[str] = (),
    driver: str = "",
) -> Answer:
    """Columns in Spark's types, rows, bytes; and the pieces with the hosts that they prefer. Raises what plan_of() raises.

    columns: of these those that a query wants.  filters: terms (spark_terms.py) by which statistics exclude row groups.
    """
    told = options_of(_checked(options))

    def store() -> Store:  # at once: a key that cannot be looked up may be a path
        if not calls._store._control.answers():
            raise PeerLost("no daemon answers now")
        return calls._store

    names = told.columns if columns is None else list(columns)
    with _clear_errors():
        plan, planned = plan_of(told.target, names, None, told.piece_bytes, store)
        condition = _condition(plan, filters)
        if condition is not None:
            plan, planned = plan_of(told.target, names, condition, told.piece_bytes, store)
        answer = {"schema": spark_schema(plan.schema), **_size(calls, plan, planned)}
    if pieces:
        hosts = preferred(planned, hosts_of(list(places), driver))
        answer["plan"] = plan_text(plan)
        answer["pieces"] = [[piece_text(piece), near] for piece, near in zip(planned, hosts, strict=True)]
    return answer, []


def _checked(options: Any) -> Mapping[str, str]:
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise ValueError(f"options {options!r:.100}: names and texts are wanted")
    return options


def _condition(plan: Plan, filters: Sequence[Any]) -> Any:
    """Of a table under a key nothing is excluded: it has no statistics."""
    return None if isinstance(plan, ObjectPlan) else pruning(filters, plan.whole)


def _size(calls: Calls, plan: Plan, planned: Sequence[Any]) -> dict[str, int]:
    if isinstance(plan, ObjectPlan):
        info = calls._store.info(plan.name)
        return {"rows": info["rows"], "bytes": info["bytes"]}
    return {"rows": sum(piece.rows for piece in planned), "bytes": sum(piece.bytes for piece in planned)}


def scan_open(calls: Calls, _: bytearray, plan: str, columns: Sequence[str], piece: str, skip: int = 0) -> Answer:
    """Begin to read a piece, behind its first ``skip`` rows; what was being read on this connection is given up."""
    scan_end(calls, _)
    chosen, one = plan_from(plan, columns), piece_from(piece)
    if isinstance(chosen, ObjectPlan) and isinstance(one, object_pieces.ObjectPiece):
        rows = _of_key(calls, chosen, one)
    elif isinstance(chosen, pieces.Plan) and isinstance(one, pieces.FilePiece):
        rows = _of_file(calls, chosen, one)
    else:
        raise ValueError(f"{piece:.100} is no piece of {chosen.name!r:.100}")
    calls.scanning = Scanning(_behind(rows, skip))
    return {}, []


def scan_next(calls: Calls, _: bytearray) -> Answer:
    """The next batch, as Batch.told() writes it; rows is -1 at the end. The batch before is given up."""
    scanning = calls.scanning
    if scanning is None:
        raise ValueError("no piece is being read on this connection")
    scanning.held = None
    try:
        with _clear_errors():
            scanning.held = next(scanning.left, None)
    except FileNotFoundError as error:
        raise FileChanged(f"{error}: it was there when the job was planned; run the job again") from None
    if scanning.held is None:
        return {"rows": -1, "columns": []}, []
    parts: list[Any] = []
    columns = scanning.held.told(_place_of(calls), parts)
    return {"rows": scanning.held.rows, "columns": columns}, parts


def scan_end(calls: Calls, _: bytearray) -> Answer:
    """Nothing more of what is being read is wanted."""
    scanning, calls.scanning = calls.scanning, None
    if scanning is not None:
        scanning.held = None
        scanning.left.close()  # type: ignore[attr-defined]
    return {}, []


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What pyarrow and broken requests raise, as errors that a JVM is told."""
    try:
        yield
    except (TierstoreError, ValueError, OSError):
        raise
    except (pa.ArrowException, KeyError, IndexError, NotImplementedError) as error:
        raise TierstoreError(f"{type(error).__name__}: {error}") from None


# --- what a batch is made of ------------------------------------------------------------------------------------------------------


def _place_of(calls: Calls) -> Callable[[pa.Buffer], tuple[int, int] | None]:
    """Where a buffer lies in an arena, None for private memory."""
    store = calls._shared.store_or_none
    if store is None:
        return lambda buffer: None
    lean = calls._shared.lean
    return lambda buffer: arena_of(store, lean, buffer.address, buffer.size)


def _of_file(calls: Calls, plan: pieces.Plan, piece: pieces.FilePiece) -> Iterator[Batch]:
    place = _place_of(calls)

    def is_placed(array: pa.Array) -> bool:
        return all(place(buffer) is not None for buffer in array.buffers() if buffer is not None and buffer.size)

    found = plan.kept(piece, calls._shared.store_or_none, is_placed)
    with contextlib.closing(found):  # type: ignore[type-var]
        for unit, arrays in found:
            columns = [_column(unit, arrays, entry) for entry in plan.schema]
            yield from batches(unit.rows, columns, is_placed)


def _of_key(calls: Calls, plan: ObjectPlan, piece: object_pieces.ObjectPiece) -> Iterator[Batch]:
    place = _place_of(calls)

    def is_placed(array: pa.Array) -> bool:
        return all(place(buffer) is not None for buffer in array.buffers() if buffer is not None and buffer.size)

    for batch in plan.read(piece, calls._store):
        yield from batches(batch.num_rows, [[_readable(array)] for array in batch.columns], is_placed)


def _column(unit: Unit, arrays: Arrays, entry: pa.Field) -> Constant | list[pa.Array]:
    """One column of a row group; a constant where it comes from the file's path, or is in other files only."""
    name, kind = entry.name, entry.type
    if name not in arrays:
        return Constant(unit.file.partition.get(name))
    found = arrays[name]
    forms = (kind, stored_type(kind), CODES if is_text(kind) else kind)
    if any(array.type not in forms for array in found):
        found = in_type(found, kind)
    return [_readable(array) for array in found]


def _readable(array: pa.Array) -> pa.Array:
    """An array that the jar can read. Raises ArrowInvalid for nanoseconds that are not whole microseconds."""
    coded = pa.types.is_dictionary(array.type)
    if is_in_place(array.type) and not (coded and array.dictionary.null_count):
        return array
    return (array.dictionary_decode() if coded else array).cast(known(array.type))


def _behind(found: Iterator[Batch], skip: int) -> Iterator[Batch]:
    """All but the first rows."""
    with contextlib.closing(found):  # type: ignore[type-var]
        for batch in found:
            if skip >= batch.rows:
                skip -= batch.rows
                continue
            yield batch.behind(skip) if skip else batch
            skip = 0


TABLE = {"scan_plan": scan_plan, "scan_open": scan_open, "scan_next": scan_next, "scan_end": scan_end}
