"""Shuffles on the command line: `tierstore shuffle ls|show|drop`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from tierstore.ringbuf.errors import NotFound, TierstoreError

from .config import format_size
from .output import json_option, print_value, progress, show_rows, socket_option

DRAIN_POLL_S = 0.2


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


def show_counters(stats: dict[str, Any]) -> None:
    """What `status` says of shuffles; nothing where there was none."""
    counts = stats.get("shuffle") or {}
    rows = [
        [name.replace("_", " "), format_size(count) if "bytes" in name else count]
        for name, count in counts.items()
        if count
    ]
    if rows:
        show_rows("shuffles since the daemon started", ["what", "value"], rows)


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
@click.option("--wait", default=60.0, show_default=True, metavar="SECONDS", help="For attempts that were begun before.")
@socket_option
@json_option
def drain(undo: bool, wait: float, socket: str | None, as_json: bool) -> None:
    """Bring this node's shuffle output to other nodes, before it is stopped; readers find it there."""
    found = _call(socket, "shuffle_drain", on=not undo)
    if undo:
        click.echo("this node takes new data again")
        return
    moved: dict[str, int] = {}
    failed: list[str] = []
    done: set[tuple[Any, ...]] = set()
    deadline = time.monotonic() + wait
    with progress(as_json) as bar:
        task = bar.add_task("attempts", total=None)
        while True:
            left = [tuple(entry) for entry in found["attempts"] if tuple(entry) not in done]
            bar.update(task, total=len(done) + len(left))
            for entry in left:
                _move(socket, entry, moved, failed)
                done.add(entry)
                bar.update(task, advance=1)
            if not left and (not found["open"] or time.monotonic() > deadline):
                break
            time.sleep(0 if left else DRAIN_POLL_S)
            found = _call(socket, "shuffle_drain", on=True)
    told = {"moved": moved, "failed": failed, "open": found["open"], "cached": found["cached"]}
    print_value(told, as_json, _render_drain)
    sys.exit(1 if failed or found["open"] else 0)


def _move(socket: str | None, entry: tuple[Any, ...], moved: dict[str, int], failed: list[str]) -> None:
    app, number, map_index, attempt = entry
    try:
        node = _call(socket, "shuffle_move", app=app, shuffle=number, map_index=map_index, attempt=attempt)
        moved[node] = moved.get(node, 0) + 1
    except NotFound:  # dropped meanwhile
        pass
    except TierstoreError as error:
        failed.append(str(error))


def _render_drain(found: dict[str, Any]) -> None:
    show_rows("moved", ["node", "attempts"], sorted(found["moved"].items()))
    for reason in found["failed"]:
        click.echo(f"NOT MOVED {reason}")
    if found["open"]:
        click.echo(
            f"{found['open']} attempts were begun and are not committed; drain again when they are, or drop them"
        )
    if found["cached"]:
        click.echo(
            f"{found['cached']} attempts hold cached data of an engine, which stay here: it computes them again elsewhere"
        )
    if not found["failed"] and not found["open"]:
        click.echo("the node can be stopped")
