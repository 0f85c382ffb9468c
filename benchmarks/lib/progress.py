"""Progress lines, on stderr so that stdout holds nothing but the result."""

from __future__ import annotations

import os
import sys
import time

_VARIABLE = "MLOPT_BENCH_STARTED"  # inherited by child processes, so that one clock serves all
_STARTED = float(os.environ.setdefault(_VARIABLE, repr(time.time())))


def say(message: str) -> None:
    """Print ``message`` after the seconds since the benchmark started."""
    print(f"[{time.time() - _STARTED:6.1f} s] {message}", file=sys.stderr, flush=True)
