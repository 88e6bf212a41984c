"""The simulator: carries out what nodes ask for, in virtual time, with faults; single-threaded and repeatable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from tierstore.ringbuf.errors import ConfigError

from .clock import Agenda
from .events import (
    Cancel,
    Close,
    Event,
    Instruction,
    Make,
    Note,
    Open,
    Persist,
    Persisted,
    Received,
    Send,
    Started,
    Wake,
    Woke,
    Write,
)
from .faults import NONE, Crash, Fault, Faults, Mishap, Partition
from .life import Life
from .network import Network
from .streams import Streams
from .trace import Trace, show

STEPS_MAX = 100_000
TAIL = 20
OUTSIDE = "outside"  # whoever runs the cluster; no node may have this name


class NotQuiet(RuntimeError):
    """A run did not come to its end within the steps allowed: nodes keep each other busy, or a timer is set for ever."""


class Cluster:
    """Several nodes in one process, from virtual time 0 on.

    makes:   by name of the node, what starts its process.
    faults:  what goes wrong; by default nothing does, but messages take time.
    seed:    decides whatever is left open; the same seed, nodes and faults give the same trace.
    watch:   called after each step; what it raises ends the run where it first went wrong.
    Raises:  what a node raises, with the seed and the last lines of the trace added; ConfigError for names of nodes that cannot be.
    """

    def __init__(
        self,
        makes: Mapping[str, Make],
        faults: Faults = NONE,
        seed: int = 0,
        watch: Callable[[Cluster], None] | None = None,
    ):
        faults.check_names(makes)
        if OUTSIDE in makes:
            raise ConfigError("name of a node", OUTSIDE, "any other; this one is for whoever runs the cluster")
        self.seed, self.faults, self.trace = seed, faults, Trace()
        self.answers: list[tuple[str, Any]] = []  # sent to OUTSIDE: by whom, what
        self._watch = watch
        self._agenda = Agenda()
        self._network = Network(faults, seed)
        self._lives = {name: Life(name, make) for name, make in makes.items()}
        self._streams = Streams(self._agenda, self._network, self.trace, self._hand, self.is_up)
        for life in self._lives.values():
            self._agenda.at(0.0, partial(self._start, life))
        for fault in faults.schedule():
            self._agenda.at(fault[0], partial(self._begin, fault))

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return self._agenda.now_s

    @property
    def happened(self) -> tuple[Fault, ...]:
        """The faults so far, in order."""
        return tuple(self._network.happened)

    def is_up(self, name: str) -> bool:
        """Whether the node's process runs."""
        return self._lives[name].process is not None

    def process(self, name: str) -> Any:
        """The object that handles events now. Raises LookupError while it is down."""
        process = self._lives[name].process
        if process is None:
            raise LookupError(f"{name} is down since its last crash")
        return process

    def durable(self, name: str) -> dict[Any, Any]:
        """A copy of what a node would find after a restart, were every write under way lost."""
        return copy.deepcopy(self._lives[name].durable)

    def inject(self, target: str, body: Any) -> None:
        """Let a message from OUTSIDE arrive now; no fault touches it, but a node that is down does not hear it.

        What nodes send to OUTSIDE, at once too, is in ``answers``.
        """
        self._known("inject()", target)
        self._agenda.after(0.0, partial(self._arrive, OUTSIDE, target, "injected", copy.deepcopy(body)))

    def run_until(self, time_s: float, steps_max: int = STEPS_MAX) -> None:
        """Do what is due up to a time, then let it be that time.

        Raises NotQuiet after steps_max steps, ValueError for a time that is past or not a number.
        """
        self._agenda.check(time_s)
        self._run(time_s, steps_max)
        self._agenda.advance(time_s)

    def run_until_quiet(self, steps_max: int = STEPS_MAX) -> None:
        """Go on until nothing is due any more: no message, no timer, no fault. Raises NotQuiet after steps_max steps."""
        self._run(float("inf"), steps_max)

    def _run(self, until_s: float, steps_max: int) -> None:
        steps = 0
        while (due_s := self._agenda.due_s()) is not None and due_s <= until_s:
            if steps == steps_max:
                raise NotQuiet(
                    f"not quiet after {steps} steps, at {self.now_s:.6f} s, with seed {self.seed}: let nodes stop "
                    f"their timers, use run_until(), or allow more steps_max. The last lines:\n{self.trace.table(TAIL)}"
                )
            steps += 1
            action = self._agenda.pop()
            try:
                action()
                if self._watch is not None:
                    self._watch(self)
            except Exception as error:
                error.add_note(
                    f"with seed {self.seed}, at {self.now_s:.6f} s. The last lines:\n{self.trace.table(TAIL)}"
                )
                raise

    # --- faults that have a time

    def _begin(self, fault: Partition | Crash) -> None:
        if isinstance(fault, Crash):
            self._crash(fault)
        else:
            self._network.happened[fault] = None
            self._say("", "", str(fault))

    def _start(self, life: Life) -> None:
        life.start()
        self._say(life.name, "", "starts" if life.starts == 1 else "starts again")
        self._hand(life.name, Started(self.now_s, life.starts))

    def _crash(self, crash: Crash) -> None:
        life = self._lives[crash.node]
        if life.process is None:
            return
        self._network.happened[crash] = None
        self._say(life.name, "", "crashes")
        for entry, key, value in life.writes.values():
            self._agenda.cancel(entry)
            number = self._network.number("lose", life.name, show(key))
            mishap = Mishap("lose", life.name, "", show(key), number)
            drawn = self._network.generator(*mishap).random()
            if self._network.strikes(mishap, drawn, self.faults.lose, self.now_s):
                self._say(life.name, "", f"loses {show(key)}")
            else:
                life.keep(key, value)
        for entry in life.timers.values():
            self._agenda.cancel(entry)
        self._streams.crash(life.name)
        life.stop()
        if crash.restart_s is not None:
            self._agenda.at(crash.restart_s, partial(self._start, life))

    # --- what nodes are told

    def _hand(self, name: str, event: Event) -> None:
        """Let a node handle an event, and do what it says; lost if it is down."""
        life = self._lives[name]
        if life.process is not None:
            self._carry_out(life, life.process.handle(event))

    def _arrive(self, source: str, target: str, what: str, body: Any) -> None:
        if self._network.cut(source, target, self.now_s) is not None:
            self._say(source, target, f"{what} cut off on the way")
        elif not self.is_up(target):
            self._say(source, target, f"{what} finds nobody")
        else:
            self._say(source, target, f"{what} arrives: {show(body)}")
            copied = copy.deepcopy(body)  # a second copy of the message must not see what is done to this one
            self._hand(target, Received(self.now_s, source, copied))

    # --- what nodes ask for

    def _carry_out(self, life: Life, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send():
                    self._send(life.name, instruction)
                case Wake():
                    self._wake(life, instruction)
                case Cancel():
                    self._agenda.cancel(life.timers.pop(instruction.timer, 0))
                case Persist():
                    self._persist(life, instruction)
                case Note():
                    self._say(life.name, "", instruction.text)
                case Open():
                    self._known(life.name, instruction.target)
                    if instruction.target == life.name:
                        raise ValueError(f"{life.name} opens a stream to itself: send a message instead")
                    self._streams.open(life.name, instruction.target)
                case Write():
                    self._streams.write(life.name, instruction.connection, instruction.data)
                case Close():
                    self._streams.close(life.name, instruction.connection)
                case _:
                    raise TypeError(f"{life.name} asks for {instruction!r}: return instructions of cluster.events")

    def _known(self, name: str, target: str) -> None:
        if target not in self._lives:
            raise ValueError(f"{name} names {target!r}: the nodes are {', '.join(sorted(self._lives))}")

    def _send(self, source: str, send: Send) -> None:
        body = copy.deepcopy(send.body)  # what the sender does to it later must not be seen
        if send.target == OUTSIDE:
            self._say(source, OUTSIDE, f"answers {show(body)}")
            self.answers.append((source, body))
            return
        self._known(source, send.target)
        number = self._network.number("message", source, send.target)
        self._say(source, send.target, f"#{number} sent: {show(body)}")
        arrivals_s: tuple[float, ...] = (self.now_s,)
        if source != send.target:
            arrivals_s, what = self._network.fate(source, send.target, show(body), self.now_s)
            if what:
                self._say(source, send.target, f"#{number} {what}")
        for arrival_s in arrivals_s:
            self._agenda.at(arrival_s, partial(self._arrive, source, send.target, f"#{number}", body))

    def _wake(self, life: Life, wake: Wake) -> None:
        self._agenda.cancel(life.timers.pop(wake.timer, 0))

        def ring() -> None:
            del life.timers[wake.timer]
            self._say(life.name, "", f"timer {show(wake.timer)}")
            self._hand(life.name, Woke(self.now_s, wake.timer))

        life.timers[wake.timer] = self._agenda.after(wake.after_s, ring)

    def _persist(self, life: Life, persist: Persist) -> None:
        key, value = copy.deepcopy((persist.key, persist.value))
        number = self._network.number("persist", life.name)
        again = self._network.number("persist", life.name, show(key))
        delay_s = self._network.generator("persist", life.name, show(key), again).uniform(*self.faults.persist_s)
        life.written_s = max(life.written_s, self.now_s + delay_s)  # one after the other, as they were asked for

        def done() -> None:
            del life.writes[number]
            life.keep(key, value)
            self._say(life.name, "", f"{show(key)} is durable")
            self._hand(life.name, Persisted(self.now_s, key))

        life.writes[number] = (self._agenda.at(life.written_s, done), key, value)

    def _say(self, source: str, target: str, what: str) -> None:
        self.trace.add(self.now_s, source, target, what)


def check_repeatable(play: Callable[[], Cluster]) -> Cluster:
    """Play twice; raises AssertionError with the first line that differs: a node is not a function of its events.

    play: builds a cluster and runs it. Returns the first of the two.
    """
    first, second = play(), play()
    for number, (one, other) in enumerate(zip(first.trace.lines, second.trace.lines)):
        if one != other:
            raise AssertionError(f"the runs differ from line {number} on: {tuple(one)} and {tuple(other)}")
    if first.trace != second.trace:
        raise AssertionError(f"the runs differ in length: {len(first.trace.lines)} and {len(second.trace.lines)} lines")
    return first
