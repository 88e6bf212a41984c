"""A process of a benchmark: ``python -m bench.worker MODULE.CLASS`` obeys commands on standard input.

One JSON object a line: {"command": method, "arguments": {...}} in, {"result": ...} or {"error": text} out. The end of
standard input is the end of the process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback


def main() -> None:
    """Build the class that the argument names, and call its methods until standard input ends."""
    module, _, name = sys.argv[1].rpartition(".")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    worker = getattr(importlib.import_module(f"bench.{module}"), name)()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(worker, request["command"])(**request["arguments"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
