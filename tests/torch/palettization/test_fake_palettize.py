"""The same weights give the same in every pass: repeated, without gradients, in averages."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from mlopt.errors import ConfigError
from mlopt.torch import convert
from mlopt.torch.palettization import DKMPalettizer, DKMPalettizerConfig
from mlopt.torch.soft_kmeans import Clusters, SoftOptions, soft_kmeans


def prepared(model, **options):
    rules = {"global_config": {"weight_threshold": 0, "n_bits": 2} | options}
    palettizer = DKMPalettizer(model, DKMPalettizerConfig.from_dict(rules))
    return palettizer, palettizer.prepare()


class Tower(nn.Module):
    def __init__(self, use_reentrant=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        for layer in self.layers:
            if self.use_reentrant is None:
                x = torch.tanh(layer(x))
            else:
                x = checkpoint(_activated, layer, x, use_reentrant=self.use_reentrant)
        return x


def _activated(layer, x):
    return torch.tanh(layer(x))


def tower(use_reentrant=None):
    torch.manual_seed(0)
    return Tower(use_reentrant)


def trained(model, palettizer, steps=4):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 16, generator=generator, requires_grad=True)
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        palettizer.step()
    return model.state_dict()


OPTIONS = [
    {},
    {"palett_mode": "gsm", "palett_tau": 1e-3},
    {"palett_mode": "hard"},
    {"enforce_zero": True, "enable_per_channel_scale": True},
    {
        "granularity": "per_grouped_channel",
        "group_size": 4,
        "n_bits": 1,
        "percentage_palett_enable": 0.5,
    },
    {"quantize_activations": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.covering(1)
def test_activation_checkpointing_changes_nothing(use_reentrant, options):
    states = []
    for how in (None, use_reentrant):
        palettizer, model = prepared(tower(how), **options)
        torch.manual_seed(5)
        states.append(trained(model, palettizer))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("options", [{}, {"palett_mode": "hard"}, {"lut_dtype": "i8"}], ids=str)
def test_tables_move_once_for_each_change_of_the_weights(options):
    _, model = prepared(tower(), **options)
    layer = model.layers[0]
    fake, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    with torch.no_grad():
        first = layer.weight
        assert torch.equal(layer.weight, first)
    assert torch.equal(layer.weight, first)
    before = fake.centroids.clone()
    with torch.no_grad():
        weight[:, 0] += 0.1
    assert not torch.equal(layer.weight, first)
    assert not torch.equal(fake.centroids, before)


def test_tables_that_are_loaded_or_set_are_where_to_start():
    _, model = prepared(tower())
    layer = model.layers[0]
    fake = layer.parametrizations.weight[0]
    first = layer.weight.detach()
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        fake.centroids[0, 0] -= 0.05
    assert not torch.equal(layer.weight, first)
    model.load_state_dict(state)
    _, other = prepared(tower())
    other.load_state_dict(state)
    assert torch.equal(layer.weight, other.layers[0].weight)


def test_a_tied_weight_is_the_same_wherever_it_is_used():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)
            self.head.weight = self.embedding.weight

    _, model = prepared(Tied())
    assert torch.equal(model.embedding.weight, model.head.weight)
    assert model.embedding.weight.unique().numel() > 4


def test_sparse_gradients_train_as_dense_ones():
    states = []
    for sparse in (False, True):
        torch.manual_seed(0)
        palettizer, model = prepared(nn.Sequential(nn.Embedding(50, 8, sparse=sparse)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([3, 4, 4])).square().sum().backward()
            optimizer.step()
        states.append(model.state_dict())
        palettizer.finalize()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_weights_that_their_module_rewrites_are_kept():
    palettizer, model = prepared(nn.Sequential(nn.Embedding(50, 8, max_norm=1.0)))
    (row,) = palettizer.report().rows
    assert "max_norm" in row.reason
    assert isinstance(model[0].weight, nn.Parameter)


@pytest.mark.parametrize(
    "how", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.5)}], ids=["mean", "exponential"]
)
def test_averages_with_buffers_are_finalized(how):
    palettizer, model = prepared(tower(), enforce_zero=True, quantize_activations=True)
    average = AveragedModel(model, use_buffers=True, **how)
    for _ in range(3):
        trained(model, palettizer, steps=1)
        average.update_parameters(model)
    finalized = palettizer.finalize(average)
    assert finalized.layers[0].weight.unique().numel() <= 4
    assert (finalized.layers[0].weight.abs().amin() == 0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_prepared_model_is_not_traced_or_converted():
    _, model = prepared(tower(), milestone=3)
    with pytest.raises(ConfigError, match="trace the model that finalize returns"):
        torch.jit.trace(model, torch.zeros(1, 16))
    with pytest.raises(ConfigError, match="trace the model that finalize returns"):
        convert(model, torch.zeros(1, 16))
    with pytest.raises(ConfigError, match="trace the model that finalize returns"):
        torch.export.export(model, (torch.zeros(1, 16),))


def test_an_entry_that_lost_all_weights_moves_to_their_mean():
    places = {}
    for threshold in (0.0, 1e-7):
        _, model = prepared(tower(), zero_threshold=threshold, kmeans_max_iter=1)
        layer = model.layers[0]
        layer.weight  # noqa: B018  the first pass clusters
        fake, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        fake.centroids[0, 3] = 50.0
        layer.weight  # noqa: B018
        places[threshold] = fake.centroids[0, 3, 0], weight.mean()
    assert places[0.0][0] == 50.0
    torch.testing.assert_close(*places[1e-7])


def test_the_implicit_gradient():
    gradients = []
    for options in ({}, {"implicit_gradient": True}):
        _, model = prepared(tower(), kmeans_max_iter=1, palett_epsilon=0.0, **options)
        layer = model.layers[0]
        fake, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        layer.weight  # noqa: B018  the first pass clusters
        start = fake.before.clone()
        pull = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
        (layer.weight * pull).sum().backward()
        gradients.append(weight.grad)

    points = weight.detach().reshape(1, -1, 1).requires_grad_()
    clusters, options = Clusters(start, fake.temperature), SoftOptions(iterations=1, implicit=True)
    soft, _ = soft_kmeans(points, clusters, options)
    (soft.view(16, 16) * pull).sum().backward()
    torch.testing.assert_close(gradients[1], points.grad.view(16, 16))
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)


def test_a_group_is_new_by_any_of_its_numbers():
    grouped = {"granularity": "per_grouped_channel", "group_size": 4}
    _, model = prepared(tower(), **grouped)
    layer = model.layers[0]
    fake, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    layer.weight  # noqa: B018  the first pass clusters
    before = fake.before.clone()
    with torch.no_grad():
        weight[-4:] *= 1.05  # the last group alone
    layer.weight  # noqa: B018
    assert not torch.equal(fake.before, before)
    before = fake.before.clone()
    with torch.no_grad():
        mean = weight[:4].mean()
        weight[:4] = mean + 1.05 * (weight[:4] - mean)  # of the same mean
    layer.weight  # noqa: B018
    assert not torch.equal(fake.before, before)


@pytest.mark.parametrize(
    "options", [{"palett_mode": "hard"}, {"enforce_zero": True}, {"percentage_palett_enable": 0.5}]
)
def test_tables_stay_beside_a_group_of_few_values(options):
    _, model = prepared(tower(), granularity="per_grouped_channel", group_size=4, **options)
    layer = model.layers[0]
    weight = layer.parametrizations.weight.original
    with torch.no_grad():
        weight[-4:] = torch.tensor([-0.11, 0.1, 0.2])[torch.randint(3, (4, 16))]
    layer.weight  # noqa: B018  the first pass clusters
    with torch.no_grad():
        weight[:12] += 0.03 * torch.randn(12, 16, generator=torch.Generator().manual_seed(3))
    first = layer.weight
    assert torch.equal(layer.weight, first)
    state = copy.deepcopy(model.state_dict())
    model.eval()
    layer.weight  # noqa: B018
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_palettized_already_is_trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    entries = torch.tensor([-0.3, -0.1, 0.1, 0.3])
    with torch.no_grad():
        model[0].weight.copy_(entries[torch.randint(4, (32, 32))])
    palettizer, model = prepared(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        x = torch.randn(64, 32)
        (model(x) - x).square().mean().backward()
        optimizer.step()
    weight = model[0].parametrizations.weight.original
    assert weight.unique().numel() > 900
    fake = model[0].parametrizations.weight[0]
    best = prepared(_plain(weight))[1]
    best[0].weight  # noqa: B018
    fresh = best[0].parametrizations.weight[0]
    assert 0.3 < float(fake.temperature / fresh.temperature) < 3
    assert palettizer.finalize()[0].weight.unique().numel() == 4


def _plain(weight):
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sigma", [1e-4, 0.02])
def test_casts_of_a_prepared_model_leave_its_tables(dtype, sigma):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight.normal_(std=sigma)
    palettizer, model = prepared(model, n_bits=6, quantize_activations=True)
    model(torch.randn(3, 64))
    fake = model[0].parametrizations.weight[0]
    state = {name: buffer.clone() for name, buffer in fake.named_buffers()}
    model.to(dtype)
    assert all(torch.equal(buffer, state[name]) for name, buffer in fake.named_buffers())
    model(torch.randn(3, 64, dtype=dtype)).sum().backward()
    assert torch.isfinite(model[0].parametrizations.weight.original.grad).all()
    assert palettizer.finalize()[0].weight.dtype == dtype


@pytest.mark.parametrize("training", [True, False])
def test_a_weight_that_is_not_finite_is_named(training):
    _, model = prepared(tower())
    model.train(training)
    with torch.no_grad():
        model.layers[1].parametrizations.weight.original[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"^layers\.1\.weight: the weight has an infinity"):
        model(torch.randn(2, 16))


def test_a_state_between_the_passes_and_the_update_goes_on_as_if_nothing_had_been():
    weights = []
    for is_resumed in (False, True):
        palettizer, model = prepared(tower())
        trained(model, palettizer, steps=2)
        x = torch.ones(4, 16)
        model(x).square().mean().backward()
        if is_resumed:
            state = copy.deepcopy(model.state_dict())
            palettizer, model = prepared(tower())
            model.load_state_dict(state)
        model.zero_grad()
        model(x).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        trained(model, palettizer, steps=2)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_lost_entries_of_hard_groups_and_at_the_end_move_too():
    grouped = {"granularity": "per_grouped_channel", "group_size": 8}
    palettizer, model = prepared(tower(), percentage_palett_enable=0.5, **grouped)
    layer = model.layers[0]
    layer.weight  # noqa: B018  the first pass clusters
    fake = layer.parametrizations.weight[0]
    fake.centroids[1, 3] = 50.0
    layer.weight  # noqa: B018
    assert float(fake.centroids[1, 3]) < 1.0
    fake.centroids[0, 3] = 50.0
    assert float(palettizer.finalize().layers[0].weight[:8].unique().numel()) == 4


def test_systems_too_large_for_the_implicit_gradient_are_refused_before_training():
    model = nn.Sequential(nn.Linear(64, 2048))
    grouped = {"granularity": "per_grouped_channel", "group_size": 1, "n_bits": 8}
    with pytest.raises(ConfigError, match=r"^0\.weight: implicit=True solves 2048 systems"):
        prepared(model, implicit_gradient=True, **grouped)
    assert not nn.utils.parametrize.is_parametrized(model[0])
    with pytest.raises(ConfigError, match=r"of 65 x 1 unknowns"):
        prepared(
            nn.Sequential(nn.Linear(4, 16384)),
            implicit_gradient=True,
            add_extra_centroid=True,
            **{**grouped, "n_bits": 6},
        )
    prepared(model, implicit_gradient=True, palett_mode="hard", **grouped)
