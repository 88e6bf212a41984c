"""The command line: `tierstore --help`."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from tierstore.ringbuf.errors import TierstoreError

from . import columns_commands, network_commands, shuffle_commands, spark_commands
from .config import format_size, load_config
from .output import json_option, print_value, show_rows, socket_option


class _Group(click.Group):
    """Errors that the user can do something about are one line, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            ctx.exit(0)
        except (TierstoreError, OSError, ValueError, KeyError) as error:  # what was given, or its file, cannot be used
            click.echo(f"tierstore: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tierstore")
def main() -> None:
    """A tiered store of columnar blocks: memory, persistent memory, disk."""


def _connect(socket: str | None) -> Any:
    """The daemon's store; the command line never starts a store of its own, which would be empty."""
    from .client import connect

    return connect(socket or load_config().resolve().socket)


def store_options(command: Any) -> Any:
    """The options that describe a store."""
    for option in (
        click.option("--config", "config_path", metavar="FILE", help="TOML file."),
        click.option("--dram", metavar="SIZE", help="Memory for the fastest tier, e.g. 4GiB."),
        click.option("--pmem", metavar="PATH:SIZE", help="Persistent memory: a DAX path, or a file that plays it."),
        click.option("--pmem-profile", metavar="NAME", help="How an emulated device behaves."),
        click.option("--disk-profile", metavar="NAME", help="Slow the disk tier down to an emulated device."),
        click.option("--disk", metavar="DIR:SIZE", multiple=True, help="Disk directory; may be repeated."),
        click.option("--disk-lz4", is_flag=True, default=None, help="Compress blocks on disk with LZ4."),
        click.option("--segment", metavar="SIZE", help="Segment size, 1MiB to 32MiB."),
        click.option("--clients", type=int, help="Client slots."),
        socket_option,
    ):
        command = option(command)
    return command


def _config(options: dict[str, Any]) -> Any:
    path = options.pop("config_path", None)
    for many, key in (("disk", "disk"), ("node", "nodes")):
        options[key] = list(options.pop(many, ())) or None
    return load_config(path, flags={key: value for key, value in options.items() if value is not None}).resolve()


@main.command()
@store_options
@network_commands.network_options
@click.option("--ephemeral", is_flag=True, default=None, help="Remove all data when the daemon stops.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
def serve(**options: Any) -> None:
    """Run the node's daemon in the foreground, until SIGTERM or Ctrl-C."""
    config = _config(options)
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    from .daemon import Daemon
    from .daemon import serve as run

    def ready(daemon: Daemon) -> None:
        found = daemon.engine.recovery
        click.echo(
            f"tierstore: serving {config.socket}; dram {format_size(config.dram_bytes)}, "
            f"{found.blocks} blocks recovered",
            err=True,
        )
        if daemon.listener is not None:
            click.echo(f"tierstore: {network_commands.listening(daemon.listener.stats())}", err=True)
        if daemon.flight is not None:
            told = network_commands.listening(daemon.flight.stats(), "Arrow Flight")
            click.echo(f"tierstore: {told}", err=True)
        if found.damaged:
            click.echo(
                f"tierstore: {len(found.damaged)} segments are damaged; what is lost in them is not known", err=True
            )
        if found.lost_keep:
            click.echo(f"tierstore: {found.lost_keep} KEEP blocks could not be recovered", err=True)

    run(config, ready)


@main.command()
@socket_option
@json_option
@click.option("--tables", is_flag=True, help="Show the column cache's tables instead.")
def status(socket: str | None, as_json: bool, tables: bool) -> None:
    """Tiers, counters and clients of the running daemon."""
    with _connect(socket) as store:
        if tables:
            print_value(store.tables(), as_json, columns_commands.show_tables)
            return
        stats = store.stats()

    def render(stats: dict[str, Any]) -> None:
        rows = [
            [
                name + (" (emulated)" if tier["emulated"] else ""),
                format_size(tier["capacity_bytes"]),
                format_size(tier["live_bytes"]),
                tier["blocks"],
                tier["free_segments"],
                format_size(tier["bytes_read"]),
                tier["durability"],
            ]
            for name, tier in stats["tiers"].items()
        ]
        show_rows("tiers", ["tier", "capacity", "live", "blocks", "free segments", "read", "holds"], rows)
        for name, tier in stats["tiers"].items():
            if tier["emulated"]:
                click.echo(f"{name}: {tier['emulated']}")
        rate = stats["hit_rate"]
        clients, daemon = stats["clients"], stats["daemon"]
        show_rows(
            "counters",
            ["what", "value"],
            [
                ["hit rate", "no reads yet" if rate is None else f"{rate:.1%}"],
                ["clients", stats["connected"]],
                *[[name, value] for name, value in {**clients, **daemon}.items() if value],
            ],
        )
        network_commands.show_network(stats)
        shuffle_commands.show_counters(stats)

    print_value(stats, as_json, render)


@main.command()
@click.argument("prefix", default="")
@socket_option
@json_option
@click.option("-l", "--long", is_flag=True, help="With tier, class, bytes and rows.")
def ls(prefix: str, socket: str | None, as_json: bool, long: bool) -> None:
    """Keys that begin with PREFIX."""
    with _connect(socket) as store:
        keys = store.keys(prefix)
        infos = [store.info(key) for key in keys] if long else [{"key": key} for key in keys]

    def render(infos: list[dict[str, Any]]) -> None:
        if not long:
            for info in infos:
                click.echo(info["key"])
            return
        show_rows(
            f"{len(infos)} objects",
            ["key", "kind", "class", "tiers", "bytes", "rows", "blocks"],
            [
                [i["key"], i["kind"], i["class"], ",".join(i["tiers"]), format_size(i["bytes"]), i["rows"], i["blocks"]]
                for i in infos
            ],
        )

    print_value(infos, as_json, render)


@main.command()
@click.argument("key")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--keep", is_flag=True, help="Must not be lost or evicted.")
@click.option("--ttl", type=float, metavar="SECONDS", help="Vanish after this time.")
@click.option("--pool", default="default", help="The pool to put it in.")
@click.option("--durable", is_flag=True, help="Return when it would survive power loss.")
@click.option("--raw", is_flag=True, help="Store the file's bytes even if it is Parquet or Arrow.")
@socket_option
def put(
    key: str, file: str, keep: bool, ttl: float | None, pool: str, durable: bool, raw: bool, socket: str | None
) -> None:
    """Store FILE under KEY: Parquet and Arrow files as tables, everything else as bytes ("-": standard input)."""
    from .files import read_object

    value = read_object(file, raw)
    with _connect(socket) as store:
        place = store.put_bytes if isinstance(value, bytes) else store.put
        click.echo(place(key, value, keep=keep, ttl=ttl, pool=pool, durable=durable))


@main.command()
@click.argument("key")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option("--columns", help="Only these columns, separated by commas.")
@socket_option
@json_option
def get(key: str, file: str, columns: str | None, socket: str | None, as_json: bool) -> None:
    """Write what is under KEY to FILE (.parquet, .arrow, .csv, else raw); tables without FILE are shown."""
    from .files import show_table, write_object

    with _connect(socket) as store:
        if store.info(key)["kind"] == "bytes":
            write_object(store.get_bytes(key), file)
            return
        table = store.get(key, columns.split(",") if columns else None)
        if file == "-":
            show_table(table, as_json)
        else:
            write_object(table, file)


@main.command()
@click.argument("keys", nargs=-1, required=True)
@socket_option
def rm(keys: tuple[str, ...], socket: str | None) -> None:
    """Remove objects."""
    with _connect(socket) as store:
        for key in keys:
            store.delete(key)


@main.command()
@click.argument("key")
@click.option("--tier", default="dram", help="dram, pmem or disk.")
@columns_commands.table_options
@socket_option
def pin(key: str, tier: str, table: bool, columns: str | None, socket: str | None) -> None:
    """Keep an object (with --table: the columns of Parquet files) in a tier until it is unpinned."""
    with _connect(socket) as store:
        if table or columns:
            store.dataset(key).pin(columns_commands.names(columns), tier)
        else:
            store.pin(key, tier)


@main.command()
@click.argument("key")
@columns_commands.table_options
@socket_option
def unpin(key: str, table: bool, columns: str | None, socket: str | None) -> None:
    """Let a pinned object (with --table: the columns of Parquet files) be moved again."""
    with _connect(socket) as store:
        if table or columns:
            store.dataset(key).unpin(columns_commands.names(columns))
        else:
            store.unpin(key)


@main.command()
@click.argument("key")
@socket_option
@json_option
def info(key: str, socket: str | None, as_json: bool) -> None:
    """What is stored under KEY."""
    with _connect(socket) as store:
        found = store.info(key)
    print_value(found, as_json, lambda value: show_rows(key, ["what", "value"], [[k, v] for k, v in value.items()]))


@main.command()
@click.option("--payloads", is_flag=True, help="Read and check every payload too.")
@socket_option
@json_option
def verify(payloads: bool, socket: str | None, as_json: bool) -> None:
    """Check the store's structures; exit code 1 if anything is wrong."""
    with _connect(socket) as store:
        report = store.verify(payloads)

    def render(report: dict[str, Any]) -> None:
        click.echo(
            f"{report['blocks']} blocks, segments: "
            + ", ".join(f"{count} {name}" for name, count in report["segments"].items() if count)
        )
        for problem in report["problems"]:
            click.echo(f"PROBLEM {problem}")
        click.echo("ok" if report["ok"] else f"{len(report['problems'])} problems")

    print_value(report, as_json, render)
    sys.exit(0 if report["ok"] else 1)


@main.command()
@store_options
@network_commands.network_options
@click.option(
    "--profiles", is_flag=True, help="List the profiles of emulated devices instead; your own with --pmem-profile."
)
@json_option
def doctor(as_json: bool, profiles: bool, **options: Any) -> None:
    """Say what each configured path is, what it promises, and what to change."""
    from rich.console import Console

    if profiles:
        from . import doctor_profiles

        chosen = load_config(options["config_path"], flags={"pmem_profile": options["pmem_profile"]}).pmem_profile
        listed = doctor_profiles.listing(chosen)
        print_value(listed, as_json, lambda _: Console().print(doctor_profiles.render(listed)))
        return
    from .doctor import examine, render, to_json

    findings = examine(_config(options))
    print_value(to_json(findings), as_json, lambda _: Console().print(render(findings)))


@main.command()
@click.option("--input", "inputs", multiple=True, metavar="FILES", help="Parquet files or globs instead of made data.")
@click.option("--columns", help="Numeric columns to use, separated by commas.")
@click.option("--size", metavar="SIZE", help="Size of the made data set.")
@click.option("--dram", metavar="SIZE", help="DRAM budget; default a quarter of the data.")
@click.option("--iterations", type=int, help="Iterations of k-means.")
@click.option("--quick", is_flag=True, help="A few seconds only.")
@json_option
def demo(as_json: bool, **options: Any) -> None:
    """k-means over data larger than DRAM: all in DRAM, DRAM + PMem, DRAM + disk, and no store."""
    from .demo_command import run

    sys.exit(run(options, as_json))


for command in (
    columns_commands.sql,
    columns_commands.load,
    columns_commands.evict,
    network_commands.peers,
    shuffle_commands.shuffle,
    shuffle_commands.drain,
    spark_commands.spark,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
