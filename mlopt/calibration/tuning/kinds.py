"""Which constants of a program can be tuned, told by the operations that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlopt.choices import Tuned
from mlopt.coreml.constexpr import is_constexpr
from mlopt.coreml.elementwise import ElementwiseReaders
from mlopt.mil.program import Constant, Consumer, Node, Variable

FLOATS: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
"""The element types that can be tuned."""

_KINDS: dict[tuple[str, str], Tuned] = {
    ("constexpr_lut_to_dense", "lut"): "tables",
    ("constexpr_lut_to_sparse", "lut"): "tables",
    ("constexpr_blockwise_shift_scale", "scale"): "scales",
    ("constexpr_sparse_blockwise_shift_scale", "scale"): "scales",
    ("constexpr_affine_dequantize", "scale"): "scales",
    ("linear", "bias"): "biases",
    ("conv", "bias"): "biases",
    ("conv_transpose", "bias"): "biases",
    ("layer_norm", "gamma"): "norms",
    ("layer_norm", "beta"): "norms",
    ("batch_norm", "gamma"): "norms",
    ("batch_norm", "beta"): "norms",
    ("instance_norm", "gamma"): "norms",
    ("instance_norm", "beta"): "norms",
}
_OTHER = {"x": "y", "y": "x"}
_PRODUCTS = frozenset({"linear", "conv", "conv_transpose", "matmul", "einsum"})


def kind_of(node: Node, parameter: str, constant: Constant) -> Tuned | None:
    """Return what a constant is for an operation that reads it; None if it cannot be tuned there.

    Beside parameters that say it by name, these are a vector that is added to the product with a
    weight, which is a bias, and one that is multiplied by ``x / sqrt(mean(x^2))``, as in RMSNorm.
    Entries that are stored as floats with a scale of their own are tables too.
    """
    kind = _KINDS.get((node.op_type, parameter))
    if parameter == "data" and constant.dtype in FLOATS and makes_tables(node):
        return "tables"
    if kind is not None or parameter not in _OTHER or not _is_vector(constant):
        return kind
    other = _maker(node, _OTHER[parameter])
    if other is None:
        return None
    if node.op_type == "add" and other.op_type in _PRODUCTS and _reads_weight(other):
        return "biases"
    if node.op_type == "mul" and _divides_by_root(other):
        return "norms"
    return None


def makes_tables(node: Node) -> bool:
    """Whether a constexpr operation computes the entries of tables, and nothing else."""
    consumers = [consumer for output in node.outputs for consumer in output.consumers]
    return bool(consumers) and all(
        is_constexpr(consumer.node) and consumer.parameter == "lut" for consumer in consumers
    )


def is_elementwise(node: Node, readers: ElementwiseReaders) -> bool:
    """Whether only elementwise operations read the weight that a constexpr operation makes."""
    return readers.are_all(_final_consumers(node))


def _final_consumers(node: Node) -> Iterator[Consumer]:
    for output in node.outputs:
        for consumer in output.consumers:
            if is_constexpr(consumer.node):
                yield from _final_consumers(consumer.node)
            else:
                yield consumer


def _is_vector(constant: Constant) -> bool:
    return sum(length > 1 for length in constant.shape) == 1


def _maker(node: Node, parameter: str) -> Node | None:
    """Return the operation that computes an argument, in front of casts; None for constants."""
    bound = node.inputs.get(parameter, ())
    maker = bound[0].node if len(bound) == 1 and isinstance(bound[0], Variable) else None
    if maker is not None and maker.op_type == "cast":
        return _maker(maker, "x")
    return None if maker is None or maker.op_type == "const" or is_constexpr(maker) else maker


def _reads_weight(node: Node) -> bool:
    bound = [each for parameter in node.inputs for each in node.inputs[parameter]]
    constants = [each.constant if isinstance(each, Variable) else each for each in bound]
    if any(constant is not None and len(constant.shape) > 1 for constant in constants):
        return True
    makers = [each.node for each in bound if isinstance(each, Variable)]
    return any(maker is not None and is_constexpr(maker) for maker in makers)


def _divides_by_root(node: Node) -> bool:
    factors = [_maker(node, parameter) for parameter in ("x", "y")]
    types = [None if maker is None else maker.op_type for maker in factors]
    is_product = node.op_type == "mul" and "rsqrt" in types
    return is_product or (node.op_type == "real_div" and types[1] == "sqrt")
