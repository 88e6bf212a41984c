"""The scheduler's side of shuffles through the store: results that outlive workers, lost maps, and the end.

Dask recomputes what a lost worker held, and for that everything it was made of. But what a map wrote is in the store; only
its receipt was in the worker. The scheduler has a copy in the task's metadata. So where such a task is to run again, its
dependencies are set aside and it is given a specification that returns the copy:

    a task of ours becomes released, and something waits for it      set aside
    something begins to wait for released tasks of ours              set these aside, before they are looked at
    it is done, has failed, or nothing waits for it any more         put back
    it is forgotten while set aside                                  its dependencies lose it, too

Between two of these the scheduler sees an ordinary task. Where the store says that the output of maps is gone, their copies
are deleted, and Dask does what it always does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple

from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from .dask_tasks import KEPT, LOST_CALL, end_shuffle, gather, revive

log = logging.getLogger("tierstore")

NAME = "tierstore"
BARRIER = "tierstore-barrier-"
RERUNS_MAX = 3  # of one shuffle, after losses of the store
END_S = 20.0  # that closing waits for workers to delete shuffles


class Aside(NamedTuple):
    """What a task was before it was set aside."""

    run_spec: Any
    dependencies: set[Any]


class ShufflePlugin(SchedulerPlugin):  # type: ignore[misc]
    """Installed once in a scheduler: register(client), or the preload. Callers: the scheduler's event loop."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._aside: dict[Any, Aside] = {}
        self._apps: dict[Any, str] = {}  # by the key of the barrier
        self._reruns: dict[str, int] = {}
        self._ends: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Any) -> None:
        """Begin."""
        self._scheduler = scheduler
        scheduler.handlers[LOST_CALL] = self.lost

    async def before_close(self) -> None:
        """Delete the shuffles that are left, while there are workers."""
        for app in list(self._apps.values()):
            self._end(app)
        self._apps.clear()
        if self._ends:
            await asyncio.wait(self._ends, timeout=END_S)

    def restart(self, scheduler: Any) -> None:
        """All tasks are gone."""
        for app in list(self._apps.values()):
            self._end(app)
        self._aside.clear()
        self._apps.clear()
        self._reruns.clear()

    def update_graph(self, scheduler: Any, *, tasks: list[Any], **_: Any) -> None:
        """New tasks: remember which shuffles they begin."""
        for key in tasks:
            if isinstance(key, str) and key.startswith(BARRIER) and key not in self._apps:
                spec = scheduler.tasks[key].run_spec
                if getattr(spec, "func", None) is gather:
                    self._apps[key] = spec.args[0]

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str = "", **_: Any) -> None:
        """A task changed its state."""
        task = self._scheduler.tasks.get(key)
        if task is None:
            return
        needed = bool(task.waiters or task.who_wants)
        if finish == "released" and needed and KEPT in (task.metadata or {}):
            self._set_aside(task)
        elif finish == "waiting":
            for other in task.dependencies:
                if other.state == "released" and KEPT in (other.metadata or {}):
                    self._set_aside(other)
        elif key in self._aside and finish in ("memory", "erred", "released"):
            self._put_back(task)
        elif finish == "forgotten":
            self._forgotten(key, task)

    # --- set aside, put back ----------------------------------------------------------------------------------------------------

    def _set_aside(self, task: Any) -> None:
        if task.key in self._aside or task.run_spec is None:
            return
        from dask._task_spec import Task

        self._aside[task.key] = Aside(task.run_spec, set(task.dependencies))
        task.run_spec = Task(task.key, revive, task.metadata[KEPT])
        task.dependencies.clear()  # theirs still name it, so they are not forgotten

    def _put_back(self, task: Any) -> None:
        was = self._aside.pop(task.key)
        task.run_spec = was.run_spec
        task.dependencies.update(other for other in was.dependencies if other.state != "forgotten")

    def _forgotten(self, key: Any, task: Any) -> None:
        was = self._aside.pop(key, None)
        if was is not None:
            unneeded: dict[Any, str] = {}
            for other in was.dependencies:
                other.dependents.discard(task)
                if other.waiters:
                    other.waiters.discard(task)
                if not other.dependents and not other.who_wants:
                    unneeded[other.key] = "forgotten"
            if unneeded:
                asyncio.get_running_loop().call_soon(self._forget, unneeded)
        app = self._apps.pop(key, None)
        if app is not None:
            self._reruns.pop(app, None)
            self._end(app)

    def _forget(self, keys: dict[Any, str]) -> None:
        tasks = self._scheduler.tasks
        left = {
            key: state
            for key, state in keys.items()
            if key in tasks and not tasks[key].dependents and not tasks[key].who_wants
        }
        self._scheduler.transitions(left, f"tierstore-forget-{time.time()}")

    # --- lost maps ------------------------------------------------------------------------------------------------------------

    async def lost(self, app: str, lost: list[list[Any]], reason: str = "") -> bool:
        """The output of maps, given as [map index, attempt], is in no store any more: run them again. False: no."""
        barrier = next((self._scheduler.tasks.get(key) for key, own in self._apps.items() if own == app), None)
        if barrier is None:
            return False
        attempts = {tuple(entry) for entry in lost}
        was = self._aside.get(barrier.key)
        sources = was.dependencies if was is not None else barrier.dependencies
        gone = []
        for task in sources:
            receipt = (task.metadata or {}).get(KEPT, {}).get("receipt")
            if receipt is not None and (receipt["map_index"], receipt["attempt"]) in attempts:
                gone.append(task)
        if not gone:
            return True  # another reader said so before
        if self._reruns.get(app, 0) >= RERUNS_MAX:
            return False
        self._reruns[app] = self._reruns.get(app, 0) + 1
        log.warning("%d maps of shuffle %s are lost and run again: %s", len(gone), app, reason)
        for task in [*gone, barrier]:
            task.metadata.pop(KEPT, None)
            if task.key in self._aside:
                self._put_back(task)
        again = {task.key: "released" for task in [*gone, barrier] if task.state == "memory"}
        self._scheduler.transitions(again, f"tierstore-lost-{time.time()}")
        return True

    # --- the end --------------------------------------------------------------------------------------------------------------

    def _end(self, app: str) -> None:
        """Have the workers delete a shuffle. What none of them can reach goes with its lease."""
        task = asyncio.ensure_future(self._tell(app))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _tell(self, app: str) -> None:
        message = {"op": "run", "function": dumps(end_shuffle), "args": dumps((app,)), "wait": True}
        try:
            await self._scheduler.broadcast(msg=message, on_error="ignore")
        except Exception as error:
            log.warning("shuffle %s was not deleted, and goes with its lease: %s", app, error)
