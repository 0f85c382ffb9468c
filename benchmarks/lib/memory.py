"""Peak resident memory of this process, from a moment on.

On Linux the kernel's own high-water mark of the process (``VmHWM``), which can be set back to
the present; ``ru_maxrss`` would also count the memory of the parent at the moment of the fork.
Elsewhere ``ru_maxrss``.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _max_rss_bytes(who: int) -> int:
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Peak memory above what is resident at construction.

    Mapped files count while they are resident, as in ``ru_maxrss``; processes started from this
    one do not (their largest peak is ``children_bytes``).
    """

    def __init__(self) -> None:
        self.start_bytes = self._peak_bytes()
        if _STATUS.exists():
            with contextlib.suppress(OSError):  # not permitted: the peak of the imports stays in
                Path("/proc/self/clear_refs").write_text("5")
            self.start_bytes = _status_bytes("VmRSS")

    @staticmethod
    def _peak_bytes() -> int:
        if _STATUS.exists():
            return _status_bytes("VmHWM")
        return _max_rss_bytes(resource.RUSAGE_SELF)

    def above_start_bytes(self) -> int:
        """Peak since construction minus what was resident then, in bytes."""
        return max(0, self._peak_bytes() - self.start_bytes)

    @staticmethod
    def children_bytes() -> int:
        """The largest peak of any finished child process, in bytes."""
        return _max_rss_bytes(resource.RUSAGE_CHILDREN)
