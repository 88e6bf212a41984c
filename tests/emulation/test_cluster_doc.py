"""The example of docs/CLUSTER_SIMULATION.md prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOC = Path(__file__).resolve().parents[2] / "docs" / "CLUSTER_SIMULATION.md"


def test_the_example_prints_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(DOC), "exec"), {})
    assert capsys.readouterr().out.rstrip() == printed.rstrip()
