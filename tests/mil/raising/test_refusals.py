"""What the rules of an opset need to know and a model does not say as it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlopt.errors import TargetError
from mlopt.mil.opening import open_package
from mlopt.mil.program import Program
from mlopt.mil.raising.upgrade import plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.mil.values import immediate_value

BOX = np.float32([0, 0, 1, 1]).reshape(1, 1, 4, 1, 1)
WRITTEN = {
    "text": immediate_value("x"),
    "texts": immediate_value(["a", "b"]),
    "not a number": immediate_value(np.float32(np.nan)),
    "infinite": immediate_value(np.float32(np.inf)),
    "fraction": immediate_value(np.float32(1.5)),
    "truth": immediate_value(np.bool_(True)),
    "integer": immediate_value(np.int32(1)),
    "nothing": immediate_value(np.zeros(0, np.float32)),
    "vector": immediate_value(np.zeros(3, np.float32)),
}
#: Operation and parameter -> which of ``WRITTEN`` are sound there.
SOUND: dict[tuple[str, str], set[str]] = {
    ("picked", "axis"): {"integer"},
    ("computed", "axis"): {"integer"},
    ("computed", "x"): set(),
    ("picked", "indices"): {"integer"},
    ("low", "alpha"): set(),
    ("low", "beta"): {"fraction", "infinite"},
    ("up", "align_corners"): {"truth"},
    ("best", "return_indices"): {"truth"},
    ("crop", "x"): set(),
    ("crop", "roi"): set(),
    ("crop", "sampling_mode"): set(),
    ("crop", "box_coordinate_mode"): set(),
    ("crop", "spatial_scale"): set(),
    ("gru", "weight_hh"): set(),
}


@pytest.fixture(scope="module")
def model(build: Callable[..., Any], mb: Any) -> Any:
    """Return a model with one operation of each rule that reads a parameter."""

    def body(x: Any) -> Any:
        computed = mb.cast(x=mb.reduce_max(x=x, axes=[1, 2, 3]), dtype="int32")
        return (
            mb.gather(x=x, indices=np.int32([-1]), axis=1, name="picked"),
            mb.gather(x=x, indices=computed, axis=1, name="computed"),
            mb.clip(x=x, alpha=np.float32(0), beta=np.float32(1), name="low"),
            mb.upsample_bilinear(x=x, scale_factor_height=2, align_corners=False, name="up"),
            mb.topk(x=x, k=1, axis=1, return_indices=True, name="best")[0],
            mb.crop_resize(x=x, roi=BOX, sampling_mode="ALIGN_CORNERS", name="crop"),
            mb.gru(
                x=mb.reshape(x=x, shape=[2, 8, 8]),
                initial_h=np.zeros((8, 2), np.float32),
                weight_ih=np.ones((6, 8), np.float32),
                weight_hh=np.ones((6, 2), np.float32),
                name="gru",
            )[0],
        )

    return build(body, (1, 2, 8, 8), "iOS16")


def written(model: Any, name: str, parameter: str, value: Any) -> Program:
    """Return the program of ``model`` with ``value`` written into one operation."""
    (program,) = open_package(model).programs
    (node,) = (node for node in program.nodes() if node.name == name)
    argument = node.op.inputs[parameter]
    del argument.arguments[:]
    argument.arguments.add().value.CopyFrom(value)
    return program


@pytest.mark.parametrize("value", WRITTEN)
@pytest.mark.parametrize(("name", "parameter"), SOUND)
def test_values_of_another_kind(model: Any, name: str, parameter: str, value: str) -> None:
    """An operation is refused by name where a value that matters is not of its kind."""
    program = written(model, name, parameter, WRITTEN[value])
    # These two rules are of CoreML6, which the model has already.
    for function in program.functions if parameter == "align_corners" else ():
        function.message.block_specializations["CoreML5"].CopyFrom(function.block)
        function.message.opset = "CoreML5"
        del function.message.block_specializations["CoreML6"]
    if value in SOUND[name, parameter]:
        plan_opset_raise(program, Target.iOS18)
        return
    with pytest.raises(TargetError, match=rf"- \w+ '{name}' in function 'main'"):
        plan_opset_raise(program, Target.iOS18)


def test_the_model_itself_is_sound(model: Any) -> None:
    plan_opset_raise(open_package(model).programs[0], Target.iOS18)


@pytest.mark.parametrize("number", [1, 2, 10, 11, 24])
def test_computed_indices_of_another_type(model: Any, number: int) -> None:
    """Only what is known to be unsigned may stay as it is."""
    (program,) = open_package(model).programs
    (node,) = (node for node in program.nodes() if node.name == "computed")
    node.inputs["indices"][0].type.tensorType.dataType = number  # type: ignore[union-attr]
    with pytest.raises(TargetError, match=r"gather 'computed' .* indices"):
        plan_opset_raise(program, Target.iOS17)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("sampling_mode", "UNALIGN_CORNERS"),
        ("sampling_mode", "DEFAULT"),
        ("sampling_mode", None),
        ("box_coordinate_mode", "CENTER_SIZE_HEIGHT_FIRST"),
        ("spatial_scale", np.float32(0.5)),
    ],
)
def test_crops_that_coremltools_never_writes_for_both_opsets(
    model: Any, parameter: str, value: Any
) -> None:
    """No documentation says that they kept their meaning, and UNALIGN_CORNERS hardly did.

    coremltools' own tests on devices show it before CoreML7 to take the whole image for any box.
    """
    if value is None:
        (program,) = open_package(model).programs
        (node,) = (node for node in program.nodes() if node.name == "crop")
        del node.op.inputs[parameter]
    else:
        program = written(model, "crop", parameter, immediate_value(value))
    with pytest.raises(TargetError, match=rf"crop_resize 'crop' .* {parameter}"):
        plan_opset_raise(program, Target.iOS17)
