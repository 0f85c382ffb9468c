"""Reshaping operations against numpy, loops over elements, PyTorch, and coremltools' inference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol

from mlopt.errors import RunError
from mlopt.runtime.ops import reshaping
from tests.runtime.programs import TARGETS, inferred, run

RANDOM = np.random.default_rng(0)
REPRESENTATIVE = ("iOS15", "iOS17")
NEWER = ("iOS16", "iOS17")


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def counted(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def assert_all_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def moved_from_depth(x, block):
    """Depth to space, element by element."""
    n, channels, height, width = x.shape
    inner = channels // block**2
    out = np.empty((n, inner, height * block, width * block), x.dtype)
    for b, c, y, z in np.ndindex(out.shape):
        source = ((y % block) * block + z % block) * inner + c
        out[b, c, y, z] = x[b, source, y // block, z // block]
    return out


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_depth_to_space_orders_channels_by_row_column_channel(target):
    x = random(2, 36, 2, 3)
    found = run(
        lambda x: [mb.depth_to_space(x=x, block_size=size) for size in (2, 3)],
        {"x": x},
        target=target,
    )
    assert_all_equal(found, [moved_from_depth(x, size) for size in (2, 3)])


def test_depth_to_space_by_hand():
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    found = run(
        lambda x: [mb.depth_to_space(x=x, block_size=2), mb.pixel_shuffle(x=x, upscale_factor=2)],
        {"x": x},
    )
    assert found[0].tolist() == [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]]
    assert found[1].tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_space_to_depth_undoes_depth_to_space(target):
    wanted = [random(2, 8, 2, 3), random(1, 18, 1, 2)]

    def build(x, y):
        return [mb.space_to_depth(x=x, block_size=2), mb.space_to_depth(x=y, block_size=3)]

    inputs = {"x": moved_from_depth(wanted[0], 2), "y": moved_from_depth(wanted[1], 3)}
    assert_all_equal(run(build, inputs, target=target), wanted)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_pixel_shuffle_is_that_of_torch(target):
    x = random(2, 36, 2, 3)
    found = run(
        lambda x: [mb.pixel_shuffle(x=x, upscale_factor=factor) for factor in (2, 3)],
        {"x": x},
        target=target,
    )
    wanted = [torch.nn.PixelShuffle(factor)(torch.from_numpy(x)).numpy() for factor in (2, 3)]
    assert_all_equal(found, wanted)


@pytest.mark.parametrize("target", NEWER)
def test_pixel_unshuffle_is_that_of_torch(target):
    x = random(2, 3, 6, 12)
    found = run(
        lambda x: [mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(n)) for n in (2, 3)],
        {"x": x},
        target=target,
    )
    wanted = [torch.nn.PixelUnshuffle(factor)(torch.from_numpy(x)).numpy() for factor in (2, 3)]
    assert_all_equal(found, wanted)


BLOCKS = [((2, 2), ((0, 0), (0, 0))), ((2, 3), ((1, 0), (0, 1))), ((1, 2), ((0, 1), (2, 1)))]


def spread_to_batch(x, block, paddings):
    """Space to batch, element by element."""
    padded = np.pad(x, ((0, 0), (0, 0), *paddings))
    n, channels, height, width = padded.shape
    tall, wide = block
    out = np.empty((tall * wide * n, channels, height // tall, width // wide), x.dtype)
    for b, c, y, z in np.ndindex(padded.shape):
        batch = ((y % tall) * wide + z % wide) * n + b
        out[batch, c, y // tall, z // wide] = padded[b, c, y, z]
    return out


@pytest.mark.parametrize(("block", "paddings"), BLOCKS)
@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_space_to_batch_and_back(block, paddings, target):
    height = 4 * block[0] - sum(paddings[0])
    width = 2 * block[1] - sum(paddings[1])
    x = random(2, 3, height, width)
    spread = spread_to_batch(x, block, paddings)
    (found,) = run(
        lambda x: mb.space_to_batch(x=x, block_shape=block, paddings=paddings),
        {"x": x},
        target=target,
    )
    np.testing.assert_array_equal(found, spread, strict=True)
    (back,) = run(
        lambda x: mb.batch_to_space(x=x, block_shape=block, crops=paddings),
        {"x": spread},
        target=target,
    )
    np.testing.assert_array_equal(back, x, strict=True)


def test_batch_to_space_by_hand():
    x = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
    (found,) = run(
        lambda x: mb.batch_to_space(x=x, block_shape=[2, 2], crops=[[0, 0], [0, 0]]), {"x": x}
    )
    assert found.tolist() == [[[[0, 2], [4, 6]]], [[[1, 3], [5, 7]]]]


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_expand_dims_counts_axes_in_the_result(target):
    x = random(2, 3)
    cases = [(0,), (1,), (2,), (-1,), (-3,), (0, -1), (3, 1), (-2, 0), (0, 1, 2)]
    build = lambda x: [mb.expand_dims(x=x, axes=axes) for axes in cases]  # noqa: E731
    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [np.expand_dims(x, axes) for axes in cases])
    assert_all_equal(found, inferred(build, {"x": x}, target=target))


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_squeeze_drops_axes_of_length_1_only(target):
    x = random(1, 2, 1, 3, 1)
    cases = [None, (0,), (2,), (-1,), (0, -1), (2, 0), (1,), (0, 1), (3, 4)]
    shapes = [(2, 3), (2, 1, 3, 1), (1, 2, 3, 1), (1, 2, 1, 3), (2, 1, 3), (2, 3, 1)]
    shapes += [(1, 2, 1, 3, 1), (2, 1, 3, 1), (1, 2, 1, 3)]

    def build(x):
        return [mb.squeeze(x=x) if axes is None else mb.squeeze(x=x, axes=axes) for axes in cases]

    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [x.reshape(shape) for shape in shapes])


def test_squeeze_to_a_scalar():
    (found,) = run(
        lambda x: mb.add(x=mb.squeeze(x=x), y=1.0), {"x": np.full((1, 1), 2, np.float32)}
    )
    assert found.tolist() == [3.0]


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_reshape(target):
    x = counted(2, 3, 4)
    cases = [
        (24,),
        (-1,),
        (4, 6),
        (-1, 8),
        (2, 0, 4),
        (0, 0, 0),
        (0, 0, -1),
        (0, -1, 2),
        (4, 0, -1),
    ]
    wanted = [(24,), (24,), (4, 6), (3, 8), (2, 3, 4), (2, 3, 4), (2, 3, 4), (2, 6, 2), (4, 3, 2)]
    build = lambda x: [mb.reshape(x=x, shape=shape) for shape in cases]  # noqa: E731
    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [x.reshape(shape) for shape in wanted])
    assert_all_equal(found, inferred(build, {"x": x}, target=target))


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_reshape_aligns_zeros_to_the_right_from_ios17_on(target):
    x = counted(2, 3, 4)
    cases = [(1, 0, -1, 0), (0, 0, 0, 0), (0, -1), (0, 0, 2, -1, 0), (-1, 0), (6, 0)]
    wanted = [(1, 2, 3, 4), (1, 2, 3, 4), (3, 8), (1, 1, 2, 3, 4), (6, 4), (6, 4)]
    build = lambda x: [mb.reshape(x=x, shape=shape) for shape in cases]  # noqa: E731
    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [x.reshape(shape) for shape in wanted])
    assert_all_equal(found, inferred(build, {"x": x}, target=target))


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_reshape_to_a_shape_that_is_an_input(target):
    x = counted(2, 3, 4)
    build = lambda x, shape: mb.reshape(x=x, shape=shape)  # noqa: E731
    for shape, wanted in [((4, 0, -1), (4, 3, 2)), ((-1, 2, 2), (6, 2, 2)), ((0, 4, 3), (2, 4, 3))]:
        (found,) = run(build, {"x": x, "shape": np.array(shape, np.int32)}, target=target)
        np.testing.assert_array_equal(found, x.reshape(wanted), strict=True)


def test_reshape_to_a_shape_that_is_computed_of_a_flexible_one():
    symbol = get_new_symbol()

    def build(x):
        first = mb.slice_by_index(x=mb.shape(x=x), begin=[0], end=[1])
        return mb.reshape(x=x, shape=mb.concat(values=[[6], mb.mul(x=first, y=2)], axis=0))

    x = counted(2, 3, 4)
    (found,) = run(build, {"x": x}, shapes={"x": (symbol, 3, 4)})
    np.testing.assert_array_equal(found, x.reshape(6, 4), strict=True)


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        ("iOS15", [5, 5], r"24 elements of shape \[2, 3, 4\] cannot have shape \[5, 5\]"),
        ("iOS15", [-1, -1], r"cannot have shape \[-1, -1\]"),
        ("iOS15", [-1, 5], r"cannot have shape \[-1, 5\]"),
        ("iOS15", [0, 12], r"shape \[0, 12\] has zeros, and must be of the rank of x"),
        ("iOS17", [0, 12], r"cannot have shape \[3, 12\]"),
        ("iOS17", [-2, -12], r"cannot have shape \[-2, -12\]"),
    ],
)
def test_reshape_refuses_shapes_that_do_not_fit(target, shape, message):
    inputs = {"x": counted(2, 3, 4), "shape": np.array(shape, np.int32)}
    with pytest.raises(RunError, match=message):
        run(lambda x, shape: mb.reshape(x=x, shape=shape), inputs, target=target)


@pytest.mark.parametrize("target", NEWER)
def test_reshape_like(target):
    x = counted(2, 3, 5, 6)
    cases = [
        ((0, 1), (2, 0), (False, True), (2, 3, 5, 6)),
        ((-2, 0), (0, -1), (True, False), (3, 12, 1, 5)),
        ((0, 1), (1, 3), (False, False), (2, 5, 18)),
    ]
    references = [(2, 3, 4), (1, 5, 6)], [(7, 3, 12), (1, 5, 9)], [(2, 9), (4, 5, 18)]

    def build(x):
        return [
            mb.reshape_like(
                x=x,
                ref_tensors=[np.zeros(shape, np.float32) for shape in shapes],
                begins=begins,
                ends=ends,
                end_masks=masks,
            )
            for shapes, (begins, ends, masks, _) in zip(references, cases, strict=True)
        ]

    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [x.reshape(case[-1]) for case in cases])


def test_reshape_like_one_tensor():
    x, like = counted(2, 6), np.zeros((3, 4), np.int32)

    def build(x, like):
        return mb.reshape_like(x=x, ref_tensors=[like], begins=[0], ends=[0], end_masks=[True])

    (found,) = run(build, {"x": x, "like": like}, target="iOS16")
    np.testing.assert_array_equal(found, x.reshape(3, 4), strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_transpose(target):
    x = random(2, 3, 4)
    orders = [*itertools.permutations(range(3)), (-1, 0, 1), (0, -1, -2)]
    build = lambda x: [mb.transpose(x=x, perm=order) for order in orders]  # noqa: E731
    found = run(build, {"x": x}, target=target)
    wanted = [np.einsum(x, [0, 1, 2], [axis % 3 for axis in order]) for order in orders]
    assert_all_equal(found, wanted)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_flatten2d(target):
    x = counted(2, 3, 4)
    axes = [None, -3, -2, -1, 0, 1, 2, 3]
    shapes = [(2, 12), (1, 24), (2, 12), (6, 4), (1, 24), (2, 12), (6, 4), (24, 1)]

    def build(x):
        return [
            mb.flatten2d(x=x) if axis is None else mb.flatten2d(x=x, axis=axis) for axis in axes
        ]

    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [x.reshape(shape) for shape in shapes])


def test_flatten2d_of_a_vector():
    (found,) = run(lambda x: mb.flatten2d(x=x), {"x": counted(3)})
    assert found.shape == (3, 1)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_reverse(target):
    x = random(2, 3, 4)
    cases = [None, (0,), (1,), (-1,), (0, 2), (-2, 0), (0, 1, 2), (1, 1), (0, -1, 2)]

    def build(x):
        return [mb.reverse(x=x) if axes is None else mb.reverse(x=x, axes=axes) for axes in cases]

    found = run(build, {"x": x}, target=target)
    wanted = [x[::-1, ::-1, ::-1], x[::-1], x[:, ::-1], x[:, :, ::-1], x[::-1, :, ::-1]]
    wanted += [x[::-1, ::-1], x[::-1, ::-1, ::-1], x, x[::-1]]
    assert_all_equal(found, wanted)
    assert_all_equal(found, inferred(build, {"x": x}, target=target))


@pytest.mark.parametrize("target", REPRESENTATIVE)
@pytest.mark.parametrize(("along", "across"), [(1, 0), (0, 1), (2, 0), (-1, 1), (0, -1), (1, 3)])
def test_reverse_sequence(along, across, target):
    x = random(3, 4, 5, 2)
    given = {"seq_axis": along} if along else {}
    given |= {"batch_axis": across} if across else {}
    lengths = RANDOM.integers(0, x.shape[along] + 1, x.shape[across]).astype(np.int32)
    lengths[:2] = 0, x.shape[along]
    wanted = x.copy()
    for batch, length in enumerate(lengths):
        for place in range(length):
            to, origin = [slice(None)] * 4, [slice(None)] * 4
            to[across] = origin[across] = batch
            to[along], origin[along] = place, length - 1 - place
            wanted[tuple(to)] = x[tuple(origin)]

    def build(x, lengths):
        return mb.reverse_sequence(x=x, lengths=lengths, **given)

    (found,) = run(build, {"x": x, "lengths": lengths}, target=target)
    np.testing.assert_array_equal(found, wanted, strict=True)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_sliding_windows(target):
    x = random(4, 5, 6)
    cases = list(itertools.product((0, 1, -1, -3), (1, 3, 4), (None, 2, 3)))

    def build(x):
        return [
            mb.sliding_windows(x=x, axis=axis, size=size)
            if stride is None
            else mb.sliding_windows(x=x, axis=axis, size=size, stride=stride)
            for axis, size, stride in cases
        ]

    def windows(axis, size, stride):
        axis %= 3
        starts = range(0, x.shape[axis] - size + 1, stride or 1)
        parts = [np.take(x, np.arange(start, start + size), axis) for start in starts]
        return np.stack(parts, axis)

    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [windows(*case) for case in cases])


@pytest.mark.parametrize("dtype", ["int32", "bool", "int8", "uint8", "int16", "uint16"])
def test_every_element_type(dtype):
    limits = np.array([0, 1, 2, 120, 200, 5], np.float32) if dtype == "uint8" else counted(6)
    numbers = limits.reshape(1, 2, 3).astype(np.dtype(dtype)).astype(np.int32)
    like = np.zeros((3, 2), np.float32)
    makers = [
        lambda x: mb.reshape(x=x, shape=[3, 2]),
        lambda x: mb.reshape_like(x=x, ref_tensors=[like], begins=[0], ends=[2], end_masks=[False]),
        lambda x: mb.transpose(x=x, perm=[2, 0, 1]),
        lambda x: mb.expand_dims(x=x, axes=[1]),
        lambda x: mb.squeeze(x=x),
        lambda x: mb.reverse(x=x, axes=[2]),
        lambda x: mb.reverse_sequence(x=x, lengths=[2, 3], seq_axis=2, batch_axis=1),
    ]
    wanted = [
        numbers.reshape(3, 2),
        numbers.reshape(3, 2),
        numbers.transpose(2, 0, 1),
        numbers[:, None],
        numbers[0],
        numbers[:, :, ::-1],
        np.stack([numbers[:, 0, [1, 0, 2]], numbers[:, 1, ::-1]], 1),
    ]
    if dtype != "bool":
        makers.append(lambda x: mb.sliding_windows(x=x, axis=2, size=2))
        wanted.append(np.stack([numbers[..., :2], numbers[..., 1:]], 2))

    def build(x):
        typed = mb.cast(x=x, dtype=dtype)
        return [mb.cast(x=make(typed), dtype="int32") for make in makers]

    found = run(build, {"x": limits.reshape(1, 2, 3)}, target="iOS17")
    assert_all_equal(found, wanted)


def test_narrow_integers_as_shapes_and_lengths():
    x = counted(2, 3)

    def build(x, numbers):
        short = mb.cast(x=numbers, dtype="int16")
        tiny = mb.cast(x=numbers, dtype="int8")
        return [
            mb.reshape(x=x, shape=short),
            mb.reverse_sequence(x=x, lengths=tiny, seq_axis=1),
        ]

    found = run(build, {"x": x, "numbers": np.array([3, 2], np.int32)}, target="iOS17")
    assert_all_equal(found, [x.reshape(3, 2), np.stack([x[0, ::-1], x[1, [1, 0, 2]]])])


def test_in_half_precision_elements_are_only_moved():
    x = random(2, 4, 4, 6)
    half = x.astype(np.float16).astype(np.float32)

    def build(x):
        typed = mb.cast(x=x, dtype="fp16")
        made = [
            mb.depth_to_space(x=typed, block_size=2),
            mb.pixel_shuffle(x=typed, upscale_factor=2),
            mb.space_to_batch(x=typed, block_shape=[2, 2], paddings=[[0, 0], [1, 1]]),
            mb.reverse_sequence(x=typed, lengths=[3, 1], seq_axis=2, batch_axis=0),
            mb.sliding_windows(x=typed, axis=-1, size=4, stride=2),
            mb.transpose(x=typed, perm=[3, 0, 2, 1]),
        ]
        return [mb.cast(x=one, dtype="fp32") for one in made]

    flipped = half.copy()
    flipped[0, :, :3] = half[0, :, 2::-1]
    wanted = [
        moved_from_depth(half, 2),
        torch.nn.PixelShuffle(2)(torch.from_numpy(half)).numpy(),
        spread_to_batch(half, (2, 2), ((0, 0), (1, 1))),
        flipped,
        np.stack([half[..., :4], half[..., 2:]], 3),
        half.transpose(3, 0, 2, 1),
    ]
    assert_all_equal(run(build, {"x": x}, computed="as_declared"), wanted)


IMAGE = torch.zeros(1, 6, 4, 6)
PAIRS = torch.zeros(2, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reshaping.depth_to_space(IMAGE, 2), "4 must divide 6; got 2"),
        (lambda: reshaping.depth_to_space(IMAGE[0], 2), r"shape \[n, C, H, W\], got \[6, 4, 6\]"),
        (lambda: reshaping.space_to_depth(IMAGE, 4), "4 must divide 4 and 6; got 4"),
        (lambda: reshaping.pixel_shuffle(IMAGE, 0), "upscale_factor must be positive"),
        (lambda: reshaping.pixel_unshuffle(IMAGE, 3), "3 must divide 4 and 6"),
        (lambda: reshaping.space_to_batch(IMAGE, (3, 2), PAIRS), "3 must divide 4; got 3"),
        (lambda: reshaping.space_to_batch(IMAGE, (2,), PAIRS), "two numbers, got"),
        (lambda: reshaping.space_to_batch(IMAGE, (2, 2), PAIRS - 1), "paddings must be 2 x 2"),
        (lambda: reshaping.batch_to_space(IMAGE, (2, 2), PAIRS), "4 must divide 1"),
        (lambda: reshaping.batch_to_space(IMAGE, (1, 1), PAIRS + 3), "leave something of 4 x 6"),
        (lambda: reshaping.expand_dims(IMAGE, (5,)), "axis must be from -5 to 4 .*, got 5"),
        (lambda: reshaping.squeeze(IMAGE, (-5,)), "axis must be from -4 to 3 .*, got -5"),
        (lambda: reshaping.transpose(IMAGE, (0, 1, 2, 2)), "each of 4 axes once, got"),
        (lambda: reshaping.transpose(IMAGE, (0, 1, 2)), "each of 4 axes once, got"),
        (lambda: reshaping.reverse_sequence(IMAGE, PAIRS[0]), "must differ, both are 0"),
        (
            lambda: reshaping.reverse_sequence(IMAGE, torch.tensor([5]), 2, 0),
            r"1 numbers from 0 to 4, got \[5\]",
        ),
        (lambda: reshaping.sliding_windows(IMAGE, 2, 5), "size must be from 1 to 4"),
        (lambda: reshaping.sliding_windows(IMAGE, 2, 2, 0), "got 2 and 0"),
        (
            lambda: reshaping.reshape_like(IMAGE, (IMAGE,), (0, 1), (1,), (False,)),
            "equal lengths, got 1, 2, 1 and 1",
        ),
    ],
)
def test_arguments_that_are_not_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
