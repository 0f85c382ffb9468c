"""Where float16 loses what float32 keeps: networks that overflow and vanish, and brute force."""

from __future__ import annotations

import functools
import json
import math

import attrs
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn
from typer.testing import CliRunner

from mlopt.cli import app
from mlopt.errors import ConfigError, InputError
from mlopt.runtime import compare, compare_float16, load
from mlopt.runtime.comparison.float16_watch import Watch
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.runtime.execution import Execution
from tests import models
from tests.runtime.programs import convert


def half(value):
    return np.float16(value)


def halves(build, width=64):
    """A program that casts its input to float16, does what ``build`` says, and casts back."""

    def body(x):
        return mb.cast(x=build(mb.cast(x=x, dtype="fp16", name="half")), dtype="fp32", name="y")

    return convert(body, {"x": np.ones((1, 4, width), np.float32)}, target="iOS16")


def normal(scale, width=64, add=0.0):
    x = np.random.default_rng(5).standard_normal((1, 4, width)) * scale + add
    return {"x": x.astype(np.float32)}


def mean(x, name=None):
    return mb.reduce_mean(x=x, axes=[-1], keep_dims=True, **({"name": name} if name else {}))


class SuperPoint(nn.Module):
    """Convolutions, and descriptors that are divided by their length, as SuperPoint ends."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.descriptors = nn.Conv2d(32, 64, 1)

    def forward(self, image):
        found = 50 * self.descriptors(self.convolutions(image))
        return found / found.square().sum(1, keepdim=True).sqrt()


@functools.cache
def superpoint():
    net = models.random_weights(SuperPoint(), seed=0)
    return models.convert(net, {"image": (1, 1, 16, 16)}, ["descriptors"], target="iOS16")


IMAGES = [
    {"image": np.random.default_rng(n).uniform(100, 255, (1, 1, 16, 16)).astype(np.float32)}
    for n in range(2)
]


def test_descriptors_that_are_zero_in_float16():
    found = compare_float16(superpoint(), IMAGES)
    (output,) = found.outputs.outputs
    assert output.distance.candidate.state == "zero"
    assert output.distance.reference.state == "informative"
    worst = found.rows[0]
    assert (worst.op_type, worst.dtype) == ("mul", "fp16")  # the square, as coremltools writes it
    assert "overflows" in worst.kinds
    assert worst.effect_db < 1
    assert worst.effect_output == "descriptors"
    assert worst.greatest > 65504
    assert 0 < worst.overflowed <= worst.elements == 2 * 64 * 16 * 16
    # sums, roots and quotients carry it on: none of them overflows by itself
    assert [row.op_type for row in found.rows if "overflows" in row.kinds] == ["mul"]
    text = str(found)
    assert "descriptors: the candidate is zero everywhere, the reference is not." in text
    assert f"{worst.least:.2g} to {worst.greatest:.2g}" in text
    # which a comparison of two such outputs tells as well
    (row,) = compare(superpoint(), superpoint(), IMAGES, precision="as_declared").outputs
    assert row.status == "zero"


def by_mean_square(x):
    squares = mb.mul(x=x, y=x, name="guilty")
    return mb.real_div(x=x, y=mb.sqrt(x=mb.add(x=mean(squares), y=half(1e-5))))


def by_exp(x):
    return mb.log(x=mean(mb.exp(x=x, name="guilty")), epsilon=half(0))


def by_root(x):
    squares = mb.mul(x=x, y=x, name="guilty")
    # what 1e-12 is in float16
    return mb.mul(x=x, y=mb.rsqrt(x=mean(squares), epsilon=half(1e-12)))


def by_scores(x):
    turned = mb.transpose(x=x, perm=[0, 2, 1])
    scores = mb.matmul(x=x, y=turned, name="guilty")
    return mb.softmax(x=mb.mul(x=scores, y=half(1e-4)), axis=-1)


def by_variance(x):
    return mb.sub(x=mean(mb.square(x=x)), y=mb.square(x=mean(x)), name="guilty")


def by_sharp_mask(x):
    # every position is masked: float16 has no number that is as low
    low = mb.add(x=mb.mul(x=mb.cast(x=x, dtype="fp32"), y=np.float32(0)), y=np.float32(-1e9))
    return mb.softmax(x=mb.add(x=x, y=mb.cast(x=low, dtype="fp16", name="guilty")), axis=-1)


@pytest.mark.parametrize(
    ("build", "sample", "kind"),
    [
        (by_mean_square, normal(3000), "overflows"),
        (by_exp, normal(6), "overflows"),
        (by_root, normal(1e-5), "vanishes"),
        (by_scores, normal(100), "overflows"),
        (by_variance, normal(1, add=100), "cancels"),
        (by_sharp_mask, normal(1), "overflows"),
    ],
)
def test_the_operation_that_is_to_blame_comes_first(build, sample, kind):
    found = compare_float16(halves(build), sample)
    (output,) = found.outputs.outputs
    assert not output.distance.snr_db > 20
    assert found.rows[0].name == "guilty"
    assert kind in found.rows[0].kinds
    assert found.harmful[0] is found.rows[0]
    if kind != "cancels":
        assert not found.rows[0].effect_db > 20


def test_what_overflows_without_harm_is_told_so():
    def build(x):
        kept = np.where(np.arange(64) < 5, 0.0, -1e9).astype(np.float32)
        mask = mb.mul(x=mb.exp(x=mb.cast(x=x, dtype="fp32")), y=kept)
        return mb.softmax(x=mb.add(x=x, y=mb.cast(x=mask, dtype="fp16", name="mask")), axis=-1)

    found = compare_float16(halves(build), normal(1))
    (row,) = found.rows
    assert (row.name, row.kinds, row.is_harmless) == ("mask", ("overflows",), True)
    assert row.overflowed == 4 * 59
    assert found.harmful == ()
    assert "1 more of" in str(found)
    assert "without harm" in str(found)


def test_nothing_is_found_where_nothing_is_lost():
    found = compare_float16(halves(lambda x: mb.softmax(x=x, axis=-1)), normal(1))
    assert found.rows == ()
    assert found.operations == 2  # the cast and the softmax
    assert "No result overflows, vanishes, or loses more" in str(found)


def test_a_program_of_float32_has_nothing_to_compare():
    model = convert(lambda x: mb.exp(x=x, name="y"), {"x": np.ones((1, 4), np.float32)})
    found = compare_float16(model, random=2)
    assert (found.operations, found.rows, found.samples) == (0, (), 0)
    assert str(found).startswith("The program declares no result of float16")
    assert "equal" not in str(found)


def test_counts_by_hand():
    x = np.array([[[0.0, 1e-5, 1e-3, 2.0], [300.0, 1e-4, 255.0, -1e-2]]], np.float32)
    model = convert(
        lambda x: mb.mul(x=mb.cast(x=x, dtype="fp16"), y=mb.cast(x=x, dtype="fp16"), name="m"),
        {"x": x},
        target="iOS16",
    )
    (row,) = compare_float16(model, {"x": x}).rows
    # squares: 0, 1e-10, 1e-6, 4, 90000, 1e-8, 65025, 1e-4
    assert (row.elements, row.overflowed, row.vanished, row.subnormal) == (8, 1, 2, 1)
    assert row.least == pytest.approx(1e-10, rel=1e-5)
    assert row.greatest == 90000


def test_what_is_carried_on_is_not_counted_again():
    def build(x):
        squares = mb.mul(x=x, y=x, name="guilty")
        moved = mb.reshape(x=mb.relu(x=squares, name="after"), shape=[1, 2, 128], name="moved")
        return mb.concat(values=[moved, moved], axis=1, name="joined")

    for scale, kind in ((1000, "overflows"), (1e-4, "vanishes")):
        rows = compare_float16(halves(build), normal(scale)).rows
        # one element is so small that the cast of the input loses it
        found = [(row.name, row.kinds) for row in rows if row.name != "half"]
        assert found == [("guilty", (kind,))]


def test_squares_inside_an_operation():
    def norm(x):
        return mb.real_div(x=x, y=mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True, name="norm"))

    def layer_norm(x):
        return mb.layer_norm(x=x, axes=[-1], epsilon=half(1e-5), name="norm")

    sample = normal(500)
    x = sample["x"].astype(np.float16).astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    for build, largest in ((norm, (x**2).sum(-1).max()), (layer_norm, (centred**2).max())):
        found = compare_float16(halves(build), sample)
        (row,) = found.rows
        assert (row.name, row.kinds) == ("norm", ("inside",))
        assert row.inside == pytest.approx(largest, rel=1e-3)
        assert "as the Neural Engine may" in str(found)
        assert compare_float16(halves(build), normal(1)).rows == ()


def test_exponentials_inside_an_operation():
    def log_sum(x):
        return mb.reduce_log_sum_exp(x=x, axes=[-1], name="guilty")

    def softplus(x):
        return mb.softplus(x=x, name="guilty")

    sample = normal(6)
    x = sample["x"].astype(np.float16).astype(np.float64)
    for build, largest in ((log_sum, np.exp(x).sum(-1).max()), (softplus, np.exp(x.max()))):
        assert largest > 65504
        (row,) = compare_float16(halves(build), sample).rows
        assert (row.name, row.kinds) == ("guilty", ("inside",))
        assert row.inside == pytest.approx(largest, rel=1e-2)
        assert compare_float16(halves(build), normal(1)).rows == ()


def test_the_sample_that_loses_most_is_the_one_that_is_measured():
    quiet, loud = normal(1), normal(3000)
    for samples in ([quiet, loud, quiet], [loud, quiet]):
        found = compare_float16(halves(by_mean_square), samples)
        assert found.rows[0].name == "guilty"
        assert found.rows[0].elements == len(samples) * 256
        assert found.rows[0].effect_db < 1


def test_how_many_effects_are_measured():
    def build(x):
        first = mb.exp(x=x, name="first")
        return mb.add(x=mean(first), y=mean(mb.exp(x=mb.mul(x=x, y=half(2)), name="second")))

    model, sample = halves(build), normal(9)
    found = compare_float16(model, sample, effects=1)
    assert found.unmeasured == 1
    assert sum(row.effect_db is not None for row in found.rows) == 1
    assert "The effect of 1 operations" in str(found)
    assert compare_float16(model, sample).unmeasured == 0


@pytest.mark.parametrize("kind", ["transformer", "recurrent", "stateful", "control_flow"])
def test_errors_so_far_are_those_of_two_whole_runs(kind):
    target = "iOS18" if kind == "stateful" else "iOS16"
    model = models.build(kind, target)
    wide, narrow = load(model), load(model, precision="as_declared")
    (sample,) = random_samples(wide, 1)
    watch = Watch(wide, narrow)
    watch.run(sample, 0, seed=0)
    own = {slot for step in wide.plan.body.steps for slot in step.results}
    names = [watched.row.output for slot, watched in watch.watched.items() if slot in own]
    assert names
    ours, theirs = (p.run(sample, p.make_state(), taps=names, seed=0).taps for p in (wide, narrow))
    for slot, watched in watch.watched.items():
        if slot in own:
            expected = Distance()
            expected.add(ours[watched.row.output], theirs[watched.row.output])
            assert watched.row.so_far == expected


def test_memory_holds_what_is_live(monkeypatch):
    live = []
    advance = Execution.advance

    def counted(self, step):
        results = advance(self, step)
        live.append(sum(isinstance(value, torch.Tensor) for value in self._frame))
        return results

    monkeypatch.setattr(Execution, "advance", counted)

    def build(x):
        for _ in range(50):
            x = mb.mul(x=mb.relu(x=x), y=half(1.5))
        return x

    compare_float16(halves(build), [normal(1)] * 2)
    assert len(live) > 400  # runs in both precisions, and of effects
    assert max(live) <= 2


def test_effects_are_those_of_rounding_one_result():
    sample = normal(200)
    (row, *_) = compare_float16(halves(by_mean_square), sample).rows
    x = sample["x"].astype(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        rounded = (x * x).astype(np.float16).astype(np.float32)
    outputs = [x / np.sqrt(s.mean(-1, keepdims=True) + half(1e-5)) for s in (x * x, rounded)]
    expected = Distance()
    expected.add(*map(torch.from_numpy, outputs))
    assert row.effect_db == pytest.approx(expected.snr_db, abs=1e-3)


def test_nested_blocks_are_looked_into():
    def build(x):
        def body(count, value):
            return mb.add(x=count, y=np.int32(1)), mb.mul(x=value, y=value, name="guilty")

        start = np.int32(0)
        _, found = mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=np.int32(2)),
            _body=body,
            loop_vars=(start, x),
        )
        return mb.real_div(x=x, y=mb.sqrt(x=mean(found)))

    found = compare_float16(halves(build), normal(30))
    assert found.rows[0].name == "guilty"
    assert "overflows" in found.rows[0].kinds
    assert found.rows[0].elements == 2 * 256


def test_json_holds_all_of_it():
    found = compare_float16(halves(by_exp), normal(6))
    values = json.loads(found.to_json())
    assert values["operations"] == found.operations
    assert values["outputs"][0]["candidate"] == "not finite"
    (row,) = (row for row in values["rows"] if row["name"] == "guilty")
    assert row["kinds"] == list(found.rows[0].kinds)
    assert row["effect_db"] == "nan"
    assert row["overflowed"] == found.rows[0].overflowed
    assert row["so_far_snr_db"] == "nan"
    names = {field.name for field in attrs.fields(type(found.rows[0]))}
    assert names - set(row) == {"entering", "so_far"}


def test_what_cannot_be_compared_with_itself():
    model = superpoint()
    with pytest.raises(ConfigError, match="is loaded has one precision"):
        compare_float16(load(model))
    with pytest.raises(ConfigError, match="the model is a pipeline"):
        compare_float16(models.build("pipeline"))
    with pytest.raises(InputError, match="no samples"):
        compare_float16(model, [])
    with pytest.raises(InputError, match=r"the model in float32: .* no input 'q'"):
        compare_float16(model, [{"q": 1}])


def test_the_command(tmp_path):
    superpoint().save(str(tmp_path / "m.mlpackage"))
    np.savez(tmp_path / "x.npz", image=np.concatenate([s["image"] for s in IMAGES])[:, None])

    def invoke(*arguments):
        return CliRunner().invoke(
            app, ["compare", str(tmp_path / "m.mlpackage"), *map(str, arguments)]
        )

    result = invoke("--float16", "--inputs", tmp_path / "x.npz", "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    assert "outputs by it alone" in result.stdout
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["samples"] == 2
    assert values["rows"][0]["overflowed"] > 0
    result = invoke("--float16", "--random", 1, "--json", "-", "--min-snr", 500)
    assert result.exit_code == 6
    assert json.loads(result.stdout)["samples"] == 1
    for arguments, message in (
        ([], "or --float16 to compare one with itself"),
        (["other", "--float16"], "leave the second one out"),
        (["--float16", "--layers"], "leave --layers and --picture out"),
        (["--float16", "--report", "p.html"], "leave --report out"),
        (["--float16", "--precision", "float32"], "leave --precision out"),
        (["--float16", "--backend", "coreml"], "leave --backend out"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, arguments
        assert message in " ".join(result.output.replace("│", "").split())


def test_not_a_number_is_kept_apart():
    # what is infinite in float32 too is no fault of float16
    found = compare_float16(
        halves(lambda x: mb.log(x=mb.mul(x=x, y=half(0)), epsilon=half(0))), normal(1)
    )
    assert found.rows == ()
    assert math.isnan(found.outputs.outputs[0].distance.snr_db)
