"""What workers run of a shuffle through the store: write a map's rows, gather the receipts, read a partition.

Each process has one store, opened when it is first needed, and one handle for each shuffle under way.

Results of the first two are small and plain. They also go to the scheduler with the message that the task is finished
(as its metadata), in one step; so they outlive the worker: see dask_plugin.py.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import os
import pickle
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from tierstore.ringbuf.errors import Closed, Expired, LostMaps, NotFound, PeerLost, TierstoreError
from tierstore.service.client import _default_socket, connect
from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.receipt import Receipt

from .dask_frames import PICKLED, decode, encode, pickles, unpickled

T = TypeVar("T")
log = logging.getLogger("tierstore")

KEPT = "tierstore"  # in a task's metadata: its result
LOST_CALL = "tierstore_lost"  # of the scheduler
ENDED_MAX = 4096
CONNECT_S = 20.0  # that a worker waits for a daemon that is being restarted


class Life:
    """Held by the tasks of a shuffle, and by their results."""


class Result(dict[str, Any]):
    """What a task returns, where that keeps a shuffle alive."""

    life: Life | None = None


class Home:
    """The store of this process and its handles of shuffles. Any thread."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._store: Store | None = None
        self._given = False
        self.alone = True  # whether this process may be all of the cluster, so that an embedded store will do
        self._pid = os.getpid()
        # Whether somebody still reads what lies in the memory of a store whose daemon has gone: it stays open for that.
        self.needed: Callable[[Store], bool] = lambda store: False
        self._left: list[Store] = []
        self._handles: dict[str, Shuffle] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # the last ones: a task may still be running for them
        self._lives: weakref.WeakValueDictionary[str, Life] = weakref.WeakValueDictionary()

    def use(self, store: Store | None) -> None:
        """Take this store from now on (None: open one when it is needed). Who gives it closes it."""
        with self._turn:
            self.close()
            self._store, self._given = store, store is not None

    def store(self) -> Store:
        """The store. Raises PeerLost."""
        with self._turn:
            if self._pid != os.getpid():  # a forked child opens its own
                self._pid, self._store, self._given, self._handles = os.getpid(), None, False, {}
            if self._store is None or (self._store._closed and not self._given):
                self._handles.clear()
                self._store = _connect(self.alone)
            return self._store

    @property
    def opened(self) -> Store | None:
        """The store if it is open."""
        return self._store if self._pid == os.getpid() else None

    def shuffle(self, app: str, partitions: int) -> Shuffle:
        """The handle of a shuffle, which begins with the first. Raises Expired where end() was called."""
        with self._turn:
            if app in self._ended:
                raise Expired(f"shuffle {app} has ended; compute it again")
            if app not in self._handles:
                self._handles[app] = Shuffle(self.store(), app, 0, partitions)
            return self._handles[app]

    def life(self, app: str) -> Life | None:
        """Of a shuffle of which no scheduler will say that it has ended: it ends with the last reference to this."""
        if _worker() is not None or multiprocessing.parent_process() is not None:
            return None
        with self._turn:
            found = self._lives.get(app)
            if found is None:
                found = self._lives[app] = Life()
                weakref.finalize(found, self.end, app)
            return found

    def forget(self, app: str) -> None:
        """Close a handle; the shuffle's data stay."""
        with self._turn:
            handle = self._handles.pop(app, None)
        if handle is not None:
            handle.close()

    def end(self, app: str) -> None:
        """Delete a shuffle, for good. Does not wait for a daemon: it is called in a worker's event loop."""
        with self._turn:
            self._ended[app] = None
            while len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)
        self.forget(app)
        try:
            store = self._reachable()
            if store is not None:
                store._control.call("shuffle_end", app=app)
        except (NotFound, Expired):
            pass
        except TierstoreError as error:
            log.warning("shuffle %s was not deleted, and goes with its lease: %s", app, error)

    def _reachable(self) -> Store | None:
        """The store, if it can be had at once. A worker that has just begun has none yet, but others before it had."""
        with self._turn:
            if self._pid != os.getpid():
                return None
            self.reconnect()
            if self._store is None and not self.alone and os.path.exists(socket_path()):
                self._store = connect(socket_path())
            return self._store

    def reconnect(self) -> None:
        """Leave a store that is no more: its daemon was restarted and has another one."""
        with self._turn:
            if self._given or self._store is None or self._store._control.answers():
                return
            if self.needed(self._store):
                self._left.append(self._store)
                self._store = None
            self._close()

    def close(self) -> None:
        """Close the handles, and the stores that were opened here."""
        with self._turn:
            self._close()
            while self._left:
                self._left.pop().close()

    def _close(self) -> None:
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        if self._store is not None and not self._given:
            self._store.close()
        self._store, self._given = None, False


def _connect(alone: bool) -> Store:
    """The daemon's store. Only in a process that holds all of its cluster there may be none, and the store is embedded."""
    worker = _worker()
    if alone and (worker is None or worker.address.startswith("inproc://")):
        return connect()
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return connect(socket_path())
        except PeerLost:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def socket_path() -> str:
    """The socket of this node's daemon."""
    return os.environ.get("TIERSTORE_SOCKET") or _default_socket()


home = Home()


def end_shuffle(app: str) -> None:
    """Delete a shuffle: what the scheduler has every worker do."""
    home.end(app)


# --- tasks ------------------------------------------------------------------------------------------------------------------


def transfer(frame: Any, app: str, partitions: int, map_index: int, column: str) -> dict[str, Any]:
    """Write a frame's rows to the partitions that a column names. Its result is small, and kept by the scheduler."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"the shuffle of tierstore takes pandas frames, not {type(frame).__name__}: use another method")
    life = home.life(app)
    numbers = frame[column].to_numpy()
    if numbers.dtype.kind not in "iu":
        numbers = numbers.astype("i8")
    rows = frame.drop(columns=column)
    return keep(_alive(_again(app, lambda: _write(rows, numbers, app, partitions, map_index)), life))


def _alive(result: dict[str, Any], life: Life | None) -> dict[str, Any]:
    """A result that keeps the shuffle alive as long as somebody has it."""
    if life is None:
        return result
    held = Result(result)
    held.life = life
    return held


def _write(frame: pd.DataFrame, numbers: np.ndarray, app: str, partitions: int, map_index: int) -> dict[str, Any]:
    encoded = encode(frame)
    with home.shuffle(app, partitions).writer(map_index) as writer:
        if encoded is not None:
            writer.write(encoded.batch, to=numbers)
        else:
            for partition, rows in pickles(frame, numbers):
                writer.write_partition(partition, rows)
    form, template = (encoded.form, encoded.template) if encoded is not None else (PICKLED, b"")
    return {"receipt": writer.receipt.to_dict(), "form": form, "template": template}


def _again(app: str, action: Callable[[], T]) -> T:
    """Do it, once more where the handle is of a shuffle that has gone, or of a store that has."""
    try:
        return action()
    except (Expired, NotFound):
        home.forget(app)
    except (PeerLost, Closed):  # Closed: another thread was told first that its daemon has another store now
        home.reconnect()
    return action()


def gather(app: str, partitions: int, maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The receipts of all maps, in their order; each form's template once."""
    gathered = {
        "app": app,
        "partitions": partitions,
        "templates": {found["form"]: found["template"] for found in maps},
        "maps": [[found["form"], found["receipt"]] for found in maps],
    }
    return keep(_alive(gathered, home.life(app)))


def unpack(gathered: dict[str, Any], partition: int, meta: pd.DataFrame) -> pd.DataFrame:
    """The rows of a partition, in the order of the maps. Where maps are lost they are run again, and then this."""
    app = gathered["app"]
    try:
        parts = _again(app, lambda: list(_read(gathered, partition)))
    except (LostMaps, Expired, NotFound) as error:
        maps = error.maps if isinstance(error, LostMaps) else [r["map_index"] for _, r in gathered["maps"]]
        receipts = {receipt["map_index"]: receipt["attempt"] for _, receipt in gathered["maps"]}
        if _run_again(app, {index: receipts[index] for index in maps}, str(error)):
            from distributed import Reschedule

            raise Reschedule from error
        raise
    if not parts:
        return meta.iloc[:0].copy()
    if len(parts) == 1:
        return parts[0]
    from dask.dataframe.core import _concat

    joined: pd.DataFrame = _concat(parts)
    return joined


def _read(gathered: dict[str, Any], partition: int) -> Iterable[pd.DataFrame]:
    """A partition's rows: one frame for each stretch of maps of the same form."""
    shuffle = home.shuffle(gathered["app"], gathered["partitions"])
    for form, group in itertools.groupby(gathered["maps"], key=lambda found: found[0]):
        receipts = [Receipt.from_dict(dict(receipt)) for _, receipt in group]
        receipts = [receipt for receipt in receipts if receipt.rows]
        if not receipts:
            continue
        table = shuffle.read(partition, receipts).read_all()
        if not table.num_rows:
            continue
        if form == PICKLED:
            yield from unpickled(table)
        else:
            yield decode(table, pickle.loads(gathered["templates"][form]))


# --- the scheduler ----------------------------------------------------------------------------------------------------------


def keep(result: dict[str, Any]) -> dict[str, Any]:
    """Have the scheduler keep a result of the task that runs. Elsewhere than in a worker: nothing to do."""
    state = _task_state()
    if state is not None:
        state.metadata[KEPT] = result
    return result


def revive(result: dict[str, Any]) -> dict[str, Any]:
    """The task that stands for one whose result was lost with a worker: the result, as the scheduler kept it."""
    return keep(result)


def _worker() -> Any:
    """The worker whose task this is; None outside of tasks."""
    if "distributed.worker" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _task_state() -> Any:
    worker = _worker()
    return None if worker is None else worker.state.tasks.get(worker.get_current_task())


def _run_again(app: str, attempts: dict[int, str], reason: str) -> bool:
    """Tell the scheduler that the output of maps is lost; whether it will run them again."""
    worker = _worker()
    if worker is None:
        return False
    from distributed.utils import sync

    try:
        lost = [[index, attempt] for index, attempt in attempts.items()]
        answer = sync(worker.loop, worker.scheduler.__getattr__(LOST_CALL), app=app, lost=lost, reason=reason)
        return bool(answer)
    except Exception:
        log.exception("the scheduler does not run lost maps again")
        return False


def app_name(token: str, run: str) -> str:
    """The name of an application of one shuffle: of the graph, and of the one time it was submitted."""
    return f"dask-{hashlib.sha256(token.encode()).hexdigest()[:16]}-{run}"
