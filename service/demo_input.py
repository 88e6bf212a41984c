"""The demo's input: row groups of Parquet files, cut into pieces of a few MiB of float64 columns.

A piece is the unit of everything: one object in the store, one partial result, one place in the order of summation.
Rows with a null, a NaN or an infinity are left out, as k-means has no place for them; a first pass over the files
counts them, and groups without any are never checked again.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tierstore.ringbuf.errors import ConfigError

from .kmeans import DIMENSION_COUNT_MAX, Floats

PIECE_BYTES_MAX = (8 << 20) - (64 << 10)  # four and their headers fit a segment of 32 MiB
PIECES_IN_DRAM_MIN = 16  # what is being written cannot move on: it must stay a small part of a small DRAM budget
GROUP_BYTES_MAX = 512 << 20  # a larger row group is decoded piece by piece instead of at once
DATA_PER_DRAM = 4  # the data are this many times the DRAM budget
DRAM_BYTES_MIN = 16 << 20  # a budget of the demo's own choice is not smaller, however small the data
CANDIDATE_COUNT = 64  # rows a group offers as starting centroids


class Group(NamedTuple):
    """One row group: where it is, how many rows of it are used, and which pieces it became.

    piece_rows_max: rows of a piece before rows are dropped; piece_rows: rows kept in each piece, none of them 0.
    first_piece: number of its first piece in the whole input.
    """

    path: str
    row_group: int
    row_count: int
    piece_rows_max: int
    dropped_rows: int = 0
    piece_rows: tuple[int, ...] = ()
    first_piece: int = 0


class Survey(NamedTuple):
    """What the first pass found in one group; candidates: (n, d) rows that could start a centroid."""

    group: Group
    candidates: Floats


class Input(NamedTuple):
    """All groups of a run, in order, with the columns used."""

    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    file_count: int
    rows_left_out: int  # of row groups beyond the size limit, not looked at
    dram_bytes: int

    @property
    def row_count(self) -> int:
        return sum(sum(group.piece_rows) for group in self.groups)

    @property
    def piece_count(self) -> int:
        return sum(len(group.piece_rows) for group in self.groups)

    @property
    def data_bytes(self) -> int:
        return self.row_count * 8 * len(self.columns)


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that names and glob patterns stand for, each once, sorted within a pattern."""
    found: list[str] = []
    for pattern in patterns:
        names = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        if not names:
            raise ConfigError("--input", pattern, "no file matches; give Parquet files or a pattern that matches some")
        found += names
    return list(dict.fromkeys(found))


def plan(paths: Sequence[str], columns: Sequence[str], bytes_max: int, dram_bytes: int | None = None) -> Input:
    """Row groups of these files, from their footers alone, up to bytes_max of float64.

    columns: names to use; empty for every numeric column of the first file. dram_bytes: None for a quarter of the data.
    """
    names: tuple[str, ...] = tuple(columns)
    found: list[tuple[str, int, int]] = []
    bytes_used, rows_left_out = 0, 0
    for path in paths:
        try:
            metadata = pq.read_metadata(path)
            names = _usable_columns(path, metadata.schema.to_arrow_schema(), names)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError("--input", path, f"a readable Parquet file is needed ({error})") from error
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            room = (bytes_max - bytes_used) // (8 * len(names))
            used = min(rows, max(0, room))
            rows_left_out += rows - used
            if used:
                found.append((path, index, used))
                bytes_used += used * 8 * len(names)
    if not found:
        raise ConfigError("--input", " ".join(paths), "at least one row is needed")
    dram_bytes = dram_bytes or max(DRAM_BYTES_MIN, bytes_used // DATA_PER_DRAM)
    rows_max = piece_rows_max(len(names), dram_bytes)
    return Input(names, tuple(Group(*one, rows_max) for one in found), len(paths), rows_left_out, dram_bytes)


def _usable_columns(path: str, schema: pa.Schema, wanted: tuple[str, ...]) -> tuple[str, ...]:
    numeric = [field.name for field in schema if _is_numeric(field.type)]
    if not wanted:
        wanted = tuple(numeric)
    missing = [name for name in wanted if name not in numeric]
    if missing or not wanted or len(wanted) > DIMENSION_COUNT_MAX:
        known = ", ".join(numeric) or "it has none"
        allowed = f"between 1 and {DIMENSION_COUNT_MAX} numeric columns of {path}: {known}"
        raise ConfigError("--columns", ",".join(missing or wanted), allowed)
    return wanted


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def piece_rows_max(column_count: int, dram_bytes: int) -> int:
    """Rows of a full piece."""
    return max(1, min(PIECE_BYTES_MAX, dram_bytes // PIECES_IN_DRAM_MIN) // (8 * column_count))


def survey(group: Group, columns: Sequence[str], seed: int) -> Survey:
    """Read one group once: rows per piece, rows dropped, and some rows to start from."""
    rows, kept, candidates = [], 0, []
    random = np.random.default_rng([seed, group.row_group, group.row_count])
    batches = list(_batches(group, columns))
    share = max(1, CANDIDATE_COUNT // max(1, len(batches)))
    for batch in batches:
        clean = _finite_rows(batch)
        if clean.num_rows:
            rows.append(clean.num_rows)
            kept += clean.num_rows
            picks = np.sort(random.integers(0, clean.num_rows, share))
            candidates.append(np.column_stack([column.to_numpy()[picks] for column in clean.columns]))
    found = group._replace(dropped_rows=group.row_count - kept, piece_rows=tuple(rows))
    return Survey(found, np.concatenate(candidates) if candidates else np.empty((0, len(columns))))


def number_pieces(surveyed: Input, groups: Iterable[Group]) -> Input:
    """The same input with the groups of the first pass, their pieces numbered from 0."""
    numbered, first = [], 0
    for group in groups:
        numbered.append(group._replace(first_piece=first))
        first += len(group.piece_rows)
    return surveyed._replace(groups=tuple(numbered))


def choose_start(candidates: Sequence[Floats], k: int, seed: int) -> Floats:
    """k different rows (k, d) to start from, by the rule of k-means++: far from those chosen before.

    Rows drawn without that rule often lie two in one cluster, and one of the two may lose all its rows.
    Raises: ConfigError if the candidates hold fewer than k different rows.
    """
    rows = np.concatenate(candidates)
    random = np.random.default_rng(seed)
    chosen: list[Floats] = []
    weights = np.ones(len(rows))  # squared distance to the nearest row chosen, once there is one
    for index in range(k):
        if not weights.sum() > 0:
            raise ConfigError("--input", f"{index} different rows", f"at least {k} are needed, one for each centroid")
        chosen.append(rows[random.choice(len(rows), p=weights / weights.sum())])
        distances = ((rows - chosen[-1]) ** 2).sum(axis=1)
        weights = distances if index == 0 else np.minimum(weights, distances)
    return np.stack(chosen)


def read_pieces(group: Group, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The pieces of a surveyed group with their numbers; float64 columns without nulls, contiguous."""
    number = group.first_piece
    for batch in _batches(group, columns):
        clean = _finite_rows(batch) if group.dropped_rows else batch
        if clean.num_rows:
            yield number, clean
            number += 1


def _batches(group: Group, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The used rows of a group as float64, at most a piece at a time."""
    rows_max, left = group.piece_rows_max, group.row_count
    with pq.ParquetFile(group.path) as file:
        stored_rows = file.metadata.row_group(group.row_group).num_rows
        if stored_rows * 8 * len(columns) <= GROUP_BYTES_MAX:
            table = file.read_row_group(group.row_group, columns=list(columns), use_threads=False)
            pieces: Iterable[pa.RecordBatch] = table.combine_chunks().to_batches(max_chunksize=rows_max)
        else:
            pieces = file.iter_batches(rows_max, [group.row_group], columns=list(columns), use_threads=False)
        for piece in pieces:
            yield _as_float64(piece.slice(0, left), columns)
            left -= piece.num_rows
            if left <= 0:
                return


def _as_float64(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    arrays = []
    for name in columns:
        column = batch.column(name)
        column = column if pa.types.is_float64(column.type) else pc.cast(column, pa.float64(), safe=False)
        if column.null_count == 0:  # then drop the bitmap that says so: nobody reads it, but it would be kept
            column = pa.Array.from_buffers(pa.float64(), len(column), [None, column.buffers()[1]], 0, column.offset)
        arrays.append(column)
    return pa.record_batch(arrays, names=list(columns))


def _finite_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows whose values are all finite; the batch itself if that is all of them."""
    keep = np.ones(batch.num_rows, bool)
    for column in batch.columns:
        keep &= np.isfinite(column.to_numpy(zero_copy_only=False))  # a null becomes NaN
    return batch if keep.all() else batch.filter(pa.array(keep))
