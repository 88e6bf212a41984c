"""What users and clusters do in the middle of a shuffle: right rows or a clear error, and nothing is left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore.service.store import Store

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

from distributed import Client  # noqa: E402

from tierstore.emulation.dask_cluster import WAIT_S, known, threads, until  # noqa: E402
from tierstore.emulation.dask_jobs import PARTS, Witness, begun, check, notes, shuffled, stepping  # noqa: E402
from tierstore.engines import dask_tasks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

WORKERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[tuple[Store, Client]]:
    """A store, and a cluster of threads of which some tests lose workers."""
    settings = {"distributed.worker.preload": ["tierstore.dask"], "dataframe.shuffle.method": "tierstore"}
    with dask.config.set(settings), threads(folder, WORKERS, dram="16MiB") as (store, client):
        client.register_plugin(Witness(str(folder)))
        yield store, client


@pytest.fixture
def store(shared: tuple[Store, Client]) -> Iterator[Store]:
    """The store. Afterwards no shuffle is left in it, and the scheduler knows of none; what is there adds up."""
    store, client = shared
    yield store
    gc.collect()  # futures of tests that raised
    until(lambda: not client.run_on_scheduler(known))
    until(lambda: not shuffles(store))
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


@pytest.fixture
def client(shared: tuple[Store, Client], store: Store, folder: Path) -> Iterator[Client]:
    (folder / "notes").unlink(missing_ok=True)
    yield shared[1]
    for hold in folder.glob("hold *"):  # where a test failed: its tasks end all the same
        hold.unlink()


@pytest.fixture
def steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes steps of what tasks do, also in workers that are threads."""
    for name, function in stepping(str(folder), ("_write", "_read")).items():
        monkeypatch.setattr(dask_tasks, name, function)


def shuffles(store: Store) -> list[str]:
    """Applications, without those of workers' data."""
    names = [str(entry["app"]) for entry in store._control.call("shuffle_list")]
    return [name for name in names if not name.startswith("dask-data-")]


def held(folder: Path) -> bool:
    return any(line.what == "held" for line in notes(folder))


def counts(folder: Path, function: str) -> set[int]:
    """How often each task of a function was begun."""
    lines = notes(folder)
    keys = {line.key for line in lines if line.function == function}
    return {count for key, count in begun(lines).items() if key in keys}


def test_workers_retire_in_the_middle(client: Client, folder: Path) -> None:
    """Before the last transfer, and after the results: inputs are not made again, nor are outputs."""
    (folder / f"hold input {PARTS - 1}").touch()
    result = client.persist(shuffled(folder))
    until(
        lambda: (
            held(folder)
            and sum(line.function == "transfer" and line.what == "end" for line in notes(folder)) == PARTS - 1
        )
    )
    idle = client.run_on_scheduler(without_tasks)
    client.retire_workers(idle[:2])
    (folder / f"hold input {PARTS - 1}").unlink()
    check(client.compute(result).result(timeout=WAIT_S))
    client.retire_workers(client.run_on_scheduler(without_tasks)[:1])
    check(client.compute(result).result(timeout=WAIT_S))
    assert counts(folder, "input_of") == counts(folder, "transfer") == counts(folder, "unpack") == {1}


def without_tasks(dask_scheduler: Any) -> list[str]:
    """Workers that run nothing, those first that hold the most results."""
    idle = [worker for worker in dask_scheduler.workers.values() if not worker.processing]
    return [worker.address for worker in sorted(idle, key=lambda worker: -len(worker.has_what))]


def test_one_of_two_clients_goes_away(client: Client, folder: Path) -> None:
    (folder / "hold input 0").touch()
    frame = shuffled(folder)
    with Client(client.scheduler.address, set_as_default=False) as other:
        theirs, ours = other.compute(frame), client.compute(frame)
        until(lambda: held(folder))
    assert theirs.status == "cancelled"
    (folder / "hold input 0").unlink()
    check(ours.result(timeout=WAIT_S))
    assert counts(folder, "transfer") == {1}


@pytest.mark.parametrize("step", ["input 5", "write", "write done", "read"])
def test_cancelled_and_submitted_again(client: Client, store: Store, folder: Path, steps: None, step: str) -> None:
    """While a task of the first still runs: Dask may take its result for the second's, which is of another shuffle."""
    (folder / f"hold {step}").touch()
    first = client.compute(shuffled(folder))
    until(lambda: held(folder))
    first.cancel()
    # Without this Dask confuses the two, by any method: the second may be cancelled, too.
    until(lambda: not client.run_on_scheduler(known))
    second = client.compute(shuffled(folder))
    (folder / f"hold {step}").unlink()
    check(second.result(timeout=WAIT_S))
    assert first.status == "cancelled"


@pytest.mark.parametrize("step", ["write", "write done"])
def test_cancelled_while_it_writes(client: Client, store: Store, folder: Path, steps: None, step: str) -> None:
    """What a task writes after the end of its shuffle does not stay."""
    (folder / f"hold {step}").touch()
    future = client.compute(shuffled(folder))
    until(lambda: held(folder))
    future.cancel()
    until(lambda: not client.run_on_scheduler(known) and not shuffles(store))
    (folder / f"hold {step}").unlink()
    until(lambda: not any(client.run(executing).values()))


def executing(dask_worker: Any) -> int:
    """Tasks that still run in a worker, also cancelled ones."""
    return len(dask_worker.state.executing) + len(dask_worker.state.tasks)


def test_a_shuffle_larger_than_the_store(
    client: Client, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full is what the user is told; the room is free again for the next."""
    import dask.dataframe as dd

    monkeypatch.setattr(store._session, "lease_wait_s", 0.5)
    monkeypatch.setattr("tierstore.shuffle.writer.WAIT_S", 0.5)
    future = client.compute(dd.from_map(large, range(12)).shuffle("k", npartitions=3))
    assert isinstance(future.exception(timeout=WAIT_S), tierstore.Full)
    del future
    until(lambda: not shuffles(store))
    check(client.compute(shuffled(folder)).result(timeout=WAIT_S))


def large(number: int) -> Any:
    """An input partition of 3 MB."""
    import pandas as pd

    n = np.arange(number * 190_000, (number + 1) * 190_000)
    return pd.DataFrame({"k": n % 101, "x": n})
