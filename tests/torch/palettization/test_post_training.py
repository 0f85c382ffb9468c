import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.palette import palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.torch.carried import carried_palettes
from mlopt.torch.palettization import (
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
    SKMPalettizerConfig,
)
from tests.torch.networks import IDS, WEIGHTS, every_kind

FORMS = {
    "4 bits": {"n_bits": 4},
    "3 bits": {"n_bits": 3},
    "output groups": {"n_bits": 2, "granularity": "per_grouped_channel", "group_size": 4},
    "input groups": {
        "n_bits": 2,
        "granularity": "per_grouped_channel",
        "group_size": 4,
        "channel_axis": 1,
    },
    "vectors": {"n_bits": 4, "cluster_dim": 2},
    "input vectors": {"n_bits": 4, "cluster_dim": 2, "channel_axis": 1},
    "scale": {"n_bits": 2, "enable_per_channel_scale": True},
    "int8 table": {"n_bits": 4, "lut_dtype": "int8"},
    "uint8 table in groups": {
        "n_bits": 2,
        "lut_dtype": "uint8",
        "granularity": "per_grouped_channel",
        "group_size": 4,
    },
    "int8 table, scale": {"n_bits": 4, "lut_dtype": "int8", "enable_per_channel_scale": True},
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def config(**options):
    return PostTrainingPalettizerConfig.from_dict({"global_config": options})


def palettized(model, **options):
    palettizer = PostTrainingPalettizer(model, config(**options))
    return palettizer.compress(), palettizer.report()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.covering(1)
def test_weights_hold_what_the_carried_palettes_stand_for(form, dtype):
    model, report = palettized(every_kind(dtype), **FORMS[form])
    carried = {palette.name: palette for palette in carried_palettes(model.state_dict())}
    names = {row.name for row in report.palettized}
    assert names == {name for name in carried if name != "head.weight"}
    for name in names:
        weight, palette = model.get_parameter(name), carried[name].palettized()
        assert weight.dtype == dtype
        stored = palette.dequantize()
        assert stored.dtype.name == str(dtype).removeprefix("torch.")
        assert np.array_equal(stored.astype(np.float64), weight.detach().double().numpy())


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_module_is_palettized_or_named_with_a_reason(form):
    _, report = palettized(every_kind(), **FORMS[form])
    parameters = [name for name, _ in every_kind().named_parameters()]
    assert [row.name for row in report] == parameters
    kept = {row.name: row.reason for row in report.kept if row.name in WEIGHTS}
    divides = {
        "output groups": {"norm.weight": "10 channels on axis 0 do not divide"},
        "input groups": {
            "conv2.weight": "1 channels on axis 1",
            "depthwise.weight": "1 channels on axis 1",
            "conv3.weight": "1 channels on axis 1",
        },
        "input vectors": {
            "conv2.weight": "does not divide the 1 channels on axis 1",
            "depthwise.weight": "does not divide the 1 channels on axis 1",
            "conv3.weight": "does not divide the 1 channels on axis 1",
        },
        "vectors": {"depthwise.weight": "does not divide the 1 channels on axis 0 of a group"},
        "uint8 table in groups": {"norm.weight": "10 channels on axis 0 do not divide"},
    }.get(form, {})
    assert set(kept) == set(divides)
    for name, reason in divides.items():
        assert reason in kept[name]
    others = {row.name: row.reason for row in report.kept if row.name not in WEIGHTS}
    assert others["key.bias"] == "rank 1; Core ML wants rank 2 or more"
    assert others["norm.bias"] == "no adapter palettizes 'bias' of LayerNorm"


@pytest.mark.parametrize("channel_axis", [0, 1])
def test_channel_axes_of_transposed_convolutions_are_those_of_the_channels(channel_axis):
    """channel_axis 0 is output channels: axis 1 of such a weight."""
    options = {
        "n_bits": 1,
        "granularity": "per_grouped_channel",
        "group_size": 4,
        "channel_axis": channel_axis,
    }
    model, _ = palettized(every_kind(), **options)
    tables = {p.name: p.palettized().table_shape for p in carried_palettes(model.state_dict())}
    # up2 has 16 input and 8 output channels, key 16 and 8
    assert tables["up2.weight"] == ((1, 2, 1, 1) if channel_axis == 0 else (4, 1, 1, 1))
    assert tables["key.weight"] == ((2, 1) if channel_axis == 0 else (1, 4))


def test_scales_are_those_of_output_channels():
    original = every_kind()
    model, _ = palettized(original, n_bits=2, enable_per_channel_scale=True)
    scales = {p.name: p.palettized().scale for p in carried_palettes(model.state_dict())}
    for name, axis in (("up2.weight", 1), ("key.weight", 0), ("embedding.weight", 0)):
        weight = original.get_parameter(name).detach()
        others = [i for i in range(weight.dim()) if i != axis]
        expected = weight.abs().amax(dim=others, keepdim=True)
        assert np.array_equal(scales[name], expected.numpy())


def test_palettes_are_those_of_the_one_clustering():
    original = every_kind()
    model, _ = palettized(original, n_bits=3)
    for name in WEIGHTS:
        weight = original.get_parameter(name).detach().numpy()
        expected, _ = palettize(weight, PaletteSpec(nbits=3))
        assert np.array_equal(expected.dequantize(), model.get_parameter(name).detach().numpy())


def test_report_tells_errors_sizes_and_owners():
    original = every_kind()
    model, report = palettized(original, n_bits=4)
    row = report["embedding.weight"]
    assert row.consumers == ("Embedding(embedding)", "Linear(head)")
    assert "tied, also named 'head.weight'" in row.note
    assert row.bytes_before == 48 * 16 * 4
    assert row.bytes_after == 48 * 16 // 2 + 16 * 4
    before = original.embedding.weight.detach().double()
    error = (before - model.embedding.weight.detach().double()).square().sum()
    expected = 10 * math.log10(before.square().sum() / error)
    assert row.snr_db == pytest.approx(expected)
    assert "embedding.weight" in str(report)


def test_a_copy_is_palettized_and_the_model_stays_as_it_is():
    original = every_kind()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    model, _ = palettized(original, n_bits=1)
    after = original.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    shared = {t.data_ptr() for t in before.values()} | {t.data_ptr() for t in after.values()}
    assert not shared & {t.data_ptr() for t in model.state_dict().values()}
    assert model.head.weight is model.embedding.weight


def test_inplace_keeps_parameters_ties_and_memory_format():
    model = every_kind().to(memory_format=torch.preserve_format)
    model.grouped.to(memory_format=torch.channels_last)
    parameters = dict(model.named_parameters())
    strides = {name: p.stride() for name, p in parameters.items()}
    palettizer = PostTrainingPalettizer(model, config(n_bits=2))
    assert palettizer.compress(inplace=True) is model
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.stride() == strides[name]
    assert model.head.weight is model.embedding.weight
    assert model.key.weight.unique().numel() == 4


def test_a_copy_keeps_flags_and_memory_format():
    original = every_kind()
    original.grouped.to(memory_format=torch.channels_last)
    original.key.weight.requires_grad_(False)
    model, _ = palettized(original, n_bits=2)
    assert model.grouped.weight.stride() == original.grouped.weight.stride()
    assert not model.key.weight.requires_grad
    assert model.value.weight.requires_grad
    assert not model.training


def test_an_error_leaves_the_model_as_it_was(monkeypatch):
    model = every_kind()
    before = copy.deepcopy(model.state_dict())
    from mlopt.statistics import fitting

    calls = []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) > 5:
            raise MemoryError
        return palettize(*args, **kwargs)

    monkeypatch.setattr(fitting, "palettize", failing)
    with pytest.raises(MemoryError):
        PostTrainingPalettizer(model, config(n_bits=2)).compress(inplace=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_workers_change_nothing():
    one = PostTrainingPalettizer(every_kind(), config(n_bits=3)).compress(num_kmeans_workers=1)
    many = PostTrainingPalettizer(every_kind(), config(n_bits=3)).compress(num_kmeans_workers=3)
    states = one.state_dict(), many.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_second_call_with_workers_works():
    palettizer = PostTrainingPalettizer(every_kind(), config(n_bits=2))
    first, second = (palettizer.compress(num_kmeans_workers=2) for _ in range(2))
    assert torch.equal(first.key.weight, second.key.weight)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(16, 16),
        nn.Conv1d(4, 8, 3),
        nn.Conv2d(4, 8, 3),
        nn.Conv3d(2, 4, 3),
        nn.ConvTranspose1d(4, 8, 3),
        nn.ConvTranspose2d(4, 8, 3),
        nn.ConvTranspose3d(2, 4, 3),
        nn.Embedding(32, 8),
        nn.LayerNorm([8, 8]),
        nn.MultiheadAttention(16, 4),
        nn.MultiheadAttention(16, 4, kdim=8, vdim=8),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_model_itself_can_be_the_module(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    model, report = palettized(module, n_bits=2)
    assert report.palettized
    for row in report.palettized:
        assert model.get_parameter(row.name).unique().numel() == 4


def test_modules_without_an_adapter_are_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = nn.Parameter(torch.ones(4, 4))

    model = nn.ModuleDict({"scale": Scale(), "linear": nn.Linear(8, 8)})
    _, report = palettized(model, n_bits=2)
    assert report["scale.factors"].reason == (
        "no adapter palettizes 'factors' of Scale; mlopt.torch.register_module adds one"
    )
    assert report["linear.weight"].is_palettized
    assert "no adapter for its module" in report.kept_categories


def test_parametrized_weights_are_kept_with_a_remedy():
    model = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    _, report = palettized(model, n_bits=2)
    (row,) = (row for row in report if len(row.shape) == 2)
    assert "remove_parametrizations" in row.reason


def test_frozen_unused_and_subclassed_layers_are_palettized():
    class Scaled(nn.Linear):
        pass

    model = nn.ModuleDict({"frozen": nn.Linear(8, 8), "other": Scaled(8, 8)})
    model.frozen.requires_grad_(False)
    _, report = palettized(model, n_bits=2)
    assert {row.name for row in report.palettized} == {"frozen.weight", "other.weight"}


def test_infinities_and_integers_are_kept():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[0, 0] = -math.inf
    model[1].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    _, report = palettized(model, n_bits=2)
    assert report["0.weight"].reason == "it holds an infinity or a NaN"
    assert report["1.weight"].reason.startswith("int8; only float16, ")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_few_valued_and_tiny_weights(dtype):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(1, 1), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.fill_(0.3)
        model[1].weight.copy_(torch.arange(64).reshape(8, 8) % 3)
        model[3].weight.mul_(2**-13)
    model.to(dtype)
    for form in ({"n_bits": 4}, {"n_bits": 4, "enable_per_channel_scale": True}):
        compressed, report = palettized(model, **form)
        assert torch.equal(compressed[0].weight, model[0].weight)
        assert torch.equal(compressed[1].weight, model[1].weight)
        assert torch.equal(compressed[2].weight, model[2].weight)
        assert report["2.weight"].note == "the palette is larger than the weight"
        assert report["3.weight"].snr_db > 20


def test_models_without_values_are_refused():
    with pytest.raises(ConfigError, match=r"without values.*weight"):
        palettized(nn.Linear(8, 8, device="meta"), n_bits=2)
    with pytest.raises(ConfigError, match="materialize"):
        palettized(nn.LazyLinear(4), n_bits=2)


def test_wrong_arguments_are_refused():
    with pytest.raises(
        ConfigError, match=r"PostTrainingPalettizerConfig, .* got \S+\.SKMPalettizerConfig"
    ):
        PostTrainingPalettizer(nn.Linear(2, 2), SKMPalettizerConfig())
    with pytest.raises(ConfigError, match="got str"):
        PostTrainingPalettizer("model").compress()
    with pytest.raises(ConfigError, match="call compress first"):
        PostTrainingPalettizer(nn.Linear(2, 2)).report()


def test_rules_that_match_nothing_stand_in_the_report():
    rules = {
        "global_config": {"n_bits": 2},
        "module_name_configs": {"keys": None},
        "module_type_configs": {"Conv2d": {"n_bits": 4}, "LSTM": {"n_bits": 4}},
    }
    palettizer = PostTrainingPalettizer(every_kind(), PostTrainingPalettizerConfig.from_dict(rules))
    palettizer.compress()
    report = palettizer.report()
    unmatched = {rule.key: rule for rule in report.unmatched_rules}
    assert set(unmatched) == {"keys", "LSTM"}
    assert "key" in unmatched["keys"].near_matches
    assert report["conv2.weight"].nbits == 4
    assert report["conv2.weight"].reason == "module_type_configs['Conv2d']"


def test_palettes_go_wherever_the_state_goes():
    model, _ = palettized(every_kind(), **FORMS["int8 table, scale"])
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copied, loaded):
        for ours, theirs in zip(
            carried_palettes(model.state_dict()), carried_palettes(other.state_dict()), strict=True
        ):
            a, b = ours.palettized(), theirs.palettized()
            assert np.array_equal(a.indices, b.indices)
            assert np.array_equal(a.table, b.table)
            assert np.array_equal(a.quantized.codes, b.quantized.codes)


def test_palettizing_again_replaces_the_palettes():
    model, _ = palettized(every_kind(), n_bits=4, enable_per_channel_scale=True)
    again, _ = palettized(model, n_bits=2)
    palettes = {p.name: p.palettized() for p in carried_palettes(again.state_dict())}
    assert {palette.nbits for palette in palettes.values()} == {2}
    assert all(palette.scale is None for palette in palettes.values())


def test_outputs_are_those_of_a_model_with_the_same_dense_weights():
    model, _ = palettized(every_kind(), n_bits=2)
    plain = every_kind()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if "/" not in n})
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(IDS), plain(IDS), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_on_a_gpu_give_the_same_palettes(dtype):
    on_cpu, _ = palettized(every_kind(dtype), n_bits=3)
    on_gpu, _ = palettized(every_kind(dtype).cuda(), n_bits=3)
    states = on_cpu.state_dict().items(), on_gpu.state_dict().values()
    for (name, ours), theirs in zip(*states, strict=True):
        assert "metadata_version" in name or theirs.is_cuda
        assert torch.equal(ours, theirs.cpu())


def test_rules_reach_every_name_of_a_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(16, 16)
            self.head = self.body

    rules = {"global_config": {"n_bits": 2}, "module_name_configs": {"head": None}}
    palettizer = PostTrainingPalettizer(Net(), PostTrainingPalettizerConfig.from_dict(rules))
    palettizer.compress()
    report = palettizer.report()
    assert not report.unmatched_rules
    assert report["body.weight"].reason == "left alone by module_name_configs['head']"
    assert "'head.weight'" in report["body.weight"].note


@pytest.mark.parametrize("inplace", [False, True])
def test_parameters_of_the_same_memory_are_tied(inplace):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = nn.Parameter(model[0].weight.data)
    rules = {
        "global_config": {"n_bits": 1},
        "module_name_configs": {"0": {"n_bits": 4}},
    }
    palettizer = PostTrainingPalettizer(model, PostTrainingPalettizerConfig.from_dict(rules))
    compressed = palettizer.compress(inplace=inplace)
    assert compressed[0].weight.data_ptr() == compressed[1].weight.data_ptr()
    assert compressed[0].weight.unique().numel() == 16
    (row,) = palettizer.report().palettized
    assert "'1.weight'" in row.note
    palettes = [palette.palettized() for palette in carried_palettes(compressed.state_dict())]
    assert [palette.nbits for palette in palettes] == [4, 4]


@pytest.mark.parametrize("inplace", [False, True])
def test_parameters_that_share_parts_of_their_memory_are_kept(inplace):
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)), nn.Linear(16, 8))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    model[2].weight = nn.Parameter(torch.randn(16, 1).expand(16, 16))
    big = torch.randn(32, 16)
    model[3].weight = nn.Parameter(big[:16])
    model[4].weight = nn.Parameter(big[20:28])
    palettizer = PostTrainingPalettizer(model, config(n_bits=2))
    palettizer.compress(inplace=inplace)
    rows = {row.name: row for row in palettizer.report() if len(row.shape) == 2}
    assert {name for name, row in rows.items() if row.is_palettized} == {"3.weight", "4.weight"}
    assert all("clone it first" in rows[f"{i}.weight"].reason for i in range(3))


@pytest.mark.parametrize("workers", [0, -1, None, "auto", True, 2.5])
def test_numbers_of_workers_that_are_none_are_refused(workers):
    with pytest.raises(ConfigError, match="num_kmeans_workers must be an integer"):
        PostTrainingPalettizer(nn.Linear(4, 4)).compress(num_kmeans_workers=workers)


def test_sparse_and_traced_models():
    model = nn.Linear(8, 8)
    model.weight = nn.Parameter(torch.eye(8).to_sparse(), requires_grad=False)
    palettizer = PostTrainingPalettizer(model)
    palettizer.compress(inplace=True)  # PyTorch cannot copy such a module
    assert "make it dense" in palettizer.report()["weight"].reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Linear(8, 8), torch.zeros(1, 8))
    with pytest.raises(ConfigError, match="before it is traced"):
        PostTrainingPalettizer(traced).compress()
