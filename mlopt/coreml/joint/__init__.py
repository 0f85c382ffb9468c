"""Palettization by how a weight is stored: plain, sparse or quantized."""

from mlopt.coreml.constexpr.parameters import FLOATS
from mlopt.coreml.joint.integers import INTEGERS, PARAMETERS
from mlopt.coreml.joint.plain import PLAIN
from mlopt.coreml.joint.sparse import SPARSE
from mlopt.coreml.joint.strategy import Clustered, Strategy, has_own_data
from mlopt.coreml.weights import Weight

__all__ = ["Clustered", "Strategy", "can_be_palettized", "strategy_of"]

_INTEGERS = frozenset({"int4", "uint4", "int8", "uint8"})


def strategy_of(weight: Weight) -> Strategy:
    """The strategy for a weight that can be palettized, by how it is stored."""
    if not weight.is_compressed:
        return PLAIN
    return INTEGERS if weight.chain[-1].op_type in PARAMETERS else SPARSE


def can_be_palettized(weight: Weight) -> bool:
    """Whether a weight is plain, or compressed so that a palette can replace its data.

    These are the nonzero values of a sparse weight, or the integers of a quantized one.
    """
    if not weight.is_compressed:
        return True
    op_type = weight.chain[-1].op_type
    if op_type == "constexpr_sparse_to_dense":
        return has_own_data(weight, "nonzero_data", FLOATS)
    return op_type in PARAMETERS and has_own_data(weight, PARAMETERS[op_type], _INTEGERS)
