"""The list of operations is that of the code, and of coremltools."""

from pathlib import Path

import pytest

from mlopt.runtime.coverage import core_operations, coverage_table, missing_operations
from mlopt.runtime.registry import find_operation, operation, registered_operations

DOCUMENT = Path(__file__).parents[2] / "mlopt" / "runtime" / "OPERATIONS.md"


def test_all_but_one_of_the_core_operations_can_be_run():
    assert len(core_operations()) == 168
    # it calls itself experimental, and does not say what its scale and bias are
    assert missing_operations() == ["conv_quantized"]


def test_the_document_is_that_of_the_code():
    assert DOCUMENT.read_text(encoding="utf-8") == coverage_table() + "\n", (
        "python -m mlopt.runtime > mlopt/runtime/OPERATIONS.md"
    )


def test_definitions_hold_until_newer_ones():
    assert find_operation("reshape", "CoreML6").since == "CoreML5"
    assert find_operation("reshape", "CoreML9").since == "CoreML7"
    assert find_operation("slice_update", "CoreML7") is None


def test_wrong_registrations_are_refused():
    with pytest.raises(ValueError, match="registered twice"):
        operation("reshape")(lambda: None)
    with pytest.raises(ValueError, match="since must be one of"):
        operation("reshape", since="CoreML1")


def test_inputs_that_take_several_values_are_known():
    parameters = registered_operations()["concat"][0].parameters
    assert [name for name, parameter in parameters.items() if parameter.takes_several] == ["values"]
