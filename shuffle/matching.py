"""Whether what a manifest says is what the store holds."""

from __future__ import annotations

from tierstore.cache.inside import root_of
from tierstore.cache.requests import Requests
from tierstore.ringbuf.errors import Conflict

from . import manifest as manifests
from .names import Attempt

PADDING = 64  # opaque bytes are stored in whole lines


def check_runs(requests: Requests, name: Attempt, parsed: manifests.Manifest) -> None:
    """Raise Conflict unless all runs of an attempt are here and are what its manifest says.

    Payloads are compared by the hashes in their headers, which were computed when they were written.
    """
    for sequence, run in enumerate(parsed.runs):
        found = root_of(requests, name.run(sequence))
        if found is None:
            raise Conflict(f"run {sequence} of {name.key!r} is not here: the attempt cannot be committed")
        rows = found.rows if parsed.kind == manifests.ROWS else found.size
        same_rows = rows == run.rows or (parsed.kind == manifests.BYTES and 0 <= rows - run.rows < PADDING)
        hashed = found.payload_hash is not None and found.blocks == 1
        if not same_rows or (hashed and found.payload_hash != run.payload_hash):
            raise Conflict(
                f"run {sequence} of {name.key!r} is not what its manifest says: {rows} rows with hash "
                f"{found.payload_hash}, not {run.rows} with {run.payload_hash}"
            )
