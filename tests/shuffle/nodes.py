"""Nodes within one process, for tests of readers: connections that call the handlers of another store, and fail on demand."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import tierstore
from tests.shuffle.rows import PARTITIONS, write
from tests.shuffle.test_shuffle_types import Loopback
from tierstore.ringbuf.errors import PeerLost
from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.receipt import Receipt


class Link(Loopback):
    """A connection that counts, and whose frames and answers a test may change.

    before: called with the name of each call and its number. change: (head, payload) of a frame, before it arrives; None
    drops it. answer: changes the result of a fetch.
    """

    def __init__(self, store: Store):
        super().__init__(store)
        self.calls: list[str] = []
        self.active = self.received = 0
        self.before: Callable[[str, int], None] = lambda name, number: None
        self.change: Callable[[dict[str, Any], bytearray], bool] = lambda head, payload: True
        self.answer: Callable[[Any], Any] = lambda result: result
        self.asked: list[list[Any]] = []

    def call(self, name: str, /, **arguments: Any) -> Any:
        self.calls.append(name)
        self.before(name, self.calls.count(name))
        return super().call(name, **arguments)

    def fetch(self, name: str, arguments: dict[str, Any], sink: Any, arrived: Any = None) -> Any:
        self.calls.append(name)
        self.asked.append(arguments["outputs"])
        frame: list[Any] = [None, bytearray()]

        def into(head: dict[str, Any], size: int) -> memoryview:
            frame[:] = [head, bytearray(size)]
            return memoryview(frame[1])

        def come(head: dict[str, Any]) -> None:
            if self.change(head, frame[1]):
                self.received += len(frame[1])
                sink(head, len(frame[1]))[:] = frame[1]
                arrived(head)

        self.active += 1
        try:
            self.before(name, self.calls.count(name))
            return self.answer(super().fetch(name, arguments, into, come))
        finally:
            self.active -= 1


class Links:
    """A network of them."""

    node, replicas = "here", 1

    def __init__(self, links: dict[str, Any]):
        self.links = links

    def names(self) -> list[str]:
        return []

    def peer(self, node: str) -> Any:
        if node not in self.links:
            raise PeerLost(f"nobody listens at {node}")
        return self.links[node]

    def close(self) -> None:
        """Nothing to close."""


class Several:
    """A reading handle, and stores at the nodes n0, n1, ... with the handles that write there."""

    def __init__(self, here: Store, others: Sequence[Store], partitions: int):
        self.stores = list(others)
        self.links = {f"n{number}": Link(store) for number, store in enumerate(others)}
        network: Any = Links(self.links)
        self.mine = Shuffle(here, "app", 0, partitions, network=network)
        self.theirs = [store.shuffle("app", 0, partitions) for store in others]

    def write(self, node: int, map_index: int, count: int = 5000, copies: Sequence[int] = ()) -> Receipt:
        """The output of a map at a node, and the same at others."""
        made = [write(self.theirs[at], map_index, count, f"try-{map_index}") for at in (node, *copies)]
        assert len({receipt.manifest_hash for receipt in made}) == 1
        return self.at(made[0], node, copies)

    def at(self, receipt: Receipt, node: int, copies: Sequence[int] = ()) -> Receipt:
        """A receipt that says where its output is."""
        return dataclasses.replace(receipt, node=f"n{node}", replicas=tuple(f"n{copy}" for copy in copies))


@contextmanager
def several(count: int = 2, partitions: int = PARTITIONS, dram: str = "32MiB") -> Iterator[Several]:
    """So many other nodes."""
    with ExitStack() as stack:
        stores = [stack.enter_context(tierstore.open(dram=dram, segment="1MiB")) for _ in range(count + 1)]
        made = Several(stores[0], stores[1:], partitions)
        yield made
        for shuffle in (made.mine, *made.theirs):
            shuffle.close()


def fetching() -> list[threading.Thread]:
    """Threads that receive."""
    return [thread for thread in threading.enumerate() if thread.name == "tierstore-fetch"]
