"""The state of a dataset at one moment: its files, their versions and footers, and one schema over all of them."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from tierstore.ringbuf.errors import ConfigError

from .chunks import chunk_key, file_prefix
from .files import Listing, Source, Version, partition_expression, partition_fields, partition_values
from .filling import FileChanged
from .footers import Footer, Footers
from .forms import CODES, FORM, form_of, is_text, stored_type, wide_type
from .prune import Pruner

MODES = "'all', 'remote', 'none', or 'ttl:SECONDS'"
# How often a footer is read again because its file changed meanwhile.
CHANGED_RETRIES = 3


@dataclass(frozen=True)
class File:
    """One file of a dataset, as it was when the snapshot was taken."""

    source: Source
    version: Version
    footer: Footer
    partition: dict[str, Any]
    prefix: str

    def key(self, row_group: int, column: str, form: str = FORM) -> str:
        """The key of a column chunk in a form, or in the only one if its values have but one."""
        return chunk_key(self.prefix, row_group, column, form_of(self.footer.schema.field(column).type, form))

    def has(self, column: str) -> bool:
        """Whether the file itself holds a column (not its path, and not an older or newer schema)."""
        return column not in self.partition and self.footer.schema.get_field_index(column) >= 0


@dataclass(frozen=True)
class Unit:
    """One row group: what is filled at once. rows: how many it has."""

    file: File
    row_group: int
    rows: int


@dataclass(frozen=True)
class Snapshot:
    """Files and schema. Valid for one scan, however the files change meanwhile."""

    files: list[File]
    schema: pa.Schema

    @cached_property
    def stored(self) -> pa.Schema:
        """The types in which columns are kept, as far as footers tell: those that look coded are dictionaries."""
        return pa.schema([self._stored(entry) for entry in self.schema])

    @cached_property
    def wide(self) -> pa.Schema:
        """The types in which columns are given to engines that compute on no narrower ones."""
        return pa.schema([entry.with_type(wide_type(entry.type)) for entry in self.schema])

    def _stored(self, entry: pa.Field) -> pa.Field:
        if is_text(entry.type) and all(
            file.has(entry.name) and file.footer.is_coded(entry.name) for file in self.files
        ):
            return entry.with_type(CODES)
        return entry.with_type(stored_type(entry.type))

    @cached_property
    def young(self) -> list[File]:
        """The files that were too young to be trusted, but will be of age."""
        return [file for file in self.files if file.version.is_young() and file.version.changed_s < float("inf")]

    @cached_property
    def rows(self) -> int:
        """All rows of all files."""
        return sum(sum(file.footer.row_counts) for file in self.files)

    def spread(self, column: str) -> float:
        """How much of a column's range a row group covers on average: from 0 (sorted, or not known) to 1 (all over it)."""
        bounds: list[tuple[float, float]] = []
        for file in self.files:
            own = file.footer.bounds(column) if file.has(column) else None
            if own is None:
                return 0.0
            bounds += own
        if not bounds:
            return 0.0
        width = max(high for _, high in bounds) - min(low for low, _ in bounds)
        return sum(high - low for low, high in bounds) / (len(bounds) * width) if width > 0 else 0.0

    def units(self, pruner: Pruner | None = None) -> list[Unit]:
        """The row groups that may hold rows a filter keeps, in order."""
        units = []
        for file in self.files:
            counts = file.footer.row_counts
            kept = range(len(counts)) if pruner is None else pruner.row_groups(file.footer, file.partition)
            units += [Unit(file, number, counts[number]) for number in kept]
        return units


class Tables:
    """Takes snapshots of one dataset. Callers: any thread.

    validate: which files are looked at again before each scan: all, only remote ones, none, or all at most every N seconds.
    snapshot: a name under which the files never change (a snapshot id of a table format): nothing is looked at.
    """

    def __init__(self, listing: Listing, footers: Footers, validate: str, snapshot: str | None):
        self.listing, self._footers = listing, footers
        self._snapshot_id = snapshot
        self._every, self._remote_only = _mode(validate, snapshot)
        self._last: Snapshot | None = None
        self._taken_at = 0.0
        self._lock = threading.Lock()

    def snapshot(self) -> Snapshot:
        """The state now (or as lately as the validation mode asks for). Raises FileNotFoundError, pyarrow's errors."""
        with self._lock:
            last = self._last
            if last is not None and time.monotonic() - self._taken_at < self._every:
                if not any(file.version.is_ripe() for file in last.young):
                    return last
            self._last, self._taken_at = self._take(last), time.monotonic()
            return self._last

    def forget(self) -> None:
        """Look at all files again next time: one has changed."""
        with self._lock:
            self._last = None

    def _take(self, last: Snapshot | None) -> Snapshot:
        trusted, sources = {}, None
        known = {file.source.path: file for file in last.files} if last else {}
        if last is not None and (self._remote_only or self._every == float("inf")):
            old = [file for file in last.files if not file.version.is_young()]
            trusted = {f.source.path: f.version for f in old if f.source.remote is None or not self._remote_only}
            sources = None if self._remote_only else [file.source for file in last.files]
        sources = sources or self.listing.sources()
        fields = partition_fields(sources)
        files = [self._file(source, fields, trusted, known) for source in sources]
        if last is not None and len(files) == len(last.files) and all(map(operator.is_, files, last.files)):
            return last
        return Snapshot(files, _unify(files, fields))

    def _file(
        self, source: Source, fields: dict[str, pa.Field], trusted: dict[str, Version], known: dict[str, File]
    ) -> File:
        version = trusted.get(source.path) or self._version(source)
        partition = partition_values(source, fields)
        before = known.get(source.path)
        if before is not None and before.version.token == version.token and before.partition == partition:
            if not before.version.is_young() and not version.is_young():
                return before
        for _ in range(CHANGED_RETRIES):
            footer = self._footers.get(source, version, partition_expression(partition))
            if footer is not None:
                return File(source, version, footer, partition, file_prefix(source.path, version.token))
            version = self._version(source)
        raise FileChanged(f"{source.path} changed {CHANGED_RETRIES} times while its footer was read; try again later")

    def _version(self, source: Source) -> Version:
        if self._snapshot_id is not None:
            return Version(f"i{self._snapshot_id}", 0, vouched=True)
        return source.settled_version()


def _mode(validate: str, snapshot: str | None) -> tuple[float, bool]:
    """Seconds for which a snapshot holds, and whether only remote files are looked at."""
    if snapshot == "":
        raise ConfigError("snapshot", snapshot, "a name of at least one character, or None")
    if validate == "none":
        return float("inf"), False
    if validate in ("all", "remote"):
        return (0.0, validate == "remote") if snapshot is None else (float("inf"), False)
    kind, _, seconds = str(validate).partition(":")
    try:
        if kind == "ttl" and float(seconds) >= 0:
            return float(seconds) if snapshot is None else float("inf"), False
    except ValueError:
        pass
    raise ConfigError("validate", validate, f"allowed are {MODES}")


def _unify(files: Sequence[File], fields: dict[str, pa.Field]) -> pa.Schema:
    """One schema for all files: columns by name in order of first appearance, types widened where they differ."""
    schemas = list(dict.fromkeys(file.footer.schema.remove_metadata() for file in files))
    for schema in schemas:
        if len(set(schema.names)) < len(schema):
            twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
            raise pa.ArrowInvalid(f"a file has several columns of one name: {', '.join(twice)}; rename them")
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive") if len(schemas) > 1 else schemas[0]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise pa.ArrowInvalid(f"the files' schemas cannot be united: {error}") from None
    for entry in fields.values():  # the path wins over a column of the same name, as in pyarrow
        position = schema.get_field_index(entry.name)
        schema = schema.append(entry) if position < 0 else schema.set(position, entry)
    return schema
