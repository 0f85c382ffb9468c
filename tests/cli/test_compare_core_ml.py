"""``mlopt compare`` with Core ML itself, in whose place something stands."""

import json
import platform
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from tests import models
from tests.cli.commands import invoke
from tests.cli.small_models import classifier, saved


class OnAMac:
    """Stands for ``MLModel``: answers as PyTorch does, and checks images as coremltools does."""

    real = ct.models.MLModel
    states: tuple[str, ...] = ()

    def __init__(self, path, function_name=None):
        self.model = self.real(path, skip_model_load=True)
        self.path, self.function = path, function_name

    def get_spec(self):
        return self.model.get_spec()

    def make_state(self):
        OnAMac.states += (self.function,)
        return "a state"

    def predict(self, data, state=None):
        from mlopt.runtime import load

        self.model._verify_pil_image_modes(data)
        program = load(self.path, self.function)
        assert (state is not None) == bool(program.plan.state_types)
        return program.predict(data, program.make_state(), seed=0)


@pytest.fixture
def mac(monkeypatch):
    """Makes this machine a Mac, once the test has converted its models."""
    monkeypatch.setattr(OnAMac, "states", ())

    def start():
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr("coremltools.models.MLModel", OnAMac)

    return start


def by_core_ml(*arguments):
    result = invoke("compare", *arguments, "--backend", "coreml", "--random", "2", "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("layout", ["RGB", "BGR", "GRAYSCALE", "GRAYSCALE_FLOAT16"])
def test_core_ml_gets_images(mac, tmp_path, layout):
    channels = 1 if layout.startswith("GRAY") else 3
    space = getattr(ct.colorlayout, layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(nn.Flatten(), torch.zeros(1, channels, 6, 5)),
            inputs=[ct.ImageType("image", (1, channels, 6, 5), color_layout=space)],
            outputs=[ct.TensorType("out")],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    path = saved(model, tmp_path / "m.mlpackage")
    mac()
    assert by_core_ml(path, path)["outputs"][0]["snr_db"] == "inf"

    from mlopt.runtime import load
    from mlopt.runtime.comparison.coreml_backend import CoreMLModel
    from mlopt.runtime.comparison.random_samples import random_samples

    (sample,) = random_samples(load(path), 1)
    (found,) = CoreMLModel(path).predict(sample).values()
    np.testing.assert_array_equal(found, sample["image"].reshape(1, -1))


def test_core_ml_gets_states(mac, packages, tmp_path):
    path = saved(models.build("stateful", "iOS18"), tmp_path / "s.mlpackage")
    several = tmp_path / "several.mlpackage"
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(str(path), "main", "with state")
    descriptor.add_function(str(packages / "model.mlpackage"), "main", "without")
    descriptor.default_function_name = "without"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.utils.save_multifunction(descriptor, str(several))
    mac()
    assert by_core_ml(path, path)["samples"] == 2
    assert OnAMac.states == (None,) * 4
    assert by_core_ml(several, several, "--function", "with state")["samples"] == 2
    assert OnAMac.states == (None,) * 4 + ("with state",) * 4
    assert by_core_ml(several, several)["samples"] == 2
    assert len(OnAMac.states) == 8


def test_core_ml_labels(mac, tmp_path):
    path = classifier(tmp_path / "c.mlpackage", [7, -1, 2**40])
    mac()
    found = by_core_ml(path, path)
    assert [row["name"] for row in found["outputs"]] == ["classLabel_probs"]
    assert found["labels"] == [{"name": "classLabel", "samples": 2, "equal": 2}]


def test_core_ml_needs_samples(mac, packages, tmp_path):
    np.savez(tmp_path / "none.npz")
    path = packages / "model.mlpackage"
    mac()
    for more in ([], ["--backend", "coreml"]):
        result = invoke("compare", path, path, "--inputs", tmp_path / "none.npz", *more)
        assert result.exit_code == 2
        assert "there are no samples" in result.output


def test_what_core_ml_raises_is_no_fault_of_mlopt(mac, packages, monkeypatch):
    def fail(self, data, state=None):
        raise Exception("the model is too large")

    monkeypatch.setattr(OnAMac, "predict", fail)
    mac()
    path = packages / "model.mlpackage"
    result = invoke("compare", path, path, "--backend", "coreml")
    assert result.exit_code == 1
    assert "the reference: Core ML failed: Exception: the model is too large" in result.output
