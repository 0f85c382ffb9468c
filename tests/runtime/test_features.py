"""Inputs and outputs as a model describes them: images, numbers, shapes, defaults."""

from __future__ import annotations

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mlopt.errors import InputError
from mlopt.runtime import load

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 5, 3)).astype(np.uint8)  # height 6, width 5


class Weighted(nn.Module):
    """Each channel times its own number, so that their order shows."""

    def __init__(self, channels=3):
        super().__init__()
        self.factors = nn.Parameter(torch.arange(1.0, channels + 1)[:, None, None])

    def forward(self, x):
        return x * self.factors


def convert(module, inputs, outputs=None, target="iOS16", **options):
    example = [torch.rand(*options.pop("shape"))] if "shape" in options else options.pop("example")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            torch.jit.trace(module, tuple(example)),
            inputs=inputs,
            outputs=outputs,
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
            **options,
        )


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_colour_images(layout):
    image_type = ct.ImageType(
        "image",
        (1, 3, 6, 5),
        scale=0.5,
        bias=[1, 2, 3],
        color_layout=getattr(ct.colorlayout, layout),
    )
    program = load(convert(Weighted(), [image_type], shape=(1, 3, 6, 5)))
    planes = np.moveaxis(PIXELS.astype(np.float32), -1, 0)
    planes = planes[::-1] if layout == "BGR" else planes
    biases, factors = (np.array([1, 2, 3.0])[:, None, None] for _ in range(2))
    wanted = ((planes * 0.5 + biases) * factors)[None]
    for given in (Image.fromarray(PIXELS), Image.fromarray(PIXELS).convert("RGBA"), planes):
        (found,) = program.predict({"image": given}).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_grey_images():
    image_type = ct.ImageType("image", (1, 1, 6, 5), color_layout=ct.colorlayout.GRAYSCALE)
    program = load(convert(Weighted(1), [image_type], shape=(1, 1, 6, 5)))
    grey = PIXELS[..., 0]
    (found,) = program.predict({"image": Image.fromarray(grey, "L")}).values()
    np.testing.assert_array_equal(found[0, 0], grey)


@pytest.mark.parametrize("layout", ["RGB", "BGR", "GRAYSCALE"])
def test_images_come_out(layout):
    channels = 1 if layout == "GRAYSCALE" else 3
    kind = getattr(ct.colorlayout, layout)
    model = convert(
        nn.Hardtanh(-300.0, 300.0),
        [ct.TensorType("x", (1, channels, 6, 5))],
        [ct.ImageType("image", color_layout=kind)],
        shape=(1, channels, 6, 5),
    )
    planes = np.moveaxis(PIXELS.astype(np.float32), -1, 0)[:channels]
    planes[0, 0, :3] = [-20.0, 280.0, 100.4]  # beyond the range, and between numbers
    image = load(model).predict({"x": planes[None]})["image"]
    wanted = np.clip(np.rint(planes), 0, 255).astype(np.uint8)
    wanted = wanted[::-1] if layout == "BGR" else wanted
    assert image.mode == ("L" if layout == "GRAYSCALE" else "RGBA")
    assert image.size == (5, 6)
    found = np.asarray(image)
    if layout == "GRAYSCALE":
        np.testing.assert_array_equal(found, wanted[0])
    else:
        np.testing.assert_array_equal(found[..., :3], np.moveaxis(wanted, 0, -1))
        assert (found[..., 3] == 255).all()


def test_images_of_another_size_are_refused():
    program = load(convert(Weighted(), [ct.ImageType("image", (1, 3, 6, 5))], shape=(1, 3, 6, 5)))
    with pytest.raises(InputError, match=r"6 x 5 .*takes 5 x 6. Resize it"):
        program.predict({"image": Image.fromarray(np.moveaxis(PIXELS, 0, 1).copy())})
    with pytest.raises(InputError, match=r"give a PIL.Image, or an array \[1, 3, height, width\]"):
        program.predict({"image": PIXELS})
    with pytest.raises(InputError, match=r"'image' \(a PIL.Image, .* got dtype <U"):
        program.predict({"image": "cat.png"})


class Rows(nn.Module):
    def forward(self, x):
        return x.cumsum(1) + x.shape[1]


@pytest.mark.parametrize(
    ("shape", "fits", "refused", "message"),
    [
        (ct.Shape((1, ct.RangeDim(2, 5, default=3))), [2, 3, 5], 6, r"takes \[1, 2..5\]"),
        (
            ct.EnumeratedShapes([[1, 2], [1, 4]], default=[1, 4]),
            [2, 4],
            3,
            r"takes one of \[1, 4\], \[1, 2\]|takes one of \[1, 2\], \[1, 4\]",
        ),
        (ct.Shape((1, 4)), [4], 3, r"takes \[1, 4\]"),
    ],
)
def test_shapes(shape, fits, refused, message):
    model = convert(Rows(), [ct.TensorType("x", shape)], example=[torch.ones(1, fits[-1])])
    program = load(model)
    for length in fits:
        x = RANDOM.normal(size=(1, length)).astype(np.float32)
        (found,) = program.predict({"x": x}).values()
        np.testing.assert_allclose(found, x.cumsum(1) + length, rtol=1e-6)
    with pytest.raises(InputError, match=message):
        program.predict({"x": np.ones((1, refused), np.float32)})


def test_inputs_with_a_default_may_be_left_out():
    class Sum(nn.Module):
        def forward(self, x, y):
            return x + y

    default = np.full((2,), 7.0, np.float32)
    inputs = [ct.TensorType("x", (2,)), ct.TensorType("y", (2,), default_value=default)]
    program = load(convert(Sum(), inputs, example=[torch.ones(2), torch.ones(2)]))
    (found,) = program.predict({"x": np.array([1.0, 2.0])}).values()
    np.testing.assert_array_equal(found, [8.0, 9.0])
    (found,) = program.predict({"x": np.array([1.0, 2.0]), "y": np.zeros(2)}).values()
    np.testing.assert_array_equal(found, [1.0, 2.0])


def test_names_and_kinds_of_inputs():
    program = load(convert(Rows(), [ct.TensorType("x", (1, 4))], shape=(1, 4)))
    with pytest.raises(InputError, match=r"no input 'y'; its input 'x' is missing.*are 'x'"):
        program.predict({"y": np.ones((1, 4))})
    with pytest.raises(InputError, match="array of numbers"):
        program.predict({"x": np.array([["a"] * 4])})
    with pytest.raises(InputError, match="cannot be an array"):
        program.predict({"x": [[1, 2], [3]]})
    lists = program.predict([{"x": [[1, 2, 3, 4]]}, {"x": torch.ones(1, 4, requires_grad=True)}])
    assert len(lists) == 2
    np.testing.assert_array_equal(next(iter(lists[0].values())), [[5, 7, 10, 14]])


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_integers(target):
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 3)

        def forward(self, tokens):
            return self.embedding(tokens), tokens + 1

    torch.manual_seed(0)
    module = Picks().eval()
    model = convert(
        module,
        [ct.TensorType("tokens", (1, 4), dtype=np.int32)],
        example=[torch.zeros(1, 4, dtype=torch.int32)],
        target=target,
    )
    program = load(model)
    tokens = np.array([[9, 0, 3, 3]])
    rows, following = program.predict({"tokens": tokens}).values()
    assert following.dtype == np.int32
    np.testing.assert_array_equal(following, tokens + 1)
    np.testing.assert_allclose(rows, module.embedding.weight.detach()[tokens], rtol=1e-6)
    with pytest.raises(InputError, match="must hold integers"):
        program.predict({"tokens": tokens + 0.5})


def test_float16_inputs_and_outputs():
    model = convert(
        Rows(),
        [ct.TensorType("x", (1, 4), dtype=np.float16)],
        [ct.TensorType("y", dtype=np.float16)],
        shape=(1, 4),
    )
    (found,) = load(model).predict({"x": np.ones((1, 4), np.float64)}).values()
    assert found.dtype == np.float32  # coremltools widens what Core ML gives
    np.testing.assert_array_equal(found, [[5, 6, 7, 8]])
    (found,) = load(model).predict({"x": np.full((1, 4), 0.1)}).values()
    np.testing.assert_array_equal(found, found.astype(np.float16))


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ([[2**32 + 3, 0, 0, 0]], "from 0 to 4294967299"),
        ([[3e9, 0, 0, 0]], "from 0.0 to 3000000000.0"),
        ([[np.nan, 0, 0, 0]], "with NaN or infinity"),
        ([[-(2**40), 0, 0, 0]], "from -1099511627776 to 0"),
    ],
)
def test_integers_that_do_not_fit_are_refused(tokens, problem):
    class Next(nn.Module):
        def forward(self, tokens):
            return tokens + 1

    model = convert(
        Next(),
        [ct.TensorType("tokens", (1, 4), dtype=np.int32)],
        example=[torch.zeros(1, 4, dtype=torch.int32)],
    )
    with pytest.raises(InputError, match=rf"'tokens' must hold integers .*{problem}"):
        load(model).predict({"tokens": tokens})


def test_images_wider_than_a_byte_are_refused():
    program = load(convert(Weighted(), [ct.ImageType("image", (1, 3, 6, 5))], shape=(1, 3, 6, 5)))
    for mode in ("I", "I;16", "F"):
        with pytest.raises(InputError, match=f"mode '{mode}'; scale it"):
            program.predict({"image": Image.new(mode, (5, 6))})
    with pytest.raises(InputError, match=r"input 'image' .* cannot be an array"):
        program.predict({"image": [[1, 2], [3]]})
