"""Memory or disk is full at the start or later: less is used, or Full says where; never SIGBUS, and nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tierstore
from tierstore.emulation.ground import body, fill, left_in, opened, refused, serving
from tierstore.emulation.procs import Child

pytestmark = pytest.mark.slow
MIB = 1 << 20
SEED = int(os.environ.get("TIERSTORE_TEST_SEED", "1"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root: it mounts a tmpfs, or becomes another user")
SMALL = {"dram": "8MiB", "segment": "1MiB"}
# Room is promised in whole huge pages: three beside the header in 8 MiB. Segments, a little above 1 MiB, lie across them.


def sound(store: tierstore.Store) -> None:
    """Everything in the store adds up."""
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


# --- no room at the start ------------------------------------------------------------------------------------------------


@needs_root
def test_dram_larger_than_its_tmpfs_is_smaller_with_a_warning(
    mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = mount("memory", "8m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(memory))
    answer = opened(dram="16MiB", segment="1MiB")
    assert answer.startswith("opened True") and "dram.arena is full: the dram tier uses 5 of 15" in answer
    assert left_in(memory) == []
    with serving(tmp_path, "--dram", "16MiB", "--ephemeral") as node:
        assert "put 1" in body("filled", node.socket)
        assert node.stop() == 0
    assert "the dram tier uses 5 of 15 segments; free room" in node.log.read_text() and left_in(memory) == []


@needs_root
@pytest.mark.parametrize("size", ["1m", "64k", "8k"])
def test_a_tmpfs_too_small_for_any_dram_is_full(
    size: str, mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = mount("memory", size)
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(memory))
    answer = opened(**SMALL)
    assert answer.startswith(f"Full {memory}/") and "free some or configure a smaller tier" in answer
    assert left_in(memory) == []
    assert opened(segment="1MiB").startswith(f"Full {memory}/")
    answer = refused(tmp_path, "--dram", "8MiB")
    assert str(memory) in answer and "free some or configure a smaller tier" in answer


@needs_root
@pytest.mark.parametrize("tier", ["dram", "pmem", "disk"])
def test_a_tier_with_room_for_two_segments_is_used(
    tier: str, mount: Callable[[str, str], Path], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "3m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground if tier == "dram" else memory))
    options = {} if tier == "dram" else {tier: f"{ground}:8MiB"}
    answer = opened(**SMALL, **options)
    assert answer.startswith(("opened True", "Full")) and str(ground) in answer


@needs_root
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_file_system_smaller_than_the_tier(tier: str, mount: Callable[[str, str], Path], memory: Path) -> None:
    ground = mount("ground", "8m")
    answer = opened(**SMALL, **{tier: f"{ground}:16MiB"})
    assert answer.startswith("opened True") and f"the {tier} tier uses 5 of 15 segments; free room" in answer
    assert left_in(memory) == []


@needs_root
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_file_system_smaller_than_the_tier_works_a_second_time(
    tier: str, mount: Callable[[str, str], Path], memory: Path
) -> None:
    ground = mount("ground", "8m")
    for _ in range(2):
        answer = opened(**SMALL, **{tier: f"{ground}:16MiB"})
        assert answer.startswith("opened True"), answer


@needs_root
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_nearly_full_file_system_is_full_and_works_once_there_is_room(
    tier: str, mount: Callable[[str, str], Path], memory: Path, tmp_path: Path
) -> None:
    ground = mount("ground", "32m")
    filler = fill(ground, leave=MIB)
    answer = opened(**SMALL, **{tier: f"{ground}:16MiB"})
    assert answer.startswith(f"Full {ground}/") and "free some or configure a smaller tier" in answer
    assert left_in(memory) == []
    answer = refused(tmp_path, "--dram", "8MiB", f"--{tier}", f"{ground}:16MiB")
    assert str(ground) in answer and "free some or configure a smaller tier" in answer
    filler.unlink()
    assert opened(**SMALL, **{tier: f"{ground}:16MiB"}).startswith("opened True")


@needs_root
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_completely_full_file_system_is_named(tier: str, mount: Callable[[str, str], Path], memory: Path) -> None:
    ground = mount("ground", "8m")
    fill(ground)
    answer = opened(**SMALL, **{tier: f"{ground}:16MiB"})
    assert str(ground) in answer and "free" in answer


@needs_root
@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_a_completely_full_file_system_works_once_there_is_room(
    tier: str, mount: Callable[[str, str], Path], memory: Path
) -> None:
    ground = mount("ground", "32m")
    filler = fill(ground)
    assert not opened(**SMALL, **{tier: f"{ground}:16MiB"}).startswith("opened")
    filler.unlink()
    answer = opened(**SMALL, **{tier: f"{ground}:16MiB"})
    assert answer.startswith("opened True"), answer


@needs_root
@pytest.mark.parametrize("tier", ["dram", "pmem", "disk"])
def test_a_daemon_refused_for_want_of_room_leaves_nothing(
    tier: str, mount: Callable[[str, str], Path], memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "2m")
    fill(ground, leave=MIB)
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground if tier == "dram" else memory))
    refused(tmp_path, "--dram", "8MiB", *([] if tier == "dram" else [f"--{tier}", f"{ground}:8MiB"]))
    assert left_in(memory) == [] and [name for name in left_in(ground) if name.startswith("tierstore-0-")] == []


@needs_root
def test_a_process_goes_on_after_refused_opens(mount: Callable[[str, str], Path], memory: Path) -> None:
    ground = mount("ground", "8m")
    fill(ground, leave=MIB)
    answer = body("reopened", "10", "dram=8MiB", "segment=1MiB", f"disk={ground}:16MiB")
    assert answer.startswith("alive 300 Full"), answer  # the last refusal says the same as the first


@needs_root
def test_close_gives_memory_back_at_once(mount: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ground = mount("ground", "64m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground))
    assert int(body("closed", str(ground), "5", "dram=8MiB", "segment=1MiB")) < 8 * MIB


# --- no room any more -----------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(("tier", "late"), [("dram", False), ("dram", True), ("pmem", True), ("disk", False)])
def test_the_file_system_is_filled_while_a_store_runs(
    tier: str, late: bool, mount: Callable[[str, str], Path], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "24m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground if tier == "dram" else memory))
    options = ["dram=32MiB"] if tier == "dram" else ["dram=8MiB", f"{tier}={ground}:32MiB"]
    with Child("pressed", "segment=1MiB", *options) as child:
        assert child.line() == "ready"
        time.sleep(1.0 if late else 0.0)  # the background reserves all it can within that
        fill(ground)
        child.go()
        word, count, fine = child.line().split()
        assert word == "put" and int(count) >= 5 and fine == "True"
        assert child.line() == "closed" and child.wait() == 0


@needs_root
def test_a_daemon_and_its_clients_go_on_when_memory_is_full(
    mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "24m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground))
    with serving(tmp_path, "--dram", "12MiB", "--ephemeral") as node, node.connect() as store:
        store.put_bytes("before", b"x" * 100_000, keep=True)
        fill(ground)
        for number in range(100):
            store.put_bytes(f"{number}", bytes([number]) * 300_000)
        assert bytes(store.get_bytes("before")) == b"x" * 100_000
        sound(store)
        assert node.running


@needs_root
def test_a_new_client_when_memory_is_full(
    mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "24m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground))
    with serving(tmp_path, "--dram", "12MiB") as node, node.connect() as store, contextlib.ExitStack() as others:
        store.put_bytes("k", b"x" * 1000, keep=True)
        fill(ground)
        refused = []
        # Full is not exact: Linux counts pages for each processor, and what one attempt got is the next one's.
        for _ in range(30):
            try:
                client = others.enter_context(node.connect())
            except tierstore.Full as error:
                refused.append(str(error))
            else:
                assert bytes(client.get_bytes("k")) == b"x" * 1000
        time.sleep(0.2)
        assert node.process.poll() is None, f"the daemon ended with {node.process.poll()}"
        assert refused and all("free some" in text for text in refused)
        assert bytes(store.get_bytes("k")) == b"x" * 1000
        sound(store)


@needs_root
def test_a_daemon_restarts_once_memory_has_room_again(
    mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "24m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground))
    with serving(tmp_path, "--dram", "12MiB") as node:
        with node.connect() as store:
            store.put_bytes("k", b"x" * 100_000, keep=True)
        node.kill()
        filler = fill(ground)
        answer = refused(tmp_path, "--dram", "12MiB")
        assert str(ground) in answer and "no room" in answer and "free some" in answer
        filler.unlink()
        node.start()
        with node.connect() as store:
            assert bytes(store.get_bytes("k")) == b"x" * 100_000
            sound(store)


@needs_root
def test_a_daemon_restarts_in_little_room(
    mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the new index, but not for a page of each of the 1024 client slots."""
    ground = mount("ground", "24m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground))
    with serving(tmp_path, "--dram", "12MiB") as node:
        with node.connect() as store:
            store.put_bytes("k", b"x" * 100_000, keep=True)
        node.kill()
        fill(ground, leave=MIB)
        with contextlib.suppress(RuntimeError):
            node.start()
        assert node.process.poll() in (None, 1), f"the daemon ended with {node.process.poll()}"
        with node.connect() as store:
            assert bytes(store.get_bytes("k")) == b"x" * 100_000


@needs_root
@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_a_lost_dram_file_under_a_control_file_that_is_there(
    how: str, mount: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = mount("ground", "32m")
    monkeypatch.setenv("TIERSTORE_DRAM_DIR", str(ground))
    with serving(tmp_path, "--dram", "12MiB") as node:
        with node.connect() as store:
            for number in range(12):
                store.put_bytes(f"{number}", b"x" * 500_000, keep=True)
        node.kill()
        path = next(ground.glob("tierstore-*/dram.arena"))
        os.truncate(path, 0)
        if how == "removed":
            path.unlink()
        node.start()
        fill(ground)
        with contextlib.suppress(tierstore.TierstoreError), node.connect() as store:
            assert store.keys() == []
            for number in range(60):
                store.put_bytes(f"{number}", b"x" * 500_000)
        time.sleep(0.2)
        assert node.process.poll() is None, f"the daemon ended with {node.process.poll()}"


@needs_root
def test_a_pmem_file_that_was_copied_with_holes(mount: Callable[[str, str], Path], memory: Path) -> None:
    """`cp --sparse=always` and `rsync -S` make holes of zeros: nothing that was stored changes."""
    ground = mount("ground", "32m")
    options = ["dram=8MiB", "segment=1MiB", f"pmem={ground / 'pmem'}:12MiB"]
    with tierstore.open(**dict(option.split("=", 1) for option in options)) as store:
        for number in range(30):
            store.put_bytes(f"k{number}", bytes(700_000), keep=number < 8)
        store.delete("k7")
    del store
    gc.collect()
    subprocess.run(["cp", "--sparse=always", ground / "pmem", ground / "copy"], check=True)
    os.rename(ground / "copy", ground / "pmem")
    with Child("pressed", *options) as child:
        assert child.line().startswith("ready")
        time.sleep(0.5)
        fill(ground)
        child.go()
        assert child.line().startswith("put"), f"ended by signal {-child.wait()}"
        assert child.line() == "closed"
