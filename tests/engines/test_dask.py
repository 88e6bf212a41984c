"""Shuffles of Dask through the store: the rows of pandas, whatever is asked and whatever happens."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

import tierstore
from tierstore.service.store import Store

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask.dataframe as dd  # noqa: E402
from distributed import Client  # noqa: E402

import tierstore.dask  # noqa: E402
from tierstore.emulation.dask_cluster import threads, until  # noqa: E402
from tierstore.engines import dask_expr, dask_plugin, dask_tasks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # of other people's libraries

ROWS, PARTS = 1200, 6


def rows_of(number: int) -> pd.DataFrame:
    """An input partition."""
    n = np.arange(number * ROWS // PARTS, (number + 1) * ROWS // PARTS)
    return pd.DataFrame(
        {
            "k": n * 7919 % 101,
            "x": n / 16.0,
            "s": pd.array([None if i % 11 == 0 else f"text {i % 37}" for i in n], "string[pyarrow]"),
            "c": pd.Categorical(np.array(["red", "green", "blue"])[n % 3], ["red", "green", "blue"]),
            "t": pd.to_datetime(n, unit="s").as_unit("ns").tz_localize("UTC"),
        },
        index=pd.Index(n, name="n"),
    )


WHOLE = pd.concat([rows_of(number) for number in range(PARTS)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Client]]:
    """A store, and a cluster of workers that are threads of this process; some tests lose a few of them."""
    with threads(tmp_path_factory.mktemp("dask"), 7) as found:
        yield found


@pytest.fixture
def client(shared: tuple[Store, Client]) -> Iterator[Client]:
    """The cluster's client, with our method as the default. Afterwards no shuffle is left, and the scheduler knows no task."""
    store, client = shared
    with dask.config.set({"dataframe.shuffle.method": "tierstore"}):
        yield client
    until(lambda: not store._control.call("shuffle_list"))
    until(lambda: not client.run_on_scheduler(_tasks))
    assert client.run_on_scheduler(_left) == (0, 0)


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def _left(dask_scheduler: Any) -> tuple[int, int]:
    plugin = dask_scheduler.plugins[dask_plugin.NAME]
    return len(plugin._aside), len(plugin._apps)


class Inputs:
    """Input partitions that count how often each was made."""

    def __init__(self) -> None:
        self.made: Counter[int] = Counter()
        COUNTS[id(self)] = self

    def frame(self) -> dd.DataFrame:
        return dd.from_map(_made, range(PARTS), mark=id(self), meta=WHOLE[:0])


COUNTS: weakref.WeakValueDictionary[int, Inputs] = weakref.WeakValueDictionary()


def _made(number: int, mark: int) -> pd.DataFrame:
    COUNTS[mark].made[number] += 1
    return rows_of(number)


def inputs() -> dd.DataFrame:
    return dd.from_map(rows_of, range(PARTS), meta=WHOLE[:0])


def same(found: pd.DataFrame, expected: pd.DataFrame, by: list[str] | None = None) -> None:
    """The same rows in any order; index and types as well."""
    if by is None:
        found, expected = found.sort_index(kind="stable"), expected.sort_index(kind="stable")
    else:
        found, expected = (frame.sort_values(by).reset_index(drop=True) for frame in (found, expected))
    pd.testing.assert_frame_equal(found, expected, check_freq=False)


# --- what users ask for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 3, PARTS, 17])
def test_shuffle(client: Client, partitions: int) -> None:
    shuffled = inputs().shuffle("k", npartitions=partitions)
    parts = client.gather(client.compute(shuffled.to_delayed()))
    assert len(parts) == partitions
    same(pd.concat(parts), WHOLE)
    keys = [set(part["k"]) for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 101
    assert all(part.index.is_monotonic_increasing for part in parts)  # the order of the maps, and within each


def test_shuffle_by_the_index_and_by_a_series(client: Client) -> None:
    same(inputs().shuffle(on_index=True, npartitions=4).compute(), WHOLE)
    frame = inputs()
    same(frame.shuffle(frame["k"] % 5, npartitions=4).compute(), WHOLE)


def test_only_some_partitions(client: Client) -> None:
    shuffled = inputs().shuffle("k", npartitions=5, force=True)
    whole = [part.compute() for part in shuffled.partitions]
    same(shuffled.partitions[[1, 3]].compute(), pd.concat([whole[1], whole[3]]))


@pytest.mark.parametrize("how", ["inner", "left", "outer"])
def test_merge(client: Client, how: str) -> None:
    right = pd.DataFrame({"k": np.arange(50, 150), "y": np.arange(100) * 2})
    found = inputs().merge(dd.from_pandas(right, 5), on="k", how=how, broadcast=False).compute()
    same(found, WHOLE.merge(right, on="k", how=how), ["k", "x", "y"])


def test_set_index_sort_values_and_drop_duplicates(client: Client) -> None:
    frame = inputs()
    found = frame.set_index("x").compute()
    pd.testing.assert_frame_equal(found, WHOLE.set_index("x").sort_index())
    by_text = frame.dropna(subset=["s"]).set_index("s").compute()
    assert by_text.index.is_monotonic_increasing
    same(by_text, WHOLE.dropna(subset=["s"]).set_index("s"), ["x"])
    found = frame.sort_values(["k", "x"], ascending=False).compute()
    pd.testing.assert_frame_equal(found, WHOLE.sort_values(["k", "x"], ascending=False))
    found = frame[["k"]].drop_duplicates(split_out=3).compute()
    assert sorted(found["k"]) == sorted(set(WHOLE["k"]))


def test_groupby(client: Client) -> None:
    frame = inputs()
    found = frame.groupby("k").apply(lambda part: part["x"].median(), meta=("x", "f8")).compute()
    pd.testing.assert_series_equal(found.sort_index(), WHOLE.groupby("k")["x"].median(), check_names=False)
    found = frame.groupby("k")["x"].sum(split_out=3).compute().sort_index()
    pd.testing.assert_series_equal(found, WHOLE.groupby("k")["x"].sum())


def _odd(number: int) -> pd.DataFrame:
    frame = rows_of(number)
    frame["object"] = np.array([[None, np.nan, n, str(n)][n % 4] for n in range(len(frame))], object)
    frame["complex"] = frame["x"] + 1j
    return frame


def test_any_column(client: Client) -> None:
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_map(_odd, range(PARTS), meta=_odd(0)[:0])
        expected = pd.concat([_odd(number) for number in range(PARTS)])
        same(frame.shuffle("k", npartitions=4).compute(), expected)


def _mixed(number: int) -> pd.DataFrame:
    """Of other types, or with other categories, than the others are."""
    frame = rows_of(number)[["k", "x", "c"]]
    if number == 2:
        frame["x"] = frame["x"].astype(object)
    frame["c"] = pd.Categorical([f"c{number}"] * len(frame))
    return frame


def test_partitions_that_differ(client: Client) -> None:
    meta = _mixed(0)[:0].assign(c=pd.Series([], dtype=pd.CategoricalDtype(None)))
    found = dd.from_map(_mixed, range(PARTS), meta=meta).shuffle("k", npartitions=3).compute()
    expected = pd.concat([_mixed(number) for number in range(PARTS)])
    found, expected = (frame.astype({"c": str, "x": float}) for frame in (found, expected))
    same(found, expected)


def test_empty_partitions(client: Client) -> None:
    frame = inputs()
    found = frame[frame["k"] > 1000].shuffle("k", npartitions=3).compute()
    pd.testing.assert_frame_equal(found, WHOLE[:0], check_categorical=False)
    frame = inputs()
    same(frame[frame["k"] == 5].shuffle("k", npartitions=3).compute(), WHOLE[WHOLE["k"] == 5])


def test_without_a_cluster(shared: tuple[Store, Client]) -> None:
    store, _ = shared
    for scheduler in ("sync", "threads"):
        same(inputs().shuffle("k", npartitions=4, shuffle_method="tierstore").compute(scheduler=scheduler), WHOLE)
        until(lambda: not store._control.call("shuffle_list"))


# --- registration ---------------------------------------------------------------------------------------------------------


def test_other_methods_stay(client: Client) -> None:
    same(inputs().shuffle("k", shuffle_method="tasks", npartitions=4).compute(), WHOLE)
    with pytest.raises(ValueError, match="nothing not supported"):
        inputs().shuffle("k", shuffle_method="nothing", npartitions=4).compute()


def test_versions_are_checked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "__version__", "2024.1.0")
    tierstore.dask.unregister()
    with pytest.raises(tierstore.ConfigError, match=r"dask = '2024\.1\.0' .*2026\.8 or later"):
        tierstore.dask.register()
    monkeypatch.setattr(dask, "__version__", "2031.2.0")
    tierstore.dask.register()  # after a self-test
    tierstore.dask.unregister()
    monkeypatch.setattr(dask_tasks, "unpack", lambda gathered, partition, meta: meta)
    with pytest.raises(tierstore.ConfigError, match="other rows"):
        tierstore.dask.register()
    assert dask_expr._original is None
    monkeypatch.undo()
    tierstore.dask.register()
    tierstore.dask.register()


# --- what happens ---------------------------------------------------------------------------------------------------------


async def _lose_worker(dask_scheduler: Any) -> None:
    """Take the worker that holds the most results out of the cluster, as if it had died."""
    workers = sorted(dask_scheduler.workers.values(), key=lambda worker: len(worker.has_what))
    await dask_scheduler.remove_worker(workers[-1].address, stimulus_id="test")


def test_lost_results_are_made_without_their_inputs(client: Client) -> None:
    source = Inputs()
    shuffled = source.frame().shuffle("k", npartitions=4).persist()
    client.gather(client.compute(shuffled.to_delayed()))
    assert source.made == dict.fromkeys(range(PARTS), 1)
    client.run_on_scheduler(_lose_worker)
    same(shuffled.compute(), WHOLE)
    assert source.made == dict.fromkeys(range(PARTS), 1)
    client.run_on_scheduler(_lose_worker)
    client.run_on_scheduler(_lose_worker)
    same(shuffled.compute(), WHOLE)
    assert source.made == dict.fromkeys(range(PARTS), 1)


def test_lost_runs_are_written_again(shared: tuple[Store, Client], client: Client) -> None:
    store, _ = shared
    source = Inputs()
    held = client.persist(source.frame().shuffle("k", npartitions=4))
    same(held.compute(), WHOLE)
    (app,) = store._control.call("shuffle_list")
    runs = store.keys(f"shuffle/{app['app']}/0/2/")
    assert runs
    for key in runs:
        store.delete(key)
    client.run_on_scheduler(_lose_worker)  # so that partitions are read again
    client.run_on_scheduler(_lose_worker)
    same(held.compute(), WHOLE)
    assert source.made == {**dict.fromkeys(range(PARTS), 1), 2: 2}


def test_two_clients_share_a_shuffle(shared: tuple[Store, Client], client: Client) -> None:
    source = Inputs()
    shuffled = source.frame().shuffle("k", npartitions=4)
    with Client(client.scheduler.address, set_as_default=False) as other:
        first, second = client.persist(shuffled), other.persist(shuffled)
        one, two = client.compute(first), other.compute(second)
        same(one.result(), WHOLE)
        del first, one
        same(two.result(), WHOLE)
        del second, two
    assert source.made == dict.fromkeys(range(PARTS), 1)


class Gate:
    """Inputs of which one waits until it may go on."""

    opened: ClassVar[threading.Event] = threading.Event()
    reached: ClassVar[threading.Event] = threading.Event()


def _gated(number: int, run: int) -> pd.DataFrame:
    if number == PARTS - 1:
        Gate.reached.set()
        assert Gate.opened.wait(30)
    return rows_of(number)


def test_cancelled_and_submitted_again(shared: tuple[Store, Client], client: Client) -> None:
    store, _ = shared
    for run in range(3):
        Gate.opened.clear()
        Gate.reached.clear()
        shuffled = dd.from_map(_gated, range(PARTS), run=0, meta=WHOLE[:0]).shuffle("k", npartitions=4)
        future = client.compute(shuffled)
        assert Gate.reached.wait(30)
        if run < 2:
            until(lambda: store._control.call("shuffle_list"))
            future.cancel()
            del future, shuffled
            until(lambda: not client.run_on_scheduler(_tasks))  # Dask confuses the two otherwise, by any method
            Gate.opened.set()
        else:
            Gate.opened.set()
            same(future.result(), WHOLE)
            del future


def test_results_of_failed_tasks_are_errors(client: Client) -> None:
    frame = inputs()
    frame["k"] = frame["x"].map_partitions(_fail, meta=("k", "i8"))
    with pytest.raises(ZeroDivisionError):
        frame.shuffle("k", npartitions=3).compute()


def _fail(values: pd.Series) -> pd.Series:
    raise ZeroDivisionError


def test_full_store_is_an_error(shared: tuple[Store, Client], client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise tierstore.Full("no room")

    monkeypatch.setattr("tierstore.shuffle.writer.put_placed", full)
    with pytest.raises(tierstore.Full):
        inputs().shuffle("k", npartitions=3).compute()
    monkeypatch.undo()
    until(lambda: not client.run_on_scheduler(_tasks))
    same(inputs().shuffle("k", npartitions=3).compute(), WHOLE)
