"""The constexpr operations by type and form: parameters, their check, the computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from mlopt.coreml.constexpr import cast, lut, quantized, sparse
from mlopt.coreml.constexpr.parameters import (
    Array,
    Parameter,
    Parameters,
    TensorType,
    read_parameters,
    refusal,
)
from mlopt.mil.program import Node, Variable
from mlopt.mil.values import tensor_type_of


@attrs.frozen
class Form:
    """One form of an operation.

    signature: its parameters; check: parameters to the types of its outputs, refusing those that
    contradict, from their types and a few scalars alone; compute: parameters to its outputs.
    """

    signature: Mapping[str, Parameter]
    check: Callable[[Parameters], tuple[TensorType, ...]]
    compute: Callable[[Parameters], tuple[Array, ...]]


_FORMS = {
    "constexpr_lut_to_dense": Form(lut.DENSE, lut.check_dense, lut.dense),
    "constexpr_lut_to_sparse": Form(lut.SPARSE, lut.check_sparse, lut.sparse),
    "constexpr_sparse_to_dense": Form(sparse.DENSE, sparse.check_dense, sparse.dense),
    "constexpr_affine_dequantize": Form(quantized.AFFINE, quantized.check_affine, quantized.affine),
    "constexpr_blockwise_shift_scale": Form(
        quantized.BLOCKWISE, quantized.check_blockwise, quantized.blockwise
    ),
    "constexpr_sparse_blockwise_shift_scale": Form(
        quantized.SPARSE_BLOCKWISE, quantized.check_sparse_blockwise, quantized.sparse_blockwise
    ),
    "constexpr_cast": Form(cast.CAST, cast.check_cast, cast.cast),
}

_OLD_FORMS = {
    "constexpr_lut_to_dense": Form(lut.OLD_DENSE, lut.check_old_dense, lut.old_dense),
    "constexpr_sparse_to_dense": Form(sparse.OLD_DENSE, sparse.check_old_dense, sparse.old_dense),
}
"""Up to CoreML7: the shape of the result is a parameter."""


@attrs.frozen(eq=False)
class Checked:
    """A constexpr operation whose parameters and declared outputs have been checked."""

    node: Node
    form: Form
    parameters: Parameters

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of its output; of the mask, where it has two."""
        declared = tensor_type_of(self.node.outputs[0].type)
        assert declared is not None
        return declared[1]

    def compute(self) -> tuple[Array, ...]:
        """The values of its outputs."""
        return self.form.compute(self.parameters)


def checked(node: Node, computed: Callable[[Variable], Array]) -> Checked:
    """Check one operation; ``computed`` returns what other constexpr operations produce.

    Raises
    ------
    ModelFormatError
        The operation is unknown, or violates its definition.
    """
    forms = _OLD_FORMS if is_old_form(node) else _FORMS
    if node.op_type not in forms:
        raise refusal(
            node,
            f"unknown operation type; known types are {', '.join(sorted(forms))}. "
            "The model may be newer than this version of mlopt.",
        )
    form = forms[node.op_type]
    parameters = read_parameters(node, form.signature, computed)
    results = form.check(parameters)
    if len(results) != len(node.outputs):
        raise refusal(
            node, f"it has {len(results)} output(s), the model declares {len(node.outputs)}"
        )
    for output, (dtype, shape) in zip(node.outputs, results, strict=True):
        declared = tensor_type_of(output.type)
        if declared is None or (declared[0].name, declared[1]) != (dtype, shape):
            shown = "no tensor" if declared is None else f"{declared[0].name}{list(declared[1])}"
            raise refusal(
                node,
                f"its output {output.name!r} is {dtype}{list(shape)}, but the model declares "
                f"{shown}",
            )
    return Checked(node, form, parameters)


def parameter_names(node: Node) -> frozenset[str]:
    """The parameters in the definition of a constexpr operation; none if it is unknown."""
    forms = _OLD_FORMS if is_old_form(node) else _FORMS
    return frozenset(forms[node.op_type].signature) if node.op_type in forms else frozenset()


def is_old_form(node: Node) -> bool:
    """Whether an operation is in the form of iOS16 and iOS17, if its type has two forms."""
    return node.op_type in _OLD_FORMS and "shape" in node.inputs
