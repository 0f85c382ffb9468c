"""What an operation may ask about the place where it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from mlopt.runtime.element_types import ElementTypes


@attrs.frozen(eq=False)
class OutputType:
    """What a program declares of an output.

    dtype: the element type's name, "" for what is no tensor; shape: None for an unknown length, or
    altogether for an unknown rank.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def known_shape(self) -> tuple[int, ...] | None:
        """The shape where the rank and all lengths are known, else None."""
        if self.shape is None or None in self.shape:
            return None
        return tuple(length for length in self.shape if length is not None)


@attrs.frozen(eq=False)
class Call:
    """How an operation is called.

    opset: of the function; outputs: what the program declares of each; blocks: its nested blocks as
    functions from the values of their inputs to a tuple of results; element_types: in which dtypes
    element types are computed; generator: random numbers on a device, for a seed of the program's
    own (None: the next ones of the run's).
    """

    opset: str
    outputs: tuple[OutputType, ...]
    blocks: tuple[Callable[[tuple[Any, ...]], tuple[Any, ...]], ...]
    element_types: ElementTypes
    generator: Callable[[int | None], torch.Generator]

    @property
    def dtype(self) -> torch.dtype:
        """In what the first output is computed."""
        return self.element_types.dtype(self.outputs[0].dtype)
