"""Each benchmark at smoke size: it runs to its end and reports rows with values. Targets are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
)
# Applications of Spark, of which `spark` starts one as well.
SLOWEST = dict.fromkeys(("spark_shuffle", "spark_cache", "spark_sql", "spark_source"), pytest.mark.soak)
TIMEOUT_S = 180


def run(module: str, *arguments: str) -> str:
    """Output of a command of the bench package, whatever is on this process's path."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{module} {arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOWEST.get(name, ())) for name in NAMES])
def test_runs_at_smoke_size(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    report = json.loads(run("bench", name, "--smoke", "--json", "--out", str(out)))
    assert json.loads(out.read_text()) == report
    (found,) = report["benches"]
    assert found["bench"] == name and found["question"].endswith("?") and found["parameters"]
    rows = found["rows"]
    assert rows, "no rows"
    for row in rows:
        if row["status"] == "skipped":
            assert row["note"] and row["value"] is None
            continue
        assert row["status"] == "measured" and isinstance(row["value"], float | int)
        assert row["spread"]["min"] <= row["value"] <= row["spread"]["max"] and row["samples"] > 0
        assert (row["met"] is None) == (row["target"] == "")
    assert {"cpu", "kernel", "commit", "date"} <= set(report["environment"])


@pytest.mark.slow
def test_report_fills_the_document(tmp_path: Path) -> None:
    row = {
        "bench": "get",
        "figure": "look-up",
        "value": 1234.0,
        "unit": "ns",
        "spread": {"min": 1, "p90": 2, "max": 3},
        "target": "<= 250",
        "met": False,
        "baseline": "a | b",
        "samples": 3,
        "emulated": "",
        "note": "",
        "status": "measured",
    }
    skipped = row | {"figure": "other", "value": None, "spread": None, "status": "skipped", "note": "not here"}
    found = {
        "bench": "get",
        "question": "How?",
        "command": "python -m bench get",
        "smoke": False,
        "seconds": 1.0,
        "parameters": {"rounds": 2},
        "rows": [row, skipped],
    }
    results, document = tmp_path / "results.json", tmp_path / "BENCHMARKS.md"
    results.write_text(json.dumps({"environment": {"cpu": "x", "packages": {"numpy": "2"}}, "benches": [found]}))
    document.write_text("# Title\n\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nafter\n")
    run("bench.report", str(results), "--into", str(document))
    text = document.read_text()
    assert text.startswith("# Title\n") and text.endswith("after\n") and "old" not in text
    assert "| look-up | 1,234 | ns | 1 | 2 | 3 | 3 | <= 250 | **no** | a \\| b |" in text
    assert "| other | skipped |" in text and "not here" in text and "`python -m bench get`" in text


@pytest.mark.slow
def test_document_has_the_marks_and_every_benchmark() -> None:
    text = (ROOT / "docs" / "BENCHMARKS.md").read_text()
    assert text.index("<!-- figures: begin -->") < text.index("<!-- figures: end -->")
    assert all(f"python -m bench {name}" in text for name in NAMES)


@pytest.mark.slow
def test_unknown_name_is_refused() -> None:
    with pytest.raises(AssertionError, match="no benchmark nothing"):
        run("bench", "nothing")
