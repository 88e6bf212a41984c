"""`tierstore demo`: options in, table out, exit code 0 if every placement computed the same centroids."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

from .config import parse_size
from .demo import DemoOptions, run_demo


def run(options: dict[str, Any], as_json: bool) -> int:
    """Run the demo with the command line's options. Progress goes to standard error."""
    chosen: dict[str, Any] = {"inputs": tuple(options["inputs"]), "quick": bool(options["quick"])}
    if options["columns"]:
        chosen["columns"] = tuple(options["columns"].split(","))
    if options["size"]:
        chosen["size_bytes"] = parse_size(options["size"], "size")
    if options["dram"]:
        chosen["dram_bytes"] = parse_size(options["dram"], "dram")
    if options["iterations"]:
        chosen["iterations"] = options["iterations"]
    report = run_demo(DemoOptions(**chosen), Console(stderr=True))
    if as_json:
        text = report.to_json()
        print(text if isinstance(text, str) else json.dumps(text, indent=2))
    else:
        report.show(Console(width=None if sys.stdout.isatty() else 140))
    return 0 if report.agrees else 1
