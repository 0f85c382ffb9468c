"""Weights that are compressed already, and which of them can be palettized as well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from mlopt.coreml.constexpr import is_constexpr
from mlopt.coreml.constexpr.weights import CompressedWeight, ContentKeys, compressed_weights
from mlopt.coreml.weights import NUMPY_NAMES, Weight
from mlopt.mil.bound_values import SMALLEST
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Consumer, Node, Program

SPARSE = "constexpr_sparse_to_dense"

_INTEGERS = frozenset({"int4", "uint4", "int8", "uint8"})
#: The parameter of an operation that a palette can stand for, and the types that it may hold.
_DATA = {
    SPARSE: ("nonzero_data", frozenset({"fp16", "fp32"})),
    "constexpr_blockwise_shift_scale": ("data", _INTEGERS),
    "constexpr_affine_dequantize": ("quantized_data", _INTEGERS),
}


Place = tuple[Any, ...]


@attrs.frozen(eq=False)
class JointWeight:
    """A compressed weight, and everything in the program that is equal to it.

    It is described as the plain weight is: name, shape, type and users are those of the output of
    its last operation.

    can_be_palettized: whether its nonzero values (``constexpr_sparse_to_dense``) or its integers
    (``constexpr_blockwise_shift_scale``, ``constexpr_affine_dequantize``) are a constant that a
    palette can take the place of. That holds for single operations, since a chain of several is
    compressed twice already, and where nothing else reads the constant, for it would have to stay.

    places: where each of the equal weights is. They are the same after raising the program, which
    may rename parameters, and may make weights equal that were not.
    """

    program: Program
    weights: tuple[CompressedWeight, ...]
    places: tuple[Place, ...]
    can_be_palettized: bool

    @property
    def node(self) -> Node:
        """The operation that gives the first of the equal weights."""
        return self.weights[0].node

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operations of all equal weights."""
        return tuple(weight.node for weight in self.weights)

    @property
    def is_sparse(self) -> bool:
        """Whether it is nonzero values that can be palettized, not integers."""
        return self.node.op_type == SPARSE

    @property
    def file_name(self) -> str | None:
        """The weight file that a part of it lies in; None where all is in the message."""
        return self.weights[0].file_name

    @property
    def data(self) -> Constant:
        """The constant that a palette can take the place of, if there is one."""
        constant = self.node.constant_input(_DATA[self.node.op_type][0])
        assert constant is not None
        return constant

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Everything that is stored of it: data, mask, scale, offset."""
        return self.weights[0].constants

    @property
    def name(self) -> str:
        """The name of the plain weight."""
        return self.weights[0].name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all equal weights, each once."""
        return tuple(dict.fromkeys(weight.name for weight in self.weights))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that have it, in program order."""
        return tuple(dict.fromkeys(weight.function for weight in self.weights))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the plain weight."""
        return self.weights[0].shape

    @property
    def dtype(self) -> str:
        """Of the plain weight, by numpy's name."""
        return NUMPY_NAMES.get(self.weights[0].dtype, self.weights[0].dtype)

    @property
    def size(self) -> int:
        """Elements of the plain weight."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored of it."""
        return sum(constant.nbytes for constant in self.constants)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The operations that read it, in all functions."""
        return tuple(user for weight in self.weights for user in weight.consumers)

    @property
    def inline(self) -> bool:
        """No: what is written into its operation is a part of it."""
        return False

    @property
    def is_block_output(self) -> bool:
        """Whether a block returns it."""
        return any(weight.variable.is_block_output for weight in self.weights)

    def value(self) -> Any:
        """The plain weight, computed anew."""
        return self.weights[0].value()

    def release(self) -> None:
        """Drop the pages of what is stored from memory."""
        self.weights[0].release()


def with_joint_weights(
    package: Package, weights: Iterable[Weight], nodes_of_programs: Sequence[Iterable[Node]]
) -> list[Weight | JointWeight]:
    """The weights of a package, compressed ones where their parts stood, in program order.

    Those of which no part is large enough to be a weight by itself come last.
    """
    joints = list(_joint_weights(package, nodes_of_programs))
    joint_of = {
        (id(node.op), parameter): joint
        for joint in joints
        for each in joint.weights
        for node in each.chain
        for parameter in node.inputs
    }
    found: dict[int, Weight | JointWeight] = {}
    for weight in weights:
        places = [(id(user.op), user.parameter) for user in weight.consumers]
        joint = [joint_of[place] for place in places if place in joint_of]
        found |= {id(each): each for each in joint}
        if not joint or len(joint) < len(places) or weight.is_block_output:
            found[id(weight)] = weight
    found |= {id(joint): joint for joint in joints if joint.size >= SMALLEST}
    return list(found.values())


def _joint_weights(
    package: Package, nodes_of_programs: Sequence[Iterable[Node]]
) -> Iterator[JointWeight]:
    """Equal ones as one."""
    for program, nodes in zip(package.programs, nodes_of_programs, strict=True):
        keys = ContentKeys()
        groups: dict[tuple[object, bool], list[tuple[CompressedWeight, Place]]] = {}
        # Blocks of a function may have weights of equal names.
        seen: Counter[Place] = Counter()
        for weight in compressed_weights(nodes):
            named = (id(program), weight.function, weight.name)
            key = keys(weight), _can_be_palettized(weight)
            groups.setdefault(key, []).append((weight, (*named, seen[named])))
            seen[named] += 1
        for (_, can_be_palettized), group in groups.items():
            weights, places = zip(*group, strict=True)
            yield JointWeight(program, weights, places, can_be_palettized)


def _can_be_palettized(weight: CompressedWeight) -> bool:
    node = weight.node
    if len(weight.chain) > 1 or node.op_type not in _DATA:
        return False
    parameter, dtypes = _DATA[node.op_type]
    data = node.constant_input(parameter)
    if data is None or data.dtype not in dtypes:
        return False
    # Another chain may go on from here, and reads what this gives.
    if any(is_constexpr(user.node) for user in weight.variable.consumers):
        return False
    return len(data.consumers) == 1 and not data.is_block_output
