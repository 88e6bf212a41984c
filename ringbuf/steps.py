"""Named steps of the protocols, at which tests kill or stop the process.

A step is a number in a private word of the process: 0 in every normal run. Set by the environment variables
TIERSTORE_KILL_AT=name or name:n (die at the n-th time) and TIERSTORE_STOP_AT, which only tests use.
"""

from __future__ import annotations

import os
import signal

CLIENT_STEPS = (
    "put.claimed",
    "put.filled",
    "put.committed",
    "message.pushed",
    "message.answered",
    "get.found",
    "get.pinned",
    "lease.granted",
    "put.appended",
)
DAEMON_STEPS = (
    "lease.popped",
    "lease.marked",
    "publish.numbered",
    "publish.indexed",
    "publish.swapped",
    "bury.marked",
    "relink.linked",
    "retire.marked",
    "release.invalidated",
    "drop.withdrawn",
    "seal.marked",
    "move.copied",
    "move.persisted",
    "move.relinked",
    "evict.chosen",
    "evict.drop",
    "recover.segment",
    "recover.indexed",
    "answer.stored",
    "delete.marked",
    "recall.marked",
)
SHUFFLE_CLIENT_STEPS = ("shuffle.flushed", "shuffle.committing")
SHUFFLE_DAEMON_STEPS = ("shuffle.checked", "shuffle.published", "shuffle.dropping")
_ALL = (*CLIENT_STEPS, *DAEMON_STEPS, *SHUFFLE_CLIENT_STEPS, *SHUFFLE_DAEMON_STEPS)
STEP_LIMIT = 1 << 16  # a trap's word: the step, and above it the signal
NUMBERS = {name: number for number, name in enumerate(_ALL, 1)}

PUT_CLAIMED, PUT_FILLED, PUT_COMMITTED = (NUMBERS[f"put.{name}"] for name in ("claimed", "filled", "committed"))
MESSAGE_PUSHED, MESSAGE_ANSWERED = NUMBERS["message.pushed"], NUMBERS["message.answered"]
GET_FOUND, GET_PINNED = NUMBERS["get.found"], NUMBERS["get.pinned"]
LEASE_POPPED, LEASE_MARKED = NUMBERS["lease.popped"], NUMBERS["lease.marked"]
PUBLISH_NUMBERED, PUBLISH_INDEXED = NUMBERS["publish.numbered"], NUMBERS["publish.indexed"]
PUBLISH_SWAPPED, BURY_MARKED, RELINK_LINKED = (
    NUMBERS["publish.swapped"],
    NUMBERS["bury.marked"],
    NUMBERS["relink.linked"],
)
RETIRE_MARKED, RELEASE_INVALIDATED = NUMBERS["retire.marked"], NUMBERS["release.invalidated"]
DELETE_MARKED, RECALL_MARKED = NUMBERS["delete.marked"], NUMBERS["recall.marked"]
DROP_WITHDRAWN, SEAL_MARKED, ANSWER_STORED = (
    NUMBERS["drop.withdrawn"],
    NUMBERS["seal.marked"],
    NUMBERS["answer.stored"],
)


class Trap:
    """The step at which this process is to be killed or stopped, and after how many passes."""

    def __init__(self) -> None:
        self.word, self.left = 0, 0
        for variable, number in (("TIERSTORE_KILL_AT", signal.SIGKILL), ("TIERSTORE_STOP_AT", signal.SIGSTOP)):
            name, _, count = os.environ.get(variable, "").partition(":")
            if name and name not in NUMBERS:
                raise ValueError(f"{variable} names no step: {name!r}; steps are {', '.join(NUMBERS)}")
            if name:
                self.word, self.left = NUMBERS[name] + STEP_LIMIT * number, int(count or 1)

    def __call__(self, name: str) -> None:
        """A step of Python code was reached."""
        if self.word and self.word % STEP_LIMIT == NUMBERS[name]:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.word // STEP_LIMIT)
