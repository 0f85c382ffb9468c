"""Packages that commands are called with."""

import shutil
import warnings
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

import mlopt.coreml as cto
from tests import foreign, models
from tests.cli.small_models import saved
from tests.runtime.networks import converted
from tests.runtime.programs import convert


@pytest.fixture
def model(tmp_path, digits):
    return Path(shutil.copytree(digits, tmp_path / "digits.mlpackage"))


@pytest.fixture
def newer(digits):
    return digits.with_name("digits-iOS18.mlpackage")


@pytest.fixture(scope="session")
def quantized(tmp_path_factory) -> Path:
    """A package with weights in blocks of 4 bits."""
    path = tmp_path_factory.mktemp("cli") / "quantized.mlpackage"
    models.quietly(foreign.build("quantized uint4 per block", "iOS18").save, str(path))
    return path


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    model = converted("residual", "iOS16")
    model.save(str(folder / "model.mlpackage"))
    config = cto.OptimizationConfig(
        global_config=cto.OpPalettizerConfig(nbits=2, weight_threshold=0)
    )
    cto.palettize(folder / "model.mlpackage", config, output=folder / "small.mlpackage")
    return folder


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A program of an input of one number, and one of a row."""
    folder = tmp_path_factory.mktemp("numbers")
    given = {"x": np.ones(1, np.float32), "row": np.ones((1, 3), np.float32)}
    return saved(
        convert(lambda x, row: mb.mul(x=x, y=row, name="y"), given), folder / "n.mlpackage"
    )


@pytest.fixture(scope="session")
def image_model(tmp_path_factory):
    """An RGB image, 6 high and 5 wide, in and out."""
    folder = tmp_path_factory.mktemp("images")
    space = ct.colorlayout.RGB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(nn.Hardtanh(-999.0, 999.0), torch.zeros(1, 3, 6, 5)),
            inputs=[ct.ImageType("image", (1, 3, 6, 5), color_layout=space)],
            outputs=[ct.ImageType("out", color_layout=space)],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    return saved(model, folder / "image.mlpackage")
