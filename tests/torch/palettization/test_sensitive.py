import copy

import numpy as np
import pytest
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.palette import palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.torch.palettization import (
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
    SKMPalettizer,
    SKMPalettizerConfig,
)
from tests.torch.networks import IDS, every_kind
from tests.torch.palettization.test_post_training import FORMS


def config(nsamples=4, **options):
    return SKMPalettizerConfig.from_dict(
        {"global_config": options, "calibration_nsamples": nsamples}
    )


def samples(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 48, IDS.shape, generator=generator) for _ in range(count)]


def loss_fn(model, ids):
    """Depends on every output, and squarely on none of them alone."""
    logits, *others = model(ids)
    loss = nn.functional.cross_entropy(logits[0].float(), ids[0])
    return loss + sum((1 + other.float()).square().mean() for other in others)


def sensitive(model, *, data=None, **options):
    palettizer = SKMPalettizer(model, config(**options))
    return palettizer.compress(dataloader=data or samples(), loss_fn=loss_fn), palettizer.report()


def fisher(model, name, data):
    """The mean of squared gradients, sample by sample."""
    total = torch.zeros_like(model.get_parameter(name), dtype=torch.float32)
    for sample in data:
        (gradient,) = torch.autograd.grad(loss_fn(model, sample), model.get_parameter(name))
        total += gradient.float().square()
    return total / len(data)


def test_clusters_are_those_of_the_one_clustering_with_the_fisher_information():
    original = every_kind()
    model, _ = sensitive(original, n_bits=2)
    for name in ("embedding.weight", "attention.in_proj_weight", "up2.weight", "conv3.weight"):
        importance = fisher(original, name, samples())
        importance = importance.clamp(min=1e-12 * importance.max()).numpy()
        weight = original.get_parameter(name).detach().numpy()
        expected, _ = palettize(weight, PaletteSpec(nbits=2), importance)
        found = model.get_parameter(name).detach().numpy()
        ours, theirs = (
            float((importance * (stored.astype(np.float64) - weight) ** 2).sum())
            for stored in (found, expected.dequantize())
        )
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.covering(1)
def test_every_kind_of_module_and_form(form, dtype):
    model, report = sensitive(every_kind(dtype), **FORMS[form])
    plain = PostTrainingPalettizer(
        every_kind(dtype), PostTrainingPalettizerConfig.from_dict({"global_config": FORMS[form]})
    )
    plain.compress()
    assert [(r.name, r.outcome, r.form) for r in report] == [
        (r.name, r.outcome, r.form) for r in plain.report()
    ]
    assert all(row.note is None or "matter alike" not in row.note for row in report.palettized)
    with torch.no_grad():
        assert all(torch.isfinite(output).all() for output in model(IDS))


@pytest.mark.parametrize("form", ["4 bits", "output groups", "scale"])
def test_weighted_errors_are_below_those_of_plain_clusters(form):
    original = every_kind()
    options = FORMS[form] | {"n_bits": 2}
    model, report = sensitive(original, **options)
    plain = PostTrainingPalettizer(
        original, PostTrainingPalettizerConfig.from_dict({"global_config": options})
    ).compress()
    for row in report.palettized:
        importance = fisher(original, row.name, samples())
        weight = original.get_parameter(row.name).detach()
        ours, theirs = (
            (importance * (m.get_parameter(row.name) - weight).square()).sum().item()
            for m in (model, plain)
        )
        assert ours <= theirs * (1 + 1e-5)


def test_sensitivities_from_a_file_give_the_same_tables(tmp_path):
    original = every_kind()
    direct, _ = sensitive(original, n_bits=3)
    palettizer = SKMPalettizer(original, config(n_bits=3))
    computed = palettizer.compute_sensitivity(samples(), loss_fn, tmp_path / "sensitivity.pt")
    assert set(computed) >= {"embedding.weight", "up3.weight"}
    assert "key.bias" not in computed
    from_file = palettizer.compress(sensitivity_path=tmp_path / "sensitivity.pt")
    states = direct.state_dict(), from_file.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_workers_change_nothing():
    one = SKMPalettizer(every_kind(), config(n_bits=2))
    two = SKMPalettizer(every_kind(), config(n_bits=2))
    a = one.compress(samples(), loss_fn)
    b = two.compress(samples(), loss_fn, num_kmeans_workers=2, num_sensitivity_workers=2)
    states = a.state_dict(), b.state_dict()
    assert all(torch.equal(x, y) for x, y in zip(*(s.values() for s in states), strict=True))


def test_the_model_is_as_it_was_afterwards():
    model = every_kind().train()
    model.key.weight.grad = torch.ones_like(model.key.weight)
    model.value.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    gradient = model.key.weight.grad
    sensitive(model, n_bits=2)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.key.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert model.training
    assert not model.value.weight.requires_grad
    assert model.head.weight.grad is None


def test_a_loss_that_raises_leaves_the_model_as_it_was():
    model = every_kind()
    before = copy.deepcopy(model.state_dict())

    def failing(module, ids):
        module(ids)
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        SKMPalettizer(model, config(n_bits=2)).compress(samples(), failing, inplace=True)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_unused_frozen_and_root_level_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)
            self.frozen = nn.Linear(16, 16).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.used(x))

    data = [torch.randn(4, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def loss(model, x):
        return (model(x) - 1).square().mean()

    net = Net()
    palettizer = SKMPalettizer(net, config(n_bits=2))
    compressed = palettizer.compress(data, loss)
    report = palettizer.report()
    assert "matter alike" in report["unused.weight"].note
    assert "no gradient" in report["unused.weight"].note
    assert report["used.weight"].note is None
    # freezing says how a layer is trained, not what the loss depends on
    assert report["frozen.weight"].note is None
    plain = PostTrainingPalettizer(
        net, PostTrainingPalettizerConfig.from_dict({"global_config": {"n_bits": 2}})
    ).compress()
    assert torch.equal(compressed.unused.weight, plain.unused.weight)
    assert not torch.equal(compressed.frozen.weight, plain.frozen.weight)

    root = nn.Linear(16, 16).requires_grad_(False)
    palettizer = SKMPalettizer(root, config(n_bits=2))
    assert palettizer.compress(data, loss).weight.unique().numel() == 4
    assert palettizer.report()["weight"].is_palettized


def test_rows_that_no_sample_touched_get_their_nearest_values():
    """Half of an embedding is never looked up."""
    embedding = nn.Embedding(64, 8)
    data = [torch.arange(32)]
    palettizer = SKMPalettizer(embedding, config(n_bits=4))
    model = palettizer.compress(data, lambda module, ids: module(ids).square().sum())
    table = model.weight.detach().unique()
    untouched = embedding.weight.detach()[32:]
    nearest = (untouched[..., None] - table).abs().argmin(-1)
    assert torch.equal(model.weight.detach()[32:], table[nearest])


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = every_kind()
    palettizer = SKMPalettizer(model, config(n_bits=2))
    torch.save({"other": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"other parameters.*got other, needed embedding\.weight"):
        palettizer.compress(sensitivity_path=tmp_path / "other.pt")
    torch.save({"key.weight": torch.ones(3)}, tmp_path / "shape.pt")
    with pytest.raises(ConfigError, match=r"key\.weight.*\(3,\)"):
        palettizer.compress(sensitivity_path=tmp_path / "shape.pt")
    torch.save({"key.weight": torch.ones(8, 16)}, tmp_path / "some.pt")
    palettizer.compress(sensitivity_path=tmp_path / "some.pt")
    assert "it is in no file" in palettizer.report()["value.weight"].note
    assert palettizer.report()["key.weight"].note is None


def test_wrong_arguments_are_refused():
    palettizer = SKMPalettizer(every_kind(), config(n_bits=2))
    with pytest.raises(ConfigError, match="got no dataloader"):
        palettizer.compress(loss_fn=loss_fn)
    with pytest.raises(ConfigError, match="got no loss_fn"):
        palettizer.compress(dataloader=samples())
    with pytest.raises(ConfigError, match="no sample"):
        palettizer.compress(dataloader=[], loss_fn=loss_fn)
    with pytest.raises(ConfigError, match=r"SKMPalettizerConfig, .* got \S+\.PostTraining"):
        SKMPalettizer(every_kind(), PostTrainingPalettizerConfig())
    with pytest.raises(ConfigError, match="call compress first"):
        palettizer.report()


def test_no_more_samples_are_drawn_than_asked_for():
    drawn = []

    def stream():
        for sample in samples(8):
            drawn.append(sample)
            yield sample

    palettizer = SKMPalettizer(every_kind(), config(nsamples=3, n_bits=2))
    palettizer.compress(stream(), loss_fn)
    assert len(drawn) == 3
    assert not palettizer.report().notes


def test_fewer_samples_than_asked_for_are_noted():
    palettizer = SKMPalettizer(every_kind(), config(nsamples=100, n_bits=2))
    palettizer.compress(samples(), loss_fn)
    assert "fewer than the 100 of calibration_nsamples" in palettizer.report().notes[0]


def test_the_example_of_the_reference_works(tmp_path):
    rules = """
global_config:
  n_bits: 4
module_type_configs:
  Linear:
    n_bits: 6
module_name_configs:
  conv1: null
  conv3: null
calibration_nsamples: 64
"""
    (tmp_path / "palettization_config.yaml").write_text(rules, encoding="utf-8")
    model = every_kind()
    palettizer = SKMPalettizer(
        model, SKMPalettizerConfig.from_yaml(str(tmp_path / "palettization_config.yaml"))
    )
    palettizer.compress(dataloader=samples(), loss_fn=loss_fn)
    rows = {row.name: row for row in palettizer.report()}
    assert rows["conv1.weight"].reason == "left alone by module_name_configs['conv1']"
    assert rows["conv3.weight"].reason == "left alone by module_name_configs['conv3']"
    assert rows["conv2.weight"].nbits == 4
    assert rows["key.weight"].nbits == 6
    assert rows["embedding.weight"].nbits == 6  # tied to a linear layer, whose rule is nearer
