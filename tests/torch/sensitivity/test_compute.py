import copy
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlopt.errors import ConfigError
from mlopt.torch.sensitivity import compute_sensitivities
from tests.mil.memory import peak_memory
from tests.torch.sensitivity.references import brute_force, loss_fn, make_model, make_samples


def squared_output(model: nn.Module, sample: Tensor) -> Tensor:
    return model(sample).square().sum()


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.is_contiguous()
        assert value.device.type == "cpu"
        torch.testing.assert_close(value.double(), wanted[name].double(), rtol=2e-5, atol=1e-9)


def test_a_linear_layer_by_hand() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    # loss = (w . x)², gradient = 2 (w . x) x
    samples = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, -1.0])]
    found = compute_sensitivities(layer, samples, squared_output)
    assert found.values["weight"].tolist() == [[(6**2 + 6**2) / 2, (6**2 + 2**2) / 2]]
    assert (found.samples, found.requested) == (2, 128)
    assert found.without_gradient == {}


@pytest.mark.parametrize("training", [True, False])
def test_the_mean_of_squares_of_each_sample(training: bool) -> None:
    model, samples = make_model().train(training), make_samples(6)
    wanted = brute_force(copy.deepcopy(model), samples)
    assert_equal(compute_sensitivities(model, samples, loss_fn).values, wanted)


def test_torch_func_agrees() -> None:
    model, samples = make_model().eval(), make_samples(4)
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
        scores = torch.func.functional_call(model, parameters, (tokens,))
        return nn.functional.cross_entropy(scores, targets)

    tokens, targets = (torch.stack(part) for part in zip(*samples, strict=True))
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        values, tokens, targets
    )
    found = compute_sensitivities(model, samples, loss_fn).values
    assert_equal(found, {name: gradients[name].square().mean(dim=0) for name in found})


def test_a_tied_parameter_has_its_whole_gradient_squared_and_all_its_names() -> None:
    model, samples = make_model(), make_samples(3)
    found = compute_sensitivities(model, samples, loss_fn)
    assert "head.weight" not in found.values
    assert found.aliases == {"head.weight": "embedding.weight"}
    assert found.value("head.weight") is found.values["embedding.weight"]
    both = compute_sensitivities(model, samples, loss_fn, names=["head.weight", "embedding.weight"])
    assert list(both.values) == ["head.weight", "embedding.weight"]
    assert both.values["head.weight"] is both.values["embedding.weight"]
    assert torch.equal(both.values["head.weight"], found.values["embedding.weight"])
    one = compute_sensitivities(model, samples, loss_fn, names=["head.weight"])
    assert list(one.values) == ["head.weight"]
    assert one.aliases == {"embedding.weight": "head.weight"}


def test_frozen_parameters_have_sensitivities_like_others() -> None:
    model, samples = make_model(), make_samples(3)
    wanted = compute_sensitivities(model, samples, loss_fn).values
    model.block.requires_grad_(False)
    some = compute_sensitivities(model, samples, loss_fn).values
    model.requires_grad_(False)
    none = compute_sensitivities(model, samples, loss_fn).values
    for name, value in wanted.items():
        assert torch.equal(some[name], value)
        assert torch.equal(none[name], value)
    assert not any(p.requires_grad for p in model.parameters())


def test_within_no_grad_and_inference_mode() -> None:
    model, samples = make_model(), make_samples(3)
    wanted = compute_sensitivities(model, samples, loss_fn).values
    with torch.no_grad():
        found = compute_sensitivities(model, samples, loss_fn).values
    with torch.inference_mode():
        again = compute_sensitivities(model, samples, loss_fn, workers=2).values
    for name, value in wanted.items():
        assert torch.equal(found[name], value)
        assert torch.equal(again[name], value)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.unused = nn.Parameter(torch.ones(2))
        self.dead = nn.Parameter(torch.ones(2))
        self.tiny = nn.Parameter(torch.ones(2))
        self.counts = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
        self.empty = nn.Parameter(torch.ones(0, 2))
        with torch.inference_mode():
            fixed = torch.ones(2)
        self.register_parameter("fixed", nn.Parameter(fixed, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.used + torch.relu(-self.dead) + 1e-25 * self.tiny).sum()


def test_what_has_no_gradient_is_told_with_its_reason() -> None:
    found = compute_sensitivities(Odd(), [torch.ones(2)], lambda m, x: m(x))
    assert list(found.values) == ["used"]
    reasons = found.without_gradient
    assert "counts" not in reasons
    assert "does not depend on it" in reasons["unused"]
    assert reasons["dead"] == "its gradient is zero everywhere"
    assert "scale the loss up" in reasons["tiny"]
    assert "no elements" in reasons["empty"]
    assert "inference tensor" in reasons["fixed"]
    asked = compute_sensitivities(Odd(), [torch.ones(2)], lambda m, x: m(x), names=["counts"])
    assert "torch.int32" in asked.without_gradient["counts"]
    assert asked.samples == 0


def test_only_what_the_loss_does_not_depend_on_is_wanted() -> None:
    names = ["unused.weight"]
    model = make_model()
    found = compute_sensitivities(model, make_samples(3), loss_fn, names=names)
    assert found.values == {}
    assert list(found.without_gradient) == names
    assert found.samples == 3


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(3))

    def forward(self, sample: tuple[int, Tensor]) -> Tensor:
        number, x = sample
        return self.experts[number](x)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_expert_counts_zero_for_samples_that_it_does_not_see(workers: int) -> None:
    torch.manual_seed(0)
    model = Experts()
    samples = [(number, torch.randn(2)) for number in (0, 1, 1, 0, 1)]
    wanted = {
        f"experts.1.{kind}": sum(
            brute_force(model, [samples[i]], squared_output)[f"experts.1.{kind}"] for i in (1, 2, 4)
        )
        / 5
        for kind in ("weight", "bias")
    }
    found = compute_sensitivities(model, samples, squared_output, names=wanted, workers=workers)
    assert_equal(found.values, wanted)
    one = compute_sensitivities(model, samples, squared_output, names=wanted)
    assert torch.equal(one.values["experts.1.weight"], found.values["experts.1.weight"])
    whole = compute_sensitivities(model, samples, squared_output, workers=workers)
    assert torch.equal(whole.values["experts.1.weight"], found.values["experts.1.weight"])
    assert set(whole.without_gradient) == {"experts.2.weight", "experts.2.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_of_half_precision_gradients_do_not_underflow(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2, bias=False).to(dtype)
    sample = torch.tensor([1e-4, 2e-4, 3e-4], dtype=dtype)
    found = compute_sensitivities(layer, [sample] * 2, lambda m, x: m(x).sum()).values["weight"]
    assert torch.equal(found, sample.float().square().expand(2, 3))


def test_sparse_gradients() -> None:
    def make(is_sparse: bool) -> nn.Module:
        torch.manual_seed(5)
        return nn.Embedding(9, 4, sparse=is_sparse)

    samples = [torch.tensor([1, 1, 3]), torch.tensor([3, 4, 4]), torch.tensor([0])]
    sparse = compute_sensitivities(make(True), samples, squared_output).values["weight"]
    dense = compute_sensitivities(make(False), samples, squared_output).values["weight"]
    torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=0)
    workers = compute_sensitivities(make(True), samples, squared_output, workers=2)
    assert torch.equal(workers.values["weight"], sparse)


class Checkpointed(nn.Module):
    """A layer used in two checkpoints: reentrant ones give its gradient in two parts."""

    def __init__(self, is_reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(3, 4)
        self.shared = nn.Linear(4, 4)
        self.is_reentrant = is_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for _ in range(2):
            hidden = checkpoint(self.shared, hidden, use_reentrant=self.is_reentrant)
        return hidden


@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_that_come_in_parts_are_added_before_they_are_squared(workers: int) -> None:
    samples = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    wanted = brute_force(Checkpointed(False), samples, squared_output)
    for is_reentrant in (True, False):
        model = Checkpointed(is_reentrant)
        found = compute_sensitivities(model, samples, squared_output, workers=workers)
        assert_equal(found.values, wanted)
        assert all(p.grad is None for p in model.parameters())


def test_gradients_that_share_memory_do_not_disturb_each_other() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(6))
            self.b = nn.Parameter(torch.ones(2, 3))
            self.c = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a + self.b.view(6) + self.c).mul(x).sum()

    samples = [torch.full((6,), float(x)) for x in (2, 3)]
    found = compute_sensitivities(Sum(), samples, lambda m, x: m(x))
    for value in found.values.values():
        assert torch.equal(value, torch.full_like(value, (4 + 9) / 2))


def test_parametrized_weights_are_what_their_original_is() -> None:
    layer = nn.Linear(3, 2)
    nn.utils.parametrizations.weight_norm(layer)
    samples = [torch.ones(3), torch.tensor([1.0, -2.0, 0.5])]
    found = compute_sensitivities(layer, samples, squared_output)
    assert set(found.values) == {name for name, _ in layer.named_parameters()}
    assert_equal(found.values, brute_force(layer, samples, squared_output))
    with pytest.raises(ConfigError, match="no parameter named 'weight'"):
        compute_sensitivities(layer, samples, squared_output, names=["weight"])


@attrs.frozen
class Snapshot:
    """All that has to be as before, the gradients' and buffers' identity included."""

    flags: list[bool]
    required: list[bool]
    gradients: list[Tensor | None]
    gradient_values: list[Tensor | None]
    buffers: list[Tensor]
    buffer_values: list[Tensor]
    parameters: list[Tensor]
    random: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        gradients = [p.grad for p in model.parameters()]
        return cls(
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            gradients,
            [None if g is None else g.clone() for g in gradients],
            list(model.buffers()),
            [b.clone() for b in model.buffers()],
            [p.detach().clone() for p in model.parameters()],
            torch.get_rng_state(),
        )

    def assert_same(self, model: nn.Module) -> None:
        now = Snapshot.of(model)
        assert now.flags == self.flags
        assert now.required == self.required
        for old, new in zip(self.gradients, now.gradients, strict=True):
            assert old is new
        for old, new in zip(self.gradient_values, now.gradient_values, strict=True):
            assert (old is None) == (new is None)
            assert old is None or torch.equal(old, new)
        for old, new in zip(self.buffers, now.buffers, strict=True):
            assert old is new
        for name in ("buffer_values", "parameters"):
            for old, new in zip(getattr(self, name), getattr(now, name), strict=True):
                assert torch.equal(old, new)
        assert torch.equal(self.random, now.random)
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def used_model() -> nn.Module:
    """Return a model with gradients, mixed flags and batch statistics."""
    model = make_model()
    loss_fn(model, make_samples(1)[0]).backward()
    model.block.requires_grad_(False)
    model.block.eval()
    model.register_buffer("steps", torch.zeros(()), persistent=False)
    return model


def rude_loss(model: nn.Module, sample: Any) -> Tensor:
    """Change what a loss function should not."""
    model.train()
    model.steps = model.get_buffer("steps") + 1
    model.block.requires_grad_(True)
    torch.rand(3)
    model.zero_grad(set_to_none=False)
    return loss_fn(model, sample)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loss", [loss_fn, rude_loss])
def test_the_model_is_as_before(loss: Any, workers: int) -> None:
    model = used_model()
    before = Snapshot.of(model)
    compute_sensitivities(model, make_samples(5), loss, workers=workers)
    before.assert_same(model)


@pytest.mark.parametrize("error", [ValueError("third"), KeyboardInterrupt()])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_model_is_as_before_when_the_third_sample_fails(
    error: BaseException, workers: int
) -> None:
    calls: list[Any] = []

    def failing(model: nn.Module, sample: Any) -> Tensor:
        if sample is samples[2]:
            loss_fn(model, sample)
            raise error
        calls.append(sample)
        return loss_fn(model, sample)

    model, samples = used_model(), make_samples(5)
    before = Snapshot.of(model)
    with pytest.raises(type(error)):
        compute_sensitivities(model, samples, failing, workers=workers)
    before.assert_same(model)
    assert calls[:2] == samples[:2]
    assert len(calls) <= 1 + workers  # the fourth may have been under way


def test_a_cache_that_has_grown_is_left_to_its_module() -> None:
    class Cached(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("cache", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.cache = torch.zeros(len(x))
            return super().forward(x)

    model = Cached()
    compute_sensitivities(model, [torch.ones(3, 2)], squared_output)
    assert model.cache.shape == (3,)


def test_no_more_samples_are_drawn_than_asked_for() -> None:
    drawn = []

    def samples():
        for sample in make_samples(9):
            drawn.append(sample)
            yield sample

    found = compute_sensitivities(make_model(), samples(), loss_fn, nsamples=4)
    assert len(drawn) == found.samples == found.requested == 4
    drawn.clear()
    found = compute_sensitivities(make_model(), samples(), loss_fn, nsamples=4, workers=3)
    assert len(drawn) == found.samples == 4


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_workers_change_no_bit(workers: int, training: bool) -> None:
    model, samples = make_model().train(training), make_samples(8)
    one = compute_sensitivities(model, samples, loss_fn)
    many = compute_sensitivities(model, samples, loss_fn, workers=workers)
    assert one.values.keys() == many.values.keys()
    for name, value in one.values.items():
        assert torch.equal(value, many.values[name])
    assert (many.samples, many.without_gradient) == (one.samples, one.without_gradient)


def test_workers_change_no_bit_of_a_model_that_drops_out() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    samples = [torch.randn(4, 6) for _ in range(6)]
    found = []
    for workers in (1, 2):
        torch.manual_seed(4)
        found.append(compute_sensitivities(model, samples, squared_output, workers=workers))
    for name, value in found[0].values.items():
        assert torch.equal(value, found[1].values[name])


def test_workers_change_no_bit_under_the_callers_autocast() -> None:
    model, samples = make_model(), make_samples(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one = compute_sensitivities(model, samples, loss_fn)
        two = compute_sensitivities(model, samples, loss_fn, workers=2)
    plain = compute_sensitivities(model, samples, loss_fn)
    assert not torch.equal(one.values["block.0.weight"], plain.values["block.0.weight"])
    for name, value in one.values.items():
        assert torch.equal(value, two.values[name])


def test_a_loss_of_another_model_than_the_workers_is_refused() -> None:
    model, samples = make_model(), make_samples(5)
    with pytest.raises(ConfigError, match="must run the model that it is given"):
        compute_sensitivities(model, samples, lambda _, x: loss_fn(model, x), workers=2)


def test_a_model_that_cannot_be_copied_needs_one_worker() -> None:
    class Stuck(nn.Linear):
        def __deepcopy__(self, memo: Any) -> None:
            raise TypeError("cannot pickle")

    model, samples = Stuck(2, 2), [torch.ones(2)] * 3
    assert compute_sensitivities(model, samples, squared_output).samples == 3
    with pytest.raises(ConfigError, match="compute the sensitivities with one worker"):
        compute_sensitivities(model, samples, squared_output, workers=2)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_that_of_the_gradients_and_one_sum(dtype: str) -> None:
    imports = """
import torch
from mlopt.torch.sensitivity import compute_sensitivities
def loss(m, x):
    return m(x).square().mean()
def run(width, dtype, plain):
    model = torch.nn.Linear(width, width, bias=False, dtype=dtype)
    samples = [torch.ones(2, width, dtype=dtype)] * 3
    if plain:
        for x in samples:
            model.zero_grad()
            loss(model, x).backward()
    else:
        compute_sensitivities(model, samples, loss)
"""
    rows = 3072

    def peak(plain: bool) -> int:
        warm = f"{imports}\nrun(64, torch.{dtype}, {plain})"
        return peak_memory(warm, f"run({rows}, torch.{dtype}, {plain})")

    # What a pass itself takes differs by processor: some kernels keep weights in another order.
    assert peak(plain=False) < peak(plain=True) + rows * rows * 4 * 1.1 + (16 << 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [1, 2])
def test_on_cuda_as_on_the_cpu(workers: int) -> None:
    model, samples = make_model(), make_samples(5)
    wanted = compute_sensitivities(model, samples, loss_fn).values
    moved = [tuple(part.cuda() for part in sample) for sample in samples]
    found = compute_sensitivities(model.cuda(), moved, loss_fn, workers=workers).values
    for name, value in wanted.items():
        assert found[name].device.type == "cpu"
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, x: 1.5, "one element, got float for sample 0"),
        (lambda m, x: m(x[0]), r"one element, got shape \(5, 11\) for sample 0"),
        (lambda m, x: loss_fn(m, x).detach(), "depends on none of the parameters"),
        (lambda m, x: loss_fn(m, x) * float("nan"), r"'embedding.weight' has .* nan for sample 0"),
        (lambda m, x: loss_fn(m, x) * 1e30, "for sample 0, and its square does not fit float32"),
    ],
)
def test_a_loss_that_gives_no_gradient_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compute_sensitivities(make_model(), make_samples(2), loss)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_is_named_with_its_sample(bad: float) -> None:
    layer = nn.Linear(2, 1, bias=False)
    samples = [torch.ones(2), torch.tensor([1.0, bad]), torch.ones(2)]
    with pytest.raises(ConfigError, match=f"'weight' has elements that are {bad} for sample 1"):
        compute_sensitivities(layer, samples, lambda m, x: m(x).sum())
    with pytest.raises(ConfigError, match=f"'weight' has elements that are {bad} for sample 1"):
        compute_sensitivities(layer, samples, lambda m, x: m(x).sum(), workers=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataloader": []}, "no sample"),
        ({"dataloader": 3}, "cannot be iterated over"),
        ({"model": "x"}, "must be a torch.nn.Module"),
        ({"loss_fn": None}, "loss_fn must be a function"),
        ({"nsamples": 0}, "nsamples must be an integer of at least 1, got 0"),
        ({"workers": True}, "workers must be an integer of at least 1, got True"),
        ({"names": "head.weight"}, "got the string 'head.weight'"),
        ({"names": ["hed.weight"]}, "no parameter named 'hed.weight'; near it: head.weight"),
        ({"model": nn.LazyLinear(2)}, "has no data yet"),
        ({"model": nn.Linear(2, 2, device="meta")}, "has no data yet"),
    ],
)
def test_arguments_that_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"model": make_model(), "dataloader": make_samples(1), "loss_fn": loss_fn}
    arguments |= changes
    with pytest.raises(ConfigError, match=message):
        compute_sensitivities(**arguments)
