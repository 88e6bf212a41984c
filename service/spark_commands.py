"""Spark's settings on the command line: `spark-submit $(tierstore spark) job.py`."""

from __future__ import annotations

import json
import os
import shlex
from importlib import import_module

import click

from tierstore.ringbuf.errors import ConfigError, PeerLost

from .output import json_option, socket_option


@click.command()
@socket_option
@json_option
@click.option(
    "--shuffle/--no-shuffle", default=None, help="Shuffles in the store, for which JVMs load tierstore's jar."
)
@click.option(
    "--cache/--no-cache", default=None, help="df.cache() in the store, for which JVMs load tierstore's jar too."
)
@click.option(
    "--dram", metavar="SIZE", help="Nodes where no daemon answers start one with so much memory (with the jar)."
)
@click.option(
    "--spill",
    metavar="SIZE",
    help="A folder beside the file of the PMem tier for what Spark itself spills, at most so much.",
)
def spark(
    socket: str | None,
    as_json: bool,
    shuffle: bool | None,
    cache: bool | None,
    dram: str | None,
    spill: str | None,
) -> None:
    """Print what Spark has to be told so that its workers and JVMs find the store: as --conf options, or as JSON."""
    from .client import SocketControl
    from .config import load_config, parse_size

    if dram is not None:
        parse_size(dram, "dram")
    path = os.path.abspath(socket) if socket else load_config().resolve().socket
    made = import_module("tierstore.engines.spark_settings")
    found: dict[str, str] = made.settings(path)
    try:
        SocketControl(str(path)).close()
    except PeerLost as error:
        if dram is None:
            click.echo(f"tierstore: {error}; until then tasks read the files", err=True)
    try:
        found |= made.jar_settings(str(path), shuffle, cache, dram, spill)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    try:
        made.find_java(dict(os.environ))
    except ConfigError as error:
        click.echo(f"tierstore: {error}", err=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(f"--conf {shlex.quote(f'{name}={value}')}" for name, value in found.items()))
