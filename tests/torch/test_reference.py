"""Errors beside those of coremltools' palettizers, on the same weights."""

import functools
import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mlopt.torch.palettization import (
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
    SKMPalettizer,
    SKMPalettizerConfig,
)

FORMS = {
    "2 bits": {"n_bits": 2},
    "4 bits": {"n_bits": 4},
    "output groups": {"n_bits": 2, "granularity": "per_grouped_channel", "group_size": 8},
    "input groups": {
        "n_bits": 2,
        "granularity": "per_grouped_channel",
        "group_size": 8,
        "channel_axis": 1,
    },
    "scale": {"n_bits": 3, "enable_per_channel_scale": True},
    "vectors": {"n_bits": 4, "cluster_dim": 2},
    "int8 table": {"n_bits": 3, "lut_dtype": "int8"},
}
# coremltools fails on these: tensors of weights that are not flat cannot be clustered as vectors.
UNSUPPORTED = {("vectors", "conv.weight")}


class Net(nn.Module):
    """The kinds of modules that coremltools' palettizers know."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.linear = nn.Linear(32, 24)
        self.conv = nn.Conv2d(8, 16, 3)

    def forward(self, ids):
        x = self.embedding(ids)
        x = self.linear(self.attention(x, x, x, need_weights=False)[0])
        return self.conv(x.reshape(1, 8, -1, 12))


WEIGHTS = (
    "embedding.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "linear.weight",
    "conv.weight",
)


@functools.cache
def net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().eval()


def rules(form):
    """The rules of a form, without what coremltools cannot do."""
    left_alone = {name.rpartition(".")[0]: None for f, name in UNSUPPORTED if f == form}
    return {"global_config": FORMS[form], "module_name_configs": left_alone}


def quietly(function, *args, **kwargs):
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def data():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 64, (1, 32), generator=generator) for _ in range(4)]


def loss_fn(model, ids):
    return (model(ids) - 1).square().mean()


def errors(model, importance=None):
    """Squared error of each weight, in float64; weighted where there is an importance."""
    found = {}
    for name in WEIGHTS:
        before, after = (m.get_parameter(name).detach().double() for m in (net(), model))
        weights = 1.0 if importance is None else importance[name].double()
        found[name] = float((weights * (after - before).square()).sum())
    return found


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_post_training_errors_are_at_or_below_the_reference(form, fast):
    import coremltools.optimize.torch.palettization as reference

    options = {"enable_fast_kmeans_mode": fast} if form != "vectors" else {}
    wanted = rules(form)
    wanted["global_config"] = wanted["global_config"] | options
    config = reference.PostTrainingPalettizerConfig.from_dict(rules_of_reference(wanted))
    theirs = quietly(reference.PostTrainingPalettizer(net(), config).compress)
    ours = PostTrainingPalettizer(net(), PostTrainingPalettizerConfig.from_dict(wanted)).compress()
    assert_at_or_below(errors(ours), errors(theirs), form)


# its SKMPalettizer leaves a temporary folder for the garbage collector to remove
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("form", [form for form in FORMS if form != "vectors"])
def test_weighted_errors_are_at_or_below_the_reference(form, tmp_path):
    import coremltools.optimize.torch.palettization as reference

    path = str(tmp_path / "sensitivity.pt")
    ours = SKMPalettizer(net(), SKMPalettizerConfig.from_dict(rules(form)))
    ours.compute_sensitivity(data(), loss_fn, path)
    # as coremltools normalises them: zeros make its clusters NaN
    raw = torch.load(path, weights_only=True)
    importance = {n: (v / v.max()).clamp(min=1e-12) for n, v in raw.items()}
    torch.save(importance, path)
    config = reference.SKMPalettizerConfig.from_dict(rules_of_reference(rules(form)))
    theirs = quietly(reference.SKMPalettizer(net(), config).compress, sensitivity_path=path)
    compressed = ours.compress(sensitivity_path=path)
    assert_at_or_below(errors(compressed, importance), errors(theirs, importance), form)


def rules_of_reference(wanted):
    """Its from_dict eats what it is given."""
    return {
        "global_config": dict(wanted["global_config"]),
        "module_name_configs": dict(wanted["module_name_configs"]),
    }


def assert_at_or_below(ours, theirs, form):
    # vectors are clustered by local search on both sides, from different starts
    slack = 1.02 if form == "vectors" else 1 + 1e-6
    for name in WEIGHTS:
        assert ours[name] <= theirs[name] * slack, (name, ours[name] / theirs[name])
    assert np.isfinite(list(ours.values())).all()
