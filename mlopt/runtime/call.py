"""The context of a call: what an operation can ask about the place where it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from mlopt.runtime.element_types import ElementTypes


@attrs.frozen(eq=False)
class OutputType:
    """The declared type of an output.

    dtype: the element type's name, "" for anything but a tensor; shape: None for an unknown rank;
    it holds None for unknown lengths.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def known_shape(self) -> tuple[int, ...] | None:
        """The shape if the rank and all lengths are known, else None."""
        if self.shape is None or None in self.shape:
            return None
        return tuple(length for length in self.shape if length is not None)


@attrs.frozen(eq=False)
class Call:
    """The context of an operation's call.

    opset: of the function; outputs: the declared type of each; blocks: its nested blocks as
    functions from the values of their inputs to a tuple of results; element_types: the dtypes that
    element types are computed in; generator: random numbers on a device, for a seed given by the
    program (None: the next numbers of the run).
    """

    opset: str
    outputs: tuple[OutputType, ...]
    blocks: tuple[Callable[[tuple[Any, ...]], tuple[Any, ...]], ...]
    element_types: ElementTypes
    generator: Callable[[int | None], torch.Generator]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the first output is computed in."""
        return self.element_types.dtype(self.outputs[0].dtype)
