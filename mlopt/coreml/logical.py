"""The weights of a model as its operations see them: stored as they are, or compressed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.constexpr import (
    CompressedForm,
    CompressedWeight,
    ContentKeys,
    compressed_weights,
    describe,
    is_constexpr,
    is_part,
    unpacked,
)
from mlopt.coreml.weights import NUMPY_NAMES, Weight, weights_of
from mlopt.mil.bound_values import SMALLEST
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Consumer, Node


@attrs.frozen(eq=False)
class LogicalWeight:
    """One weight, under all the names and in all the functions that have it.

    plain, compressed: what there is of it in the program, one of the two empty; compression: how it
    is compressed, None for a plain one.
    """

    plain: tuple[Constant, ...]
    compressed: tuple[CompressedWeight, ...]
    compression: CompressedForm | None

    @property
    def parts(self) -> list[Constant | CompressedWeight]:
        """What there is of it in the program; at least one."""
        return [*self.plain, *self.compressed]

    @property
    def first(self) -> Constant | CompressedWeight:
        """The one that gives it its name."""
        return self.parts[0]

    @property
    def name(self) -> str:
        """The name of the plain weight."""
        return self.first.name

    @property
    def names(self) -> tuple[str, ...]:
        """All its names, each once, in program order."""
        return tuple(dict.fromkeys(item.name for item in self.parts))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that have it, in program order."""
        return tuple(dict.fromkeys(item.function for item in self.parts))

    @property
    def node(self) -> Node:
        """The operation that gives it, or into which it is written."""
        return self.first.node

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain weight."""
        return self.first.shape

    @property
    def dtype(self) -> str:
        """Element type of the plain weight by numpy's name, such as "float16"."""
        return NUMPY_NAMES.get(self.first.dtype, self.first.dtype)

    @property
    def size(self) -> int:
        """Elements of the plain weight."""
        return math.prod(self.shape)

    @property
    def stored(self) -> tuple[Constant, ...]:
        """Everything that is stored of it."""
        return self.plain[:1] or self.compressed[0].constants

    @property
    def nbytes(self) -> int:
        """Bytes of all that."""
        return sum(constant.nbytes for constant in self.stored)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The ordinary operations that read it."""
        return tuple(
            user for item in self.parts for user in item.consumers if not is_constexpr(user.node)
        )

    def value(self) -> npt.NDArray[np.generic]:
        """The plain weight; elements narrower than a byte take one each."""
        return self.compressed[0].value() if self.compressed else unpacked(self.plain[0])

    def release(self) -> None:
        """Drop the pages of what is stored from memory."""
        for constant in self.stored:
            constant.release()


def logical_weights(package: Package) -> list[LogicalWeight]:
    """The weights of at least ``SMALLEST`` elements, in program order.

    Raises
    ------
    ModelFormatError
        A compressed weight violates the definition of its operations.
    """
    plain, nodes_of_programs = weights_of(package)
    found = [weight for item in plain if (weight := _plain(item)) is not None]
    contents = ContentKeys()
    for nodes in nodes_of_programs:
        groups: dict[object, list[CompressedWeight]] = {}
        for compressed in compressed_weights(nodes):
            if math.prod(compressed.shape) >= SMALLEST:
                groups.setdefault(contents(compressed), []).append(compressed)
        found += [LogicalWeight((), tuple(g), describe(g[0])) for g in groups.values()]
    places = {
        id(node): place
        for place, node in enumerate(node for nodes in nodes_of_programs for node in nodes)
    }
    return sorted(found, key=lambda weight: places[id(weight.node)])


def bytes_once(weights: Iterable[LogicalWeight]) -> int:
    """Bytes of everything that the weights store; a blob that several of them use counts once."""
    stored = {}
    for weight in weights:
        for constant in weight.stored:
            stored[constant.storage or id(constant.message)] = constant.nbytes
    return sum(stored.values())


def _plain(weight: Weight) -> LogicalWeight | None:
    """A stored weight without what only serves compressed ones; None if nothing is left."""
    constants = tuple(constant for constant in weight.constants if not is_part(constant))
    return LogicalWeight(constants, (), None) if constants else None
