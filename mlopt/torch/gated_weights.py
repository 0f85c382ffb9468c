"""Constants of a converted program that are gates of a model's weights.

They are recognized by their values: a constant belongs to a weight where all its numbers are those
of the weight's rows, rounded to the constant's type. Then the palette for these rows can replace
it, wherever it came from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mlopt.mil.dtypes import dtype_named
from mlopt.mil.program import Constant, Node, Program
from mlopt.torch.gates import ARRANGEMENTS, rows_of

_READERS = frozenset({"linear", "lstm"})
_DTYPES = (dtype_named("fp16"), dtype_named("fp32"))


class GatedConstants:
    """The constants of a program that can be gates of weights; each is matched once."""

    def __init__(self, program: Program) -> None:
        self._found: dict[tuple[str, tuple[int, ...]], list[Constant]] = {}
        for constant in program.constants():
            if _is_weight(constant):
                self._found.setdefault((constant.dtype, constant.shape), []).append(constant)

    def take(self, weight: torch.Tensor, gates: int) -> Iterator[tuple[int, str, list[Node]]]:
        """Yield the const operations that hold gates of a weight.

        Parameters
        ----------
        weight
            float32, of rank 2; its rows are those of ``gates`` gates.

        Yields
        ------
        The number of the arrangement that they hold (first the weight as it is, for another module
        that shares it, then those in ``ARRANGEMENTS[gates]``), the numpy name of their type, and
        the operations.
        """
        dense = weight.detach().cpu().numpy()
        for number, order in enumerate((tuple(range(gates)), *ARRANGEMENTS[gates])):
            rows = dense[rows_of(order, gates, len(dense))]
            for dtype in _DTYPES:
                candidates = self._found.get((dtype.name, rows.shape), [])
                with np.errstate(over="ignore"):
                    expected = rows.astype(dtype.numpy) if candidates else rows
                equal = [c for c in candidates if np.array_equal(c.value(), expected)]
                for constant in equal:
                    candidates.remove(constant)
                if equal:
                    yield number, dtype.numpy_name, [constant.node for constant in equal]


def _is_weight(constant: Constant) -> bool:
    """Whether a constant is read only by operations that accept compressed weights."""
    if constant.inline or constant.is_block_output:
        return False
    return all(
        consumer.op_type in _READERS and consumer.parameter.startswith("weight")
        for consumer in constant.consumers
    )
