import copy
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from mlopt.errors import TargetError
from mlopt.torch import convert, load_state_dict
from mlopt.torch.activations import (
    Codes,
    FakeQuantizedActivation,
    QuantizedActivation,
    quantizes_activations,
)
from mlopt.torch.palettization import DKMPalettizer, DKMPalettizerConfig
from tests.judges import load_program, pymil_operations

INT8 = Codes(-128, 127, torch.qint8)


def trained(milestone=0, steps=6, **options):
    torch.manual_seed(0)
    rules = {"n_bits": 4, "weight_threshold": 0, "quantize_activations": True} | options
    config = DKMPalettizerConfig.from_dict({"global_config": rules | {"milestone": milestone}})
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    palettizer = DKMPalettizer(model, config)
    model = palettizer.prepare(inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(64, 16)).square().mean().backward()
        optimizer.step()
        palettizer.step()
    return palettizer, model


@pytest.mark.parametrize(
    "codes", [INT8, Codes(-127, 100, torch.qint8), Codes(3, 250, torch.quint8)]
)
def test_frozen_ranges_give_what_training_gave(codes):
    fake = FakeQuantizedActivation(codes)
    fake.enable()
    x = 3 * torch.randn(1000) + 1
    fake(x)
    fake.eval()
    frozen = fake.frozen()
    for values in (x, 10 * x):  # beyond the range too
        # a value halfway between two codes may go to either
        step = frozen.scale
        assert (fake(values) - frozen(values)).abs().max() <= 1.001 * step
        assert ((fake(values) - frozen(values)).abs() < 1e-6).float().mean() > 0.99
    assert frozen(torch.zeros(1)) == 0
    assert len(frozen(10 * x).unique()) <= codes.greatest - codes.least + 1


def test_ranges_are_moving_averages_that_hold_zero():
    fake = FakeQuantizedActivation(INT8)
    fake.enable()
    fake(torch.tensor([1.0, 3.0]))
    assert (float(fake.low), float(fake.high)) == (0.0, 3.0)
    fake(torch.tensor([-1.0, 5.0]))
    assert float(fake.low) == pytest.approx(-0.01)
    assert float(fake.high) == pytest.approx(3.02)
    fake.eval()
    fake(torch.tensor([100.0]))
    assert float(fake.high) == pytest.approx(3.02)


def test_gradients_pass_inside_the_range():
    fake = FakeQuantizedActivation(INT8)
    fake.enable()
    fake(torch.tensor([-1.0, 1.0]))
    fake.eval()
    x = torch.tensor([0.5, 5.0], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_activations_are_quantized_from_the_milestone_on():
    _, model = trained(milestone=3, steps=2)
    assert not model[0].activation_quantizer.started
    _, model = trained(milestone=3, steps=4)
    assert model[0].activation_quantizer.started
    outputs = model.eval()(torch.randn(500, 16))
    assert outputs.unique().numel() <= 256


def test_a_model_that_was_never_run_has_no_ranges_to_fix():
    palettizer, _ = trained(steps=0)
    finalized = palettizer.finalize()
    assert isinstance(finalized[0].activation_quantizer, nn.Identity)


def test_copies_watch_their_own_ranges():
    _, model = trained()
    other = copy.deepcopy(model)
    before = float(model[0].activation_quantizer.high)
    other(1000 * torch.randn(64, 16))
    assert float(other[0].activation_quantizer.high) > before
    assert float(model[0].activation_quantizer.high) == before


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "quint8", "quant_min": 0, "quant_max": 255}, {"quant_min": -127}],
    ids=str,
)
def test_core_ml_quantizes_with_the_same_ranges(options):
    palettizer, _ = trained(**options)
    finalized = palettizer.finalize()
    first, second = finalized[0].activation_quantizer, finalized[2].activation_quantizer
    assert isinstance(first, QuantizedActivation)
    example = torch.zeros(1, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = convert(finalized, example, compute_precision=ct.precision.FLOAT32)
        theirs = ct.convert(
            torch.jit.trace(finalized, example),
            inputs=[ct.TensorType(shape=(1, 16))],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
        )
        with pytest.raises(TargetError, match="iOS17"):
            convert(finalized, example, minimum_deployment_target="iOS16")
    for converted in (ours, theirs):
        assert converted.get_spec().specificationVersion == 8
        operations = list(pymil_operations(load_program(converted).functions["main"]))
        quantize = [op for op in operations if op.op_type == "quantize"]
        dequantize = [op for op in operations if op.op_type == "dequantize"]
        assert [np.float32(op.scale.val) for op in quantize] == [
            np.float32(first.scale),
            np.float32(second.scale),
        ]
        for op, frozen in zip([*quantize, *dequantize], [first, second] * 2, strict=True):
            zero_point = 0 if op.zero_point is None else int(op.zero_point.val)
            assert zero_point == frozen.zero_point


@pytest.mark.parametrize("options", [{}, {"dtype": "quint8", "quant_min": 3, "quant_max": 250}])
def test_a_state_has_the_ranges(options):
    palettizer, _ = trained(**options)
    model = palettizer.finalize()
    state = model.state_dict()
    x = torch.randn(64, 16)

    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*activation_quantizer._extra_state"):
        plain.load_state_dict(state)
    load_state_dict(plain, state)
    assert torch.equal(plain(x), model(x))
    load_state_dict(plain, state)  # again, onto what it has
    assert torch.equal(plain(x), model(x))
    assert quantizes_activations(plain)

    other = trained(**options, steps=2)[0].finalize()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), model(x))


def test_a_state_without_ranges_takes_them_away():
    quantized = trained()[0].finalize()
    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    state = copy.deepcopy(plain.state_dict())
    for strict in (True, False):
        load_state_dict(plain, quantized.state_dict())
        load_state_dict(plain, state, strict=strict)
        assert not quantizes_activations(plain)
        assert not plain[0]._forward_hooks
    x = torch.randn(4, 16)
    load_state_dict(plain, quantized.state_dict())
    assert torch.equal(plain(x), quantized(x))


def test_batches_that_are_not_finite_say_nothing_of_the_range():
    fake = FakeQuantizedActivation(INT8)
    fake.enable()
    assert torch.isinf(fake(torch.full((4,), torch.inf))).all()
    fake(torch.tensor([-1.0, 1.0]))
    fake(torch.tensor([torch.nan, 2.0]))
    assert (float(fake.low), float(fake.high)) == (-1.0, 1.0)


def test_half_precision_models_run_when_they_are_finalized():
    palettizer, model = trained()
    model.bfloat16()
    finalized = palettizer.finalize()
    assert finalized(torch.randn(4, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
