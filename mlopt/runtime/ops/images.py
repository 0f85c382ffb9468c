"""Images: resized, cropped, sampled anywhere (MIL, ``defs/*/image_resizing.py``).

The last two axes are height and width. Values between pixels are interpolated linearly on each
axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mlopt.runtime.call import Call
from mlopt.runtime.registry import Ints, operation
from mlopt.runtime.sizes import check_elements

_SAMPLING_MODES = (
    "STRICT_ALIGN_CORNERS",
    "ALIGN_CORNERS",
    "DEFAULT",
    "OFFSET_CORNERS",
    "UNALIGN_CORNERS",
)
_BOX_MODES = (
    "CORNERS_HEIGHT_FIRST",
    "CORNERS_WIDTH_FIRST",
    "CENTER_SIZE_HEIGHT_FIRST",
    "CENTER_SIZE_WIDTH_FIRST",
)
_PADDING_MODES = ("constant", "border", "reflection", "symmetric")
_COORDINATES_MODES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")


@operation("upsample_nearest_neighbor", in_half=True)
def upsample_nearest_neighbor(
    x: Tensor, call: Call, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    """An image enlarged by factors: the pixel at ``floor(i * before / after)``.

    ``before`` and ``after`` are lengths of the axis: the factor is computed anew from them.
    """
    sizes = _scaled_sizes(x, scale_factor_height, scale_factor_width, call)
    return _resized(x, sizes, lambda before, after: torch.arange(after) * before // after)


@operation("resize_nearest_neighbor", in_half=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """An image in another size: the pixel at ``floor((i + 1/2) * before / after)``.

    That is the pixel under the middle of the new one, as in TensorFlow with half-pixel centers,
    which coremltools converts to this.
    """
    return _resized(x, (target_size_height, target_size_width), _under_middle)


@operation("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    call: Call,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """An image enlarged by factors, interpolated linearly.

    The factor is computed anew from the lengths. ``align_corners``: the middles of the corner
    pixels stay where they are; otherwise either pixels are squares that are divided
    (``half_pixel_centers``, the default), or the first pixels' middles coincide.
    """
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ValueError("align_corners and half_pixel_centers cannot both be true")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    sizes = _scaled_sizes(x, scale_factor_height, scale_factor_width, call)
    return _resized_linearly(x, sizes, mode)


@operation("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """An image in another size, interpolated linearly at the points of a sampling mode."""
    return _resized_linearly(x, (target_size_height, target_size_width), sampling_mode)


@operation("resize", since="CoreML7")
def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last axes in the lengths that the end of ``shape`` has, where 0 keeps a length.

    The nearest neighbor is the pixel under the middle of the new one in the modes ``DEFAULT`` (as
    in TensorFlow with half-pixel centers, which coremltools converts to that) and
    ``UNALIGN_CORNERS``, and in the others the nearest to the mode's point, of two the second.
    Fractions of integers are cut off.
    """
    if not 0 <= resized_dims <= min(len(shape), x.dim()):
        raise ValueError(
            f"resized_dims must be from 0 to the length of shape ({len(shape)}) and the rank of "
            f"x ({x.dim()}), got {resized_dims}"
        )
    axes = range(x.dim() - resized_dims, x.dim())
    wanted = shape[len(shape) - resized_dims :]
    sizes = [n or x.shape[axis] for n, axis in zip(wanted, axes, strict=True)]
    _check_one_of("interpolation_mode", interpolation_mode, ("LINEAR", "NEAREST_NEIGHBOR"))
    if interpolation_mode == "LINEAR":
        return _resized_linearly(x, sizes, sampling_mode)
    _check_one_of("sampling_mode", sampling_mode, _SAMPLING_MODES)
    if sampling_mode in ("DEFAULT", "UNALIGN_CORNERS"):
        return _resized(x, sizes, _under_middle)
    return _resized(
        x, sizes, lambda before, after: torch.floor(_points(before, after, sampling_mode) + 0.5)
    )


@operation("crop", in_half=True)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """An image without some rows at its top and bottom, and columns at its left and right."""
    for name, amounts, length in (
        ("crop_height", crop_height, x.shape[-2]),
        ("crop_width", crop_width, x.shape[-1]),
    ):
        if len(amounts) != 2 or min(amounts) < 0 or sum(amounts) > length:
            raise ValueError(
                f"{name} must be two numbers >= 0 of at most {length} together, got {list(amounts)}"
            )
    height = x.shape[-2] - sum(crop_height)
    width = x.shape[-1] - sum(crop_width)
    return x.narrow(-2, crop_height[0], height).narrow(-1, crop_width[0], width)


@operation("crop_resize", declared_loosely=True)
def crop_resize(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes of images, each interpolated linearly at the points of a sampling mode.

    ``roi`` [boxes, 1, 4, 1, 1] is taken of every image of ``x``, for [boxes, images, channels,
    height, width]; with 5 numbers, the first is the image's, for [boxes, 1, channels, height,
    width]. See :func:`crop_resize_of_boxes` for the points.
    """
    if roi.dim() != 5 or roi.shape[2] not in (4, 5) or roi.numel() != roi.shape[0] * roi.shape[2]:
        raise ValueError(f"roi must have shape [n, 1, 4 or 5, 1, 1], got {list(roi.shape)}")
    rows = roi.reshape(roi.shape[0], roi.shape[2])
    count, images = len(rows), x.shape[0] if rows.shape[1] == 4 else 1
    if rows.shape[1] == 5:
        numbers, boxes = rows[:, 0].long(), rows[:, 1:]
    else:
        numbers = torch.arange(images, device=x.device).repeat(count)
        boxes = rows.repeat_interleave(images, dim=0)
    crops: Tensor = crop_resize_of_boxes(
        x,
        boxes,
        numbers,
        target_height,
        target_width,
        normalized_coordinates,
        spatial_scale,
        box_coordinate_mode,
        sampling_mode,
        pad_value,
    )
    return crops.reshape(count, images, *crops.shape[1:])


@operation("crop_resize", since="CoreML7")
def crop_resize_of_boxes(
    x: Tensor,
    boxes: Tensor,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes [n, 4] of images, each interpolated linearly at the points of a sampling mode.

    A box from pixel ``a`` to pixel ``b`` is sampled as an axis of ``b - a + 1`` pixels is resized,
    backwards where ``b < a``; with a centre and a size, ``a`` and ``b`` lie half the size from it.
    Coordinates are multiplied by ``spatial_scale``, and normalized ones by the image's lengths less
    1. A point outside the image has the value ``pad_value``.
    """
    _check_one_of("box_coordinate_mode", box_coordinate_mode, _BOX_MODES)
    _check_one_of("sampling_mode", sampling_mode, _SAMPLING_MODES)
    if x.dim() != 4 or boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"x must have rank 4 and boxes shape [n, 4], got {list(x.shape)} and "
            f"{list(boxes.shape)}"
        )
    count = boxes.shape[0]
    check_elements(count * x.shape[1] * target_height * target_width)
    if box_indices is None:
        box_indices = torch.arange(count, device=x.device)
    numbers = box_indices.long()
    if numbers.shape != (count,) or bool(((numbers < 0) | (numbers >= x.shape[0])).any()):
        raise ValueError(
            f"box_indices must give each of the {count} boxes an image from 0 to "
            f"{x.shape[0] - 1}, got {numbers.tolist()}"
        )
    height, width = x.shape[-2:]
    coordinates = boxes.to(_wide(x)) * spatial_scale
    (top, bottom), (left, right) = _corners(coordinates, box_coordinate_mode)
    if normalized_coordinates:
        top, bottom = top * (height - 1), bottom * (height - 1)
        left, right = left * (width - 1), right * (width - 1)
    rows = _points_between(top, bottom, target_height, sampling_mode)
    columns = _points_between(left, right, target_width, sampling_mode)
    samples = _sampled(x, numbers[:, None, None], rows[:, :, None], columns[:, None, :], pad_value)
    inside = _is_inside(rows, height)[:, :, None] & _is_inside(columns, width)[:, None, :]
    return torch.where(inside[:, None], samples, pad_value)


@operation("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """An image sampled where a matrix maps the pixels of the result, from -1 to 1 on each axis.

    A row of ``transform_matrix`` has ``a0, a1, a2, b0, b1, b2`` for one image, or for all of them:
    ``a0 * x + a1 * y + a2`` and ``b0 * x + b1 * y + b2``. An axis of one pixel is at 0.
    """
    for name, value, allowed in (
        ("sampling_mode", sampling_mode, ("bilinear",)),
        ("padding_mode", padding_mode, ("constant",)),
        ("coordinates_mode", coordinates_mode, ("normalized_minus_one_to_one",)),
    ):
        _check_one_of(name, value.lower(), allowed)
    if x.dim() != 4 or transform_matrix.shape not in ((1, 6), (x.shape[0], 6)):
        raise ValueError(
            f"x must have rank 4 and transform_matrix 6 numbers for all images or for each, got "
            f"shapes {list(x.shape)} and {list(transform_matrix.shape)}"
        )
    check_elements(x.shape[0] * x.shape[1] * output_height * output_width)
    matrix = transform_matrix.to(_wide(x)).reshape(-1, 2, 3, 1, 1)
    across = _normalized(output_width, align_corners).to(matrix)[None, :]
    down = _normalized(output_height, align_corners).to(matrix)[:, None]
    mapped = matrix[:, :, 0] * across + matrix[:, :, 1] * down + matrix[:, :, 2]
    resampled: Tensor = resample(
        x,
        mapped.movedim(1, -1).expand(x.shape[0], -1, -1, -1),
        sampling_mode,
        padding_mode,
        padding_value,
        coordinates_mode,
        align_corners,
    )
    return resampled


@operation("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """The values of images at coordinates [images, height, width, 2], of which the x comes first.

    Normalized coordinates run over the middles of the first and the last pixel
    (``align_corners``) or over their outer edges. Beyond the image are its border pixels, its
    mirror image about the middle of the border pixels (``"reflection"``) or about their outer
    edges (``"symmetric"``), or ``padding_value``. The nearest pixel of two is that of the even
    number, as in PyTorch, whose ``grid_sample`` coremltools converts to this.
    """
    sampling, padding, scale = sampling_mode.lower(), padding_mode.lower(), coordinates_mode.lower()
    _check_one_of("sampling_mode", sampling, ("bilinear", "nearest"))
    _check_one_of("padding_mode", padding, _PADDING_MODES)
    _check_one_of("coordinates_mode", scale, _COORDINATES_MODES)
    if x.dim() != 4 or coordinates.dim() != 4 or coordinates.shape[3] != 2:
        raise ValueError(
            f"x must have rank 4 and coordinates shape [n, height, width, 2], got "
            f"{list(x.shape)} and {list(coordinates.shape)}"
        )
    if x.shape[0] != coordinates.shape[0]:
        raise ValueError(
            f"there are {x.shape[0]} images, and coordinates for {coordinates.shape[0]}"
        )
    places = coordinates.to(_wide(x)).unbind(-1)
    columns, rows = (
        _within(_pixels(place, length, scale, align_corners), length, padding)
        for place, length in zip(places, (x.shape[3], x.shape[2]), strict=True)
    )
    if sampling == "nearest":
        columns, rows = torch.round(columns), torch.round(rows)
    numbers = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return _sampled(x, numbers, rows, columns, padding_value)


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype of interpolation; coordinates in half precision are too coarse."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float64


def _scaled_sizes(x: Tensor, height: float, width: float, call: Call) -> tuple[int, int]:
    """Lengths times factors, rounded down.

    The declared ones take precedence: with a factor such as 1/3 in float32 lengths are not certain.
    """
    declared = call.outputs[0].shape or (None, None)
    sizes = [
        math.floor(float(torch.tensor(length, dtype=torch.float32) * factor))
        if known is None
        else known
        for known, length, factor in zip(declared[-2:], x.shape[-2:], (height, width), strict=True)
    ]
    return sizes[0], sizes[1]


def _resized(x: Tensor, sizes: Sequence[int], chosen: Callable[[int, int], Tensor]) -> Tensor:
    """Return the last axes in other lengths: the elements that ``chosen(before, after)`` names."""
    _check_sizes(x, sizes)
    for axis, size in zip(range(x.dim() - len(sizes), x.dim()), sizes, strict=True):
        if size != x.shape[axis]:
            x = x.index_select(axis, chosen(x.shape[axis], size).long().to(x.device))
    return x


def _under_middle(before: int, after: int) -> Tensor:
    return (2 * torch.arange(after) + 1) * before // (2 * after)


def _resized_linearly(x: Tensor, sizes: Sequence[int], sampling_mode: str) -> Tensor:
    """Return the last axes in other lengths, interpolated."""
    _check_one_of("sampling_mode", sampling_mode, _SAMPLING_MODES)
    _check_sizes(x, sizes)
    result = x.to(_wide(x))
    for axis, size in zip(range(x.dim() - len(sizes), x.dim()), sizes, strict=True):
        length = x.shape[axis]
        points = _points(length, size, sampling_mode)
        lower = torch.floor(points)
        upper = torch.clamp(lower + 1, max=length - 1)
        weights = (points - lower).to(result).reshape(-1, *[1] * (x.dim() - axis - 1))
        below, above = (result.index_select(axis, i.long().to(x.device)) for i in (lower, upper))
        result = torch.lerp(below, above, weights)
    return result


def _points(before: int, after: int, sampling_mode: str) -> Tensor:
    """Return the points where an axis is sampled to change its length: float64[after]."""
    last = torch.tensor([before - 1], dtype=torch.float64)
    return _offsets(last, after, sampling_mode)[0]


def _points_between(start: Tensor, end: Tensor, count: int, sampling_mode: str) -> Tensor:
    """Return the points where boxes are sampled on an axis: [boxes, count]."""
    offsets = _offsets(torch.abs(end - start), count, sampling_mode)
    points = start[:, None] + torch.sign(end - start)[:, None] * offsets
    # rounding must not carry the last point out of the box, and so out of the image
    return torch.clamp(
        points, torch.minimum(start, end)[:, None], torch.maximum(start, end)[:, None]
    )


def _offsets(last: Tensor, count: int, sampling_mode: str) -> Tensor:
    """Return distances of ``count`` points from the first pixel of axes: [axes, count].

    last: the distance of each axis' last pixel from its first.
    """
    last = last[:, None]
    steps = torch.arange(count, dtype=last.dtype, device=last.device)
    if sampling_mode == "ALIGN_CORNERS" and count == 1:
        offsets = last / 2
    elif sampling_mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        offsets = steps * last / max(count - 1, 1)
    elif sampling_mode == "DEFAULT":
        offsets = steps * (last + 1) / count
    elif sampling_mode == "OFFSET_CORNERS":
        offsets = (steps + 0.5) * torch.clamp(last, min=1.0) / count
    else:
        offsets = (steps + 0.5) * (last + 1) / count - 0.5
    return torch.minimum(torch.clamp(offsets, min=0.0), last)


def _corners(boxes: Tensor, mode: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return where boxes begin and end, on the axis of height and on that of width."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if mode.startswith("CENTER_SIZE"):
        first, second = first - second / 2, first + second / 2
    one, other = torch.stack((first, second)).unbind(-1)
    down, across = (one, other) if mode.endswith("HEIGHT_FIRST") else (other, one)
    return (down[0], down[1]), (across[0], across[1])


def _normalized(length: int, align_corners: bool) -> Tensor:
    """The pixels of an axis as coordinates from -1 to 1."""
    steps = torch.arange(length, dtype=torch.float64)
    if not align_corners:
        return (2 * steps + 1) / length - 1
    return 2 * steps / (length - 1) - 1 if length > 1 else torch.zeros(length, dtype=steps.dtype)


def _pixels(places: Tensor, length: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates as numbers of pixels, 0 being the middle of the first one."""
    if mode == "unnormalized":
        return places
    if mode == "normalized_minus_one_to_one":
        places = (places + 1) / 2
    return places * (length - 1) if align_corners else places * length - 0.5


def _within(places: Tensor, length: int, padding_mode: str) -> Tensor:
    """Return the places in the image whose values places outside it take."""
    if padding_mode == "constant":
        # what lies further out is the same, and infinity would have no fraction
        return torch.clamp(places, -2, length + 1)
    if padding_mode == "reflection":
        places = _mirrored(places, 0.0, length - 1.0)
    elif padding_mode == "symmetric":
        places = _mirrored(places, -0.5, length - 0.5)
    return torch.clamp(places, 0, length - 1)


def _mirrored(places: Tensor, low: float, high: float) -> Tensor:
    if low == high:
        return torch.full_like(places, low)
    span = high - low
    distance = torch.remainder(places - low, 2 * span)
    return low + torch.minimum(distance, 2 * span - distance)


def _is_inside(places: Tensor, length: int) -> Tensor:
    return (places >= 0) & (places <= length - 1)


def _sampled(x: Tensor, numbers: Tensor, rows: Tensor, columns: Tensor, outside: float) -> Tensor:
    """Images at places, interpolated: [n, channels, height, width].

    numbers, rows, columns: of the image and the place of each sample, broadcast to [n, height,
    width]; outside: what pixels beyond the image have.
    """
    wide = x.to(_wide(x))
    top, left = torch.floor(rows), torch.floor(columns)
    down, across = rows - top, columns - left
    total = None
    for row, of_row in ((top, 1 - down), (top + 1, down)):
        for column, of_column in ((left, 1 - across), (left + 1, across)):
            weight = (of_row * of_column)[..., None]
            value = _pixel(wide, numbers, row, column, outside) * weight
            total = value if total is None else total + value
    assert total is not None
    return total.movedim(-1, 1)


def _pixel(x: Tensor, numbers: Tensor, rows: Tensor, columns: Tensor, outside: float) -> Tensor:
    height, width = x.shape[-2:]
    inside = _is_inside(rows, height) & _is_inside(columns, width)
    safe_rows = torch.clamp(rows.long(), 0, height - 1)
    safe_columns = torch.clamp(columns.long(), 0, width - 1)
    return torch.where(inside[..., None], x[numbers, :, safe_rows, safe_columns], outside)


def _check_sizes(x: Tensor, sizes: Sequence[int]) -> None:
    if x.dim() < len(sizes) or min((*sizes, 1)) < 1:
        raise ValueError(
            f"the last axes of a tensor of shape {list(x.shape)} cannot have the lengths "
            f"{list(sizes)}"
        )
    check_elements(math.prod(x.shape[: x.dim() - len(sizes)]) * math.prod(sizes))


def _check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
