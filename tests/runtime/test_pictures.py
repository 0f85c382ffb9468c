"""Pictures made to fit a feature, judged by PyTorch's antialiased interpolation."""

import numpy as np
import pytest
import torch
from PIL import Image

from mlopt.runtime.features.images import ImageFeature
from mlopt.runtime.features.lengths import Lengths
from mlopt.runtime.features.pictures import fitted_picture

rng = np.random.default_rng(0)
FEATURE = ImageFeature("image", "RGB", width=8, height=6)


def picture(width, height):
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def scaled(pixels, size):
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return planes[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("width", "height", "covering", "cut"),
    [
        (48, 18, (6, 16), (slice(None), slice(4, 12))),  # wide: the sides are cut
        (16, 36, (18, 8), (slice(6, 12), slice(None))),  # high: top and bottom
        (4, 3, (6, 8), (slice(None), slice(None))),  # small: enlarged
    ],
)
def test_other_sizes_are_scaled_and_cut_in_the_middle(width, height, covering, cut):
    pixels = picture(width, height)
    fitted = fitted_picture(Image.fromarray(pixels), FEATURE)
    assert fitted.size == (8, 6)
    np.testing.assert_allclose(np.asarray(fitted, float), scaled(pixels, covering)[cut], atol=1.01)


def test_a_size_that_fits_is_kept():
    pixels = picture(8, 6)
    np.testing.assert_array_equal(fitted_picture(Image.fromarray(pixels), FEATURE), pixels)
    ranges = (Lengths(4, 20), Lengths(4, None))
    flexible = ImageFeature("image", "RGB", width=8, height=6, ranges=ranges)
    assert fitted_picture(Image.fromarray(picture(20, 50)), flexible).size == (20, 50)
    assert fitted_picture(Image.fromarray(picture(21, 50)), flexible).size == (8, 6)


def test_it_is_turned_upright():
    pixels = picture(6, 8)
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6  # to be shown a quarter turn clockwise
    np.testing.assert_array_equal(fitted_picture(turned, FEATURE), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
def test_modes(mode):
    grey = rng.integers(0, 2, (6, 8)).astype(np.uint8) * 255
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16))
    else:
        image = Image.fromarray(grey).convert("RGB" if mode == "YCbCr" else "L").convert(mode)
    if mode not in ("F", "I;16"):
        planes = FEATURE.tensor(fitted_picture(image, FEATURE))
        np.testing.assert_allclose(planes[0], np.broadcast_to(grey, (3, 6, 8)), atol=2)
    halves = ImageFeature("image", "grayscale_float16", width=4, height=3)
    planes = halves.tensor(fitted_picture(image, halves))
    expected = scaled(grey[..., None], (3, 4))[..., 0]
    np.testing.assert_allclose(planes[0, 0], expected, atol=2)
