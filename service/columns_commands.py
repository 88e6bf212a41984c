"""The column cache on the command line: sql, load, evict, and the tables of `status --tables`."""

from __future__ import annotations

import decimal
import json
from typing import Any

import click

from .config import format_size
from .output import json_option, print_value, progress, show_rows, socket_option

columns_option = click.option("--columns", help="Only these columns, separated by commas.")


def table_options(command: Any) -> Any:
    """For commands that take objects or tables."""
    table = click.option("--table", is_flag=True, help="KEY names Parquet files: a path, a folder or a pattern.")
    return table(columns_option(command))


def names(columns: str | None) -> list[str] | None:
    """What --columns says; None: all."""
    return columns.split(",") if columns else None


def _plain(value: Any) -> Any:
    """A value that JSON has no form for: decimals as numbers (sums of integers are decimals), all else as text."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


@click.command()
@click.argument("statement")
@click.option("--explain-cache", is_flag=True, help="Show afterwards what came from where.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the query; default all processors.")
@click.option("--rows", default=40, show_default=True, help="Rows to show; 0: all. With --json always all.")
@socket_option
@json_option
def sql(statement: str, explain_cache: bool, threads: int | None, rows: int, socket: str | None, as_json: bool) -> None:
    """Run SQL over Parquet files: select ... from 'folder/*.parquet'. Columns are read through the running daemon's cache."""
    from . import sql as engine
    from .client import connect

    with connect(socket) as store:
        answer = engine.query(store, statement, threads)
        if as_json:
            records = answer.table.to_pylist()
            value = {"rows": records, "cache": answer.explained()} if explain_cache else records
            click.echo(json.dumps(value, indent=2, default=_plain))
            return
        shown = answer.table if rows == 0 else answer.table.slice(0, rows)
        left = "" if shown.num_rows == answer.table.num_rows else f", the first {rows} are shown (--rows 0: all)"
        records = [list(row.values()) for row in shown.to_pylist()]
        show_rows(f"{answer.table.num_rows} rows in {answer.seconds:.3f} s{left}", answer.table.column_names, records)
        if explain_cache:
            _explain(answer.explained())


def _explain(found: dict[str, Any]) -> None:
    show_rows(
        "cache",
        ["table", "chunks", "hits", "from cache", "filled", "decoded", "pruned", "not kept"],
        [
            [
                row["table"],
                row["chunks"],
                row["hits"],
                format_size(row["hit_bytes"]),
                row["misses"],
                format_size(row["fill_bytes"]),
                row["pruned"],
                row["refused"] + row["untrusted"],
            ]
            for row in found["tables"]
        ],
    )
    click.echo("read from " + ", ".join(f"{tier} {format_size(size)}" for tier, size in found["bytes_read"].items()))


@click.command()
@click.argument("paths", nargs=-1, required=True)
@columns_option
@click.option("--pin", "tier", metavar="TIER", help="Also keep them in this tier until they are unpinned or change.")
@socket_option
@json_option
def load(paths: tuple[str, ...], columns: str | None, tier: str | None, socket: str | None, as_json: bool) -> None:
    """Fill the cache with the columns of Parquet files, so that the first query finds them."""
    from .client import connect

    with connect(socket) as store:
        dataset = store.dataset(list(paths))
        with progress(as_json) as bar:
            task = bar.add_task("row groups", total=None)
            dataset.preload(names(columns), lambda done, count: bar.update(task, completed=done, total=count))
        if tier:
            dataset.pin(names(columns), tier)
        found = dataset.stats()
    print_value(found, as_json, _loaded)


def _loaded(found: dict[str, Any]) -> None:
    click.echo(
        f"{found['table']}: {found['cached_chunks']} of {found['chunks']} column chunks are cached; "
        f"{found['misses']} were read now ({format_size(found['fill_bytes'])}), {found['hits']} were there"
    )
    if found["refused"]:
        click.echo(f"{found['refused']} found no room: make the store larger, or load fewer columns", err=True)
    if found["untrusted"]:
        click.echo("files changed within the last 10 s are not cached: run it again", err=True)


@click.command()
@click.argument("paths", nargs=-1, required=True)
@columns_option
@socket_option
def evict(paths: tuple[str, ...], columns: str | None, socket: str | None) -> None:
    """Drop what is cached of Parquet files, of this and older versions."""
    from .client import connect

    with connect(socket) as store:
        click.echo(f"{store.dataset(list(paths)).evict(names(columns))} column chunks dropped")


def show_tables(rows: list[dict[str, Any]]) -> None:
    """What the cache holds and did, by table."""
    tiers = sorted({tier for row in rows for tier in row["bytes"]}, key=("dram", "pmem", "disk").index)
    show_rows(
        "tables, since the daemon started",
        ["table", "chunks", *tiers, "scans", "hits", "misses", "decoded", "fill s", "s saved"],
        [
            [
                row["table"],
                row["chunks"],
                *[format_size(row["bytes"].get(tier, 0)) for tier in tiers],
                row.get("scans", 0),
                row.get("hits", 0),
                row.get("misses", 0),
                format_size(row.get("fill_bytes", 0)),
                f"{row.get('fill_s', 0):.2f}",
                f"{row.get('seconds_saved', 0):.2f}",
            ]
            for row in rows
        ],
    )
