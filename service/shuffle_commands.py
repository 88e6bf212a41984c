"""Shuffles on the command line: `tierstore shuffle ls|show|drop`."""

from __future__ import annotations

import sys
from typing import Any

import click

from tierstore.ringbuf.errors import NotFound, TierstoreError

from .config import format_size
from .output import json_option, print_value, progress, show_rows, socket_option


@click.group()
def shuffle() -> None:
    """Applications, their shuffles, and what these hold."""


def _call(socket: str | None, name: str, **arguments: Any) -> Any:
    from .client import connect
    from .config import load_config

    with connect(socket or load_config().resolve().socket) as store:
        return store._control.call(name, **arguments)


@shuffle.command("ls")
@socket_option
@json_option
def ls(socket: str | None, as_json: bool) -> None:
    """Applications that hold shuffles, and how long their leases last."""
    print_value(_call(socket, "shuffle_list"), as_json, _render_apps)


def _render_apps(apps: list[dict[str, Any]]) -> None:
    rows = [
        [
            app["app"],
            len(app["shuffles"]),
            sum(entry["maps"] for entry in app["shuffles"]),
            format_size(app["used_bytes"]),
            format_size(app["quota_bytes"]) if app["quota_bytes"] else "none",
            f"{app['lease_left_s']:g} of {app['lease_s']:g} s",
        ]
        for app in apps
    ]
    show_rows("applications", ["app", "shuffles", "maps", "held", "quota", "lease left"], rows)


@shuffle.command("show")
@click.argument("app")
@socket_option
@json_option
def show(app: str, socket: str | None, as_json: bool) -> None:
    """The shuffles of one application."""
    found = [entry for entry in _call(socket, "shuffle_list") if entry["app"] == app]
    if not found:
        click.echo(
            f"tierstore: application {app!r} holds nothing here; `tierstore shuffle ls` lists those that do", err=True
        )
        sys.exit(1)
    print_value(found[0], as_json, _render_shuffles)


def _render_shuffles(app: dict[str, Any]) -> None:
    rows = [
        [
            entry["shuffle"],
            entry["partitions"],
            entry["maps"],
            entry["attempts"],
            entry["open_attempts"],
            entry["runs"],
            format_size(entry["bytes"]),
            format_size(entry["manifest_bytes"]),
        ]
        for entry in app["shuffles"]
    ]
    columns = ["shuffle", "partitions", "maps", "attempts", "not committed", "runs", "bytes", "manifests"]
    show_rows(f"shuffles of {app['app']}", columns, rows)


@shuffle.command("drop")
@click.argument("app")
@click.argument("number", required=False, type=int)
@socket_option
def drop(app: str, number: int | None, socket: str | None) -> None:
    """Delete one shuffle of an application, or all of it. Its readers get an error that says so."""
    if number is None:
        count = _call(socket, "shuffle_end", app=app)
        click.echo(f"{app}: {count} shuffles deleted")
    else:
        count = _call(socket, "shuffle_drop", app=app, shuffle=number)
        click.echo(f"{app}/{number}: {count} attempts deleted")


@click.command()
@click.option("--undo", is_flag=True, help="Take new data again.")
@socket_option
@json_option
def drain(undo: bool, socket: str | None, as_json: bool) -> None:
    """Bring this node's shuffle output to other nodes, before it is stopped; readers find it there."""
    attempts = _call(socket, "shuffle_drain", on=not undo)
    if undo:
        click.echo("this node takes new data again")
        return
    moved: dict[str, int] = {}
    failed: list[str] = []
    with progress(as_json) as bar:
        task = bar.add_task("attempts", total=len(attempts))
        for app, number, map_index, attempt in attempts:
            try:
                node = _call(socket, "shuffle_move", app=app, shuffle=number, map_index=map_index, attempt=attempt)
                moved[node] = moved.get(node, 0) + 1
            except NotFound:  # dropped meanwhile
                pass
            except TierstoreError as error:
                failed.append(str(error))
            bar.update(task, advance=1)
    print_value({"moved": moved, "failed": failed}, as_json, _render_drain)
    sys.exit(1 if failed else 0)


def _render_drain(found: dict[str, Any]) -> None:
    show_rows("moved", ["node", "attempts"], sorted(found["moved"].items()))
    for reason in found["failed"]:
        click.echo(f"NOT MOVED {reason}")
    click.echo("the node can be stopped" if not found["failed"] else f"{len(found['failed'])} attempts are only here")
