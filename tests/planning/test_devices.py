"""Plans for the Neural Engine, judged by the lint."""

import warnings

import coremltools as ct
import numpy as np
import torch
from torch import nn

from mlopt.coreml import OpPalettizerConfig, lint
from mlopt.planning import plan

FORMS = [
    OpPalettizerConfig(nbits=4, weight_threshold=64, **form)
    for form in (
        {},
        {"enable_per_channel_scale": True},
        {"lut_dtype": "int8"},
        {"granularity": "per_grouped_channel", "group_size": 2},
        {"granularity": "per_grouped_channel", "group_size": 8},
    )
]
RULES = {
    "float-scale-on-float-data",
    "integer-table",
    "group-size",
    "palettized-depthwise-conv",
    "palettized-large-stride",
}


def test_nothing_that_runs_elsewhere_is_chosen(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, stride=3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(net.eval(), torch.zeros(1, 8, 12, 12)),
            inputs=[ct.TensorType("x", (1, 8, 12, 12))],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
    sample = {"x": np.random.default_rng(0).normal(size=(1, 8, 12, 12)).astype(np.float32)}
    asked = {"samples": [sample], "candidates": FORMS, "costs": "measured"}
    found = {}
    for name, devices in (("any", ()), ("engine", ("neural-engine",))):
        output = tmp_path / f"{name}.mlpackage"
        recipe = plan(model, quality=15, devices=devices, output=output, **asked)
        found[name] = {finding.rule for finding in lint(output).findings} & RULES
    assert found["any"]
    assert not found["engine"]
    weights = [weight for weight in recipe.weights if len(weight.shape) == 4]
    assert ["stride" in weights[0].reason, "depthwise" in weights[1].reason] == [True, True]
    tried = [each.config for each in weights[2].tried if each.config is not None]
    assert sorted(each.group_size for each in tried if each.is_grouped) == [8]
    assert len(tried) == 2
