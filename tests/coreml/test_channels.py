"""The channel axis of a weight, as coremltools chooses it and as the format says."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.optimize import _utils as reference_utils

from mlopt.coreml import palettize
from mlopt.coreml.channels import channels_of_one_group, output_axes
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from tests import judges
from tests.coreml.conftest import (
    by_name,
    converted,
    global_config,
    mb,
    quietly,
    reference_palettized,
    saved,
    squared_error,
    stored,
)

# The output channel axis of each weight of tests.models, by FORMAT: written out by hand.
AXES: dict[str, dict[str, Any]] = {
    "convolutional": {
        "plain_weight_to_fp16": 0,
        "grouped_weight_to_fp16": 0,
        "depthwise_weight_to_fp16": 0,
        "transposed_weight_to_fp16": 1,
        "transposed_grouped_weight_to_fp16": 1,
        "line_weight_to_fp16": 0,
        "wide_weight_to_fp16": 0,
    },
    "matmuls": {
        "y": 1,
        "y_transposed": 0,
        "x_plain": 0,
        "x_transposed": 1,
        "batched": 2,
        "both": None,
    },
    "transformer": {"embedding_weight_to_fp16": 0, "layers_0_up_weight_to_fp16": 0},
    "redefined": {"rows": 0, "gru_input": 0},
    "control_flow": {"outer": 1, "then_weight": 1, "inner_weight": 0},
}


def weights(package):
    found, _ = weights_of(open_package(package))
    return {weight.name: weight for weight in found}


@pytest.mark.parametrize("kind", AXES)
def test_axes(kind, package_of):
    package = package_of(kind, "iOS18")
    found = weights(package)
    for name, axis in AXES[kind].items():
        weight = found[name]
        axes = output_axes(weight.consumers, len(weight.shape))
        assert axes == {axis} if axis is not None else len(axes) > 1, name


@pytest.mark.parametrize("kind", AXES)
def test_axes_are_those_of_coremltools(kind, package_of):
    package = package_of(kind, "iOS18")
    program = judges.load_program(package)
    found = weights(package)
    compared = 0
    for function in program.functions.values():
        for op in judges.pymil_operations(function):
            if op.op_type != "const" or op.outputs[0].rank < 2 or not op.outputs[0].child_ops:
                continue
            weight = found.get(op.outputs[0].name)
            if weight is None:
                continue
            _, axis = quietly(reference_utils.select_input_output_channel_axis, op)
            ours = output_axes(weight.consumers, len(weight.shape))
            assert (next(iter(ours)) if len(ours) == 1 else None) == axis, weight.name
            compared += 1
    assert compared >= len(AXES[kind])


def grouped_model():
    """Convolutions of 4 groups, transposed and not: 24 output channels of which 6 are together."""
    generator = np.random.default_rng(0)

    def body(x):
        weight = (generator.standard_normal((24, 16, 4, 4)) / 8).astype(np.float16)
        x = mb.conv(x=x, weight=mb.const(val=weight, name="forward"), groups=4, pad_type="same")
        weight = (generator.standard_normal((24, 18, 4, 4)) / 8).astype(np.float16)
        return mb.conv_transpose(
            x=x, weight=mb.const(val=weight, name="back"), groups=4, pad_type="valid"
        )

    return converted(body, (1, 64, 8, 8), "iOS18")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    return saved(grouped_model(), tmp_path_factory.mktemp("grouped") / "grouped.mlpackage")


def test_channels_of_one_group(grouped):
    found = weights(grouped)
    forward, back = found["forward"], found["back"]
    assert channels_of_one_group(forward.consumers, forward.shape, 0) == 6
    assert channels_of_one_group(forward.consumers, forward.shape, 1) == 16
    assert channels_of_one_group(back.consumers, back.shape, 0) == 6
    assert channels_of_one_group(back.consumers, back.shape, 1) == 18


@pytest.mark.parametrize(
    ("name", "d", "options", "fits"),
    [
        ("forward", 2, {}, True),
        ("forward", 3, {}, True),
        ("forward", 4, {}, False),  # divides 24, but not the 6 channels of a group
        ("forward", 8, {}, False),
        ("forward", 4, {"channel_axis": 1}, True),
        ("back", 2, {}, True),
        ("back", 4, {}, False),  # does not divide 18
        ("back", 6, {}, True),
        ("back", 4, {"channel_axis": 0}, False),
        ("back", 3, {"channel_axis": 0}, True),
    ],
)
def test_vectors_stay_inside_the_groups_of_a_convolution(name, d, options, fits, grouped, tmp_path):
    rule = {"nbits": 2, "cluster_dim": d}
    if options:
        sizes = {"forward": (24, 16), "back": (24, 18)}[name]
        size = sizes[options["channel_axis"]]
        rule |= {"granularity": "per_grouped_channel", "group_size": size // 2 if fits else 12}
        rule |= options
    result = palettize(grouped, by_name({name: rule}), output=tmp_path / "out.mlpackage")
    row = result.report[name]
    # coremltools decides alike
    theirs = reference_palettized(
        quietly(ct.models.MLModel, str(grouped), skip_model_load=True), {name: rule}
    )
    done = f"{name}_palettized" in judges.decompressed_constants(theirs)
    assert row.is_palettized == done == fits
    if fits:
        axis = options.get("channel_axis", 1 if name == "back" else 0)
        assert stored(result.path, name).vector_axis == axis
        np.testing.assert_array_equal(
            judges.decompressed_constants(result.path)[name], stored(result.path, name).dense
        )
    else:
        assert row.category == "cluster_dim does not divide the channels"
        assert f"cluster_dim {d}" in row.reason
        assert judges.messages_equal_except(grouped, result.path) == []


FORMS: dict[str, dict[str, Any]] = {
    "groups": {"nbits": 4, "granularity": "per_grouped_channel", "group_size": 12},
    "vectors": {"nbits": 4, "cluster_dim": 2},
    "scale": {"nbits": 4, "enable_per_channel_scale": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "name", "axis"),
    [
        (kind, name, axis)
        for kind in ("convolutional", "matmuls")
        for name, axis in AXES[kind].items()
        if axis is not None
    ],
)
@pytest.mark.covering(1)
def test_tables_vectors_and_scales_lie_on_the_output_channels(
    form, kind, name, axis, package_of, tmp_path
):
    source = package_of(kind, "iOS18")
    value = judges.decompressed_constants(source)[name]
    rule = dict(FORMS[form], weight_threshold=100)
    if form == "groups":
        rule["group_size"] = value.shape[axis] // 2
    result = palettize(source, by_name({name: rule}), output=tmp_path / "out.mlpackage")
    if (form, name) == ("vectors", "depthwise_weight_to_fp16"):
        assert "the 1 channels on axis 0 of a group" in result.report[name].reason
        return
    assert result.report[name].is_palettized, result.report[name].reason
    palette = stored(result.path, name)
    ones = [1] * value.ndim
    assert palette.table.shape[:-2] == tuple(
        [2 if form == "groups" and i == axis else 1 for i in range(value.ndim)]
    )
    assert palette.vector_axis == (axis if form == "vectors" else None)
    if form == "scale":
        assert palette.scale.shape == (*ones[:axis], value.shape[axis], *ones[axis + 1 :])
        others = tuple(i for i in range(value.ndim) if i != axis)
        np.testing.assert_array_equal(palette.scale, np.abs(value).max(others, keepdims=True))
    stored_value = judges.decompressed_constants(result.path)[name]
    np.testing.assert_array_equal(stored_value, palette.dense)
    if form != "scale":  # where coremltools takes another axis
        theirs = reference_palettized(
            quietly(ct.models.MLModel, str(source), skip_model_load=True), {name: rule}
        )
        other = judges.decompressed_constants(theirs)[f"{name}_palettized"]
        assert squared_error(value, stored_value) <= squared_error(value, other)


@pytest.mark.parametrize("channel_axis", [0, 1, -1, 3, -4])
def test_a_given_axis_is_taken_for_groups(channel_axis, grouped, tmp_path):
    rule = {"nbits": 2, "granularity": "per_grouped_channel", "group_size": 2}
    rule["channel_axis"] = channel_axis
    result = palettize(grouped, by_name({"back": rule}), output=tmp_path / "out.mlpackage")
    shape = (24, 18, 4, 4)
    axis = channel_axis % 4
    expected = tuple(shape[i] // 2 if i == axis else 1 for i in range(4))
    assert stored(result.path, "back").table.shape[:-2] == expected


@pytest.mark.parametrize("channel_axis", [4, -5])
def test_an_axis_that_is_not_there_is_an_error_for_every_weight(channel_axis, grouped, tmp_path):
    options = {"granularity": "per_grouped_channel", "group_size": 2, "channel_axis": channel_axis}
    with pytest.raises(ConfigError, match=r"channel_axis must be in \[-4, 4\)") as refusal:
        palettize(grouped, global_config(**options), output=tmp_path / "out.mlpackage")
    assert "forward: " in str(refusal.value)
    assert "back: " in str(refusal.value)
