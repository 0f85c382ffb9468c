"""The list of operations is that of the code, and of coremltools."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from mlopt.mil.targets import Target
from mlopt.runtime.coverage import core_operations, coverage_table, missing_operations
from mlopt.runtime.registry import Operation, find_operation, operation, registered_operations
from tests.mil.raising.test_registry import defaults_of

DOCUMENT = Path(__file__).parents[2] / "mlopt" / "runtime" / "OPERATIONS.md"

BLOCKS = {"cond": ("_true_fn", "_false_fn"), "while_loop": ("_cond", "_body")}
"""What coremltools calls inputs and programs hold as blocks; functions take them by their call."""

MAY_BE_ABSENT = {("make_list", "elem_shape"): "of scalars it is empty: an input without a value"}
"""Inputs that are required by coremltools, and have a default here; with the reason."""

OTHER_DEFAULTS = {
    **dict.fromkeys(
        (
            *(("conv", "strides"), ("conv", "pad"), ("conv", "dilations")),
            *(("conv_transpose", "strides"), ("conv_transpose", "pad")),
            *(("conv_transpose", "dilations"), ("avg_pool", "strides"), ("avg_pool", "pad")),
            *(("l2_pool", "strides"), ("l2_pool", "pad")),
            *(("max_pool", "strides"), ("max_pool", "pad")),
        ),
        "as many numbers as there are spatial axes",
    ),
    ("layer_norm", "axes"): "all axes of the input",
    ("crop_resize", "box_indices"): "as many numbers as there are boxes",
    ("linear", "bias"): "as many zeros as there are outputs",
    ("make_list", "init_length"): "1; the argument also says on which device the list is",
    ("gru", "reset_after"): "false in the docstring of coremltools, which has no default for it",
}
"""Inputs whose default is written otherwise than coremltools writes it; with the reason."""


def definitions() -> Iterator[tuple[str, Target, Any, Operation]]:
    """Each operation in each opset: its definition in coremltools, and the one here."""
    for op_type, by_target in sorted(SSAOpRegistry.core_ops.items()):
        by_version = {int(target): definition for target, definition in by_target.items()}
        definition = None
        for target in Target:
            definition = by_version.get(target.specification_version, definition)
            ours = find_operation(op_type, target.opset)
            if definition is not None and ours is not None:
                yield op_type, target, definition, ours


def test_all_but_one_of_the_core_operations_can_be_run():
    assert len(core_operations()) == 168
    # it calls itself experimental, and does not say what its scale and bias are
    assert missing_operations() == ["conv_quantized"]


def test_the_document_is_that_of_the_code():
    assert DOCUMENT.read_text(encoding="utf-8") == coverage_table() + "\n", (
        "python -m mlopt.runtime > mlopt/runtime/OPERATIONS.md"
    )


def test_operations_that_are_left_out_have_a_reason():
    rows = [line.split(" | ") for line in coverage_table().splitlines() if " | no | " in line]
    assert [row[0] for row in rows] == [f"| `{op_type}`" for op_type in missing_operations()]
    assert all(len(row[3]) > 20 for row in rows)


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


def test_inputs_are_required_where_coremltools_requires_them():
    differences, absent = [], set()
    for op_type, target, definition, ours in definitions():
        for name, kind in definition.input_spec.input_types.items():
            if name in BLOCKS.get(op_type, ()) or name == "_existing_blocks":
                continue
            where = f"{op_type} of {target.opset}: {name}"
            if name not in ours.parameters:
                differences.append(f"{where} is not a parameter")
            elif ours.parameters[name].is_required == kind.optional:
                if (op_type, name) in MAY_BE_ABSENT:
                    absent.add((op_type, name))
                    continue
                differences.append(
                    f"{where} is {'optional' if kind.optional else 'required'} in coremltools"
                )
    assert differences == []
    assert absent == set(MAY_BE_ABSENT)


def test_inputs_of_later_opsets_are_optional_in_earlier_ones():
    known: dict[str, set[str]] = {}
    for op_type, _, definition, _ in definitions():
        known.setdefault(op_type, set()).update(definition.input_spec.input_types)
    for op_type, target, definition, ours in definitions():
        assert ours.parameters.keys() <= known[op_type], op_type
        for name in ours.parameters.keys() - definition.input_spec.input_types.keys():
            assert not ours.parameters[name].is_required, f"{op_type} of {target.opset}: {name}"


def test_defaults_are_those_of_coremltools():
    differences, others = [], set()
    for op_type, target, definition, ours in definitions():
        defaults = defaults_of(definition)
        parameters = inspect.signature(ours.function).parameters
        for name, kind in definition.input_spec.input_types.items():
            if not kind.optional or name not in parameters:
                continue
            expected, default = defaults.get(name), parameters[name].default
            if isinstance(expected, list | range | np.ndarray):
                expected = tuple(expected)
            if default == expected:
                continue
            if (op_type, name) in OTHER_DEFAULTS:
                others.add((op_type, name))
                continue
            differences.append(f"{op_type} of {target.opset}: {name}={default}, not {expected}")
    assert differences == []
    assert others == set(OTHER_DEFAULTS)
