"""Every interleaving of small programs over one shared memory, with x86's store buffers and deaths at every step.

A program is a generator function. Each ``yield`` is one atomic step: it yields what it does (``load("tail")``,
``store("tail", 1)``, ``fence()``, ...) and is sent what it read. Everything between two yields is private to it. All orders of
steps are tried, and what each of them ends in is collected.

Memory. With ``buffered`` a store goes to the program's own buffer and leaves it later, in order (x86-TSO): the program itself
sees it at once, others see it late, so a load may overtake an earlier store. ``stream`` is a non-temporal store: it leaves in any
order. ``fence``, ``add``, ``exchange`` and the futex calls wait until the own buffer is empty, as locked instructions do;
``store_fence`` only keeps later stores behind earlier ones. Weaker orders (ARM) and what a compiler may do are not modelled.

Why pruning is sound. A program is deterministic: its state follows from what it was sent. So memory, buffers and, for each
program, the values sent so far are all there is; two orders that agree in these have the same future. A program is brought to
a state by running it anew on those values.

Why a store is not a choice. Nobody else sees a store before it leaves the buffer, so it is put there at once, and only its
leaving is ordered against other steps. For the same reason a death throws the buffer away: that is a death before those
stores, and deaths after each of them come from the orders in which they left first. Only where a stream has left ahead of an
earlier store was that store made for certain, and must leave before its program can die.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Value = Hashable
STATES_MAX = 300_000
DEAD = -1
AGAIN = (
    object()
)  # what a program returns to begin anew, having kept nothing in mind: an endless loop has finitely many states


class TooManyStates(Exception):
    """The programs have more states than allowed."""


class Op(NamedTuple):
    """One step; made by the functions below."""

    kind: str
    word: str = ""
    value: Any = None
    overtaken: bool = False  # of a store in a buffer: a later one has left already


Program = Callable[[], Generator[Op, Any, Any]]


def load(word: str) -> Op:
    """The word's value: the own latest store that has not left the buffer, else memory's."""
    return Op("load", word)


def store(word: str, value: Value) -> Op:
    """A store, plain or release: on x86 they are the same."""
    return Op("store", word, value)


def stream(word: str, value: Value) -> Op:
    """A non-temporal store."""
    return Op("stream", word, value)


def add(word: str, amount: int) -> Op:
    """A locked add; gives the old value."""
    return Op("add", word, amount)


def exchange(word: str, seen: Value, value: Value) -> Op:
    """A locked store, only if the word holds ``seen``; gives the old value."""
    return Op("exchange", word, (seen, value))


def fence() -> Op:
    """A full fence."""
    return Op("fence")


def store_fence() -> Op:
    """sfence."""
    return Op("store_fence")


def wait(word: str, seen: Value) -> Op:
    """futex: sleep until woken, unless the word differs from ``seen``. No time passes here: a lost wake-up is for ever."""
    return Op("wait", word, seen)


def wake(word: str) -> Op:
    """futex: wake one sleeper."""
    return Op("wake", word)


def until(word: str, value: Value) -> Op:
    """Go on once the word has this value. Not a step of any kernel: it stands for what is left out of a model."""
    return either((word, value))


def either(*conditions: tuple[str, Value]) -> Op:
    """Go on once one of these words has its value; gives that word. Where several have, each is tried."""
    return Op("until", "", conditions)


@dataclass(frozen=True)
class Model:
    """What is explored.

    memory:   the shared words and their first values.
    programs: by name. outcome: from the last memory and what each program returned ("asleep" in a futex, "waiting" in
              until(), "dead") to the text that the table of outcomes knows.
    mortal:   processes that may die at every step, by the programs they run; the word "alive.NAME" becomes 0 then.
    """

    memory: Mapping[str, Value]
    programs: Mapping[str, Program]
    outcome: Callable[[Mapping[str, Any], Mapping[str, Any]], str]
    mortal: Mapping[str, Sequence[str]] = field(default_factory=dict)


class State(NamedTuple):
    """All of a moment. nodes: per program its place in its own tree; buffers: stores that have not left."""

    memory: tuple[Value, ...]
    nodes: tuple[int, ...]
    buffers: tuple[tuple[Op, ...], ...]
    asleep: tuple[bool, ...]


class Step(NamedTuple):
    """How a state was reached: from which, and who did what."""

    before: State | None
    who: str
    op: Op
    got: Any


@dataclass(frozen=True)
class Explored:
    """All that can happen. outcomes: each with the last state of the shortest order that leads to it."""

    outcomes: Mapping[str, State]
    steps: Mapping[State, Step]

    @property
    def states(self) -> int:
        """How many different states there are."""
        return len(self.steps)

    def order(self, outcome: str) -> str:
        """The shortest order of steps that leads to an outcome, a line each."""
        lines: list[str] = []
        step = self.steps[self.outcomes[outcome]]
        while step.before is not None:
            lines.append(f"{step.who:>10}: {_told(step.op, step.got)}")
            step = self.steps[step.before]
        return "\n".join(reversed(lines))


def _told(op: Op, got: Any) -> str:
    match op.kind:
        case "load":
            return f"load {op.word} = {got}"
        case "until":
            return f"sees {got} = {dict(op.value)[got]}"
        case "store" | "stream":
            return f"{op.word} = {op.value}"
        case "add":
            return f"{op.word} {'+' if op.value >= 0 else '-'}= {abs(op.value)}, was {got}"
        case "exchange":
            return f"{op.word} = {op.value[1]} if {op.value[0]}, was {got}"
        case "wait":
            return f"wait while {op.word} = {op.value}"
        case _:
            return f"{op.kind} {op.word}".strip()


class _Tree:
    """One program's states: each node is what was sent to it, and holds what it does next (None: it has returned)."""

    def __init__(self, program: Program):
        self._program = program
        self._sent: list[tuple[int, Any]] = []  # parent, value
        self._child: dict[tuple[int, Any], int] = {}
        self.next: list[Op | None] = []
        self.result: dict[int, Any] = {}
        self._grow(DEAD, None)

    def _grow(self, parent: int, value: Any) -> int:
        node, run = len(self._sent), self._program()
        sent, at = [value], parent
        while at > 0:
            at, earlier = self._sent[at]
            sent.append(earlier)
        op = None
        try:
            op = next(run)
            for each in reversed(sent if parent != DEAD else []):
                op = run.send(each)
        except StopIteration as end:
            if end.value is AGAIN:
                return 0
            self.result[node] = end.value
            op = None
        self._sent.append((parent, value))
        self.next.append(op)
        return node

    def sent(self, node: int, value: Any) -> int:
        """The node after this one when the program is sent a value."""
        child = self._child.get((node, value))
        if child is None:
            child = self._child[node, value] = self._grow(node, value)
        return child


class _Explorer:
    def __init__(self, model: Model, buffered: bool):
        words = {**model.memory, **{f"alive.{name}": 1 for name in model.mortal}}
        self.model, self.buffered = model, buffered
        self.names, self.at = list(model.programs), {word: at for at, word in enumerate(words)}
        self.trees = [_Tree(program) for program in model.programs.values()]
        count = len(self.names)
        first = State(tuple(words.values()), (0,) * count, ((),) * count, (False,) * count)
        for who in range(count):
            first = self.settled(first, who)
        self.first = first

    def address(self, word: str) -> int:
        """Where a word lies."""
        if word not in self.at:
            raise KeyError(f"no word {word!r} in this model's memory: give it a first value there")
        return self.at[word]

    def moved(self, state: State, who: int, value: Any) -> State:
        """A program was sent a value."""
        nodes = _with(state.nodes, who, self.trees[who].sent(state.nodes[who], value))
        return self.settled(state._replace(nodes=nodes), who)

    def settled(self, state: State, who: int) -> State:
        """Put the stores a program does next into its buffer."""
        tree, node, buffer = self.trees[who], state.nodes[who], state.buffers[who]
        while (op := tree.next[node]) is not None and op.kind in ("store", "stream", "store_fence"):
            if op.kind == "store_fence":
                buffer = (*buffer, op) if buffer else buffer
            elif self.buffered:
                self.address(op.word)
                buffer = (*buffer, op)
            else:
                break
            node = tree.sent(node, None)
        return state._replace(nodes=_with(state.nodes, who, node), buffers=_with(state.buffers, who, buffer))

    def successors(self, state: State) -> Iterator[tuple[State, Step]]:
        """Every state that one step of one program leads to."""
        for who, name in enumerate(self.names):
            for position in _leaving(state.buffers[who]):
                yield self.left(state, who, position), Step(state, name, state.buffers[who][position], None)
            if state.nodes[who] == DEAD or state.asleep[who]:
                continue
            op = self.trees[who].next[state.nodes[who]]
            if op is not None:
                for after, got in self.done(state, who, op):
                    yield after, Step(state, name, op, got)

    def left(self, state: State, who: int, position: int) -> State:
        """A store left a buffer."""
        buffer = state.buffers[who]
        op, earlier = buffer[position], (each._replace(overtaken=True) for each in buffer[:position])
        rest = (*earlier, *buffer[position + 1 :])
        while rest and rest[0].kind == "store_fence":
            rest = rest[1:]
        memory = _with(state.memory, self.address(op.word), op.value)
        return state._replace(memory=memory, buffers=_with(state.buffers, who, rest))

    def done(self, state: State, who: int, op: Op) -> Iterator[tuple[State, Any]]:
        """Every state after a step that is not a buffered store, with what the program got; none if it must wait."""
        buffer = state.buffers[who]
        if op.kind == "load":
            got = self.seen(state, who, op.word)
            yield self.moved(state, who, got), got
        elif op.kind == "until":
            for word, value in op.value:
                if state.memory[self.address(word)] == value:
                    yield self.moved(state, who, word), word
        elif buffer:
            return
        elif op.kind in ("store", "stream"):
            memory = _with(state.memory, self.address(op.word), op.value)
            yield self.moved(state._replace(memory=memory), who, None), None
        elif op.kind == "fence":
            yield self.moved(state, who, None), None
        elif op.kind in ("add", "exchange"):
            at = self.address(op.word)
            old: Any = state.memory[at]
            new = old + op.value if op.kind == "add" else op.value[1] if old == op.value[0] else old
            yield self.moved(state._replace(memory=_with(state.memory, at, new)), who, old), old
        elif op.kind == "wait":
            if state.memory[self.address(op.word)] == op.value:
                yield state._replace(asleep=_with(state.asleep, who, True)), None
            else:
                yield self.moved(state, who, None), None
        elif op.kind == "wake":
            after = self.moved(state, who, None)
            sleepers = [n for n, a in enumerate(state.asleep) if a and self.sleeps_on(state, n) == op.word]
            for sleeper in sleepers:
                woken = after._replace(asleep=_with(after.asleep, sleeper, False))
                yield self.moved(woken, sleeper, None), None
            if not sleepers:
                yield after, None
        else:
            raise TypeError(f"{self.names[who]} yielded {op!r}: yield what load(), store(), fence() and so on make")

    def sleeps_on(self, state: State, who: int) -> str:
        """The futex a sleeping program waits on."""
        op = self.trees[who].next[state.nodes[who]]
        assert op is not None
        return op.word

    def seen(self, state: State, who: int, word: str) -> Any:
        """What a program reads."""
        at = self.address(word)
        return next((op.value for op in reversed(state.buffers[who]) if op.word == word), state.memory[at])

    def deaths(self, state: State) -> Iterator[tuple[State, Step]]:
        """Every state after one death."""
        for process, programs in self.model.mortal.items():
            at, dying = self.at[f"alive.{process}"], [self.names.index(name) for name in programs]
            if state.memory[at] == 0 or any(op.overtaken for who in dying for op in state.buffers[who]):
                continue
            after = state._replace(memory=_with(state.memory, at, 0))
            for who in dying:
                nodes, buffers = _with(after.nodes, who, DEAD), _with(after.buffers, who, ())
                after = State(after.memory, nodes, buffers, _with(after.asleep, who, False))
            yield after, Step(state, process, Op("dies"), None)

    def outcome(self, state: State) -> str:
        """What a last state means."""
        results = {}
        for who, name in enumerate(self.names):
            node = state.nodes[who]
            if node == DEAD:
                results[name] = "dead"
            elif self.trees[who].next[node] is None:
                results[name] = self.trees[who].result[node]
            else:
                results[name] = "asleep" if state.asleep[who] else "waiting"
        return self.model.outcome({word: state.memory[at] for word, at in self.at.items()}, results)


def _with(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _leaving(buffer: tuple[Op, ...]) -> Iterator[int]:
    """Positions of the stores that may leave next: before the first store fence the oldest, and all streams."""
    ordered = False
    for position, op in enumerate(buffer):
        if op.kind == "store_fence":
            return
        if op.kind == "stream" or not ordered:
            yield position
        ordered = ordered or op.kind == "store"


def explore(model: Model, buffered: bool = True, states_max: int = STATES_MAX) -> Explored:
    """Try every order, the shortest first.

    buffered: stores may be seen late by others; else they are seen at once (sequential consistency).
    Raises:   TooManyStates above ``states_max`` states (about 20,000 a second).
    """
    explorer = _Explorer(model, buffered)
    steps = {explorer.first: Step(None, "", Op(""), None)}
    outcomes: dict[str, State] = {}
    frontier = [explorer.first]
    while frontier:
        reached: list[State] = []
        for state in frontier:
            following = list(explorer.successors(state))
            if not following:
                outcomes.setdefault(explorer.outcome(state), state)
            for after, step in (*following, *explorer.deaths(state)):
                if after not in steps:
                    steps[after] = step
                    reached.append(after)
        if len(steps) > states_max:
            raise TooManyStates(
                f"{len(steps)} states of {', '.join(model.programs)} and no end: shorten a program, or allow more states"
            )
        frontier = reached
    return Explored(outcomes, steps)
