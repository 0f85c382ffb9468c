"""The tables of elementwise operations hold every operation of their families."""

from __future__ import annotations

import pytest

from mlopt.runtime.registry import registered_operations
from tests.runtime.ops import (
    test_activations,
    test_elementwise_binary,
    test_elementwise_unary,
)

IN_TABLES = {
    "activations": set(test_activations.CASES),
    "elementwise_binary": {
        *test_elementwise_binary.ARITHMETIC,
        *test_elementwise_binary.COMPARISONS,
        *test_elementwise_binary.LOGIC,
    },
    "elementwise_unary": set(test_elementwise_unary.EXPECTED),
}
WITH_TESTS_OF_THEIR_OWN = {
    "activations": {"prelu", "softmax", "softplus_parametric"},
    "elementwise_binary": {"pow"},
    "elementwise_unary": {"cast", "clip", "inverse", "log", "logical_not", "rsqrt", "threshold"},
}


@pytest.mark.parametrize("family", IN_TABLES)
def test_operations_of_a_family_are_tested(family):
    registered = {
        op_type
        for op_type, definitions in registered_operations().items()
        if definitions[-1].function.__module__ == f"mlopt.runtime.ops.{family}"
    }
    assert registered == IN_TABLES[family] | WITH_TESTS_OF_THEIR_OWN[family], (
        f"add it to the table in test_{family}.py, or to the list here with a test of its own"
    )
