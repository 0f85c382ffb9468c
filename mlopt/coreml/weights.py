"""The stored weights of a model: what a decision is made about.

Several constants may stand for one stored weight: functions of a multifunction model that share a
blob, or one blob that is read under two names. They get one decision and stay shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from mlopt.mil.bound_values import SMALLEST
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Consumer, Node, Program

NUMPY_NAMES = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}


@attrs.frozen(eq=False)
class Weight:
    """One stored weight and the constants (at least one) that refer to it."""

    program: Program
    constants: tuple[Constant, ...]

    @property
    def name(self) -> str:
        """The name of the first constant."""
        return self.constants[0].name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The const operations of its constants; for an inline one the operation that has it."""
        return tuple(constant.node for constant in self.constants)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its constants, each once, in program order."""
        return tuple(dict.fromkeys(constant.name for constant in self.constants))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that have it, in program order."""
        return tuple(dict.fromkeys(constant.function for constant in self.constants))

    @property
    def place(self) -> tuple[Any, ...]:
        """Where its first constant is. Blocks of a function may have constants of equal names."""
        first = self.constants[0]
        return id(self.program), first.function, first.name, first.parameter, first.index

    @property
    def file_name(self) -> str | None:
        """The weight file that it lies in; None where it is in the message."""
        storage = self.constants[0].storage
        return storage[0] if storage is not None else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.constants[0].shape

    @property
    def dtype(self) -> str:
        """Its element type by numpy's name, such as "float16"."""
        return NUMPY_NAMES.get(self.constants[0].dtype, self.constants[0].dtype)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.constants[0].size

    @property
    def nbytes(self) -> int:
        """Bytes of its elements as stored."""
        return self.constants[0].nbytes

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The operations that read it, in all functions."""
        return tuple(user for constant in self.constants for user in constant.consumers)

    @property
    def is_block_output(self) -> bool:
        """Whether a block returns it as it is."""
        return any(constant.is_block_output for constant in self.constants)

    @property
    def inline(self) -> bool:
        """Whether it is written into an operation that is no const and cannot be named there."""
        return self.constants[0].inline

    def value(self) -> Any:
        """Its elements, read-only: a view of the mapped file where it lies in one."""
        return self.constants[0].value()

    def release(self) -> None:
        """Drop its pages from memory; they are read again when needed."""
        self.constants[0].release()


def weights_of(package: Package) -> tuple[list[Weight], list[list[Node]]]:
    """All stored weights of a package in program order, and the nodes of each program."""
    weights: list[Weight] = []
    nodes_of_programs: list[list[Node]] = []
    for program in package.programs:
        nodes = program.nodes()
        nodes_of_programs.append(nodes)
        groups: dict[object, list[Constant]] = {}
        for constant in program.constants(nodes):
            if constant.size < SMALLEST or constant.dtype == "string":
                continue
            key = constant.storage or id(constant)
            groups.setdefault((key, constant.shape, constant.inline), []).append(constant)
        weights.extend(Weight(program, tuple(group)) for group in groups.values())
    return weights, nodes_of_programs


_WEIGHTED = frozenset(
    {"conv", "conv_transpose", "linear", "matmul", "einsum", "gather", "lstm", "gru", "rnn"}
)


def is_mask(weight: Weight, value: np.ndarray[Any, Any]) -> bool:
    """Whether a weight looks like an attention mask, which has to keep its exact values.

    No weighted operation reads it, and it holds nothing but zeros and one other value, which is 1
    (a multiplicative mask) or -1000 and less (an additive one).
    """
    if any(consumer.op_type in _WEIGHTED for consumer in weight.consumers):
        return False
    flat = value.reshape(-1)
    other, has_zeros = 0.0, False
    for first in range(0, flat.size, 1 << 16):
        part = flat[first : first + (1 << 16)].astype(np.float64)
        lowest, highest = float(part.min()), float(part.max())
        extreme = lowest if lowest else highest
        if extreme and not other:
            other = extreme
        if not np.isin(part, (0.0, other)).all():
            return False
        # A part may hold the other value alone.
        has_zeros |= not (lowest and highest)
    return has_zeros and (other == 1.0 or other <= -1000.0)


def shown_consumers(consumers: Sequence[Consumer]) -> tuple[str, ...]:
    """Each operation once, as ``"type(name)"``."""
    return tuple(dict.fromkeys(f"{user.op_type}({user.op_name})" for user in consumers))
