"""Inputs of modules that are the very same tensor, in one call of a model."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

from torch import Tensor


class SameInputs:
    """Numbers for tensors: equal if they are views of the same elements, unchanged in between.

    Memory may be used again once a tensor is gone, so that only tensors count whose Python object
    is still there; it is not kept.
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, tuple[weakref.ref[Tensor], int]] = {}
        self.count = 0

    def number(self, x: object) -> int | None:
        """Return the number of a tensor; None for anything that cannot be told apart."""
        if not isinstance(x, Tensor) or x.is_inference() or not x.numel():
            return None
        place = _place(x)
        if place is None:
            return None
        entry = self.known.get(place)
        earlier = None if entry is None else entry[0]()
        if entry is not None and earlier is not None and _place(earlier) == place:
            return entry[1]
        self.count += 1
        self.known[place] = (weakref.ref(x), self.count)
        return self.count


def _place(x: Tensor) -> Hashable:
    """Return where the elements of a tensor are and how often they changed; None if nowhere."""
    try:
        start = x.data_ptr()
        if not start:
            return None
        return (start, x.dtype, x.device, tuple(x.shape), x.stride(), x._version)
    except RuntimeError:
        return None  # as sparse tensors, and those of transformations
