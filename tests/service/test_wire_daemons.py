"""Daemons that listen for each other: settings, `tierstore serve`, `status` and `peers`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tierstore
from tierstore.emulation.procs import Daemon
from tierstore.service.config import StoreConfig, load_config
from tierstore.service.wire.client import Peer
from tierstore.service.wire.security import Security


def config(tmp_path: Path, text: str, **environ: str) -> StoreConfig:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_config(str(file), environ=environ)


def test_settings_from_file_environment_and_flags(tmp_path: Path) -> None:
    text = """
        listen = "127.0.0.1:9101"
        nodes = ["a:1", "dns:b.c:2", "a:1"]
        replicas = 2
        token_file = "~/token"
        tls_client_auth = false
    """
    found = config(tmp_path, text)
    assert (found.listen, found.nodes, found.replicas) == ("127.0.0.1:9101", ("a:1", "dns:b.c:2"), 2)
    assert found.token_file == str(Path("~/token").expanduser()) and not found.tls_client_auth
    changed = config(
        tmp_path, text, TIERSTORE_NODES="x:1, [::1]:2", TIERSTORE_REPLICAS="3", TIERSTORE_TLS_CLIENT_AUTH="yes"
    )
    assert changed.nodes == ("x:1", "[::1]:2") and changed.replicas == 3 and changed.tls_client_auth
    assert load_config(environ={}, flags={"nodes": ["y:1"], "listen": "[::1]:0"}).nodes == ("y:1",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('listen = "9101"', ["listen", "9101", "HOST:PORT"]),
        ("listen = 9101", ["listen", "9101", "HOST:PORT in quotes"]),
        ('listen = "127.0.0.1:70000"', ["listen", "70000", "ports are 0 to 65535"]),
        ('listen = ":9101"', ["listen", ":9101", "HOST:PORT"]),
        ('listen = "0.0.0.0:9101"', ["listen", "loopback", "tls_cert and tls_key and token_file"]),
        ('listen = "[::]:9101"\ntoken_file = "/t"', ["listen", "loopback", "set tls_cert and tls_key too"]),
        ('listen = "node-1:9101"\ntls_cert = "/c"\ntls_key = "/k"', ["listen", "node-1", "set token_file too"]),
        ('listen = "127.0.0.1:1"\ntls_ca = "/c"', ["tls_cert", "tls_ca asks for TLS"]),
        ('tls_cert = "/c"', ["tls_key", "together"]),
        ('tls_key = "/c"', ["tls_cert", "together"]),
        ("tls_cert = 5", ["tls_cert", "5", "a path"]),
        ("tls_client_auth = true", ["tls_client_auth", "only together with"]),
        ('tls_client_auth = "perhaps"', ["tls_client_auth", "perhaps", "true or false"]),
        ('nodes = "a"', ["nodes", "'a'", "HOST:PORT"]),
        ('nodes = ["a:0"]', ["nodes", "a:0", "ports are 1 to 65535"]),
        ("nodes = [5]", ["nodes", "5", "dns:NAME:PORT"]),
        ("nodes = {a = 1}", ["nodes", "a list"]),
        ('nodes = ["dns:a"]', ["nodes", "HOST:PORT"]),
        (f"nodes = {[f'a:{port}' for port in range(1, 1026)]}", ["nodes", "1025 nodes", "1024"]),
        ("replicas = 0", ["replicas", "0", "1 to 3"]),
        ("replicas = 4", ["replicas", "4", "1 to 3"]),
        ("replicas = 2.5", ["replicas", "2.5", "a whole number"]),
        ("replica = 2", ["replica", "did you mean 'replicas'"]),
        ('tls_certificate = "x"', ["tls_certificate", "did you mean 'tls_cert'"]),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(tierstore.ConfigError) as caught:
        config(tmp_path, text).resolve()
    assert all(word in str(caught.value) for word in words), caught.value


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tierstore.service.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def peers(*words: str) -> tuple[int, list[dict[str, Any]]]:
    answer = command("peers", "--json", *words)
    assert answer.returncode in (0, 1) and "Traceback" not in answer.stderr, answer.stderr
    return answer.returncode, json.loads(answer.stdout)


@pytest.fixture
def secured(certificates: Any, token_file: str) -> list[str]:
    """Options of a daemon with everything on."""
    cert, key = certificates.server
    return ["--token-file", token_file, "--tls-cert", cert, "--tls-key", key, "--tls-ca", certificates.ca]


@pytest.fixture
def daemon(tmp_path: Path, secured: list[str]) -> Iterator[Daemon]:
    made = Daemon(
        tmp_path,
        "--dram",
        "16MiB",
        "--ephemeral",
        "--listen",
        "127.0.0.1:0",
        *secured,
        "--tls-client-auth",
        "--replicas",
        "2",
    )
    try:
        yield made.start()
    finally:
        made.end()


def address_of(daemon: Daemon) -> str:
    """Where it says that it listens."""
    found = re.search(r"serving other nodes at (\S+) \(TLS, token, client certificates\)", daemon.log.read_text())
    assert found, daemon.log.read_text()
    return found.group(1)


@pytest.mark.slow
def test_a_daemon_that_listens(
    daemon: Daemon, secured: list[str], certificates: Any, token_file: str, tmp_path: Path
) -> None:
    address = address_of(daemon)
    with daemon.connect() as store:
        network, store_id = store.stats()["network"], store.stats()["store_id"]
    assert network["address"] == address and network["tls"] and network["token"] and network["client_auth"]
    code, (row,) = peers("--node", address, *secured)
    assert code == 0 and row["reachable"] and row["error"] is None and 0 < row["latency_ms"] < 1000, row
    assert (row["version"], row["store_id"], row["epoch"]) == (tierstore.__version__, store_id, 1)
    port = address.rpartition(":")[2]
    code, rows = peers(
        "--node", f"dns:localhost:{port}", "--node", "127.0.0.1:1", "--node", "dns:nothing.invalid:1", *secured
    )
    assert code == 1 and [row["node"] for row in rows if not row["reachable"]][-2:] == [
        "127.0.0.1:1",
        "dns:nothing.invalid:1",
    ]
    assert any(row["reachable"] and row["node"].startswith("dns:") for row in rows), "verified by its name"
    assert "nobody listens" in rows[-2]["error"] and "stands for no address" in rows[-1]["error"]
    code, (row,) = peers("--node", address, "--tls-ca", certificates.ca, "--token-file", token_file)
    assert code == 1 and "tls_client_auth" in row["error"]
    code, (row,) = peers("--node", address)
    assert code == 1 and "its port speaks TLS" in row["error"]
    shown = command("peers", "--node", address, *secured)
    assert shown.returncode == 0 and f"│ {address} " in shown.stdout and "yes" in shown.stdout
    shown = command("status", "--socket", daemon.socket)
    assert f"serving other nodes at {address} (TLS, token, client certificates): 0 connections" in shown.stdout
    told = daemon.log.read_text()
    assert "127.0.0.1:" in told and "does not speak TLS" in told and Path(token_file).read_text().strip() not in told


@pytest.mark.slow
def test_what_a_daemon_answers_other_nodes(daemon: Daemon, certificates: Any, token_file: str) -> None:
    cert, key = certificates.client
    security = Security(Path(token_file).read_text().strip(), token_file, cert, key, certificates.ca)
    with Peer(address_of(daemon), security) as peer, daemon.connect() as store:
        store.put_bytes("k", b"v")
        stats = peer.call("stats")
        assert stats["tiers"]["dram"]["capacity_bytes"] and "paths" not in stats["tiers"]["dram"]
        assert stats["store_id"] == store.stats()["store_id"] == peer.call("ping")["store_id"]
        assert stats["network"]["connections"] == 1 and peer.call("stats")["network"]["calls"] == 2
        assert stats["nodes"] == []
        for name in ("delete", "keys", "HELLO"):
            with pytest.raises(tierstore.TierstoreError, match="there is no call"):
                peer.call(name)


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_nothing(daemon: Daemon, tmp_path: Path, token_file: str) -> None:
    other = str(tmp_path / "other")
    base = ["serve", "--dram", "16MiB", "--segment", "1MiB", "--ephemeral", "--socket", other, "--listen"]
    Path(token_file).chmod(0o644)
    for words, expected in (
        ([address_of(daemon)], ["listen", "in use"]),
        (["0.0.0.0:0"], ["listen", "loopback", "token_file"]),
        (["127.0.0.1:0", "--token-file", token_file], ["token_file", "chmod 600"]),
        (["127.0.0.1:0", "--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k"], ["tls_cert", "/nowhere/c"]),
    ):
        answer = command(*base, *words)
        assert answer.returncode == 1 and all(word in answer.stderr for word in expected), answer.stderr
        assert "Traceback" not in answer.stderr and not Path(other).exists()


def test_what_the_doctor_says(secured: list[str], certificates: Any, token_file: str) -> None:
    from tierstore.service.doctor import BAD, NOTE, OK, examine

    def network(**flags: Any) -> dict[str, tuple[str, str]]:
        found = examine(load_config(environ={}, flags=flags).resolve())
        return {finding.item: (finding.value, finding.level) for finding in found if finding.subject == "network"}

    assert network() == {}
    cert, key = certificates.server
    whole = {"listen": "0.0.0.0:9101", "token_file": token_file, "tls_cert": cert, "tls_key": key, "nodes": ["a:1"]}
    assert network(**whole) == {
        "listen": ("0.0.0.0:9101", OK),
        "nodes": ("1", OK),
        "TLS": ("certificate and key fit", OK),
        "token": ("readable by its owner only", OK),
    }
    assert network(listen="127.0.0.1:9101")["token"][1] == NOTE
    assert network(**whole | {"tls_key": certificates.client[1]})["tls_key"] == (certificates.client[1], BAD)
    Path(token_file).chmod(0o644)
    assert network(**whole)["token_file"] == (token_file, BAD)


@pytest.mark.slow
def test_peers_without_nodes() -> None:
    assert peers() == (0, [])
    assert "no nodes are configured" in command("peers").stdout
