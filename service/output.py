"""What every command prints with: a table for people, or JSON; and the options that all share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
socket_option = click.option("--socket", "socket", metavar="PATH", help="The daemon's socket.")

WIDE = 1000


def print_value(value: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """A value as JSON, or as a command renders it."""
    if as_json:
        click.echo(json.dumps(value, indent=2, default=str))
    else:
        render(value)


def show_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: nothing is folded
        console.width = WIDE
    console.print(table)


def progress(silent: bool) -> Progress:
    """A progress bar on standard error; none where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    return Progress(*columns, console=Console(stderr=True), disable=silent or not sys.stderr.isatty())
