"""Images against the documented formulas, pixel by pixel, and against PyTorch's own functions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch.nn import functional

from mlopt.runtime import load
from mlopt.runtime.ops import images
from tests import models
from tests.runtime.programs import assert_of_halves, run

RANDOM = np.random.default_rng(0)
MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
SIZES = [(1, 1), (1, 7), (3, 4), (6, 8), (5, 2), (7, 9)]
IMAGE = RANDOM.normal(size=(2, 2, 3, 4)).astype(np.float32)
COUNTED = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


def check(found, wanted, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


# --- resizing -------------------------------------------------------------------------------------


def grid(before, after, mode):
    """The points of an axis as the definition of resize_bilinear has them."""
    points = []
    for i in range(after):
        if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS") and after > 1:
            point = i * Fraction(before - 1, after - 1)
        elif mode == "STRICT_ALIGN_CORNERS":
            point = Fraction(0)
        elif mode == "ALIGN_CORNERS":
            point = Fraction(before - 1, 2)
        elif mode == "DEFAULT" and after > 1:
            point = i * (before - Fraction(before, after)) / (after - 1)
        elif mode == "DEFAULT":
            point = Fraction(0)
        elif mode == "OFFSET_CORNERS":
            delta = Fraction(max(1, before - 1), after)
            point = delta / 2 + i * delta
        else:
            spacing = Fraction(before, after)
            point = i * spacing + spacing / 2 - Fraction(1, 2)
        points.append(min(Fraction(before - 1), max(Fraction(0), point)))
    return points


def interpolated(x, axis, points):
    """An array at points of an axis, in float64."""
    slices = []
    for point in points:
        low = math.floor(point)
        high = min(low + 1, x.shape[axis] - 1)
        share = float(point - low)
        slices.append((1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis))
    return np.stack(slices, axis)


def resized(x, sizes, mode):
    x = x.astype(np.float64)
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        x = interpolated(x, axis, grid(x.shape[axis], size, mode))
    return x


def chosen(x, sizes, function):
    """The elements of the last axes with the index ``function(i, before, after)``."""
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        before = x.shape[axis]
        x = np.stack([np.take(x, function(i, before, size), axis) for i in range(size)], axis)
    return x


def under_middle(i, before, after):
    return math.floor((i + Fraction(1, 2)) * Fraction(before, after))


def at_start(i, before, after):
    return math.floor(i * Fraction(before, after))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_resize_bilinear(mode, target):
    def build(x):
        return [
            mb.resize_bilinear(
                x=x, target_size_height=height, target_size_width=width, sampling_mode=mode
            )
            for height, width in SIZES
        ]

    for found, sizes in zip(run(build, {"x": IMAGE}, target=target), SIZES, strict=True):
        check(found, resized(IMAGE, sizes, mode))


@pytest.mark.parametrize(
    ("mode", "of_5", "of_6"),
    [
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1], [0, 0, 1 / 3, 2 / 3, 1, 1]),
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("DEFAULT", [0, 0.4, 0.8, 1, 1], [0, 1 / 3, 2 / 3, 1, 1, 1]),
        (
            "OFFSET_CORNERS",
            [0.1, 0.3, 0.5, 0.7, 0.9],
            [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12],
        ),
    ],
)
def test_the_documented_points_of_two_pixels(mode, of_5, of_6):
    def build(x):
        return [
            mb.resize_bilinear(x=x, target_size_width=5, sampling_mode=mode),
            mb.resize_bilinear(x=x, target_size_width=6, sampling_mode=mode),
        ]

    x = np.array([0, 1], np.float32).reshape(1, 1, 2)
    first, second = run(build, {"x": x})
    check(first.reshape(-1), of_5)
    check(second.reshape(-1), of_6)


def test_resize_bilinear_of_other_ranks_and_by_default():
    x = RANDOM.normal(size=(2, 1, 2, 3, 4)).astype(np.float32)

    def build(x):
        return [
            mb.resize_bilinear(x=x, target_size_height=4, target_size_width=3),
            mb.resize_bilinear(x=x),
        ]

    first, second = run(build, {"x": x})
    check(first, resized(x, (4, 3), "DEFAULT"))
    check(second, x[..., :1, :1])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 3, 5), (1, 2, 1, 2, 3)])
def test_nearest_neighbors(shape):
    x = RANDOM.normal(size=shape).astype(np.float32)

    def build(x):
        return [
            mb.resize_nearest_neighbor(x=x, target_size_height=height, target_size_width=width)
            for height, width in SIZES
        ]

    for found, sizes in zip(run(build, {"x": x}), SIZES, strict=True):
        np.testing.assert_array_equal(found, chosen(x, sizes, under_middle))


def test_nearest_neighbors_are_the_exact_ones_of_pytorch():
    sizes = list(itertools.product(range(1, 12), [1, 2, 3, 5, 8]))

    def build(x):
        return [
            mb.resize_nearest_neighbor(x=x, target_size_height=height, target_size_width=width)
            for height, width in sizes
        ]

    for found, size in zip(run(build, {"x": IMAGE}), sizes, strict=True):
        wanted = functional.interpolate(torch.from_numpy(IMAGE), size=size, mode="nearest-exact")
        np.testing.assert_array_equal(found, wanted)


SCALES = [(1, 2), (3, 4), (2.0, 2.5), (1.5, 0.75), (0.5, 0.34), (1.0, 1.12)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_upsampled_nearest_neighbors(scales, target):
    def build(x):
        return mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=scales[0], scale_factor_width=scales[1]
        )

    (found,) = run(build, {"x": IMAGE}, target=target)
    sizes = tuple(math.floor(n * scale) for n, scale in zip((3, 4), scales, strict=True))
    np.testing.assert_array_equal(found, chosen(IMAGE, sizes, at_start))
    wanted = functional.interpolate(torch.from_numpy(IMAGE), size=sizes, mode="nearest")
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
def test_upsampled_linearly_as_by_pytorch(scales, align_corners, target):
    def build(x):
        return mb.upsample_bilinear(
            x=x,
            scale_factor_height=scales[0],
            scale_factor_width=scales[1],
            align_corners=align_corners,
        )

    (found,) = run(build, {"x": IMAGE}, target=target)
    wanted = functional.interpolate(
        torch.from_numpy(IMAGE),
        scale_factor=scales,
        mode="bilinear",
        align_corners=align_corners,
        recompute_scale_factor=True,
    )
    check(found, wanted)


@pytest.mark.parametrize(
    ("align_corners", "half_pixel_centers", "mode"),
    [
        (True, None, "STRICT_ALIGN_CORNERS"),
        (True, False, "STRICT_ALIGN_CORNERS"),
        (False, None, "UNALIGN_CORNERS"),
        (False, True, "UNALIGN_CORNERS"),
        (False, False, "DEFAULT"),
    ],
)
def test_half_pixel_centers(align_corners, half_pixel_centers, mode):
    given = {} if half_pixel_centers is None else {"half_pixel_centers": half_pixel_centers}

    def build(x):
        return mb.upsample_bilinear(
            x=x,
            scale_factor_height=2.0,
            scale_factor_width=1.75,
            align_corners=align_corners,
            **given,
        )

    (found,) = run(build, {"x": IMAGE}, target="iOS16")
    check(found, resized(IMAGE, (6, 7), mode))


def test_upsampling_does_nothing_by_default():
    def build(x):
        return [mb.upsample_nearest_neighbor(x=x), mb.upsample_bilinear(x=x)]

    for found in run(build, {"x": IMAGE}):
        np.testing.assert_array_equal(found, IMAGE)


def test_lengths_of_images_that_are_not_known_before():
    flexible = ct.RangeDim(1, 30)
    x = RANDOM.normal(size=(1, 2, 10, 3)).astype(np.float32)

    class Net(torch.nn.Module):
        def forward(self, x):
            first = functional.interpolate(x, scale_factor=0.7, recompute_scale_factor=True)
            second = functional.interpolate(x, scale_factor=(3.0, 2.0), mode="bilinear")
            return first, second

    model = models.quietly(
        ct.convert,
        models.quietly(torch.jit.trace, Net(), torch.zeros(1, 2, 8, 8)),
        inputs=[ct.TensorType(shape=(1, 2, flexible, flexible), name="x")],
        outputs=[ct.TensorType(name="first"), ct.TensorType(name="second")],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    found = load(model).predict({"x": x})
    wanted = Net()(torch.from_numpy(x))
    check(found["first"], wanted[0])
    check(found["second"], wanted[1])


@pytest.mark.parametrize(
    ("shape", "wanted_shape", "dims"),
    [
        ((2, 3, 4), [5, 6], 2),
        ((2, 3, 4), [5, 6], 1),
        ((2, 3, 4), [9, 5, 6], 2),
        ((2, 3, 4), [5, 0, 6], 3),
        ((2, 3, 4), [3, 1, 1], 3),
        ((4,), [7], 1),
        ((1, 2, 3, 4), [7], 0),
    ],
)
def test_resize(shape, wanted_shape, dims):
    x = RANDOM.normal(size=shape).astype(np.float32)
    cases = list(itertools.product(MODES, ("LINEAR", "NEAREST_NEIGHBOR")))

    def build(x):
        return [
            mb.resize(
                x=x,
                shape=wanted_shape,
                resized_dims=np.uint32(dims),
                interpolation_mode=interpolation,
                sampling_mode=mode,
            )
            for mode, interpolation in cases
        ]

    sizes = wanted_shape[len(wanted_shape) - dims :]
    sizes = [n or length for n, length in zip(sizes, x.shape[x.ndim - dims :], strict=True)]
    results = run(build, {"x": x}, target="iOS17")
    for found, (mode, interpolation) in zip(results, cases, strict=True):
        if interpolation == "LINEAR":
            check(found, resized(x, sizes, mode))
        else:
            np.testing.assert_array_equal(found, chosen(x, sizes, nearest_of(mode)))


def nearest_of(mode):
    """Which element ``resize`` takes: see ``chosen``."""
    if mode in ("DEFAULT", "UNALIGN_CORNERS"):
        return under_middle
    return lambda i, before, after: math.floor(grid(before, after, mode)[i] + Fraction(1, 2))


def test_resize_to_a_shape_that_is_computed():
    def build(x, shape):
        return [
            mb.resize(x=x, shape=shape, resized_dims=np.uint32(2)),
            mb.resize(
                x=x,
                shape=shape,
                resized_dims=np.uint32(1),
                interpolation_mode="NEAREST_NEIGHBOR",
            ),
        ]

    inputs = {"x": IMAGE, "shape": np.array([9, 5, 7], np.int32)}
    linear, nearest = run(build, inputs, target="iOS17")
    check(linear, resized(IMAGE, (5, 7), "DEFAULT"))
    np.testing.assert_array_equal(nearest, chosen(IMAGE, (7,), under_middle))


def test_resize_of_integers():
    x = RANDOM.integers(2**24, 2**25, (1, 2, 3)).astype(np.int32)

    def build(x):
        return [
            mb.resize(x=x, shape=[3, 6], resized_dims=np.uint32(2), interpolation_mode=mode)
            for mode in ("LINEAR", "NEAREST_NEIGHBOR")
        ]

    linear, nearest = run(build, {"x": x}, target="iOS17")
    np.testing.assert_array_equal(linear, np.trunc(resized(x, (3, 6), "DEFAULT")))
    np.testing.assert_array_equal(nearest, chosen(x, (3, 6), under_middle))


# --- cropping -------------------------------------------------------------------------------------


def test_crop():
    def build(x):
        return [
            mb.crop(x=x, crop_height=[0, 1], crop_width=[1, 1]),
            mb.crop(x=x, crop_height=[2, 0], crop_width=[0, 3]),
            mb.crop(x=x, crop_height=[0, 0], crop_width=[0, 0]),
        ]

    first, second, third = run(build, {"x": COUNTED})
    np.testing.assert_array_equal(first, [[[[2, 3], [6, 7], [10, 11]]]])
    np.testing.assert_array_equal(second, [[[[9], [13]]]])
    np.testing.assert_array_equal(third, COUNTED)


def corners(box, mode):
    """Top, left, bottom, right."""
    a, b, c, d = (float(number) for number in box)
    if mode.startswith("CENTER"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return (a, b, c, d) if mode.endswith("HEIGHT_FIRST") else (b, a, d, c)


def box_points(start, end, count, mode):
    """The points of a box on an axis: those of an axis of that length, from its start."""
    length, sign = abs(end - start), 1 if end >= start else -1
    points = []
    for i in range(count):
        if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS") and count > 1:
            offset = i * length / (count - 1)
        elif mode == "STRICT_ALIGN_CORNERS":
            offset = 0
        elif mode == "ALIGN_CORNERS":
            offset = length / 2
        elif mode == "DEFAULT":
            offset = i * (length + 1) / count
        elif mode == "OFFSET_CORNERS":
            offset = (i + 0.5) * max(1, length) / count
        else:
            offset = (i + 0.5) * (length + 1) / count - 0.5
        points.append(start + sign * min(max(offset, 0), length))
    return points


def value_at(image, row, column, pad):
    """A value between pixels; ``pad`` beyond the image."""
    height, width = image.shape
    if not (-1e-6 <= row <= height - 1 + 1e-6 and -1e-6 <= column <= width - 1 + 1e-6):
        return pad
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = math.floor(row), math.floor(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    upper = (1 - across) * image[top, left] + across * image[top, right]
    lower = (1 - across) * image[bottom, left] + across * image[bottom, right]
    return (1 - down) * upper + down * lower


def cropped(images, box, size, *, normalized=False, scale=1.0, box_mode, mode, pad=0.0):
    """A box of channels [channels, height, width]."""
    height, width = images.shape[1:]
    top, left, bottom, right = (scale * edge for edge in corners(box, box_mode))
    if normalized:
        top, bottom = top * (height - 1), bottom * (height - 1)
        left, right = left * (width - 1), right * (width - 1)
    rows, columns = (
        box_points(top, bottom, size[0], mode),
        box_points(left, right, size[1], mode),
    )
    return np.array(
        [[[value_at(c.astype(float), r, k, pad) for k in columns] for r in rows] for c in images]
    )


BOX_MODES = (
    "CORNERS_HEIGHT_FIRST",
    "CORNERS_WIDTH_FIRST",
    "CENTER_SIZE_HEIGHT_FIRST",
    "CENTER_SIZE_WIDTH_FIRST",
)
LARGE = RANDOM.normal(size=(2, 3, 7, 9)).astype(np.float32)
# inside, backwards, of one pixel, partly and wholly outside
BOXES = np.array(
    [[1.5, 1, 5.25, 4], [4, 5, 2, 1.5], [3, 3, 3, 3], [-1.5, 2, 4, 10], [8, 10, 9, 12]], np.float32
)


@pytest.mark.parametrize("box_mode", BOX_MODES)
def test_boxes_of_every_image(box_mode):
    cases = list(itertools.product([(3, 4), (1, 1), (8, 2)], MODES))

    def build(x, roi):
        return [
            mb.crop_resize(
                x=x,
                roi=roi,
                target_height=size[0],
                target_width=size[1],
                box_coordinate_mode=box_mode,
                sampling_mode=mode,
            )
            for size, mode in cases
        ]

    results = run(build, {"x": LARGE, "roi": BOXES.reshape(-1, 1, 4, 1, 1)})
    for found, (size, mode) in zip(results, cases, strict=True):
        wanted = [
            [cropped(image, box, size, box_mode=box_mode, mode=mode) for image in LARGE]
            for box in BOXES
        ]
        check(found, wanted)


@pytest.mark.parametrize("box_mode", BOX_MODES)
@pytest.mark.parametrize("normalized", [False, True])
def test_boxes_and_numbers_of_images(box_mode, normalized):
    boxes = BOXES / 10 if normalized else BOXES
    numbers = np.array([0, 1, 1, 0, 1], np.int32)

    def build(x, boxes, box_indices):
        return [
            mb.crop_resize(
                x=x,
                boxes=boxes,
                box_indices=box_indices,
                target_height=3,
                target_width=2,
                normalized_coordinates=normalized,
                spatial_scale=0.75,
                box_coordinate_mode=box_mode,
                sampling_mode=mode,
                pad_value=-2.5,
            )
            for mode in MODES
        ]

    inputs = {"x": LARGE, "boxes": boxes, "box_indices": numbers}
    options = {"normalized": normalized, "scale": 0.75, "box_mode": box_mode, "pad": -2.5}
    for found, mode in zip(run(build, inputs, target="iOS17"), MODES, strict=True):
        wanted = [
            cropped(LARGE[number], box, (3, 2), mode=mode, **options)
            for number, box in zip(numbers, boxes, strict=True)
        ]
        check(found, wanted)


@pytest.mark.parametrize("pad", [None, 7.0])
def test_boxes_with_the_number_of_an_image(pad):
    roi = np.concatenate((np.zeros((5, 1), np.float32), BOXES), axis=1).reshape(5, 1, 5, 1, 1)
    given = {} if pad is None else {"pad_value": np.float32(pad)}

    def build(x, roi):
        return mb.crop_resize(
            x=x,
            roi=roi,
            target_height=2,
            target_width=3,
            sampling_mode="ALIGN_CORNERS",
            **given,
        )

    inputs = {"x": LARGE[:1], "roi": roi}
    (found,) = run(build, inputs, target="iOS15" if pad is None else "iOS16")
    wanted = [
        [
            cropped(
                LARGE[0],
                box,
                (2, 3),
                box_mode="CORNERS_HEIGHT_FIRST",
                mode="ALIGN_CORNERS",
                pad=pad or 0.0,
            )
        ]
        for box in BOXES
    ]
    check(found, wanted)


def test_each_box_has_its_own_image():
    # the program that coremltools writes for several images declares another shape
    roi = torch.tensor([[1.0, 0, 0, 2, 2], [0, 1, 1, 3, 3]]).reshape(2, 1, 5, 1, 1)
    x = torch.from_numpy(np.concatenate((COUNTED, 100 * COUNTED)))
    found = images.crop_resize(x, roi, 3, 3, sampling_mode="ALIGN_CORNERS")
    assert found.shape == (2, 1, 1, 3, 3)
    assert torch.equal(found[0, 0, 0], x[1, 0, :3, :3])
    assert torch.equal(found[1, 0, 0], x[0, 0, 1:, 1:])


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_a_box_by_hand(target):
    box = np.array([1, 1, 2, 2], np.float32)
    given = {"target_width": 3, "target_height": 2, "sampling_mode": "ALIGN_CORNERS"}

    def build(x):
        if target == "iOS15":
            return mb.crop_resize(x=x, roi=box.reshape(1, 1, 4, 1, 1), **given)
        return mb.crop_resize(x=x, boxes=box.reshape(1, 4), **given)

    (found,) = run(build, {"x": COUNTED}, target=target)
    np.testing.assert_array_equal(found.reshape(2, 3), [[6, 6.5, 7], [10, 10.5, 11]])


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_image_is_never_padded(mode):
    x = torch.ones(1, 1, 64, 47)
    whole = torch.tensor([[0.0, 0, 1, 1], [1, 1, 0, 0]])
    for count in range(1, 40):
        found = images.crop_resize_of_boxes(
            x,
            whole,
            torch.zeros(2, dtype=torch.int32),
            count,
            count,
            normalized_coordinates=True,
            sampling_mode=mode,
            pad_value=-1e6,
        )
        torch.testing.assert_close(found, torch.ones_like(found))


# --- sampling -------------------------------------------------------------------------------------

PADDINGS = ("constant", "border", "reflection", "symmetric")


def padded_index(i, length, padding):
    """The index of what stands at an index outside; None for the padding value."""
    if 0 <= i < length:
        return i
    if padding == "constant":
        return None
    if padding == "border":
        return min(max(i, 0), length - 1)
    if padding == "reflection":
        row = [*range(length), *range(length - 2, 0, -1)]
    else:
        row = [*range(length), *range(length - 1, -1, -1)]
    return row[i % len(row)]


def pixel(image, row, column, padding, value):
    places = (
        padded_index(row, image.shape[0], padding),
        padded_index(column, image.shape[1], padding),
    )
    return value if None in places else float(image[places])


def to_pixels(place, length, mode, align_corners):
    if mode == "unnormalized":
        return place
    share = (place + 1) / 2 if mode == "normalized_minus_one_to_one" else place
    return share * (length - 1) if align_corners else share * length - 0.5


def sampled(x, coordinates, padding, value, mode, align_corners, sampling):
    count, height, width, _ = coordinates.shape
    found = np.zeros((count, x.shape[1], height, width))
    for n, c, i, j in itertools.product(
        range(count), range(x.shape[1]), range(height), range(width)
    ):
        column = to_pixels(float(coordinates[n, i, j, 0]), x.shape[3], mode, align_corners)
        row = to_pixels(float(coordinates[n, i, j, 1]), x.shape[2], mode, align_corners)
        if sampling == "nearest":
            found[n, c, i, j] = pixel(x[n, c], round(row), round(column), padding, value)
            continue
        top, left = math.floor(row), math.floor(column)
        for down, across in itertools.product((0, 1), (0, 1)):
            weight = abs(1 - down - (row - top)) * abs(1 - across - (column - left))
            found[n, c, i, j] += weight * pixel(x[n, c], top + down, left + across, padding, value)
    return found


# none lies just between two pixels
PLACES = {
    "unnormalized": RANDOM.uniform(-8, 11, (2, 4, 5, 2)).astype(np.float32),
    "normalized_minus_one_to_one": RANDOM.uniform(-3.5, 3.5, (2, 4, 5, 2)).astype(np.float32),
    "normalized_zero_to_one": RANDOM.uniform(-1.5, 2.5, (2, 4, 5, 2)).astype(np.float32),
}


@pytest.mark.parametrize("mode", PLACES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_resample(mode, align_corners, target):
    cases = list(itertools.product(("bilinear", "nearest"), PADDINGS))

    def build(x, coordinates):
        return [
            mb.resample(
                x=x,
                coordinates=coordinates,
                sampling_mode=sampling,
                padding_mode=padding,
                padding_value=-1.25,
                coordinates_mode=mode,
                align_corners=align_corners,
            )
            for sampling, padding in cases
        ]

    results = run(build, {"x": IMAGE, "coordinates": PLACES[mode]}, target=target)
    for found, (sampling, padding) in zip(results, cases, strict=True):
        check(found, sampled(IMAGE, PLACES[mode], padding, -1.25, mode, align_corners, sampling))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_resample_as_pytorch_samples_grids(align_corners, sampling, padding):
    places = PLACES["normalized_minus_one_to_one"].copy()
    # pixels, edges and the middles between pixels
    places[0, 0] = np.array([[-1, -1], [1, 1], [0, 0], [0.5, -0.5], [-1.5, 2]], np.float32)
    name = {"zeros": "constant", "border": "border"}.get(
        padding, "reflection" if align_corners else "symmetric"
    )

    def build(x, coordinates):
        return mb.resample(
            x=x,
            coordinates=coordinates,
            sampling_mode=sampling,
            padding_mode=name,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align_corners,
        )

    (found,) = run(build, {"x": IMAGE, "coordinates": places})
    wanted = functional.grid_sample(
        torch.from_numpy(IMAGE), torch.from_numpy(places), sampling, padding, align_corners
    )
    check(found, wanted)


def test_resample_at_integers():
    coordinates = np.array([[0, 0], [3, 2], [1, 1], [2, 0]], np.int32).reshape(1, 2, 2, 2)

    def build(x, coordinates):
        narrow = [
            mb.cast(x=coordinates, dtype=name) for name in ("int8", "uint8", "int16", "uint16")
        ]
        return [
            mb.resample(
                x=x,
                coordinates=places,
                sampling_mode="bilinear",
                padding_mode="constant",
                padding_value=0.0,
                coordinates_mode="unnormalized",
                align_corners=True,
            )
            for places in (coordinates, *narrow)
        ]

    results = run(build, {"x": COUNTED, "coordinates": coordinates}, target="iOS17")
    assert len(results) == 5
    for found in results:
        np.testing.assert_array_equal(found, [[[[1, 12], [6, 3]]]])


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_image_of_one_pixel_and_places_without_end(padding):
    x = torch.full((1, 1, 1, 1), 3.0)
    places = torch.tensor([0.0, 5, -7, 1e30, -1e30, 9]).reshape(1, 1, 3, 2)
    found = images.resample(x, places, "bilinear", padding, 2.0, "unnormalized", True)
    wanted = [2.0, 2.0, 2.0] if padding == "constant" else [3.0, 3.0, 3.0]
    assert found.reshape(-1).tolist() == wanted


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior")
@pytest.mark.parametrize("matrices", [1, 2])
def test_affine_is_a_grid_of_pytorch(matrices):
    matrix = RANDOM.normal(size=(matrices, 6)).astype(np.float32)
    cases = list(itertools.product([(3, 5), (1, 1), (4, 2)], [False, True]))

    def build(x, transform_matrix):
        return [
            mb.affine(
                x=x,
                transform_matrix=transform_matrix,
                output_height=size[0],
                output_width=size[1],
                sampling_mode="bilinear",
                padding_mode="constant",
                padding_value=0.0,
                coordinates_mode="normalized_minus_one_to_one",
                align_corners=align_corners,
            )
            for size, align_corners in cases
        ]

    theta = torch.from_numpy(matrix).reshape(-1, 2, 3).expand(2, -1, -1)
    results = run(build, {"x": IMAGE, "transform_matrix": matrix})
    for found, (size, aligned) in zip(results, cases, strict=True):
        grids = functional.affine_grid(theta, (2, 2, *size), align_corners=aligned)
        wanted = functional.grid_sample(torch.from_numpy(IMAGE), grids, align_corners=aligned)
        check(found, wanted)


def test_affine_by_hand():
    matrix = np.array([[-1.0, 0, 0, 0, 1, 0]], np.float32)

    def build(x):
        return mb.affine(
            x=x,
            transform_matrix=matrix,
            output_height=2,
            output_width=4,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        )

    (found,) = run(build, {"x": COUNTED})
    np.testing.assert_allclose(found, [[[[4, 3, 2, 1], [16, 15, 14, 13]]]], rtol=1e-6)


# --- precision and errors -------------------------------------------------------------------------


def test_half_precision():
    x, boxes = LARGE.astype(np.float16), (BOXES / 10).astype(np.float16)

    def build(x, boxes):
        return [
            mb.resize_bilinear(x=x, target_size_height=9, target_size_width=5),
            mb.crop_resize(
                x=x,
                boxes=boxes,
                box_indices=np.zeros(5, np.int32),
                target_height=3,
                target_width=2,
                normalized_coordinates=True,
            ),
            mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=2),
        ]

    results = run(build, {"x": x, "boxes": boxes}, target="iOS17", computed="as_declared")
    for array in results:
        assert_of_halves(array)
    check(results[0], resized(x, (9, 5), "DEFAULT"), 2e-3, 2e-3)
    options = {"normalized": True, "box_mode": "CORNERS_HEIGHT_FIRST", "mode": "DEFAULT"}
    check(results[1], [cropped(x[0], box, (3, 2), **options) for box in boxes], 2e-3, 2e-3)
    np.testing.assert_array_equal(results[2], chosen(x, (14, 18), at_start))


def test_bad_arguments():
    x, boxes = torch.from_numpy(IMAGE), torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"sampling_mode must be one of .*, got 'ANY'"):
        images.resize_bilinear(x, 2, 2, "ANY")
    with pytest.raises(ValueError, match=r"interpolation_mode must be one of .*, got 'CUBIC'"):
        images.resize(x, (2, 2), 2, "CUBIC")
    with pytest.raises(ValueError, match="resized_dims must be from 0"):
        images.resize(x, (2, 2), 3)
    with pytest.raises(ValueError, match="cannot have the lengths"):
        images.resize_nearest_neighbor(x, 0, 2)
    with pytest.raises(ValueError, match="more than this machine"):
        images.resize_nearest_neighbor(x, 1 << 20, 1 << 20)
    with pytest.raises(ValueError, match="crop_height must be two numbers"):
        images.crop(x, (2, 2), (0, 0))
    with pytest.raises(ValueError, match="roi must have shape"):
        images.crop_resize(x, torch.zeros(1, 1, 3, 1, 1))
    with pytest.raises(ValueError, match="an image from 0 to 1, got"):
        images.crop_resize_of_boxes(x, boxes, torch.tensor([2]))
    with pytest.raises(ValueError, match="box_coordinate_mode must be one of"):
        images.crop_resize_of_boxes(x, boxes, box_coordinate_mode="CORNERS")
    with pytest.raises(ValueError, match=r"padding_mode must be one of .*, got 'wrap'"):
        images.resample(x, torch.zeros(2, 1, 1, 2), "nearest", "wrap", 0.0, "unnormalized", True)
    with pytest.raises(ValueError, match="coordinates for 1"):
        images.resample(x, torch.zeros(1, 1, 1, 2), "nearest", "border", 0.0, "unnormalized", True)
