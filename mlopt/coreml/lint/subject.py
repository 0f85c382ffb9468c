"""The model that the rules look at: its operations, compressed weights and plain weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs

from mlopt.coreml.constexpr.chains import chain_of
from mlopt.coreml.lint.findings import Place
from mlopt.coreml.models import TargetName
from mlopt.coreml.weights import Weight, shown_consumers, weights_of
from mlopt.errors import ModelFormatError
from mlopt.mil.bound_values import SMALLEST
from mlopt.mil.dtypes import DType, dtype_named
from mlopt.mil.messages import ValueType
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Node, Program, Variable, operation_name
from mlopt.mil.targets import Target
from mlopt.mil.values import tensor_type_of
from mlopt.mil.walk import Placed

LUT_TO_DENSE = "constexpr_lut_to_dense"
LUT_TO_SPARSE = "constexpr_lut_to_sparse"
SHIFT_SCALE = "constexpr_blockwise_shift_scale"


@attrs.frozen(eq=False)
class Palette:
    """The indices and tables of one operation.

    Parameters
    ----------
    node
        ``constexpr_lut_to_dense`` or ``constexpr_lut_to_sparse``.
    indices
        The stored indices; of the older form flat and packed into uint8.
    index_shape
        Shape of the indices, unpacked; of a sparse weight, whose indices are flat, of their mask.
    lut
        The stored tables, None where another operation computes them.
    lut_dtype, lut_shape
        Of the tables: ``[*groups, entries, cluster_dim]``, of the older form ``[entries]``.
    is_old_form
        Whether it is the form of iOS16 and iOS17: one table, indices without a type of their own.
    """

    node: Node
    indices: Constant
    index_shape: tuple[int, ...]
    lut: Constant | None
    lut_dtype: DType
    lut_shape: tuple[int, ...]
    is_old_form: bool

    @property
    def entries(self) -> int:
        """Entries of a table."""
        if self.is_old_form:
            return math.prod(self.lut_shape)
        return self.lut_shape[-2] if len(self.lut_shape) > 1 else 0

    @property
    def nbits(self) -> int:
        """Bits of an index; 0 where the indices have no unsigned type."""
        if self.is_old_form:
            return max(self.entries - 1, 0).bit_length()
        kind = self.indices.dtype
        return dtype_named(kind).bits if kind.startswith("uint") else 0

    @property
    def cluster_dim(self) -> int:
        """Weights that an index stands for."""
        return 1 if self.is_old_form or not self.lut_shape else self.lut_shape[-1]

    @property
    def groups(self) -> tuple[int, ...]:
        """Tables along each axis of the indices."""
        return (1,) * len(self.index_shape) if self.is_old_form else self.lut_shape[:-2]

    @property
    def tables(self) -> int:
        """Number of tables."""
        return math.prod(self.groups)

    @property
    def description(self) -> str:
        """What it is in a few words: ``"4-bit indices, 8 tables of fp16 vectors of 2"``."""
        tables = "a table" if self.tables == 1 else f"{self.tables} tables"
        vectors = "" if self.cluster_dim == 1 else f" vectors of {self.cluster_dim}"
        return f"{self.nbits}-bit indices, {tables} of {self.lut_dtype.name}{vectors}"

    @property
    def has_integer_table(self) -> bool:
        """Whether the tables hold integers, scaled or not."""
        dtype = self.lut_dtype
        if self.lut is None:
            maker = _input_variable(self.node, "lut").node
            if maker is not None and maker.op_type == SHIFT_SCALE:
                dtype, _ = type_of_input(maker, "data")
        return dtype.name in ("int4", "uint4", "int8", "uint8")


@attrs.frozen(eq=False)
class Subject:
    """A model as the rules see it.

    Parameters
    ----------
    package
        The opened package.
    target
        The oldest system that is to run it.
    model_target
        The target that it has: the newest one of its parts.
    nodes
        The operations of each program, in the order of ``package.programs``.
    compressed
        The compressed weights of any size, in program order.
    plain
        The plain weights in program order.
    """

    package: Package
    target: Target
    model_target: Target
    nodes: tuple[list[Node], ...]
    compressed: tuple[Weight, ...]
    plain: tuple[Weight, ...]

    @classmethod
    def of(cls, package: Package, target: TargetName | None) -> Subject:
        """Look at a package; `target` None stands for the model's own.

        Raises
        ------
        TargetError
            The target is unknown, or the model's own is.
        ModelFormatError
            A chain of constexpr operations is too long.
        """
        versions = [
            model.specificationVersion
            for program in package.programs
            for model in (program.model, *program.enclosing)
        ]
        own = Target.of_specification(max(versions))
        weights, nodes = weights_of(package, smallest=0)
        return cls(
            package=package,
            target=own if target is None else Target.parse(target),
            model_target=own,
            nodes=tuple(nodes),
            compressed=tuple(weight for weight in weights if weight.is_compressed),
            plain=tuple(
                weight for weight in weights if not weight.chain and weight.size >= SMALLEST
            ),
        )


def place_of_weight(weight: Weight) -> Place:
    """Where a weight is."""
    names = {weight.name, *(user.op_name for user in weight.consumers)}
    if weight.is_compressed:
        names |= {link.name for node in weight.nodes for link in chain_of(node)}
    return Place(
        model=weight.program.label,
        functions=weight.functions,
        operations=shown_consumers(weight.consumers),
        weight=weight.name,
        names=frozenset(names),
    )


def place_of_node(program: Program, node: Node) -> Place:
    """Where an operation is."""
    return Place(
        model=program.label,
        functions=(node.function,),
        operations=(f"{node.op_type}({node.name})",),
        names=frozenset({node.name}),
    )


def place_of_value(program: Program, placed: Placed) -> Place:
    """Where a value is, in an operation or outside of one."""
    name = "" if placed.op is None else operation_name(placed.op)
    return Place(
        model=program.label,
        functions=() if placed.function is None else (placed.function,),
        operations=() if placed.op is None else (f"{placed.op.type}({name})",),
        names=frozenset({name} - {""}),
    )


def type_of_input(node: Node, parameter: str) -> tuple[DType, tuple[int, ...]]:
    """Element type and shape of what is bound to a parameter, a constant or not.

    Raises
    ------
    ModelFormatError
        The parameter is missing, or its type is not a tensor of known shape.
    """
    constant = node.constant_input(parameter)
    value_type = (
        _input_variable(node, parameter).type if constant is None else constant.message.type
    )
    return _type_of(node, value_type, f"its parameter {parameter!r}")


def constant_inputs(node: Node) -> Iterator[tuple[str, Constant]]:
    """Yield parameter and constant of each constant that an operation has as an input."""
    for parameter in sorted(node.inputs):
        for bound in node.inputs[parameter]:
            constant = bound.constant if isinstance(bound, Variable) else bound
            if constant is not None:
                yield parameter, constant


def palettes_of(weight: Weight) -> list[Palette]:
    """The palettes of a weight: none or one, but for chains that no known tool writes.

    Raises
    ------
    ModelFormatError
        An operation lacks what it needs.
    """
    return [
        _palette(node)
        for node in reversed(weight.chain)
        if node.op_type in (LUT_TO_DENSE, LUT_TO_SPARSE)
    ]


def _palette(node: Node) -> Palette:
    parameter = "indices" if node.op_type == LUT_TO_DENSE else "indices_nonzero_data"
    indices = node.constant_input(parameter)
    if indices is None:
        raise _damaged(node, f"its parameter {parameter!r} is missing or not a constant")
    lut_dtype, lut_shape = type_of_input(node, "lut")
    is_old_form = "shape" in node.inputs
    index_shape = indices.shape
    if is_old_form:
        if not node.outputs:
            raise _damaged(node, "it has no output")
        _, index_shape = _type_of(node, node.outputs[0].type, "its output")
    elif node.op_type == LUT_TO_SPARSE:
        _, index_shape = type_of_input(node, "indices_mask")
    lut = node.constant_input("lut")
    return Palette(node, indices, index_shape, lut, lut_dtype, lut_shape, is_old_form)


def _input_variable(node: Node, parameter: str) -> Variable:
    bound = node.inputs.get(parameter, ())
    if len(bound) != 1 or not isinstance(bound[0], Variable):
        raise _damaged(node, f"its parameter {parameter!r} is missing or bound to nothing")
    return bound[0]


def _type_of(node: Node, value_type: ValueType, what: str) -> tuple[DType, tuple[int, ...]]:
    typed = tensor_type_of(value_type)
    if typed is None:
        raise _damaged(node, f"{what} is not a tensor of known shape")
    return typed


def _damaged(node: Node, what: str) -> ModelFormatError:
    return ModelFormatError(
        f"{node.op_type} {node.name!r} in function {node.function!r}: {what}; the model is damaged"
    )
