"""Call a function in a fresh interpreter: clean memory counters, and a crash stays contained."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class ChildError(RuntimeError):
    """The function raised, or its process died; the message carries the traceback or the signal."""


def call(target: str, *, limit_s: float | None = None, **arguments: Any) -> Any:
    """Result of ``target`` ("package.module:function") called with JSON-able keyword arguments.

    The child inherits stderr, so its progress lines appear; progress bars are off, for every
    tool alike. Raises ChildError where the function raises, the process ends early or takes more
    than ``limit_s`` seconds (None: it may).
    """
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        answer = Path(folder) / "answer.json"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "benchmarks.lib.child", target]
        try:
            done = subprocess.run(
                [*command, json.dumps(arguments), str(answer)],
                env={**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1"},
                stdout=subprocess.DEVNULL,
                check=False,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            raise ChildError(f"{target}: not done after {limit_s:g} s") from None
        if not answer.exists():
            raise ChildError(f"{target}: the process ended with status {done.returncode}")
        result = json.loads(answer.read_text())
    if "error" in result:
        raise ChildError(result["error"])
    return result["value"]


def _answer(target: str, arguments: str, answer: str) -> None:
    module, _, function = target.partition(":")
    try:
        value = getattr(importlib.import_module(module), function)(**json.loads(arguments))
        result = {"value": value}
    except Exception:
        result = {"error": traceback.format_exc()}
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
