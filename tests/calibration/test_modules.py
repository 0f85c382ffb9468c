"""``calibrate`` on modules: the moments of every kind, and the module as it was.

As for operations: ``sum of y^2 = count tr(W H W^T)`` and ``sum of y = count 1^T W mu`` for the
outputs y of a module without a bias, whatever its weight.
"""

import itertools

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from mlopt.calibration import Calibration, calibrate, merge
from mlopt.errors import ConfigError, InputError
from mlopt.statistics import content_of
from tests.calibration.comparisons import only, powers
from tests.torch.conversions import quietly
from tests.torch.networks import IDS, every_kind


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0.3, 1, shape).astype(np.float32))


class Conv1D(nn.Module):
    """A linear layer with its weight as in transformers: [inputs, outputs]."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 6))

    def forward(self, x):
        return x @ self.weight


Conv1D.__module__ = "transformers.pytorch_utils"


class Derived(nn.Linear):
    """A linear layer with more to it."""

    def forward(self, x, scale=1):
        return super().forward(x) * scale


def conv(kind, *args, **options):
    return kind(*args, bias=False, **options)


CASES = {
    # module, shape of x
    "linear": (nn.Linear(5, 6, bias=False), (4, 5)),
    "linear, rank 1": (nn.Linear(5, 6, bias=False), (5,)),
    "linear, rank 4": (nn.Linear(5, 6, bias=False), (2, 3, 4, 5)),
    "derived": (Derived(5, 6, bias=False), (4, 5)),
    "Conv1D of transformers": (Conv1D(), (2, 4, 5)),
    "conv1d": (conv(nn.Conv1d, 3, 6, 4, stride=2, padding=2), (2, 3, 9)),
    "conv2d": (conv(nn.Conv2d, 3, 6, (3, 2)), (2, 3, 7, 6)),
    "conv2d, unbatched": (conv(nn.Conv2d, 3, 6, 3), (3, 7, 6)),
    "conv2d, strides, pads, dilations": (
        conv(nn.Conv2d, 3, 6, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (2, 3, 7, 8),
    ),
    "conv2d, same": (conv(nn.Conv2d, 3, 6, (4, 3), padding="same", dilation=2), (1, 3, 9, 8)),
    "conv2d, valid": (conv(nn.Conv2d, 3, 6, 3, padding="valid"), (1, 3, 5, 6)),
    "conv2d, groups": (conv(nn.Conv2d, 4, 6, 3, groups=2), (1, 4, 6, 6)),
    "conv2d, depthwise": (conv(nn.Conv2d, 4, 8, 3, groups=4, padding=1), (2, 4, 6, 5)),
    "conv2d, reflect": (
        conv(nn.Conv2d, 3, 6, 3, padding=(2, 1), padding_mode="reflect"),
        (1, 3, 6, 5),
    ),
    "conv2d, circular, same": (
        conv(nn.Conv2d, 3, 6, 4, padding="same", padding_mode="circular"),
        (1, 3, 6, 5),
    ),
    "conv1d, replicate": (
        conv(nn.Conv1d, 3, 6, 3, padding=2, padding_mode="replicate"),
        (1, 3, 6),
    ),
    "conv3d": (conv(nn.Conv3d, 2, 6, (2, 2, 3), padding=(0, 1, 1)), (1, 2, 4, 5, 4)),
    "transposed 1d": (conv(nn.ConvTranspose1d, 3, 4, 5, stride=2), (1, 3, 6)),
    "transposed 2d": (
        conv(nn.ConvTranspose2d, 3, 4, 3, stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
        (2, 3, 4, 5),
    ),
    "transposed 2d, output padding": (
        conv(nn.ConvTranspose2d, 3, 4, 3, stride=3, padding=1, output_padding=(2, 1)),
        (1, 3, 4, 5),
    ),
    "transposed 2d, groups": (
        conv(nn.ConvTranspose2d, 4, 6, 2, stride=2, groups=2),
        (1, 4, 4, 5),
    ),
    "transposed 2d, unbatched": (conv(nn.ConvTranspose2d, 3, 4, 3), (3, 4, 5)),
    "transposed 3d": (conv(nn.ConvTranspose3d, 2, 3, 2, stride=2), (1, 2, 3, 2, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_outputs_of_other_weights_have_the_power_that_the_moments_say(case):
    module, shape = CASES[case]
    samples = [normal(*shape, seed=seed) for seed in range(2)]
    weight, moments = only(calibrate(module, samples))
    assert (weight.name, weight.shape) == ("weight", tuple(module.weight.shape))
    assert weight.content == content_of(module.weight.detach().numpy())
    for seed in range(2):
        with torch.no_grad():
            module.weight.copy_(normal(*module.weight.shape, seed=100 + seed))
            y = torch.cat([module(x).reshape(-1) for x in samples]).double().numpy()
        power, mean = powers(moments, module.weight.detach().numpy())
        assert np.square(y).sum() == pytest.approx(moments.count * power, rel=1e-5)
        assert y.sum() == pytest.approx(moments.count * mean, rel=1e-4, abs=1e-3)


def test_an_output_size_is_heeded():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, bias=False)

        def forward(self, x):
            return self.up(input=x, output_size=[8, 10])

    model, x = Up(), normal(1, 3, 4, 5)
    _, moments = only(calibrate(model, [x]))
    power, _ = powers(moments, model.up.weight.detach().numpy())
    assert moments.count == 80
    assert model(x).square().sum().item() == pytest.approx(80 * power, rel=1e-5)


def test_a_network_against_tapped_inputs():
    model = network()
    samples = [normal(3, 6, seed=seed) for seed in range(9)]
    calibration = calibrate(model, samples)
    assert [weight.name for weight in calibration.weights] == ["0.weight", "2.weight"]
    assert calibration.notes == ()
    assert set(calibration.without) == {"0.bias", "1.weight", "1.bias", "2.bias"}
    assert calibration.without["0.bias"] == (
        "Linear(0) reads it as bias, which multiplies no inputs"
    )
    x = torch.cat(samples)
    for weight, layer in zip(calibration.weights, (model[:0], model[:2]), strict=True):
        tapped = layer(x).detach().double().numpy()
        moments = calibration.moments_of(weight)
        assert moments.count == 27
        assert np.allclose(moments.second[0], tapped.T @ tapped / 27, rtol=1e-5, atol=1e-5)
        assert np.allclose(moments.mean[0], tapped.mean(0), rtol=1e-5, atol=1e-6)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()


def test_an_embedding_is_counted():
    embedding = nn.Embedding(5, 3)
    ids = torch.tensor([[0, 3, 3], [2, 3, 0]])
    weight, moments = only(calibrate(embedding, [ids, ids.int()]))
    share = np.array([2, 0, 1, 3, 0]) / 6
    assert (moments.second, moments.count, weight.shape) == (None, 12, (5, 3))
    assert np.allclose(moments.diagonal, share)
    assert np.allclose(moments.mean, share)


def test_the_forms_of_samples():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, a, b, scales=(1,)):
            return self.first(a) + self.second(b) * scales[0]

    model = Sum()
    a, b = normal(2, 3), normal(2, 3, seed=1)
    forms = [(a, b), [a, b], {"a": a, "b": b}, {"b": b, "a": a, "scales": (a[0, :1], 2)}]
    one, *others = [calibrate(model, [form]) for form in forms]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(a, b), batch_size=2)
    for other in (*others, calibrate(model, loader), calibrate(model, {"a": a, "b": b})):
        assert other.weights == one.weights
        assert all(
            np.array_equal(moments.second, one.moments[key].second)
            for key, moments in other.moments.items()
        )
    linear = nn.Linear(3, 4)
    assert only(calibrate(linear, a))[1].count == 2


def test_parts_and_files(tmp_path):
    model, samples = network(), [normal(3, 6, seed=seed) for seed in range(6)]
    whole = calibrate(model, samples)
    halves = [calibrate(model, samples, part=(number, 2)) for number in (1, 2)]
    merged = merge(halves)
    assert merged.samples == 6
    assert np.allclose(merged.moments["1"].second, whole.moments["1"].second, atol=1e-6)
    output = tmp_path / "a"
    with pytest.raises(InputError):
        calibrate(model, [*samples[:4], normal(3, 7)], output=output)
    done = []
    calibrate(model, samples, output=output, progress=lambda *now: done.append(now))
    assert done == [(5, 6), (6, 6)]
    loaded = Calibration.load(output)
    for key, moments in whole.moments.items():
        assert np.array_equal(loaded.moments[key].second, moments.second)


def state_of(model):
    hooks = [len(module._forward_hooks) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    return hooks, flags, {name: t.clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_a_module_is_left_as_it_was(fails):
    model = network().train()
    model[2].eval()
    model[0].register_forward_hook(lambda *_: None)
    hooks, flags, tensors = state_of(model)
    samples = [normal(3, 6), normal(3, 6, seed=1)]
    if fails:
        with pytest.raises(InputError):
            calibrate(model, [*samples, normal(3, 7)])
    else:
        calibrate(model, samples)
    after = state_of(model)
    assert after[:2] == (hooks, flags)
    assert all(torch.equal(after[2][name], tensor) for name, tensor in tensors.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_every_kind_has_statistics_or_a_reason():
    model = every_kind()
    calibration = calibrate(model, [IDS])
    names = {weight.name for weight in calibration.weights}
    assert names == {
        "embedding.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        *(f"separate.{name}_proj_weight" for name in "qkv"),
        "separate.out_proj.weight",
        *(f"{name}.weight" for name in ("key", "value", "conv1", "up1", "conv2", "grouped")),
        *(f"{name}.weight" for name in ("depthwise", "up2", "grouped_up", "conv3", "up3")),
    }
    assert names | set(calibration.without) == {name for name, _ in model.named_parameters()}
    assert calibration.without["attention.in_proj_bias"] == (
        "MultiheadAttention(attention) reads it as in_proj_bias, which multiplies no inputs"
    )
    assert calibration.without["norm.weight"].endswith("multiplies no inputs that are measured")


def test_transformer_layers_are_observed_despite_their_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    padding = torch.arange(5) >= torch.tensor([[5], [3]])
    sample = {"src": normal(2, 5, 8), "src_key_padding_mask": padding}
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    calibration = calibrate(model, [sample])
    assert torch.backends.mha.get_fastpath_enabled() == was_enabled
    names = ("self_attn.in_proj_weight", "self_attn.out_proj.weight")
    names = (*names, "linear1.weight", "linear2.weight")
    counts = {w.name: calibration.moments[w.moments].count for w in calibration.weights}
    assert counts == {f"layers.{i}.{name}": 10 for i in range(2) for name in names}


class Tied(nn.Module):
    """An embedding that is the head, and a layer that is called twice and tied to another."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer, self.copy = nn.Linear(4, 4), nn.Linear(4, 4)
        self.copy.weight = self.layer.weight
        self.alias = self.layer
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        self.inputs = [self.embedding(ids)]
        for layer in (self.layer, self.alias, self.copy, self.head):
            self.inputs.append(layer(self.inputs[-1]))
        return self.inputs[-1]


def test_tied_weights_have_the_moments_of_all_their_owners():
    model, ids = Tied(), torch.tensor([[1, 2, 6]])
    calibration = calibrate(model, [ids])
    embedding, layer = calibration.weights
    assert embedding.names == ("embedding.weight", "head.weight")
    assert layer.names == ("layer.weight", "copy.weight", "alias.weight")
    x = torch.cat(model.inputs[:3], dim=1)[0].detach().double().numpy()
    moments = calibration.moments_of(layer)
    assert moments.count == 9
    assert np.allclose(moments.second[0], x.T @ x / 9, atol=1e-6)
    x = model.inputs[3][0].detach().double().numpy()
    assert np.allclose(calibration.moments_of(embedding).second[0], x.T @ x / 3, atol=1e-6)
    assert calibration.remarks == (
        "weight 'embedding.weight' has the statistics of Linear(head), not those of "
        "Embedding(embedding), which reads it too",
        "weight 'layer.weight' has the statistics of Linear(layer), Linear(copy)",
    )


def test_the_converted_package_has_the_same_statistics():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(4 * 6 * 6, 10),
        ).eval()
    samples = [normal(1, 3, 8, 8, seed=seed) for seed in range(8)]
    package = quietly(
        lambda: ct.convert(
            torch.jit.trace(model, samples[0]),
            inputs=[ct.TensorType(name="x", shape=samples[0].shape)],
            minimum_deployment_target=ct.target.iOS16,
        )
    )
    of_module = calibrate(model, samples)
    of_package = calibrate(package, [{"x": x.numpy()} for x in samples])
    assert len(of_module.weights) == len(of_package.weights) == 3
    for one, other in zip(of_module.weights, of_package.weights, strict=True):
        moments, theirs = of_module.moments_of(one), of_package.moments_of(other)
        assert moments.count == theirs.count
        scale = moments.diagonal.max()
        assert np.allclose(moments.second, theirs.second, atol=2e-3 * scale)
        assert np.allclose(moments.mean, theirs.mean, atol=2e-3 * scale**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, tmp_path):
    model, samples = network().to(dtype), [normal(3, 6, seed=seed).to(dtype) for seed in range(2)]
    calibration = calibrate(model, samples, output=tmp_path / "a")
    x = torch.cat(samples).double().numpy()
    assert np.allclose(calibration.moments["0"].second[0], x.T @ x / 6, rtol=1e-5, atol=1e-5)


def test_diagonal_statistics():
    model, samples = network(), [normal(3, 6)]
    hessian = calibrate(model, samples)
    diagonal = calibrate(model, samples, statistics="diagonal")
    for key, moments in diagonal.moments.items():
        assert moments.second is None
        assert np.allclose(moments.diagonal, hessian.moments[key].diagonal)


def test_a_layer_that_is_not_called_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    calibration = calibrate(Unused(), [normal(2, 3)])
    assert "no sample reached 1 weight: 'unused.weight'" in calibration.notes


def test_inputs_that_a_layer_does_not_multiply_are_left_out():
    class Other(nn.Linear):
        def forward(self, pair):
            return super().forward(pair[0])

    model = nn.Sequential(nn.Linear(3, 3), Other(3, 3))
    model.forward = lambda x: model[1]((model[0](x),))
    calibration = calibrate(model, [normal(2, 3)])
    assert calibration.moments["1"].count == 0
    assert any("left out, of 'Other(1)'" in note for note in calibration.notes)


BAD_SAMPLES = {
    "none": ([], InputError, "there are no samples; give one or more"),
    "no iterable": (3, InputError, "samples must be an iterable of samples, got int; give a list"),
    "a number": ([3], InputError, "tensors, tuples of positional .*; sample 0 is int"),
    "keys": ([{0: normal(3, 6)}], InputError, "sample 0 has the keys '0', which are not names"),
    "shape": (
        [normal(3, 7)],
        InputError,
        r"sample 0: Sequential cannot be run on it: RuntimeError",
    ),
    "names": (
        [{"x": normal(3, 6)}],
        InputError,
        "sample 0: .*TypeError.*dictionary of its keyword",
    ),
    "several": ([(normal(3, 6),) * 2], InputError, "sample 0: Sequential cannot be run on it"),
    "NaN": (
        [normal(3, 6), normal(3, 6) * np.nan],
        ConfigError,
        r"sample 1: an input of Linear\(0\) has NaN or infinite",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_samples_that_do_not_fit_are_refused(case):
    samples, kind, message = BAD_SAMPLES[case]
    model = network()
    with pytest.raises(kind, match=message):
        calibrate(model, samples)
    assert not any(itertools.chain(*(module._forward_hooks for module in model.modules())))


def test_modules_that_cannot_be_calibrated_are_refused():
    samples = [normal(3, 6)]
    with pytest.raises(ConfigError, match=r"got weight, bias .*meta device\); materialize"):
        calibrate(nn.Linear(6, 3, device="meta"), samples)
    with pytest.raises(ConfigError, match="materialize the model first"):
        calibrate(nn.LazyLinear(3), samples)
    with pytest.raises(ConfigError, match="no weight that inputs are multiplied by"):
        calibrate(nn.BatchNorm1d(6), samples)
    with pytest.raises(ConfigError, match=r"plain torch.nn.Module, got .*before it is traced"):
        calibrate(quietly(torch.jit.trace, network(), samples[0]), samples)
    with pytest.raises(ConfigError, match="function must be None for a module, got 'main'"):
        calibrate(network(), samples, function="main")
    with pytest.raises(ConfigError, match=r"device must be None for a module.*got 'cpu'"):
        calibrate(network(), samples, device="cpu")
