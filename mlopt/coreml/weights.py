"""Weights of a model, plain and compressed: one definition for every command.

A *weight* is a constant, or the output of a chain of ``constexpr`` operations, that ordinary
operations read, a block returns, or nothing reads. Several constants or chains may be instances of
one weight: functions of a multifunction model that share blobs, or one blob that is read under two
names. They get one decision and one row, and stay shared.

A constant that only ``constexpr`` operations read is *part* of a compressed weight, and is not a
weight. A constant that ordinary operations read too is both: it is listed as a weight with its
ordinary readers, so that no bytes and no readers are missing; and it is a part of other weights,
so that no command changes it or recommends a change.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.constexpr.chains import (
    chain_of,
    content_of_constant,
    content_of_output,
    stored_constants,
)
from mlopt.coreml.constexpr.description import CompressedForm, describe
from mlopt.coreml.constexpr.evaluation import value_of
from mlopt.coreml.constexpr.parameters import is_constexpr, unpacked
from mlopt.mil.bound_values import SMALLEST
from mlopt.mil.dtypes import DType, dtype_named
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Consumer, Node, Program, Variable
from mlopt.mil.values import tensor_type_of

Instance: TypeAlias = Constant | Variable
"""An input of operations: a constant, or an output of a constexpr operation."""


@attrs.frozen(eq=False)
class Weight:
    """One weight of a program, under all its names and in all functions that use it.

    Attributes
    ----------
    program
        The program of the weight.
    instances
        The inputs that operations read, in program order; at least one, all of equal content.
    content
        Equal for weights of one package that have the same content, also in different programs.
    chain
        The constexpr operations that give the first instance, each after those that it reads; empty
        for a plain weight.
    is_part
        Whether constexpr operations read it too, which makes it a part of compressed weights.
    """

    program: Program
    instances: tuple[Instance, ...]
    content: Hashable
    chain: tuple[Node, ...] = ()
    is_part: bool = False

    @property
    def is_compressed(self) -> bool:
        """Whether constexpr operations compute it."""
        return bool(self.chain)

    @property
    def name(self) -> str:
        """The name of the plain weight: that of its first instance."""
        return name_of(self.instances[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all instances, each once, in program order."""
        return tuple(dict.fromkeys(map(name_of, self.instances)))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operations that define the instances; of an inline one, the operation with it."""
        return tuple(map(node_of, self.instances))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that use it, in program order."""
        return tuple(dict.fromkeys(node.function for node in self.nodes))

    @cached_property
    def _type(self) -> tuple[DType | None, tuple[int, ...]]:
        first = self.instances[0]
        if isinstance(first, Constant):
            return dtype_named(first.dtype), first.shape
        return tensor_type_of(first.type) or (None, ())

    @property
    def element_type(self) -> str:
        """Element type of the plain weight by the format's name, such as "fp16".

        "unknown" where the model declares no tensor of known shape.
        """
        dtype, _ = self._type
        return "unknown" if dtype is None else dtype.name

    @property
    def dtype(self) -> str:
        """Element type of the plain weight by numpy's name, such as "float16"."""
        dtype, _ = self._type
        return "unknown" if dtype is None else dtype.numpy_name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain weight."""
        return self._type[1]

    @property
    def size(self) -> int:
        """Elements of the plain weight."""
        return math.prod(self.shape)

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain weight."""
        dtype, _ = self._type
        return 0 if dtype is None else dtype.nbytes(self.size)

    @cached_property
    def stored(self) -> tuple[Constant, ...]:
        """All constants that are stored for it, each blob once."""
        first = self.instances[0]
        return (first,) if isinstance(first, Constant) else stored_constants(self.chain)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored for it."""
        return sum(constant.nbytes for constant in self.stored)

    @property
    def file_name(self) -> str | None:
        """The weight file of it, or of a part of it; None where all values are in the message."""
        return next((c.storage[0] for c in self.stored if c.storage is not None), None)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The ordinary operations that read it, in all functions."""
        return tuple(use for each in self.instances for use in ordinary_consumers(each))

    @property
    def is_block_output(self) -> bool:
        """Whether a block returns it as it is."""
        return any(each.is_block_output for each in self.instances)

    @property
    def inline(self) -> bool:
        """Whether an operation other than a const holds it as a value, so that it has no name."""
        first = self.instances[0]
        return isinstance(first, Constant) and first.inline

    @cached_property
    def compression(self) -> CompressedForm | None:
        """How it is compressed; None for a plain weight.

        Raises
        ------
        ModelFormatError
            One of its operations violates its definition.
        """
        return describe(self.chain, self.size, self.nbytes) if self.chain else None

    def value(self) -> npt.NDArray[Any]:
        """Return the plain weight, read-only; elements narrower than a byte take one byte each.

        The array is a view of the mapped weight file where the values are stored in one unchanged.

        Raises
        ------
        ModelFormatError
            The stored values are damaged.
        """
        first = self.instances[0]
        return unpacked(first) if isinstance(first, Constant) else value_of(first)

    def release(self) -> None:
        """Drop the pages of its stored values from memory; they are read again when needed."""
        for constant in self.stored:
            constant.release()


def weights_of(
    package: Package, *, smallest: int = SMALLEST
) -> tuple[list[Weight], list[list[Node]]]:
    """Return the weights of a package in program order, and the nodes of each program.

    Parameters
    ----------
    smallest
        Smallest number of elements of a listed weight. Strings are not weights.

    Raises
    ------
    ModelFormatError
        A chain of constexpr operations is too long.
    """
    nodes_of_programs = [program.nodes() for program in package.programs]
    weights = [
        weight
        for program, nodes in zip(package.programs, nodes_of_programs, strict=True)
        for weight in _weights_of_program(program, nodes, smallest)
    ]
    return weights, nodes_of_programs


_Key: TypeAlias = tuple[Hashable, ...]
"""Key that is equal for instances of one weight; the first element is their content."""


def _weights_of_program(program: Program, nodes: list[Node], smallest: int) -> Iterator[Weight]:
    groups: dict[_Key, list[Instance]] = {}
    chains: dict[_Key, tuple[Node, ...]] = {}
    parts: set[_Key] = set()
    for node in nodes:
        outputs = _compressed_outputs(node) if is_constexpr(node) else []
        if outputs:
            chain = tuple(chain_of(node))
            for output in outputs:
                key: _Key = (content_of_output(output, chain),)
                groups.setdefault(key, []).append(output)
                chains.setdefault(key, chain)
        for constant in program.constants([node]):
            if constant.size < smallest or constant.numpy_dtype is None:
                continue
            # A value in the message is stored once for each constant.
            stored = None if constant.storage is not None else id(constant)
            key = (content_of_constant(constant), constant.inline, stored)
            if any(is_constexpr(use.node) for use in constant.consumers):
                parts.add(key)
            if not is_part(constant):
                groups.setdefault(key, []).append(constant)
    for key, instances in groups.items():
        weight = Weight(program, tuple(instances), key[0], chains.get(key, ()), key in parts)
        if weight.size >= smallest:
            yield weight


def _compressed_outputs(node: Node) -> list[Variable]:
    """Return the outputs of a constexpr operation that are weights.

    An output that only further constexpr operations read is a part of their weight. If nothing
    reads any output, all of them count.
    """
    if not any(output.consumers for output in node.outputs):
        return node.outputs
    return [each for each in node.outputs if each.is_block_output or ordinary_consumers(each)]


def is_part(constant: Constant) -> bool:
    """Whether only constexpr operations read a constant."""
    return (
        bool(constant.consumers)
        and not ordinary_consumers(constant)
        and not constant.is_block_output
    )


def ordinary_consumers(instance: Instance) -> list[Consumer]:
    """Return the uses of an instance by operations other than constexpr ones."""
    return [use for use in instance.consumers if not is_constexpr(use.node)]


def name_of(instance: Instance) -> str:
    """Return a constant's name, or an output's: that of its operation, if it is the only output."""
    if isinstance(instance, Constant):
        return instance.name
    node = node_of(instance)
    return node.name if len(node.outputs) == 1 else instance.name


def node_of(instance: Instance) -> Node:
    """Return the operation that defines it; of an inline constant, the one that holds it."""
    assert instance.node is not None
    return instance.node


def bytes_once(weights: Iterable[Weight]) -> int:
    """Return the bytes of everything stored for the weights; a shared blob counts once."""
    stored = {}
    for weight in weights:
        for constant in weight.stored:
            stored[constant.storage or id(constant.message)] = constant.nbytes
    return sum(stored.values())


_WEIGHTED = frozenset(
    {"conv", "conv_transpose", "linear", "matmul", "einsum", "gather", "lstm", "gru", "rnn"}
)


def is_mask(weight: Weight, value: np.ndarray[Any, Any]) -> bool:
    """Whether a weight looks like an attention mask, which must keep its exact values.

    No weighted operation reads it, and it holds only zeros and one other value, which is 1 (a
    multiplicative mask) or at most -1000 (an additive one).
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
        # A part may hold only the other value.
        has_zeros |= not (lowest and highest)
    return has_zeros and (other == 1.0 or other <= -1000.0)


def shown_consumers(consumers: Sequence[Consumer]) -> tuple[str, ...]:
    """Return each operation once, as ``"type(name)"``."""
    return tuple(dict.fromkeys(f"{user.op_type}({user.op_name})" for user in consumers))
