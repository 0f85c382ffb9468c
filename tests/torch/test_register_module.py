"""Modules of one's own."""

import re

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

import mlopt.torch
from mlopt.errors import ConfigError
from mlopt.torch import adapters, convert, register_module
from mlopt.torch.carried import carried_palettes
from mlopt.torch.palettization import (
    DKMPalettizer,
    DKMPalettizerConfig,
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
    SKMPalettizer,
    SKMPalettizerConfig,
)
from tests.torch.conversions import compressed_weights, outputs, quietly
from tests.torch.palettization.test_post_training import palettized


class Mixing(nn.Module):
    """A linear layer of two matrices, [inputs, outputs] and [outputs, inputs]."""

    def __init__(self, inputs=16, outputs=12):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.gate = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.kernel + (x @ self.gate.t()).sigmoid() + self.bias


class Derived(Mixing):
    pass


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(adapters, "_registered", {})


def tables(model, **options):
    """The shape of the tables of each palette."""
    compressed, _ = palettized(model, **options)
    return {p.name: p.palettized().table_shape for p in carried_palettes(compressed.state_dict())}


def test_it_is_offered():
    assert mlopt.torch.register_module is register_module
    assert not palettized(Mixing(), n_bits=2)[1].palettized


@pytest.mark.parametrize("axes", [{"kernel": 1, "gate": 0}, {"kernel": -1, "gate": -2}])
def test_each_parameter_can_have_an_axis_of_its_own(axes):
    register_module(Mixing, ["kernel", "gate"], axes)
    grouped = {"n_bits": 1, "granularity": "per_grouped_channel", "group_size": 4}
    assert tables(Mixing(), **grouped) == {"kernel": (1, 3), "gate": (3, 1)}
    assert tables(Mixing(), channel_axis=1, **grouped) == {"kernel": (4, 1), "gate": (1, 4)}
    model, _ = palettized(Mixing(), n_bits=1, enable_per_channel_scale=True)
    assert all(channel.abs().unique().numel() <= 2 for channel in model.kernel.unbind(1))
    assert all(channel.abs().unique().numel() <= 2 for channel in model.gate.unbind(0))


def test_derived_classes_are_included_and_can_have_more():
    register_module(Mixing, "kernel", 1)
    assert set(tables(nn.ModuleDict({"a": Derived()}), n_bits=2)) == {"a.kernel"}
    register_module(Derived, ("gate",))
    assert set(tables(nn.Sequential(Mixing(), Derived()), n_bits=2)) == {"0.kernel", "1.gate"}
    # the last one counts
    register_module(Mixing, ["kernel", "gate"], {"gate": 0, "kernel": 1})
    assert len(tables(Mixing(), n_bits=2)) == 2


def test_a_class_derived_from_a_known_one_keeps_it_until_registered():
    class Pair(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.other = nn.Parameter(torch.randn(8, 8))

    assert set(tables(Pair(), n_bits=2)) == {"weight"}
    register_module(Pair, ["weight", "other"])
    assert set(tables(Pair(), n_bits=2)) == {"weight", "other"}


def test_weights_of_a_class_derived_from_a_recurrent_one_are_converted():
    class Gated(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0] * 2

    register_module(Gated, "weight_hh_.*")
    model, report = palettized(Gated(8, 8).eval(), n_bits=2)
    assert [row.name for row in report.palettized] == ["weight_hh_l0"]
    x = torch.randn(3, 1, 8)
    found = quietly(convert, model, x, compute_precision=ct.precision.FLOAT32)
    assert len(compressed_weights(found)) == 1
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(outputs(found, (x,))[0], expected, rtol=1e-4, atol=1e-5)


def test_names_can_be_expressions():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            for n in range(3):
                self.register_parameter(f"weight_{n}", nn.Parameter(torch.randn(8, 8)))
            self.weight_extra = nn.Parameter(torch.randn(8, 8))

    register_module(Experts, "weight_[0-9]+")
    assert set(tables(Experts(), n_bits=2)) == {"weight_0", "weight_1", "weight_2"}


def test_rules_reach_them_by_name_expression_and_type():
    register_module(Mixing, ["kernel", "gate"], {"kernel": 1, "gate": 0})
    model = nn.ModuleDict({"a": Mixing(), "b": Derived(), "c": Mixing(), "d1": Mixing()})
    rules = {
        "global_config": {"n_bits": 8},
        "module_type_configs": {Mixing: {"n_bits": 2}, "Derived": {"n_bits": 3}},
        "module_name_configs": {"c": None, r"d\d": {"n_bits": 1}},
    }
    palettizer = PostTrainingPalettizer(model, PostTrainingPalettizerConfig.from_dict(rules))
    palettizer.compress()
    report = palettizer.report()
    bits = {row.name: row.nbits for row in report.palettized if row.name.endswith("kernel")}
    assert bits == {"a.kernel": 2, "b.kernel": 3, "d1.kernel": 1}
    assert not report.unmatched_rules
    assert report["a.bias"].reason == "rank 1; Core ML wants rank 2 or more"
    name = f"{Mixing.__module__}.Mixing"
    rules = {"module_type_configs": {name: {"n_bits": 2}}}
    palettizer = PostTrainingPalettizer(model, PostTrainingPalettizerConfig.from_dict(rules))
    palettizer.compress()
    assert len(palettizer.report().palettized) == 8


def test_all_palettizers_take_them():
    register_module(Mixing, ["kernel", "gate"], {"kernel": 1, "gate": 0})
    x = torch.randn(32, 16)
    loss = lambda model, sample: model(sample).square().mean()  # noqa: E731
    config = SKMPalettizerConfig.from_dict({"global_config": {"n_bits": 2}})
    sensitive = SKMPalettizer(Mixing(), config)
    quietly(sensitive.compress, dataloader=[x], loss_fn=loss)
    assert [row.note for row in sensitive.report().palettized] == [None, None]
    rules = {"global_config": {"weight_threshold": 100, "n_bits": 2}}
    trained = DKMPalettizer(Mixing(), DKMPalettizerConfig.from_dict(rules))
    model = trained.prepare()
    loss(model, x).backward()
    assert model.parametrizations.kernel.original.grad.abs().sum() > 0
    assert trained.finalize().kernel.unique().numel() == 4


def test_they_are_converted():
    register_module(Mixing, ["kernel", "gate"], {"kernel": 1, "gate": 0})
    model, _ = palettized(Mixing().eval(), n_bits=2)
    x = torch.randn(1, 16)
    found = quietly(convert, model, x, compute_precision=ct.precision.FLOAT32)
    assert len(compressed_weights(found)) == 2
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(outputs(found, (x,))[0], expected, rtol=1e-4, atol=1e-5)


def test_names_that_a_module_lacks_are_errors():
    register_module(Mixing, ["kernel", "gates"], 1)
    with pytest.raises(
        ConfigError, match=r"Derived 'a' has no parameter 'gates', .* has kernel, gate, bias\. Corr"
    ):
        palettized(nn.ModuleDict({"a": Derived()}), n_bits=2)
    register_module(Mixing, "kernel", 2)
    with pytest.raises(ConfigError, match=r"'kernel' is of rank 2, but output_axis 2 .* -2 to 1"):
        DKMPalettizer(Mixing()).prepare()


def test_parameters_that_are_none_or_computed_are_no_errors():
    register_module(Mixing, ["kernel", "gate"])
    model = Mixing()
    model.gate = None
    assert set(tables(model, n_bits=2)) == {"kernel"}
    nn.utils.parametrize.register_parametrization(model, "kernel", nn.Identity())
    _, report = palettized(model, n_bits=2)
    assert "remove_parametrizations" in report["parametrizations.kernel.original"].reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Mixing(), "kernel"), "got an object of tests.torch.test_register_module.Mixing"),
        ((dict, "kernel"), "got the class builtins.dict"),
        (("Mixing", "kernel"), "got an object of builtins.str"),
        ((nn.Module, "kernel"), "got torch.nn.Module, which every module is derived from"),
        ((nn.LSTM, "kernel"), "palettizes torch.nn.modules.rnn.LSTM itself; register a class"),
        ((Mixing, ()), "at least one, got []"),
        ((Mixing, ["kernel", 3]), "names of a module's weights, at least one, got ['kernel', 3]"),
        ((Mixing, None), "names of a module's weights, at least one, got None"),
        ((Mixing, ""), "names of a module's weights, at least one, got ''"),
        ((Mixing, ["kernel", "kernel"]), "distinct names, got kernel, kernel"),
        ((Mixing, "kernel["), "'kernel[' is neither a name nor a regular expression"),
        ((Mixing, "kernel", True), "must be an integer or a mapping to integers, got True"),
        ((Mixing, "kernel", "1"), "must be an integer or a mapping to integers, got '1'"),
        ((Mixing, "kernel", {"gate": 0}), "one axis for each of kernel, got 'gate'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        register_module(*arguments)
