"""Operation by operation: raised programs beside what coremltools converts for the newer target.

All operations stand in one program, because a conversion takes longer than everything else here,
and each has outputs of its own, which are compared alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.mil.opening import open_package
from mlopt.mil.targets import Target
from tests.canonical import canonical_output
from tests.judges import load_program
from tests.mil.raising.test_upgrade import raised, signature

SHAPE = (4, 6, 8, 8)
DATA = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
TARGETS = ("iOS16", "iOS17", "iOS18", "iOS26")


def newer_crop_resize(mb: Any, x: Any, boxes: Any, **options: Any) -> Any:
    """Return what a roi gave before CoreML7, by its documentation, for a batch of one image."""
    image = mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 6, 8, 8])
    indices = np.zeros(boxes.shape[0], np.int32)
    crops = mb.crop_resize(x=image, boxes=boxes, box_indices=indices, **options)
    return mb.expand_dims(x=crops, axes=[1])


def computed_roi(mb: Any, x: Any, numbers: int) -> Any:
    part = mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 1, numbers, 3])
    return mb.expand_dims(x=mb.reshape(x=part, shape=[3, numbers]), axes=[1, 3, 4])


def computed_boxes(mb: Any, x: Any, numbers: int) -> Any:
    rows = mb.reshape(x=computed_roi(mb, x, numbers), shape=[3, numbers])
    return rows if numbers == 4 else mb.slice_by_size(x=rows, begin=[0, 1], size=[3, 4])


# What every opset writes in one way: operations that change, and neighbours that stay.
BODIES: dict[str, Callable[[Any, Any], Any]] = {
    "gather": lambda mb, x: mb.gather(x=x, indices=np.int32([2, 0, -1]), axis=1),
    "gather_computed": lambda mb, x: mb.gather(
        x=DATA, indices=mb.cast(x=mb.reduce_max(x=x, axes=[1, 2, 3]), dtype="int32"), axis=0
    ),
    "gather_nd": lambda mb, x: mb.gather_nd(x=x, indices=np.int32([[0, 1], [2, 3]])),
    "gather_along_axis": lambda mb, x: mb.gather_along_axis(
        x=x, indices=np.zeros((4, 6, 8, 2), np.int32), axis=3
    ),
    "topk": lambda mb, x: mb.topk(x=x, k=2, axis=1, ascending=True),
    "upsample_bilinear": lambda mb, x: mb.upsample_bilinear(
        x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False
    ),
    "upsample_bilinear_aligned": lambda mb, x: mb.upsample_bilinear(
        x=x, scale_factor_height=1.5, scale_factor_width=2.5, align_corners=True
    ),
    "upsample_nearest": lambda mb, x: mb.upsample_nearest_neighbor(
        x=x, scale_factor_height=2, scale_factor_width=2
    ),
    "resize_bilinear": lambda mb, x: mb.resize_bilinear(
        x=x, target_size_height=5, target_size_width=7, sampling_mode="ALIGN_CORNERS"
    ),
    "resize_nearest_neighbor": lambda mb, x: mb.resize_nearest_neighbor(
        x=x, target_size_height=5, target_size_width=7
    ),
    "resample": lambda mb, x: mb.resample(
        x=x,
        coordinates=np.zeros((4, 3, 3, 2), np.float32),
        sampling_mode="bilinear",
        padding_mode="constant",
        padding_value=np.float32(0),
        coordinates_mode="normalized_minus_one_to_one",
        align_corners=True,
    ),
    "crop_resize": lambda mb, x: mb.crop_resize(
        x=mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 6, 8, 8]),
        roi=np.float32([[0, 0, 0, 1, 1], [0, 0.25, 0, 1, 0.5]]).reshape(2, 1, 5, 1, 1),
        target_height=4,
        target_width=3,
        normalized_coordinates=True,
        sampling_mode="ALIGN_CORNERS",
    ),
    "crop_resize_computed": lambda mb, x: mb.crop_resize(
        x=mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 6, 8, 8]),
        roi=computed_roi(mb, x, 5),
        target_height=4,
        target_width=4,
        sampling_mode="ALIGN_CORNERS",
    ),
    "crop_resize_without_number": lambda mb, x: mb.crop_resize(
        x=mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 6, 8, 8]),
        roi=computed_roi(mb, x, 4),
        target_height=4,
        target_width=4,
        sampling_mode="ALIGN_CORNERS",
    ),
    "reduce_argmax": lambda mb, x: mb.reduce_argmax(x=x, axis=1),
    "scatter": lambda mb, x: mb.scatter(
        data=x, indices=np.int32([-1, 0]), updates=DATA[:2], axis=0, mode="add"
    ),
    "reduce_argmin": lambda mb, x: mb.reduce_argmin(x=x, axis=-1, keep_dims=True),
    "scatter_along_axis": lambda mb, x: mb.scatter_along_axis(
        data=x, indices=np.full((4, 6, 8, 1), -2, np.int32), updates=DATA[..., :1], axis=3
    ),
    "scatter_nd": lambda mb, x: mb.scatter_nd(
        data=x, indices=np.int32([[0, -1], [-4, 2]]), updates=DATA[:2, 0], mode="max"
    ),
    "scatter_computed": lambda mb, x: mb.scatter(
        data=x,
        indices=mb.cast(x=mb.reduce_max(x=x, axes=[1, 2, 3]), dtype="int32"),
        updates=DATA,
        mode="update",
    ),
    "gather_nd_computed": lambda mb, x: mb.gather_nd(
        x=x,
        indices=mb.slice_by_size(
            x=mb.cast(x=mb.reduce_max(x=x, axes=[1, 2]), dtype="int32"), begin=[0, 0], size=[4, 3]
        ),
    ),
    "gru": lambda mb, x: mb.gru(
        x=mb.reshape(x=x, shape=[24, 4, 16]),
        initial_h=np.zeros((4, 3), np.float32),
        weight_ih=DATA.reshape(-1)[: 9 * 16].reshape(9, 16),
        weight_hh=DATA.reshape(-1)[: 9 * 3].reshape(9, 3),
        bias=DATA.reshape(-1)[:9],
    ),
    "lstm": lambda mb, x: mb.lstm(
        x=mb.reshape(x=x, shape=[24, 4, 16]),
        initial_h=np.zeros((4, 3), np.float32),
        initial_c=np.zeros((4, 3), np.float32),
        weight_ih=DATA.reshape(-1)[: 12 * 16].reshape(12, 16),
        weight_hh=DATA.reshape(-1)[: 12 * 3].reshape(12, 3),
    ),
    "clip": lambda mb, x: mb.clip(x=x, alpha=np.float32(-1), beta=np.float32(1)),
    "reshape": lambda mb, x: mb.reshape(x=x, shape=[0, -1, 0, 4]),
    "conv_transpose": lambda mb, x: mb.conv_transpose(
        x=x, weight=DATA.reshape(-1)[:216].reshape(6, 4, 3, 3), strides=[2, 2], pad_type="same"
    ),
    "batch_norm": lambda mb, x: mb.batch_norm(
        x=x, mean=DATA[0, :, 0, 0], variance=DATA[1, :, 0, 0]
    ),
    "activations": lambda mb, x: mb.prelu(
        x=mb.elu(x=mb.leaky_relu(x=x, alpha=0.1), alpha=0.5), alpha=DATA[0, :, 0, 0]
    ),
    "epsilons": lambda mb, x: mb.log(x=mb.rsqrt(x=mb.inverse(x=x, epsilon=1e-3), epsilon=1e-2)),
    "pixels": lambda mb, x: mb.pixel_shuffle(
        x=mb.space_to_depth(x=x, block_size=2), upscale_factor=2
    ),
    "sequences": lambda mb, x: mb.reverse_sequence(
        x=mb.sliding_windows(x=x, axis=2, size=3), lengths=np.int32([1, 2, 3, 4]), seq_axis=2
    ),
    "lists": lambda mb, x: mb.list_gather(
        ls=mb.list_write(
            ls=mb.make_list(init_length=3, elem_shape=(4, 6, 8, 8)), index=np.int32(1), value=x
        ),
        indices=np.int32([0, 1]),
    ),
    "nested": lambda mb, x: mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(0)),
        _true_fn=lambda: mb.topk(x=x, k=2, axis=1)[0],
        _false_fn=lambda: mb.gather(x=x, indices=np.int32([0, 1]), axis=1),
    ),
}


# Bodies of CoreML7 and later for what cannot be written in one way for all opsets.
REDEFINED: dict[str, Callable[[Any, Any], Any]] = {
    "crop_resize": lambda mb, x: newer_crop_resize(
        mb,
        x,
        np.float32([[0, 0, 1, 1], [0.25, 0, 1, 0.5]]),
        target_height=4,
        target_width=3,
        normalized_coordinates=True,
        sampling_mode="ALIGN_CORNERS",
    ),
    "crop_resize_computed": lambda mb, x: newer_crop_resize(
        mb,
        x,
        computed_boxes(mb, x, 5),
        target_height=4,
        target_width=4,
        sampling_mode="ALIGN_CORNERS",
    ),
    "crop_resize_without_number": lambda mb, x: newer_crop_resize(
        mb,
        x,
        computed_boxes(mb, x, 4),
        target_height=4,
        target_width=4,
        sampling_mode="ALIGN_CORNERS",
    ),
}


Both = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def both(build: Callable[..., Any], mb: Any, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Return a function that gives the packages for a target: raised from iOS15, and converted."""
    folder = tmp_path_factory.mktemp("direct")

    def everything(x: Any, target: str) -> tuple[Any, ...]:
        outputs: list[Any] = []
        for name, body in BODIES.items():
            if target not in ("iOS15", "iOS16"):
                body = REDEFINED.get(name, body)
            found = body(mb, x)
            found = found if isinstance(found, tuple | list) else [found]
            outputs += [mb.identity(x=v, name=f"{name}_{i}") for i, v in enumerate(found)]
        return tuple(outputs)

    def converted(target: str) -> Path:
        path = folder / f"{target}.mlpackage"
        if not path.exists():
            build(lambda x: everything(x, target), SHAPE, target).save(str(path))
        return path

    @functools.cache
    def make(target: str) -> tuple[Path, Path]:
        _, output = raised(converted("iOS15"), target, folder / f"raised-{target}.mlpackage")
        return output, converted(target)

    return make


@pytest.fixture(scope="module")
def texts(both: Both) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """Return a function that gives the canonical text of each output, raised and converted."""

    @functools.cache
    def make(target: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found, direct = (load_program(path) for path in both(target))
        return outputs_of(found), outputs_of(direct)

    return make


def outputs_of(program: Any) -> dict[str, list[str]]:
    return {var.name: canonical_output(var) for var in program.functions["main"].outputs}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", BODIES)
def test_equals_direct_conversion(texts: Any, name: str, target: str) -> None:
    """The same operations with the same parameters, but for what ``tests.canonical`` names."""
    found, direct = texts(target)
    names = [output for output in direct if output.rsplit("_", 1)[0] == name]
    assert names
    for output in names:
        assert found[output] == direct[output]


@pytest.mark.parametrize("target", TARGETS)
def test_every_parameter_is_written_out(both: Both, target: str) -> None:
    """What coremltools' loader would fill in stands in the message, as in its own."""
    found: dict[str, set[frozenset[str]]] = {}
    direct: dict[str, set[frozenset[str]]] = {}
    for path, parameters in zip(both(target), (found, direct), strict=True):
        for node in open_package(path).programs[0].nodes():
            parameters.setdefault(node.op_type, set()).add(frozenset(node.inputs))
    for op_type, wanted in direct.items():
        extra = EXTRA.get(op_type, set()) if target >= "iOS18" or op_type != "gru" else set()
        assert {names | extra for names in wanted} == found[op_type], op_type
    (program,) = open_package(both(target)[0]).programs
    assert {function.opset for function in program.functions} == {Target.parse(target).opset}


#: What coremltools leaves out where the source names no value for it.
EXTRA = {
    "upsample_bilinear": {"half_pixel_centers"},
    "gru": {"reset_after", "input_bias"},
}


def test_to_ios16_is_the_same_message(both: Both) -> None:
    """Nothing but parameters is new in CoreML6: names, types and order are the same."""
    found, direct = (signature(open_package(path).programs[0]) for path in both("iOS16"))
    for _, _, inputs, _ in found:
        half = inputs.pop("half_pixel_centers", None)
        assert half is None or half[2] is not inputs["align_corners"][2]
    assert found == direct
