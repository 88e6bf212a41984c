"""Errors as Flight clients get them: by kind, in our own words, without tracebacks and paths of this machine."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence

import pyarrow as pa
from pyarrow import flight

from tierstore.ringbuf.errors import Closed, CorruptionError, Full, LostMaps, PeerLost, TierstoreError

log = logging.getLogger("tierstore")

# gRPC carries an error in headers, three times over, and drops headers from 8 KiB on.
TEXT_BYTES_MAX = 900
MAPS_BYTES_MAX = 1200


def flight_error(error: BaseException, where: str) -> Exception:
    """The error to raise in a Flight handler for what happened there. A fault of ours is logged under a number."""
    if isinstance(error, flight.FlightError):
        made: Exception = error
        return made
    if isinstance(error, CorruptionError):  # its text names a file of this machine
        log.error("%s: %s", where, error)
        return _made(flight.FlightServerError, "CorruptionError", "stored bytes are not what was written; see the log")
    if isinstance(error, PermissionError) and isinstance(error, TierstoreError):
        return _made(flight.FlightUnauthorizedError, type(error).__name__, str(error))
    if isinstance(error, LostMaps):
        return _made(flight.FlightServerError, "LostMaps", str(error), error.maps)
    if isinstance(error, Full | Closed | PeerLost):
        return _made(flight.FlightUnavailableError, type(error).__name__, str(error))
    if isinstance(error, TierstoreError):
        return _made(flight.FlightServerError, type(error).__name__, str(error))
    if isinstance(error, ValueError | TypeError | pa.ArrowNotImplementedError):  # data that cannot be taken
        return _made(flight.FlightServerError, "ValueError", str(error))
    number = os.urandom(4).hex()
    log.error("fault %s in the Flight call %s", number, where, exc_info=error)
    text = f"the daemon failed in this call; its log says why, under {number}"
    return _made(flight.FlightInternalError, "InternalError", text)


def refusal(text: str) -> Exception:
    """For a caller who does not show the token."""
    return _made(flight.FlightUnauthenticatedError, "PermissionError", text)


def _made(make: type[Exception], kind: str, text: str, maps: Sequence[int] | None = None) -> Exception:
    said = f"{kind}: {text}".encode("ascii", "backslashreplace")[:TEXT_BYTES_MAX].decode()
    info: dict[str, object] = {"kind": kind}
    if maps is not None:
        ranges = _ranges(maps)
        kept = ranges[:MAPS_BYTES_MAX]
        while len(json.dumps(kept)) > MAPS_BYTES_MAX:
            kept = kept[: len(kept) * 3 // 4]
        info |= {"maps": kept, "complete": len(kept) == len(ranges)}
    return make(said, json.dumps(info).encode())


def _ranges(maps: Sequence[int]) -> list[list[int]]:
    """Sorted numbers as [first, last], ..."""
    ranges: list[list[int]] = []
    for number in maps:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
