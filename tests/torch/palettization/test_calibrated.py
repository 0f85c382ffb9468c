"""Post-training palettization with a calibration: outputs, biases, and what is not known."""

import copy

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import mlopt
from mlopt.calibration import calibrate
from mlopt.errors import ConfigError
from mlopt.palette import palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.torch.carried import carried_palettes
from mlopt.torch.palettization import (
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
    SKMPalettizer,
    SKMPalettizerConfig,
)
from tests.torch.conversions import compressed_weights, quietly, same_arrays

GENERATOR = torch.Generator().manual_seed(3)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


class Network(nn.Module):
    """Layers with biases and without, and a convolution in groups."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(12, 8, 4, stride=2, padding=1)
        self.hidden = nn.Linear(8, 24)
        self.head = nn.Linear(24, 16, bias=False)

    def forward(self, x):
        x = self.up(self.conv(x).relu()).relu()
        return self.head(self.hidden(x.transpose(1, 2)).relu())


MIX = normal(4, 4)
SAMPLES = [torch.einsum("io,nil->nol", MIX, normal(2, 4, 20)) + 0.5 for _ in range(12)]
LAYERS = ("conv", "up", "hidden", "head")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Network().eval()


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, SAMPLES)


def compressed(model, options=None, **arguments):
    config = PostTrainingPalettizerConfig.from_dict({"global_config": options or {"n_bits": 2}})
    palettizer = PostTrainingPalettizer(model, config)
    return palettizer.compress(**arguments), palettizer.report()


def errors(model, other, outputs=-1):
    """Of each layer, with the inputs in the first model: errors of outputs [positions, outputs]."""
    made = {name: [] for name in LAYERS}

    def hook(name):
        def observe(module, args, output):
            error = other.get_submodule(name)(args[0]) - output
            error = error if isinstance(module, nn.Linear) else error.transpose(1, 2)
            made[name].append(error.reshape(-1, error.shape[-1]).double())

        return observe

    hooks = [model.get_submodule(n).register_forward_hook(hook(n)) for n in LAYERS]
    with torch.no_grad():
        for sample in SAMPLES:
            model(sample)
    for each in hooks:
        each.remove()
    return {name: torch.cat(parts).numpy() for name, parts in made.items()}


def power(error):
    return float((error**2).sum())


def test_outputs_are_nearer_than_by_the_weights_alone(model, calibration):
    made = {}
    for method in ("plain", "diagonal", "hessian"):
        result, report = compressed(
            model, calibration=calibration, method=method, correct_biases=False
        )
        assert {row.method for row in report.palettized} == {method}
        assert not any(row.has_corrected_bias for row in report)
        assert all((row.output_snr_db is None) == (method == "plain") for row in report.palettized)
        made[method] = {name: power(e) for name, e in errors(model, result).items()}
    plain, _ = compressed(model)
    assert {n: power(e) for n, e in errors(model, plain).items()} == made["plain"]
    for name in LAYERS:
        assert made["hessian"][name] < made["diagonal"][name]
        assert made["hessian"][name] < 0.95 * made["plain"][name]


def test_a_bias_takes_the_mean_error(model, calibration):
    result, report = compressed(model, calibration=calibration)
    kept, _ = compressed(model, calibration=calibration, correct_biases=False)
    after, before = errors(model, result), errors(model, kept)
    for name in ("conv", "up", "hidden"):
        scale = np.abs(before[name].mean(axis=0)).max()
        assert np.abs(after[name].mean(axis=0)).max() < 1e-4 * scale
        assert power(after[name]) < power(before[name])
        assert report[f"{name}.weight"].has_corrected_bias
        assert report[f"{name}.bias"].note == f"takes up the mean error of '{name}.weight'"
        assert not torch.equal(result.get_submodule(name).bias, model.get_submodule(name).bias)
        assert torch.equal(kept.get_submodule(name).bias, model.get_submodule(name).bias)
    # no bias is added where there is none
    assert not report["head.weight"].has_corrected_bias
    assert result.head.bias is None
    assert "Biases corrected: 3" in str(report)


def test_the_row_has_the_error_of_the_outputs(model, calibration):
    result, report = compressed(model, calibration=calibration)
    x = torch.cat([model.up(model.conv(s).relu()).relu() for s in SAMPLES]).transpose(1, 2)
    x = x.reshape(-1, 8).detach().double().numpy()
    wanted = (x - x.mean(0)) @ model.hidden.weight.detach().double().numpy().T
    ratio = 10 * np.log10(power(wanted) / power(errors(model, result)["hidden"]))
    assert report["hidden.weight"].output_snr_db == pytest.approx(ratio, abs=0.05)


def test_the_model_is_left_alone_unless_inplace(model, calibration):
    own = copy.deepcopy(model)
    result, _ = compressed(own, calibration=calibration)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in own.state_dict().items())
    same, _ = compressed(own, calibration=calibration, inplace=True)
    assert same is own
    assert all(torch.equal(t, result.state_dict()[n]) for n, t in own.state_dict().items())


def test_workers_and_files_change_nothing(model, calibration, tmp_path):
    calibration.save(tmp_path / "a")
    one, _ = compressed(model, calibration=calibration)
    other, _ = compressed(model, calibration=tmp_path / "a", num_kmeans_workers=3)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in one.state_dict().items())


class Tied(nn.Module):
    """Two layers of one weight, two of one bias, and an embedding that is the head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.one, self.two, self.three, self.four = (nn.Linear(8, 8) for _ in range(4))
        self.two.weight = self.one.weight
        self.four.bias = self.three.bias
        self.head = nn.Linear(8, 32)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in (self.one, self.two, self.three, self.four):
            x = x + layer(x)
        return self.head(x)


def test_tied_parameters_keep_their_biases():
    model = Tied()
    ids = [torch.randint(32, (4, 10), generator=GENERATOR) for _ in range(8)]
    calibration = calibrate(model, ids)
    result, report = compressed(model, calibration=calibration)
    assert {row.method for row in report.palettized} == {"hessian"}
    assert not any(row.has_corrected_bias for row in report)
    assert result.two.weight is result.one.weight
    assert result.head.weight is result.embedding.weight
    assert all(
        torch.equal(parameter, result.get_parameter(name))
        for name, parameter in model.named_parameters()
        if name.endswith("bias")
    )


def test_an_embedding_counts_its_rows():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(64, 4)

        def forward(self, ids):
            return self.embedding(ids)

    model, ids = Lookup(), torch.arange(8).repeat(20)
    with torch.no_grad():
        model.embedding.weight.copy_(normal(64, 4))
    result, report = compressed(model, calibration=calibrate(model, [ids]))
    plain, _ = compressed(model)
    assert report["embedding.weight"].method == "diagonal"
    read, plainly = (power((m(ids) - model(ids)).detach().numpy()) for m in (result, plain))
    assert read < 0.9 * plainly


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(model, dtype):
    own = copy.deepcopy(model).to(dtype)
    result, report = compressed(own, calibration=calibrate(own, [s.to(dtype) for s in SAMPLES]))
    assert {row.method for row in report.palettized} == {"hessian"}
    assert {t.dtype for t in result.parameters()} == {dtype}
    assert result.conv.weight.unique().numel() <= 4


FORMS = {
    "groups": {"n_bits": 2, "granularity": "per_grouped_channel", "group_size": 4},
    "vectors": {"n_bits": 2, "cluster_dim": 2},
    "scale": {"n_bits": 2, "enable_per_channel_scale": True},
    "int8 table": {"n_bits": 2, "lut_dtype": "int8"},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_converted_model_has_the_fitted_tables(model, calibration, form):
    result, _ = compressed(model, FORMS[form], calibration=calibration)
    converted = quietly(lambda: mlopt.torch.convert(result, SAMPLES[0], skip_model_load=True))
    stored = {p.name: p.palettized() for p in carried_palettes(result.state_dict())}
    assert set(stored) == {f"{name}.weight" for name in LAYERS}
    wanted = [palette.astype("float16").dequantize() for palette in stored.values()]
    assert same_arrays(compressed_weights(converted), wanted)


def test_unknown_weights_are_named(model, calibration):
    some = attrs.evolve(calibration, weights=calibration.weights[:1])
    _, report = compressed(model, calibration=some)
    assert sorted(row.method for row in report.palettized) == ["hessian", *["plain"] * 3]
    (note,) = [note for note in report.notes if "without statistics" in note]
    assert all(f"{name}.weight" in note for name in LAYERS[1:])


def test_a_fine_tuned_copy_is_served_and_told(model, calibration):
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.hidden.weight.mul_(1.25)
    _, report = compressed(tuned, calibration=calibration)
    assert {row.method for row in report.palettized} == {"hessian"}
    assert any("('hidden.weight'): of another version of the model" in n for n in report.notes)


def test_what_does_not_fit_is_refused(model, calibration, tmp_path):
    with pytest.raises(ConfigError, match="it was made of another model: calibrate this one"):
        compressed(nn.Linear(5, 6), calibration=calibration)
    with pytest.raises(ConfigError, match="method 'hessian' needs a calibration, got None"):
        compressed(model, method="hessian")
    with pytest.raises(ConfigError, match="method must be one of"):
        compressed(model, method="best")
    (tmp_path / "a").write_bytes(b"no calibration")
    with pytest.raises(ConfigError, match="is not a calibration"):
        compressed(model, calibration=tmp_path / "a")


def sensitive(model, path, **arguments):
    config = SKMPalettizerConfig.from_dict({"global_config": {"n_bits": 2}})
    palettizer = SKMPalettizer(model, config)
    result = palettizer.compress(sensitivity_path=path, **arguments)
    return result, palettizer.report()


def test_sensitivities_weigh_the_outputs(model, calibration, tmp_path):
    """Sensitivities that are those of the inputs times a factor for each output."""
    known = {weight.name: calibration.moments_of(weight) for weight in calibration.weights}
    factors, values = {}, {}
    for name in LAYERS:
        moments = known[f"{name}.weight"]
        a = moments.arrangement
        factor = torch.rand(a.blocks, a.rows, generator=GENERATOR).numpy() ** 4 + 1e-3
        spread = np.broadcast_to(factor[..., None], (a.blocks, a.rows, a.columns))
        factors[name] = a.weight(spread.astype(np.float32))
        squares = np.broadcast_to(moments.diagonal[:, None], spread.shape)
        values[f"{name}.weight"] = torch.tensor(a.weight(spread * squares), dtype=torch.float32)
    torch.save(values, tmp_path / "sensitivities.pt")
    result, report = sensitive(model, tmp_path / "sensitivities.pt", calibration=calibration)
    for name in LAYERS:
        assert report[f"{name}.weight"].method == "hessian"
        assert report[f"{name}.weight"].has_corrected_bias == (name != "head")
        moments = known[f"{name}.weight"]
        moments = moments if name == "head" else moments.centred()
        weight = model.get_parameter(f"{name}.weight").detach().numpy()
        wanted, _ = palettize(weight, PaletteSpec(nbits=2), factors[name], moments=moments)
        found = result.get_parameter(f"{name}.weight").detach().numpy()
        np.testing.assert_allclose(found, wanted.dequantize(), rtol=1e-3, atol=1e-4)


def test_sensitive_k_means_without_sensitivities_or_statistics(model, calibration, tmp_path):
    alone, report = sensitive(model, None, calibration=calibration)
    wanted, _ = compressed(model, calibration=calibration)
    assert all(torch.equal(t, wanted.state_dict()[n]) for n, t in alone.state_dict().items())
    assert "sensitivities were not given: all outputs of a weight count alike" in report.notes
    values = {
        f"{name}.weight": normal(*model.get_parameter(f"{name}.weight").shape).square()
        for name in LAYERS
    }
    torch.save(values, tmp_path / "a.pt")
    some = attrs.evolve(calibration, weights=calibration.weights[:1])
    mixed, report = sensitive(model, tmp_path / "a.pt", calibration=some)
    plain, _ = sensitive(model, tmp_path / "a.pt")
    assert [report[f"{name}.weight"].method for name in LAYERS] == ["hessian", *["plain"] * 3]
    assert not torch.equal(mixed.conv.weight, plain.conv.weight)
    assert torch.equal(mixed.head.weight, plain.head.weight)
    same, _ = sensitive(model, tmp_path / "a.pt", calibration=calibration, method="plain")
    assert torch.equal(same.conv.weight, plain.conv.weight)
    with pytest.raises(ConfigError, match="got no loss_fn; give dataloader and loss_fn, or"):
        SKMPalettizer(model).compress(dataloader=[], calibration=calibration)
    with pytest.raises(ConfigError, match="method 'hessian' needs a calibration"):
        sensitive(model, tmp_path / "a.pt", method="hessian")
