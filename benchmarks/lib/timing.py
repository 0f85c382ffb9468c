"""Wall and processor time of a call, and the summary of several."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


def _processor_seconds() -> float:
    """Time of all threads and finished children of this process, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass
class Timing:
    """Samples in seconds, in the order taken."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def measure(self, function: Callable[[], Any]) -> Any:
        """Call ``function``, add one sample, return its result. Garbage is collected before."""
        gc.collect()
        cpu = _processor_seconds()
        wall = time.perf_counter()
        result = function()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(_processor_seconds() - cpu)
        return result

    def summary(self) -> dict[str, Any]:
        """Samples, medians, and the spread (lowest and highest) of the wall time."""
        return {
            **asdict(self),
            "median_wall_s": statistics.median(self.wall_s),
            "median_cpu_s": statistics.median(self.cpu_s),
            "spread_wall_s": [min(self.wall_s), max(self.wall_s)],
        }
