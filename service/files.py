"""Files in and out for the command line."""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa

from tierstore.ringbuf.errors import ConfigError

SHOWN_ROWS = 20


def read_object(path: str, raw: bool) -> pa.Table | bytes:
    """A table from a Parquet, Feather or Arrow stream file, else the bytes; "-" is standard input."""
    if path == "-":
        return sys.stdin.buffer.read()
    with open(path, "rb") as file:
        start = file.read(6)
        file.seek(0)
        if raw:
            return file.read()
        if start.startswith(b"PAR1"):
            import pyarrow.parquet as parquet

            return parquet.read_table(path)
        if start == b"ARROW1":
            return pa.ipc.open_file(pa.memory_map(path)).read_all()
        if start.startswith(b"\xff\xff\xff\xff"):
            return pa.ipc.open_stream(pa.memory_map(path)).read_all()
        return file.read()


def write_object(value: pa.Table | memoryview, path: str) -> None:
    """Write a value in the form that the file's name asks for."""
    if not isinstance(value, pa.Table):
        if path == "-":
            sys.stdout.buffer.write(value)
        else:
            with open(path, "wb") as file:
                file.write(value)
        return
    ending = path.rpartition(".")[2].lower()
    if ending == "parquet":
        import pyarrow.parquet as parquet

        parquet.write_table(value, path)
    elif ending in ("arrow", "feather", "ipc"):
        with pa.ipc.new_file(path, value.schema) as writer:
            writer.write_table(value)
    elif ending == "csv":
        import pyarrow.csv as csv

        csv.write_csv(value, path)
    else:
        raise ConfigError("FILE", path, "a table is written as .parquet, .arrow or .csv")


def show_table(table: pa.Table, as_json: bool) -> None:
    """The first rows."""
    rows: list[dict[str, Any]] = table.slice(0, SHOWN_ROWS).to_pylist()
    if as_json:
        print(json.dumps(rows, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{table.num_rows} rows x {table.num_columns} columns", title_justify="left")
    for name in table.column_names:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*[str(value) for value in row.values()])
    Console().print(shown)
