"""The parts of tuning: steps, losses, samples in a file, and which are held out."""

import numpy as np
import pytest
import torch

from mlopt.calibration.answers.losses import Divergence, SquaredError
from mlopt.calibration.tuning.descent import Schedule
from mlopt.calibration.tuning.parameters import Parameter, with_units
from mlopt.calibration.tuning.reading import divided
from mlopt.calibration.tuning.store import Store
from mlopt.errors import DestinationError, InputError

CPU = torch.device("cpu")


class Numbers:
    """What a parameter needs of a tunable."""

    def __init__(self, values, kind="tables", name="a"):
        self._values, self.kind, self.name = values, kind, name

    def value(self):
        return np.array(self._values)


def test_steps_are_those_of_adam():
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    parameter, judge = Parameter(Numbers(values), CPU), torch.from_numpy(values.copy())
    unit = float(np.sqrt(np.square(values.astype(np.float64)).mean()))
    assert parameter.unit == pytest.approx(unit)
    judge.requires_grad_()
    adam = torch.optim.Adam([judge], lr=0.01 * unit, betas=(0.9, 0.99), eps=1e-30)
    for number in range(1, 9):
        gradient = torch.from_numpy(np.random.default_rng(number).normal(size=(4, 3))).float()
        judge.grad = gradient.clone()
        adam.step()
        parameter.step(gradient, number, 0.01)
    torch.testing.assert_close(parameter.numbers, judge.detach(), rtol=1e-5, atol=1e-6)
    change = float((judge.detach() - torch.from_numpy(values)).square().mean().sqrt())
    assert parameter.change == pytest.approx(change / unit, rel=1e-3)


def test_numbers_are_rounded_as_they_are_stored_and_stay_finite():
    parameter = Parameter(Numbers(np.array([1.0, 65504.0], np.float16)), CPU)
    parameter.numbers += torch.tensor([1e-5, 100.0])
    assert parameter.rounded().tolist() == [1.0, 65504.0]
    assert parameter.array().dtype == np.float16
    assert parameter.numbers[0] != 1.0
    parameter.step(torch.zeros(2), 1, 0.1)
    assert not parameter.has_gradient
    assert parameter.rounded().tolist() == [1.0, 65504.0]


def test_zeros_take_the_unit_of_their_kind():
    def made(values, kind):
        return Parameter(Numbers(np.array(values, np.float32), kind), CPU)

    zeros, one, three = (made([v, v], "biases") for v in (0.0, 1.0, -3.0))
    table, norm = made([0.0, 0.0], "tables"), made([0.0, 0.0], "norms")
    assert with_units([zeros, one, three, table, norm]) == ([zeros, one, three], [table, norm])
    assert zeros.unit == 2.0


def test_the_squared_error_is_relative_to_each_output():
    loss = SquaredError()
    samples = [{"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([100.0])}] * 2
    for sample in samples:
        loss.note(sample)
    given = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([110.0])}
    errors = loss.of_each(given, samples[0])
    assert {name: float(e) for name, e in errors.items()} == pytest.approx({"a": 0.04, "b": 0.01})
    assert float(loss(given, samples[0])) == pytest.approx(0.025)
    zero = SquaredError()
    zero.note({"a": torch.zeros(2)})
    assert float(zero({"a": torch.ones(2)}, {"a": torch.zeros(2)})) == 1


def test_the_divergence_is_that_of_torch():
    p, q = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum"
    )
    found = Divergence(["x"], [])({"x": q, "y": p}, {"x": p, "y": p})
    assert float(found) == pytest.approx(float(wanted) / 5, rel=1e-5)
    found = Divergence(["x"], ["x"])({"x": q.softmax(-1)}, {"x": p.softmax(-1)})
    assert float(found) == pytest.approx(float(wanted) / 5, rel=1e-4)
    certain = torch.tensor([1.0, 0.0])
    assert float(Divergence(["x"], ["x"])({"x": certain}, {"x": certain})) == 0


def test_samples_come_back_from_the_file(monkeypatch):
    inputs = {"a": torch.arange(6).reshape(2, 3), "b": "text", "c": torch.zeros(0, 2)}
    outputs = {"y": torch.tensor([1.5, -2.0]).bfloat16(), "z": torch.tensor(3.0)}
    store = Store(CPU)
    store.add({}, {"y": torch.ones(1000)})
    store.add(inputs, outputs)
    assert len(store) == 2
    first, second = store.sample(1)
    assert first.pop("b") == inputs.pop("b")
    for given, found in ((inputs, first), (outputs, second)):
        assert given.keys() == found.keys()
        for name, tensor in given.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found[name], tensor)
    second["z"] += 1  # tensors of their own
    assert float(store.sample(1)[1]["z"]) == 3

    class Full:
        def __getattr__(self, name):
            raise OSError(28, "No space left on device")

    store._file, file = Full(), store._file
    with pytest.raises(DestinationError, match="No space left on device; make room there"):
        store.add(inputs, outputs)
    store._file = file
    store.close()


@pytest.mark.parametrize(
    ("count", "share", "kept"),
    [(5, 0.2, [4]), (11, 0.2, [4, 9]), (4, 0.5, [1, 3]), (20, 0.3, [3, 6, 9, 13, 16, 19])],
)
def test_what_is_held_out_is_spread_evenly(count, share, kept):
    trained, held_out = divided(count, share)
    assert held_out == kept
    assert sorted(trained + held_out) == [*range(count)]
    with pytest.raises(InputError, match="give 10 or more"):
        divided(9, 0.1)


def test_the_schedule():
    schedule = Schedule(steps=10, learning_rate=0.2, batch=4, seed=0)
    shares = [schedule.share(number) for number in range(1, 11)]
    assert shares[0] == 1
    assert shares[5] == pytest.approx(0.5)
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] < 0.05
    assert schedule.first_rate(10.0) == 0.2
    own = Schedule(steps=10, learning_rate=None, batch=4, seed=0)
    rates = [own.first_rate(snr) for snr in (-3, 0, 6.0206, 40, np.inf)]
    assert rates == pytest.approx([0.006, 0.006, 0.003, 6e-5, 0])
    batches = list(schedule.batches(range(7)))
    assert [len(batch) for batch in batches] == [4] * 10
    counts = np.bincount(np.concatenate(batches))
    assert counts.max() - counts.min() <= 1
    assert [n for n in range(1, 11) if schedule.is_evaluated(n)] == [2, 4, 6, 8, 10]
    assert [len(b) for b in Schedule(steps=2, learning_rate=1, batch=9, seed=0).batches([3])] == [
        1,
        1,
    ]
