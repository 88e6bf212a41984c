"""Receipts: what an engine carries from a map task to the readers of its output."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .names import Attempt, check_attempt


@dataclass(frozen=True)
class Receipt:
    """One committed attempt: which, where, and what its manifest's hash is. Small, and plain values only.

    node:        "host:port" of the daemon that serves it to other nodes; "" where it serves none.
    replicas:    others that hold the same, in the order to ask them.
    store_id, incarnation: which store, and which life of its KEEP data.
    durability:  "volatile" or "durable": what the commit's acknowledgement promised.
    """

    app: str
    shuffle: int
    map_index: int
    attempt: str
    rows: int
    bytes: int
    manifest_hash: int
    durability: str
    store_id: str
    incarnation: str
    node: str = ""
    replicas: tuple[str, ...] = ()

    @property
    def name(self) -> Attempt:
        """The attempt it is of."""
        return Attempt(self.app, self.shuffle, self.map_index, self.attempt)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**dataclasses.asdict(self), "replicas": list(self.replicas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Receipt:
        """From what to_dict() made. Raises ValueError for anything else."""
        names = {entry.name for entry in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"a receipt has the fields {sorted(names)}, not {sorted(values)}")
        check_attempt(values["app"], values["shuffle"], values["map_index"], values["attempt"])
        return cls(**{**values, "replicas": tuple(values["replicas"])})
