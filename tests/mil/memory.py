"""How much memory a piece of code takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

_PROGRAM = """
import sys
def peak():
    try:
        # Not what getrusage says: a process inherits that from the one that started it.
        with open("/proc/self/status") as status:
            return int(status.read().split("VmHWM:")[1].split()[0]) << 10
    except OSError:
        import resource
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
{imports}
start = peak()
{code}
print(peak() - start)
"""


def peak_memory(imports: str, code: str, *arguments: Any) -> int:
    """Return the bytes that ``code`` takes above ``imports``, at its peak.

    ``arguments`` are its ``sys.argv[1:]``.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(imports=imports, code=code), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return int(done.stdout)
