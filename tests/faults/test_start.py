"""Places that a store may not or cannot use: refused in one line that names them, and nothing is left there."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import tierstore
from tierstore.emulation.ground import as_nobody, body, left_in, opened, refused, serving

pytestmark = pytest.mark.slow
MIB = 1 << 20
SEED = int(os.environ.get("TIERSTORE_TEST_SEED", "1"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root: it mounts a tmpfs, or becomes another user")
SMALL = {"dram": "8MiB", "segment": "1MiB"}


def sound(store: tierstore.Store) -> None:
    """Everything in the store adds up."""
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


# --- no permission ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that another user may not write in, below folders that they may pass; and a memory folder for all."""
    base = Path("/tmp") / f"tierstore-ground-{uuid.uuid4().hex[:12]}"
    for name, mode in {"": 0o755, "closed": 0o755, "memory": 0o1777, "open": 0o1777}.items():
        (base / name).mkdir()
        (base / name).chmod(mode)
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(base / "memory"))
    monkeypatch.setenv("TIERSTORE_KERNEL_CACHE", os.environ.get("TIERSTORE_KERNEL_CACHE", kernel_cache()))
    monkeypatch.setenv("HOME", str(base / "open"))
    yield base
    shutil.rmtree(base)


def kernel_cache() -> str:
    """Where compiled kernels are by default."""
    return os.path.expanduser("~/.cache/tierstore/kernels")


OPENS = {
    "pmem-folder": "pmem={}:16MiB",
    "pmem-file": "pmem={}/file:16MiB",
    "disk": "disk={}:16MiB",
    "new-disk": "disk={}/new:16MiB",
}


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700])
@pytest.mark.parametrize("option", ["dram_dir", *OPENS])
def test_a_path_without_permission(option: str, mode: int, forbidden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (forbidden / "closed").chmod(mode)
    options = ["dram=8MiB", "segment=1MiB"]
    if option == "dram_dir":
        monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(forbidden / "closed"))
    else:
        options.append(OPENS[option].format(forbidden / "closed"))
    answer = as_nobody("open", *options)
    assert answer.startswith("ConfigError") and "Permission denied" in answer and "\n" not in answer
    assert str(forbidden / "closed") in answer
    assert left_in(forbidden / "closed") == left_in(forbidden / "memory") == []


@needs_root
@pytest.mark.parametrize("writable_by", ["owner", "reader"])
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_the_files_of_another_user(tier: str, writable_by: str, forbidden: Path) -> None:
    option = {tier: f"{forbidden / 'open'}:16MiB"}
    assert opened(**SMALL, **option).startswith("opened True")
    path = next((forbidden / "open").glob("*.arena"))
    path.chmod(0o600 if writable_by == "owner" else 0o644)
    before = path.read_bytes()
    answer = as_nobody("open", "dram=8MiB", "segment=1MiB", f"{tier}={option[tier]}")
    assert "Permission denied" in answer and str(path) in answer
    assert path.read_bytes() == before and left_in(forbidden / "memory") == []


@needs_root
@pytest.mark.parametrize("arguments", ["--socket {}/s", "--socket {}/new/s", "--socket {0}-s --disk {0}:16MiB"])
def test_a_daemon_without_permission(arguments: str, forbidden: Path) -> None:
    for mode in (0o755, 0o700):
        (forbidden / "closed").chmod(mode)
        words = ["--dram", "8MiB", "--segment", "1MiB", *arguments.format(forbidden / "closed").split()]
        answer = as_nobody("serve", *words)
        assert answer.startswith("tierstore: ") and "Permission denied" in answer and "\n" not in answer
        assert str(forbidden / "closed") in answer and left_in(forbidden / "closed") == []


@needs_root
@pytest.mark.parametrize("arguments", ["--socket {}/s", "--socket {0}-s --disk {0}:16MiB"])
def test_a_daemon_without_permission_leaves_nothing(arguments: str, forbidden: Path) -> None:
    as_nobody("serve", "--dram", "8MiB", "--segment", "1MiB", *arguments.format(forbidden / "closed").split())
    assert left_in(forbidden / "memory") == []


@needs_root
def test_the_socket_of_another_user(forbidden: Path) -> None:
    with serving(forbidden / "open", "--dram", "8MiB", "--ephemeral") as node, node.connect() as store:
        answer = as_nobody("connect", node.socket)
        assert answer.startswith("PeerLost") and "Permission denied" in answer and node.socket in answer
        os.chmod(node.socket, 0o777)
        answer = as_nobody("connect", node.socket)
        assert not answer.startswith("connected") and "\n" not in answer
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(node.socket)
        store.put_bytes("k", b"x")
        sound(store)


@needs_root
def test_the_daemon_of_another_user_says_so(forbidden: Path) -> None:
    with serving(forbidden / "open", "--dram", "8MiB", "--ephemeral") as node:
        os.chmod(node.socket, 0o777)
        for _ in range(5):
            assert "may not use the store of user 0" in as_nobody("connect", node.socket)


# --- something else at the path ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_directory_where_a_file_is_expected(tier: str, memory: Path, tmp_path: Path) -> None:
    name = {"pmem": "pmem.arena", "disk": "tierstore-0.arena"}[tier]
    (tmp_path / "ground" / name).mkdir(parents=True)
    answer = opened(**SMALL, **{tier: f"{tmp_path / 'ground'}:16MiB"})
    assert "directory" in answer and str(tmp_path / "ground" / name) in answer and not answer.startswith("opened")
    assert left_in(memory) == [] and left_in(tmp_path / "ground") == [name]


@pytest.mark.parametrize("option", ["disk={}:16MiB", "disk={}/below:16MiB", "pmem={}/below:16MiB", "dram_dir"])
def test_a_file_where_a_directory_is_expected(
    option: str, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    if option == "dram_dir":
        monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(path))
        answer = opened(**SMALL)
    else:
        answer = body("opened", "dram=8MiB", "segment=1MiB", option.format(path))
    assert not answer.startswith("opened") and str(path) in answer
    assert path.read_bytes() == b"mine" and left_in(memory) == []


@pytest.mark.parametrize("made", ["file", "directory", "below a file"])
def test_something_else_at_the_socket_path(made: str, memory: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    if made == "directory":
        path.mkdir()
    elif made == "file":
        path.write_bytes(b"mine")
    else:
        (tmp_path / "file").write_bytes(b"mine")
        path = tmp_path / "file"
    answer = refused(path if made == "below a file" else tmp_path, "--dram", "8MiB")
    assert f"socket = '{path}" in answer
    assert path.is_dir() if made == "directory" else path.read_bytes() == b"mine"


def test_a_pipe_where_a_file_is_expected(memory: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    answer = opened(timeout=5, **SMALL, pmem=f"{tmp_path / 'pipe'}:16MiB")
    assert str(tmp_path / "pipe") in answer


# --- two daemons, one directory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_two_daemons_on_one_directory(tier: str, memory: Path, tmp_path: Path) -> None:
    for name in ("data", "second"):
        (tmp_path / name).mkdir()
    arguments = ["--dram", "8MiB", f"--{tier}", f"{tmp_path / 'data'}:8MiB"]
    with serving(tmp_path, *arguments) as node, node.connect() as store:
        store.put_bytes("k", b"x" * 100_000, keep=True)
        store.pin("k", tier)
        answer = refused(tmp_path / "second", *arguments)
        assert "no other running store uses" in answer and str(tmp_path / "data") in answer
        answer = opened(**SMALL, **{tier: f"{tmp_path / 'data'}:8MiB"})
        assert answer.startswith("ConfigError") and "no other running store uses" in answer
        answer = refused(tmp_path / "second", *[word.replace(":8MiB", ":16MiB") for word in arguments])
        assert str(tmp_path / "data") in answer and "segments" in answer
        assert bytes(store.get_bytes("k")) == b"x" * 100_000
        sound(store)
        assert node.stop() == 0
        node.start()
        with node.connect() as again:
            assert bytes(again.get_bytes("k")) == b"x" * 100_000
            sound(again)


def test_a_refused_second_daemon_leaves_nothing(memory: Path, tmp_path: Path) -> None:
    for name in ("data", "second"):
        (tmp_path / name).mkdir()
    arguments = ["--dram", "8MiB", "--disk", f"{tmp_path / 'data'}:8MiB"]
    with serving(tmp_path, *arguments):
        before = left_in(memory)
        refused(tmp_path / "second", *arguments)
        assert left_in(memory) == before


@pytest.mark.parametrize("why", ["in use", "another size"])
def test_a_refused_ephemeral_daemon_does_not_remove_the_files_of_another(
    why: str, memory: Path, tmp_path: Path
) -> None:
    """The next store that starts cleans up after the refused one; the files are not the refused one's to remove."""
    for name in ("data", "second"):
        (tmp_path / name).mkdir()
    arguments, path = ["--dram", "8MiB", "--disk", f"{tmp_path / 'data'}:8MiB"], tmp_path / "data/tierstore-0.arena"
    with serving(tmp_path, *arguments) as node:
        with node.connect() as store:
            store.put_bytes("k", b"x" * 100_000, keep=True)
            store.pin("k", "disk")
        if why == "another size":
            node.stop()
            arguments[-1] = arguments[-1].replace(":8MiB", ":16MiB")
        refused(tmp_path / "second", *arguments, "--ephemeral")
        assert path.exists()
        assert opened(**SMALL).startswith("opened True")  # any store of this user
        assert path.exists(), "the data of another store are gone"
