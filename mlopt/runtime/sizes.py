"""Size limit of a tensor: a part of the machine's memory."""

from __future__ import annotations

import os
from functools import lru_cache

_BYTES = 4
"""The least bytes of an element, in nearly all tensors."""
_PARTS = 4
"""Parts of memory, one of which a tensor may take: results computed from it need room too."""


def check_elements(count: int) -> None:
    """Raise ValueError for a tensor of more elements than memory can hold."""
    most = _memory() // _PARTS // _BYTES
    if count > most:
        raise ValueError(
            f"a tensor of {count} elements is more than this machine's memory allows for one "
            f"({most}: a quarter of it)"
        )


@lru_cache(maxsize=1)
def _memory() -> int:
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return 1 << 36
