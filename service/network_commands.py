"""The network on the command line: its options, the command peers, and its line in `status`."""

from __future__ import annotations

import sys
from typing import Any

import click

from .config import format_size, load_config
from .output import json_option, print_value, show_rows


def security_options(command: Any) -> Any:
    """The options of everything that talks to other nodes."""
    for option in (
        click.option("--tls-cert", metavar="FILE", help="Certificate of this node, PEM; turns TLS on."),
        click.option("--tls-key", metavar="FILE", help="Its key, readable by its owner only."),
        click.option("--tls-ca", metavar="FILE", help="Authorities that sign the certificates of nodes, PEM."),
        click.option("--token-file", metavar="FILE", help="The token that all nodes share, in one line."),
        click.option("--node", metavar="HOST:PORT", multiple=True, help="A node, or dns:NAME:PORT; may be repeated."),
    ):
        command = option(command)
    return command


def network_options(command: Any) -> Any:
    """The options of a daemon that serves other nodes."""
    for option in (
        click.option("--listen", metavar="HOST:PORT", help="Serve other nodes; port 0: any that is free."),
        click.option("--advertise", metavar="HOST:PORT", help="What other nodes call this one, if not as it listens."),
        click.option("--flight", metavar="HOST:PORT", help="Serve Arrow Flight clients; port 0: any that is free."),
        click.option("--tls-client-auth", is_flag=True, default=None, help="Demand certificates from other nodes."),
        click.option("--replicas", type=int, metavar="N", help="Copies of shuffle data, 1 to 3."),
    ):
        command = option(command)
    return security_options(command)


def listening(network: dict[str, Any], whom: str = "other nodes") -> str:
    """Where and how a daemon listens, in words."""
    guards = [name for name, on in (("TLS", network["tls"]), ("token", network["token"])) if on]
    guards += ["client certificates"] if network["client_auth"] else []
    return f"serving {whom} at {network['address']} ({', '.join(guards) or 'open to every process of this machine'})"


def show_network(stats: dict[str, Any]) -> None:
    """What `status` says of the network; nothing where the daemon does not listen."""
    network = stats.get("network")
    if network:
        click.echo(
            f"{listening(network)}: {network['connections']} connections, {network['calls']} calls "
            f"({network['failed_calls']} failed), {format_size(network['bytes_in'])} in, "
            f"{format_size(network['bytes_out'])} out, {network['refused']} refused"
        )
    flight = stats.get("flight")
    if flight:
        click.echo(
            f"{listening(flight, 'Arrow Flight')}: {flight['calls_now']} calls now, {flight['calls']} before "
            f"({flight['failed_calls']} failed), {format_size(flight['bytes_in'])} in, "
            f"{format_size(flight['bytes_out'])} out, {flight['refused']} refused"
        )


@click.command()
@click.option("--config", "config_path", metavar="FILE", help="TOML file.")
@security_options
@click.option("--timeout", default=5.0, show_default=True, metavar="SECONDS", help="How long to wait for each node.")
@json_option
def peers(config_path: str | None, node: tuple[str, ...], timeout: float, as_json: bool, **files: Any) -> None:
    """Ask each configured node whether it answers; exit code 1 if one does not."""
    from .network import survey

    flags = {key: value for key, value in files.items() if value is not None}
    if node:
        flags["nodes"] = list(node)
    rows = survey(load_config(config_path, flags=flags).resolve(), timeout)
    if not rows and not as_json:
        click.echo("no nodes are configured: set nodes, or name some with --node HOST:PORT")

    def render(rows: list[dict[str, Any]]) -> None:
        if rows:
            show_rows(
                f"{len(rows)} nodes", ["node", "answers", "version", "latency", "error"], [_cells(r) for r in rows]
            )

    print_value(rows, as_json, render)
    sys.exit(0 if all(row["reachable"] for row in rows) else 1)


def _cells(row: dict[str, Any]) -> list[Any]:
    name = row["node"] if row["address"] in ("", row["node"]) else f"{row['node']} {row['address']}"
    latency = f"{row['latency_ms']:.2f} ms" if row["latency_ms"] is not None else ""
    return [name, "yes" if row["reachable"] else "NO", row["version"] or "", latency, row["error"] or ""]
