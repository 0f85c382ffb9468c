"""Palettizing weights however they are stored: plain, sparse or quantized."""

from mlopt.coreml.constexpr.parameters import FLOATS
from mlopt.coreml.joint.integers import INTEGERS, PARAMETERS
from mlopt.coreml.joint.plain import PLAIN
from mlopt.coreml.joint.sparse import SPARSE
from mlopt.coreml.joint.strategy import Clustered, Strategy, own_data
from mlopt.coreml.weights import Weight

__all__ = ["Clustered", "Strategy", "strategy_of"]

_INTEGERS = frozenset({"int4", "uint4", "int8", "uint8"})


def strategy_of(weight: Weight) -> Strategy | None:
    """How a weight is palettized; None: it is compressed in a way that takes no palette."""
    if not weight.is_compressed:
        return PLAIN
    op_type = weight.chain[-1].op_type
    if op_type == "constexpr_sparse_to_dense":
        return SPARSE if own_data(weight, "nonzero_data", FLOATS) else None
    if op_type in PARAMETERS:
        return INTEGERS if own_data(weight, PARAMETERS[op_type], _INTEGERS) else None
    return None
