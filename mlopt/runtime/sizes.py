"""How large a tensor may be: a part of the memory of the machine."""

from __future__ import annotations

import os
from functools import lru_cache

_BYTES = 4
"""That an element takes at least, in nearly all tensors."""
_PARTS = 4
"""Of memory, one of which a tensor may take: what is computed of it needs room as well."""


def check_elements(count: int) -> None:
    """Refuse a tensor of so many elements, with a ValueError, that memory could not hold it."""
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
