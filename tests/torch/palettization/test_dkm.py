import copy
import io
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

import mlopt.coreml as coreml
from mlopt.errors import ConfigError
from mlopt.palette import palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.torch import convert
from mlopt.torch.carried import carried_palettes
from mlopt.torch.palettization import DKMPalettizer, DKMPalettizerConfig, FakePalettize
from tests.torch.networks import IDS, WEIGHTS, every_kind


def rules(**options):
    return DKMPalettizerConfig.from_dict({"global_config": {"weight_threshold": 0} | options})


def linear(sigma=0.02, size=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(size, size, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(sigma * torch.randn(size, size, generator=generator))
    return model.to(dtype)


def prepared(model, **options):
    palettizer = DKMPalettizer(model, rules(**options))
    return palettizer, palettizer.prepare()


def original(model, index=0):
    return model[index].parametrizations.weight.original


def train(model, palettizer, steps=5, lr=1e-3, size=64):
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, size, generator=generator)
        (model(x) - x).square().mean().backward()
        optimizer.step()
        palettizer.step()


def palettes(model):
    return {palette.name: palette.palettized() for palette in carried_palettes(model.state_dict())}


def test_the_example_of_the_guide_works_as_printed(tmp_path):
    torch.manual_seed(0)
    data = [(torch.rand(8, 4), torch.rand(8, 4)) for _ in range(5)]

    model = nn.Sequential(nn.Linear(4, 500), nn.Sigmoid(), nn.Linear(500, 4), nn.Sigmoid())
    loss_fn = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    # Prepare model for palettization
    module_config = {nn.Linear: {"n_bits": 2, "weight_threshold": 1000, "milestone": 2}}
    config = DKMPalettizerConfig.from_dict({"module_type_configs": module_config})
    palettizer = DKMPalettizer(model, config)

    prepared_model = palettizer.prepare()
    assert prepared_model is not model

    # Fine-tune the model for a few epochs after this.
    for inputs, labels in data:
        output = model(inputs)
        loss = loss_fn(output, labels)
        loss.backward()
        optimizer.step()
        palettizer.step()

    # prepare for conversion
    finalized_model = palettizer.finalize()

    # trace and convert
    example_input = torch.rand(1, 4)  # shape of input for the model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced_model = torch.jit.trace(finalized_model, example_input)
        coreml_model = ct.convert(
            traced_model,
            convert_to="mlprogram",
            inputs=[ct.TensorType(shape=example_input.shape)],
            pass_pipeline=ct.PassPipeline.DEFAULT_PALETTIZATION,
            minimum_deployment_target=ct.target.iOS16,
        )
        coreml_model.save(str(tmp_path / "compressed_model.mlpackage"))
    weights = coreml.get_weights_metadata(tmp_path / "compressed_model.mlpackage", 1000)
    assert [w.compression.nbits for w in weights.values()] == [2, 2]
    assert finalized_model[0].weight.unique().numel() == 4


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.5])
@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 6])
@pytest.mark.covering(1)
def test_no_weight_collapses_at_the_default_temperature(sigma, n_bits):
    model = linear(sigma)
    weight = model[0].weight.detach()
    best = palettize(weight.numpy(), PaletteSpec(nbits=n_bits))[0].dequantize()
    best_error = (torch.from_numpy(best) - weight).norm()
    palettizer, ready = prepared(model, n_bits=n_bits)
    soft = ready[0].weight.detach()
    hard = palettizer.finalize()[0].weight.detach()
    assert (soft - weight).norm() <= 1.2 * best_error
    assert (hard - weight).norm() <= 1.2 * best_error
    assert hard.unique().numel() == 2**n_bits


def test_default_bits_are_4_for_linear_layers_and_2_for_others():
    model = nn.ModuleDict({"linear": nn.Linear(64, 64), "conv": nn.Conv2d(16, 64, 3)})
    palettizer, _ = prepared(model)
    report = palettizer.report()
    assert report["linear.weight"].nbits == 4
    assert report["conv.weight"].nbits == 2


def test_thresholds_choose_among_rules():
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(16, 32), "c": nn.Linear(8, 8)})
    config = DKMPalettizerConfig.from_dict(
        {
            "module_type_configs": {
                nn.Linear: [
                    {"n_bits": 4, "cluster_dim": 4, "weight_threshold": 1000},
                    {"n_bits": 2, "cluster_dim": 2, "weight_threshold": 300},
                ]
            }
        }
    )
    palettizer = DKMPalettizer(model, config)
    palettizer.prepare()
    report = palettizer.report()
    assert (report["a.weight"].nbits, report["a.weight"].cluster_dim) == (4, 4)
    assert (report["b.weight"].nbits, report["b.weight"].cluster_dim) == (2, 2)
    assert "no more than weight_threshold 300 or 1000" in report["c.weight"].reason


def test_every_kind_of_module_is_palettized_and_trains():
    palettizer, model = prepared(every_kind(), n_bits=2)
    outputs = model(IDS)
    sum(output.square().mean() for output in outputs).backward()
    for name in WEIGHTS:
        module, _, parameter = name.rpartition(".")
        weight = model.get_submodule(module).parametrizations[parameter].original
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all()
    finalized = palettizer.finalize()
    assert {row.name for row in palettizer.report().palettized} == set(WEIGHTS)
    assert finalized.head.weight is finalized.embedding.weight
    for name in WEIGHTS:
        assert finalized.get_parameter(name).unique().numel() <= 4
    assert not any(isinstance(module, FakePalettize) for module in finalized.modules())
    assert type(finalized.key) is nn.Linear
    # the prepared model is as it was
    assert isinstance(model.key.parametrizations.weight[0], FakePalettize)
    model(IDS)


def test_milestones_are_numbers_of_steps():
    model = linear()
    palettizer, ready = prepared(model, n_bits=1, milestone=2)
    for expected in (64 * 64, 64 * 64):
        assert ready[0].weight.unique().numel() == expected
        palettizer.step()
    ready.eval()
    assert ready[0].weight.unique().numel() == 2


def test_training_moves_weights_and_tables():
    palettizer, model = prepared(linear(), n_bits=2)
    model(torch.zeros(1, 64))
    before = model[0].parametrizations.weight[0].centroids.clone()
    weight = original(model).detach().clone()
    train(model, palettizer, lr=0.5)
    assert not torch.equal(before, model[0].parametrizations.weight[0].centroids)
    assert not torch.equal(weight, original(model))
    finalized = palettizer.finalize(inplace=True)
    assert finalized is model
    assert palettes(finalized)["0.weight"].nbits == 2


def test_evaluation_gives_the_nearest_entries_and_no_gradient_history():
    _, model = prepared(linear(), n_bits=2)
    model(torch.zeros(1, 64))
    model.eval()
    table = model[0].parametrizations.weight[0].centroids[0, :, 0]
    weight = original(model).detach()
    nearest = table[(weight[..., None] - table).abs().argmin(-1)]
    assert torch.equal(model[0].weight, nearest)


@pytest.mark.parametrize("mode", ["dkm", "gsm", "hard"])
def test_modes_train(mode):
    torch.manual_seed(0)
    palettizer, model = prepared(linear(), n_bits=2, palett_mode=mode)
    train(model, palettizer, lr=0.1)
    assert torch.isfinite(original(model)).all()
    assert palettizer.finalize()[0].weight.unique().numel() == 4


def test_pruned_weights_stay_exactly_zero_and_the_table_has_an_exact_zero():
    model = linear()
    with torch.no_grad():
        mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) < 0.6
        model[0].weight.masked_fill_(mask, 0.0)
    palettizer, ready = prepared(model, n_bits=2, enforce_zero=True)
    assert not ready[0].weight[mask].any()
    for _ in range(3):
        ready.zero_grad()
        ready(torch.randn(4, 64)).square().mean().backward()
        gradient = original(ready).grad
        assert not gradient[mask].any()
        with torch.no_grad():
            original(ready).sub_(0.1 * gradient)
        palettizer.step()
    finalized = palettizer.finalize()
    assert not finalized[0].weight[mask].any()
    table = palettes(finalized)["0.weight"].table
    assert (table == 0).any()
    assert finalized[0].weight.unique().numel() == 4


def test_small_weights_count_as_zero():
    model = linear()
    _, ready = prepared(model, n_bits=2, enforce_zero=True, prune_threshold=0.01)
    small = original(ready).detach().abs() <= 0.01
    assert not ready[0].weight[small].any()


@pytest.mark.parametrize("scheme", ["min_max", "abs"])
def test_scales_follow_the_weights_and_zero_channels_stay(scheme):
    model = linear()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].weight[5] *= 100
    palettizer, ready = prepared(
        model,
        n_bits=4,
        enable_per_channel_scale=True,
        per_channel_scaling_factor_scheme=scheme,
    )
    soft = ready[0].weight.detach()
    weight = original(ready).detach()
    others = torch.arange(64) != 3
    assert not soft[3].any()
    assert ((soft - weight).norm(dim=1) <= 0.3 * weight.norm(dim=1))[others].all()
    with torch.no_grad():
        original(ready)[7] *= 50
    moved = ready[0].weight.detach()[7]
    assert (moved - original(ready)[7]).norm() <= 0.3 * original(ready)[7].norm()
    finalized = palettizer.finalize()
    palette = palettes(finalized)["0.weight"]
    final = original(ready).detach()
    span = final.amax(1) - final.amin(1) if scheme == "min_max" else 2 * final.abs().amax(1)
    assert torch.allclose(torch.from_numpy(palette.scale[:, 0]), span / 2)
    assert not finalized[0].weight[3].detach().any()


def test_a_channel_of_zeros_under_a_scale_can_be_trained_away_from_zero():
    model = linear()
    with torch.no_grad():
        model[0].weight[3] = 0
    palettizer, ready = prepared(model, n_bits=2, enable_per_channel_scale=True)
    train(ready, palettizer)
    assert original(ready)[3].detach().any()
    palette = palettes(palettizer.finalize())["0.weight"]
    assert (palette.scale > 0).all()


def test_all_zeros_under_a_scale_stay_zeros():
    model = linear()
    with torch.no_grad():
        model[0].weight.zero_()
    palettizer, ready = prepared(model, n_bits=2, enable_per_channel_scale=True)
    assert not ready[0].weight.detach().any()
    finalized = palettizer.finalize()
    assert not finalized[0].weight.detach().any()


@pytest.mark.parametrize("lut_dtype", ["f16", "bf16", "i8", "u8"])
def test_tables_hold_what_their_format_holds(lut_dtype):
    palettizer, model = prepared(linear(), n_bits=3, lut_dtype=lut_dtype)
    train(model, palettizer)
    finalized = palettizer.finalize()
    palette = palettes(finalized)["0.weight"]
    table = torch.from_numpy(palette.table)
    if lut_dtype in ("i8", "u8"):
        assert palette.quantized.codes.dtype.name == {"i8": "int8", "u8": "uint8"}[lut_dtype]
    else:
        narrow = {"f16": torch.float16, "bf16": torch.bfloat16}[lut_dtype]
        assert torch.equal(table.to(narrow).float(), table)
    error = (finalized[0].weight - original(model)).norm() / original(model).norm()
    assert error < 0.25


@pytest.mark.parametrize(
    ("options", "table_shape", "d"),
    [
        ({"granularity": "per_grouped_channel", "group_size": 16}, (4, 1), 1),
        ({"partition_size": 16 * 64}, (4, 1), 1),
        ({"cluster_dim": 4}, (1, 1), 4),
        ({"cluster_dim": 2, "granularity": "per_grouped_channel", "group_size": 16}, (4, 1), 2),
        ({"partition_size": 16 * 64, "cluster_permute": (1, 0)}, (1, 4), 1),
        ({"partition_size": 16 * 64, "cluster_dtype": "oc_last"}, (1, 4), 1),
    ],
    ids=str,
)
def test_groups_and_vectors(options, table_shape, d):
    palettizer, model = prepared(linear(), n_bits=2, **options)
    train(model, palettizer)
    finalized = palettizer.finalize()
    palette = palettes(finalized)["0.weight"]
    assert palette.table_shape == table_shape
    assert palette.cluster_dim == d
    assert np.array_equal(palette.dequantize(), finalized[0].weight.detach().numpy())


def test_groups_that_are_not_soft_pass_the_gradient_straight_through():
    _, model = prepared(
        linear(),
        n_bits=2,
        granularity="per_grouped_channel",
        group_size=16,
        percentage_palett_enable=0.5,
    )
    weight = model[0].weight
    assert weight[:32].detach().unique().numel() > 8
    assert weight[32:].detach().unique().numel() <= 8
    seed = torch.randn(64, 64)
    (weight * seed).sum().backward()
    assert torch.equal(original(model).grad[32:], seed[32:])
    assert not torch.equal(original(model).grad[:32], seed[:32])


def test_an_extra_centroid_takes_the_bits_that_hold_it():
    palettizer, model = prepared(linear(), n_bits=2, add_extra_centroid=True)
    train(model, palettizer)
    finalized = palettizer.finalize()
    assert finalized[0].weight.unique().numel() == 5
    assert palettizer.report()["0.weight"].nbits == 3


def test_outliers_count_less():
    model = linear()
    with torch.no_grad():
        model[0].weight[0, :32] = 1.0
    tables = []
    for value in (0.0, 100.0):
        _, ready = prepared(model, n_bits=1, palett_lambda=value)
        ready(torch.zeros(1, 64))
        tables.append(ready[0].parametrizations.weight[0].centroids.max())
    assert tables[1] < 0.5 * tables[0]


def test_the_temperature_factor_hardens_and_softens():
    distances = []
    for tau in (1e-8, 1e-4, 3e-3):
        _, ready = prepared(linear(), n_bits=3, palett_tau=tau)
        soft = ready[0].weight.detach()
        hard = ready.eval()[0].weight
        distances.append(float((soft - hard).norm()))
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_iterations_end_when_nothing_moves():
    tables = []
    for epsilon, count in ((1e9, 50), (0.0, 1), (0.0, 50)):
        _, ready = prepared(
            linear(), n_bits=3, palett_epsilon=epsilon, kmeans_max_iter=count, palett_tau=3e-4
        )
        ready(torch.zeros(1, 64))
        tables.append(ready[0].parametrizations.weight[0].centroids.clone())
    assert torch.equal(tables[0], tables[1])
    assert not torch.allclose(tables[1], tables[2], rtol=1e-3)


def test_entries_that_coincide_are_moved_where_the_error_is_largest():
    for tolerance, expected in ((0.0, 4), (0.5, 3)):
        _, ready = prepared(linear(), n_bits=2, palett_cluster_tol=tolerance)
        ready(torch.zeros(1, 64))
        fake = ready[0].parametrizations.weight[0]
        fake.centroids[0, 1] = fake.centroids[0, 0]
        ready(torch.zeros(1, 64))
        assert fake.centroids.unique().numel() == expected


@pytest.mark.parametrize(
    "options", [{"palett_unique": True}, {"palett_max_mem": 0.01, "palett_min_tsize": 100}], ids=str
)
def test_coded_weights_and_small_parts_give_nearly_the_same(options):
    soft = []
    for more in ({}, options):
        _, ready = prepared(linear(size=512), n_bits=2, **more)
        soft.append(ready[0].weight.detach())
    assert torch.allclose(soft[0], soft[1], rtol=0, atol=1e-2 * float(soft[0].abs().max()))


def test_a_checkpoint_in_the_middle_goes_on_as_if_nothing_had_been():
    torch.manual_seed(0)
    palettizer, model = prepared(linear(), n_bits=2, milestone=2)
    train(model, palettizer, steps=3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)

    again, resumed = prepared(linear(sigma=1.0), n_bits=2, milestone=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each, ready in ((palettizer, model), (again, resumed)):
        train(ready, each, steps=2)
    states = model.state_dict(), resumed.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_averages_over_training_are_finalized():
    palettizer, model = prepared(linear(), n_bits=2)
    model(torch.zeros(1, 64))
    average = copy.deepcopy(model)
    train(model, palettizer, lr=0.5)
    with torch.no_grad():
        original(average).add_(original(model)).mul_(0.5)
    finalized = palettizer.finalize(model=average)
    assert finalized[0].weight.unique().numel() == 4
    weight = original(average).detach()
    best = palettize(weight.numpy(), PaletteSpec(nbits=2))[0].dequantize()
    error = (finalized[0].weight - weight).norm()
    assert error <= 1.2 * (torch.from_numpy(best) - weight).norm()


def test_half_precision_and_autocast():
    _, model = prepared(linear(dtype=torch.bfloat16), n_bits=2)
    soft = model[0].weight
    assert soft.dtype == torch.bfloat16
    soft.sum().backward()
    assert torch.isfinite(original(model).grad).all()

    _, model = prepared(linear(), n_bits=2)
    expected = model[0].weight.detach().clone()
    _, model = prepared(linear(), n_bits=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[0].weight, expected)
        model(torch.randn(4, 64)).float().square().mean().backward()
    assert original(model).grad.dtype == torch.float32


def test_gradients_add_up_over_several_passes():
    _, model = prepared(linear(), n_bits=2)
    x = torch.randn(4, 64)
    (model(x).sum() + model(2 * x).sum()).backward()
    together = original(model).grad.clone()
    assert torch.isfinite(together).all()
    assert together.any()


def test_both_ways_to_core_ml_have_the_trained_tables():
    palettizer, model = prepared(linear(), n_bits=4, lut_dtype="i8")
    train(model, palettizer)
    finalized = palettizer.finalize()
    example = torch.zeros(1, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"compute_precision": ct.precision.FLOAT32}
        ours = convert(finalized, example, **options)
        theirs = ct.convert(
            torch.jit.trace(finalized, example),
            inputs=[ct.TensorType(shape=(1, 64))],
            minimum_deployment_target=ct.target.iOS18,
            **options,
        )
    for converted in (ours, theirs):
        found = coreml.get_weights_metadata(converted, 0).values()
        (weight,) = (each for each in found if each.compression)
        assert weight.compression.nbits == 4
        assert np.array_equal(weight.val, finalized[0].weight.detach().numpy())


@pytest.mark.parametrize("name", ["palett_shard", "palett_dist"])
def test_nothing_is_divided_in_one_process(name):
    weights = []
    for options in ({}, {name: True}):
        _, model = prepared(linear(), n_bits=2, **options)
        (model[0].weight * torch.arange(64)).sum().backward()
        weights.append((model[0].weight.detach(), original(model).grad))
    assert torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][1], weights[1][1])


def test_calls_in_the_wrong_order_are_refused():
    model = linear()
    palettizer = DKMPalettizer(model, rules(n_bits=2))
    for call in (palettizer.step, palettizer.finalize, palettizer.report):
        with pytest.raises(ConfigError, match="not prepared"):
            call()
    palettizer.prepare(inplace=True)
    with pytest.raises(ConfigError, match="already prepared"):
        palettizer.prepare()
    palettizer.finalize(inplace=True)
    with pytest.raises(ConfigError, match="already finalized"):
        palettizer.finalize()


def test_weights_that_start_alike_are_trained_until_they_differ():
    """All of one value would get one gradient, and stay of one value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
    palettizer, ready = prepared(model, n_bits=2)
    optimizer = torch.optim.Adam(ready.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        x = torch.randn(64, 16)
        (ready(x) - x).square().mean().backward()
        optimizer.step()
    assert original(ready).detach().unique().numel() > 100
    assert not ready[0].parametrizations.weight[0].plain.any()
    assert palettizer.finalize()[0].weight.unique().numel() == 4


@pytest.mark.parametrize("factor", [0.03, 5.0])
def test_tables_follow_weights_that_shrink_or_grow(factor):
    palettizer, model = prepared(linear(), n_bits=4)
    model(torch.zeros(1, 64))
    for _ in range(40):
        with torch.no_grad():
            original(model).mul_(factor ** (1 / 40))
        model(torch.zeros(1, 64))
    weight = original(model).detach()
    best = palettize(weight.numpy(), PaletteSpec(nbits=4))[0].dequantize()
    error = (palettizer.finalize()[0].weight - weight).norm()
    assert error <= 1.2 * (torch.from_numpy(best) - weight).norm()


def test_the_threshold_of_zero_is_of_weights_and_not_of_scaled_ones():
    model = linear()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.3, 50.0, -50.0, 20.0]).repeat(64, 16))
    _, ready = prepared(
        model,
        n_bits=3,
        enable_per_channel_scale=True,
        enforce_zero=True,
        prune_threshold=0.01,
        per_channel_scaling_factor_scheme="abs",
    )
    assert ready[0].weight.all()


def test_tables_of_groups_that_are_not_soft_follow_too():
    _, model = prepared(
        linear(),
        n_bits=2,
        granularity="per_grouped_channel",
        group_size=32,
        percentage_palett_enable=0.5,
    )
    model(torch.zeros(1, 64))
    for _ in range(40):
        with torch.no_grad():
            original(model).mul_(1.04)
        model(torch.zeros(1, 64))
    model.eval()
    weight = original(model).detach()
    errors = ((model[0].weight - weight).square().sum(1) / weight.square().sum(1)).detach()
    assert errors[32:].mean() <= 1.3 * errors[:32].mean()


def test_a_weight_that_is_not_finite_leaves_the_model_prepared():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    palettizer, ready = prepared(model, n_bits=2)
    ready(torch.zeros(1, 16))
    with torch.no_grad():
        original(ready, 1)[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"1\.weight: the trained weight has"):
        palettizer.finalize(inplace=True)
    with torch.no_grad():
        original(ready, 1)[0, 0] = 0.0
    assert palettizer.finalize(inplace=True)[0].weight.unique().numel() == 4


def test_an_extra_centroid_beyond_the_largest_table_is_refused():
    with pytest.raises(ConfigError, match="add_extra_centroid needs a table of more than 256"):
        prepared(linear(), n_bits=8, add_extra_centroid=True)


def test_a_milestone_that_was_not_reached_is_noted():
    palettizer, _ = prepared(linear(), n_bits=2, milestone=5)
    palettizer.finalize()
    assert "milestone was not reached" in palettizer.report()["0.weight"].note


def test_averaged_models_are_finalized():
    palettizer, model = prepared(linear(), n_bits=2)
    model(torch.zeros(1, 64))
    average = torch.optim.swa_utils.AveragedModel(model)
    assert palettizer.finalize(model=average)[0].weight.unique().numel() == 4
