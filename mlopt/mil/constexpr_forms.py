"""Forms of the operations for compressed weights: what each can express, and since which target.

Up to iOS17 (CoreML7) indices and masks are packed bytes with a separate ``shape``: the old form.
From iOS18 (CoreML8) on they have element types and shapes of their own.
"""

from __future__ import annotations

from mlopt.mil.program import Node
from mlopt.mil.targets import Target

TYPED_SINCE = Target.iOS18
"""The first target without the old form."""

OLD_INDEX_BITS = (1, 2, 4, 6, 8)
INDEX_BITS = (1, 2, 3, 4, 6, 8)
"""Bits that an index into a table can have, in the old form and in the new one."""

OLD_TABLE_SIZES = tuple(1 << nbits for nbits in OLD_INDEX_BITS)
"""Entries that a table can have in the old form."""

_FIRST_TARGETS = {
    "constexpr_affine_dequantize": Target.iOS16,
    "constexpr_cast": Target.iOS16,
    "constexpr_lut_to_dense": Target.iOS16,
    "constexpr_sparse_to_dense": Target.iOS16,
    "constexpr_blockwise_shift_scale": Target.iOS18,
    "constexpr_lut_to_sparse": Target.iOS18,
    "constexpr_sparse_blockwise_shift_scale": Target.iOS18,
}
# Operations whose two forms have the same name; only the old one has a parameter ``shape``.
_IN_BOTH_FORMS = ("constexpr_lut_to_dense", "constexpr_sparse_to_dense")


def index_bits(target: Target) -> tuple[int, ...]:
    """Bits that indices can have in what is written for a target, ascending."""
    return INDEX_BITS if target >= TYPED_SINCE else OLD_INDEX_BITS


def first_target(node: Node) -> Target:
    """The oldest target that has a constexpr operation in its form; iOS15 for other operations."""
    if node.op_type in _IN_BOTH_FORMS and "shape" not in node.inputs:
        return TYPED_SINCE
    return _FIRST_TARGETS.get(node.op_type, Target.iOS15)
