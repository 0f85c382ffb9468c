"""Arrays of samples cut into samples."""

from __future__ import annotations

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch

from mlopt.errors import InputError
from mlopt.runtime import compare, load
from mlopt.runtime.comparison.split_samples import split_samples
from tests.runtime.comparison.small_models import (
    palettized,
)
from tests.runtime.networks import converted, network


def test_samples_of_arrays():
    program = load(converted("residual", "iOS15"))
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    for given in (images, images[:, None]):
        samples = split_samples(program, {"image": given})
        assert [sample["image"].shape for sample in samples] == [(1, 3, 32, 32)] * 5
        np.testing.assert_array_equal(samples[4]["image"][0], images[4])
    assert len(split_samples(program, {"image": images[:1]})) == 1
    with pytest.raises(InputError, match="no input 'x'"):
        split_samples(program, {"x": images})
    with pytest.raises(InputError, match="one more axis"):
        split_samples(program, {"image": images[..., :30]})


def image_program(channels):
    """An image, 6 high and 5 wide, and its pixels as an array."""
    space = ct.colorlayout.GRAYSCALE if channels == 1 else ct.colorlayout.RGB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            torch.jit.trace(torch.nn.Hardtanh(-999.0, 999.0), torch.zeros(1, channels, 6, 5)),
            inputs=[ct.ImageType("image", (1, channels, 6, 5), color_layout=space)],
            outputs=[ct.TensorType("out")],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )


@pytest.mark.parametrize(
    ("channels", "shape", "count"),
    [
        (3, (3, 6, 5), 1),
        (3, (1, 3, 6, 5), 1),
        (3, (4, 3, 6, 5), 4),
        (3, (3, 3, 6, 5), 3),
        (3, (4, 1, 3, 6, 5), 4),
        (1, (6, 5), 1),
        (1, (1, 6, 5), 1),
        (1, (3, 6, 5), 3),
        (1, (4, 1, 6, 5), 4),
        (1, (4, 1, 1, 6, 5), 4),
    ],
)
def test_samples_of_images(channels, shape, count):
    program = load(image_program(channels))
    pixels = np.arange(np.prod(shape)).reshape(shape) % 256
    samples = split_samples(program, {"image": pixels})
    assert len(samples) == count
    found = [program.predict(sample)["out"] for sample in samples]
    np.testing.assert_array_equal(
        np.concatenate(found), pixels.reshape(count, channels, 6, 5).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("channels", "shape"),
    [
        (3, (6, 5)),
        (3, (6, 5, 3)),
        (3, (3, 5, 6)),
        (3, (4, 6, 5)),
        (1, (4, 3, 6, 5)),
        (1, (5,)),
        (1, ()),
    ],
)
def test_arrays_that_hold_no_images(channels, shape):
    with pytest.raises(InputError, match=r"'image' has shape .* height, width\].* 5 x 6"):
        split_samples(load(image_program(channels)), {"image": np.zeros(shape)})


def test_samples_of_the_network_itself():
    _, inputs = network("encoder")
    model, small = palettized("encoder", 6)
    sample = {name: x.numpy() for name, x in inputs.items()}
    assert compare(model, small, [sample]).samples == 1
