"""What every benchmark shares: the registry, two sizes, variants in turns, and rows that can be doubted.

A benchmark is a function of one Bench. It asks for its sizes with parameter(), measures, and reports rows. A figure that
was not measured is never reported; what cannot run on a machine is reported as skipped, with the reason.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
NAMES = (
    "get",
    "put",
    "overflow",
    "ring",
    "scan",
    "kmeans",
    "start",
    "restart",
    "idle",
    "churn",
    "emulation",
    "sql",
    "partition",
    "shuffle",
    "terasort",
    "wire",
    "spark",
    "spark_shuffle",
    "spark_cache",
    "spark_sql",
    "spark_source",
    "dask",
    "dask_kmeans",
)


@dataclass(frozen=True)
class Target:
    """What a figure must reach. operator: "<=" or ">="."""

    operator: str
    limit: float

    def met(self, value: float) -> bool:
        return value <= self.limit if self.operator == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.operator} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One figure.

    value: the median of the samples; spread: their min, p90 and max; met: None where there is no target.
    baseline: what it is compared with, measured in the same run. emulated: which device is played by something else.
    status: "measured", "skipped" or "failed"; note: the reason, or what a reader must know.
    """

    bench: str
    figure: str
    value: float | None
    unit: str
    spread: dict[str, float] | None
    target: str
    met: bool | None
    baseline: str
    samples: int
    emulated: str = ""
    note: str = ""
    status: str = "measured"


def at_most(limit: float) -> Target:
    """A target that a figure must not exceed."""
    return Target("<=", limit)


def at_least(limit: float) -> Target:
    """A target that a figure must not fall below."""
    return Target(">=", limit)


@dataclass
class Bench:
    """One benchmark being run. smoke: only show that it works, in seconds."""

    name: str
    smoke: bool
    parameters: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def parameter(self, name: str, smoke: T, real: T) -> T:
        """The value of a parameter at this size; it goes into the report."""
        self.parameters[name] = value = smoke if self.smoke else real
        return value

    def report(
        self,
        figure: str,
        samples: float | Sequence[float],
        unit: str,
        target: Target | None = None,
        baseline: str = "",
        emulated: str = "",
        note: str = "",
    ) -> None:
        """Report one figure by the samples of it, or by one number."""
        found = sorted(samples) if isinstance(samples, Sequence) else [samples]
        value = statistics.median(found)
        spread = {"min": rounded(found[0]), "p90": rounded(quantile(found, 0.9)), "max": rounded(found[-1])}
        self.rows.append(
            Row(
                self.name,
                figure,
                rounded(value),
                unit,
                spread,
                str(target) if target else "",
                target.met(value) if target else None,
                baseline,
                len(found),
                emulated,
                note,
            )
        )

    def skip(self, figure: str, reason: str, status: str = "skipped") -> None:
        """Report that a figure could not be measured here, and why."""
        self.rows.append(Row(self.name, figure, None, "", None, "", None, "", 0, "", reason, status))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of an ordered sample does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rounded(value: float) -> float:
    """Four digits: more would pretend."""
    return float(f"{value:.4g}")


def in_turns(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Samples of each variant, measured in turns: what disturbs one round disturbs all variants of it."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            samples[name].append(variant())
    return samples


def ratios(above: Iterable[float], below: Iterable[float]) -> list[float]:
    """Pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def seconds(action: Callable[[], Any]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


Function = Callable[[Bench], None]


def function_of(name: str) -> Function:
    """The benchmark of a name: ``run`` of the module of that name."""
    found: Function = importlib.import_module(f"bench.{name}").run
    return found


def question_of(name: str) -> str:
    """What a benchmark asks: the first line of its module, which need not be importable."""
    spec = importlib.util.find_spec(f"bench.{name}")
    assert spec is not None and spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").partition("\n")[0]


def run_one(name: str, smoke: bool) -> dict[str, Any]:
    """Run a benchmark to the end, whatever happens in it; the rows it reported before an error stay."""
    bench = Bench(name, smoke)
    began = time.perf_counter()
    try:
        function_of(name)(bench)
    except Exception as error:
        traceback.print_exc()
        bench.skip(f"{name}: stopped by an error", f"{type(error).__name__}: {error}", "failed")
    return {
        "bench": name,
        "question": question_of(name),
        "command": f"python -m bench {name}" + (" --smoke" if smoke else ""),
        "smoke": smoke,
        "seconds": rounded(time.perf_counter() - began),
        "parameters": bench.parameters,
        "rows": [asdict(row) for row in bench.rows],
    }
