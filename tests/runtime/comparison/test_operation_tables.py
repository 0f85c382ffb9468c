"""The comparison's tables of operation types hold every operation that belongs in them."""

from __future__ import annotations

import pytest
import torch

from mlopt.coreml.elementwise import MOVES
from mlopt.mil.raising.indices import INDEXED
from mlopt.runtime.comparison.ends import _ENDS
from mlopt.runtime.comparison.indices import _STILL_INDICES
from mlopt.runtime.registry import Operation, registered_operations

BOUNDED_OTHERWISE = {
    "acos": "of [-1, 1] alone",
    "asin": "of [-1, 1] alone",
    "atan": "it has not been in the table so far",
    "atanh": "of (-1, 1) alone",
    "cos": "its ends are values like others",
    "sign": "it has three values",
    "sin": "its ends are values like others",
}
"""Functions of one tensor whose results are bounded, but without ends that they stay at."""

OTHER_INDICES = {
    "constexpr_lut_to_dense": "of the tables of a weight",
    "one_hot": "of its own length, which the module looks at by itself",
    **dict.fromkeys(("list_gather", "list_scatter"), "of a list, whose length changes"),
}
"""Operations with an input called indices that are not about the length of a tensor."""


def newest(op_type: str) -> Operation:
    return registered_operations()[op_type][-1]


def of_one_tensor() -> list[str]:
    """Operations of the families of elementwise ones that need nothing but ``x``."""
    return [
        op_type
        for op_type in registered_operations()
        if newest(op_type).function.__module__.endswith(("activations", "elementwise_unary"))
        and [p.name for p in newest(op_type).parameters.values() if p.is_required] == ["x"]
    ]


@pytest.mark.parametrize("op_type", of_one_tensor())
def test_bounded_functions_have_their_ends(op_type):
    x = torch.cat((torch.linspace(-1e4, 1e4, 2001), torch.linspace(-10, 10, 2001)))
    result = newest(op_type).function(x)
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return
    finite = result[result.isfinite()]
    is_bounded = float(finite.abs().max()) < 10
    assert is_bounded == (op_type in _ENDS or op_type in BOUNDED_OTHERWISE), (
        "add it to _ENDS, or with a reason to BOUNDED_OTHERWISE"
    )
    if op_type in _ENDS:
        low, high = _ENDS[op_type]
        assert low <= float(finite.min()) <= float(finite.max()) <= high


def test_moves_keep_indices():
    assert MOVES - set(_STILL_INDICES) == set()


def test_operations_with_indices_are_known():
    with_indices = {op for op in registered_operations() if "indices" in newest(op).parameters}
    assert with_indices == INDEXED.keys() | OTHER_INDICES.keys(), (
        "add it to INDEXED, or with a reason to OTHER_INDICES"
    )
