"""A cluster in one process: several nodes, a network that fails by seed, and a clock that is a value.

A node is an object with ``handle(event) -> instructions``; a Cluster carries its instructions out in virtual time. Delays,
losses, duplicates, partitions, crashes and broken streams follow from one seed and a schedule (Faults), so a run can be
repeated exactly. docs/CLUSTER_SIMULATION.md shows how.
"""

from .clock import Agenda
from .events import (
    Bytes,
    Cancel,
    Close,
    Connection,
    Ended,
    Event,
    Instruction,
    Make,
    Note,
    Open,
    Opened,
    Persist,
    Persisted,
    Received,
    Send,
    SimulatedNode,
    Started,
    Wake,
    Woke,
    Write,
)
from .faults import Crash, Fault, Faults, Link, Mishap, Partition, scheduled
from .nodes import Framed, Plain, framed, plain
from .simulator import Cluster, NotQuiet, check_repeatable
from .trace import Line, Trace

__all__ = [
    "Agenda",
    "Bytes",
    "Cancel",
    "Close",
    "Cluster",
    "Connection",
    "Crash",
    "Ended",
    "Event",
    "Fault",
    "Faults",
    "Framed",
    "Instruction",
    "Line",
    "Link",
    "Make",
    "Mishap",
    "NotQuiet",
    "Note",
    "Open",
    "Opened",
    "Partition",
    "Persist",
    "Persisted",
    "Plain",
    "Received",
    "Send",
    "SimulatedNode",
    "Started",
    "Trace",
    "Wake",
    "Woke",
    "Write",
    "check_repeatable",
    "framed",
    "plain",
    "scheduled",
]
