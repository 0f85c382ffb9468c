"""The cache of plans: what is in it is not made again, and nothing else is taken from it."""

import attrs
import numpy as np
import pytest
import torch

from mlopt.calibration import calibrate
from mlopt.coreml import OpPalettizerConfig, execution
from mlopt.errors import DestinationError
from mlopt.planning import apply_recipe, losses, plan
from mlopt.planning.trials import Trials
from mlopt.runtime import Program

IMAGES = np.random.default_rng(1).uniform(size=(3, 1, 1, 8, 8)).astype(np.float32)
SAMPLES = [{"image": image} for image in IMAGES]
FORMS = [
    OpPalettizerConfig(nbits=2, weight_threshold=256, enable_per_channel_scale=True),
    OpPalettizerConfig(nbits=4, weight_threshold=256, lut_dtype="uint8"),
]
ASKED = {"candidates": FORMS, "minimum_deployment_target": "iOS18", "costs": "measured"}


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.bin")}


def test_nothing_is_made_twice(digits, tmp_path, monkeypatch):
    calibration = calibrate(digits, SAMPLES)
    asked = ASKED | {"samples": SAMPLES, "calibration": calibration, "cache": tmp_path / "cache"}
    first = plan(digits, budget="4x", output=tmp_path / "first.mlpackage", **asked)

    def refuse(*arguments):
        raise AssertionError("made again")

    monkeypatch.setattr(losses, "compute", refuse)
    monkeypatch.setattr(execution, "compute", refuse)
    monkeypatch.setattr(Trials, "_alone", refuse)
    again = plan(digits, budget="4x", output=tmp_path / "again.mlpackage", **asked)
    assert again == first
    assert files(tmp_path / "again.mlpackage") == files(tmp_path / "first.mlpackage")
    applied = apply_recipe(
        first, digits, calibration=calibration, cache=tmp_path / "cache", output=tmp_path / "third"
    )
    assert files(applied.path) == files(tmp_path / "first.mlpackage")
    other = plan(digits, budget="3x", **asked)
    assert other.expected <= first.expected
    for changed in (
        {"samples": SAMPLES[:2]},
        {"calibration": None},
        {"candidates": [attrs.evolve(FORMS[0], nbits=1)]},
        {"loss": "kl"},
    ):
        with pytest.raises(AssertionError, match="made again"):
            plan(digits, budget="4x", **(asked | changed))
    # as if it ran elsewhere, where numbers are rounded in another way
    monkeypatch.setattr(Program, "device", property(lambda program: torch.device("cuda")))
    with pytest.raises(AssertionError, match="made again"):
        plan(digits, budget="4x", **asked)


class Alike:
    """A function of a table, of which the text says nothing."""

    def __init__(self, table):
        self.table = np.float16(table)

    def __call__(self, weight):
        return self.table, np.abs(weight[..., None] - self.table).argmin(-1)

    def __repr__(self):
        return "Alike"


def test_functions_are_not_told_apart_by_their_text(digits, tmp_path):
    losses = []
    for table in ([-0.1, 0.1], [-0.2, 0.2]):
        form = OpPalettizerConfig("custom", lut_function=Alike(table), weight_threshold=20_000)
        asked = {"samples": SAMPLES[:1], "candidates": [form], "budget": "3x"}
        cached = plan(digits, cache=tmp_path / "cache", **asked)
        losses.append(cached.expected)
        assert cached == plan(digits, **asked)
    assert losses[0] != losses[1]


def test_damaged_files_are_made_again(digits, tmp_path):
    asked = ASKED | {"samples": SAMPLES, "cache": tmp_path / "cache", "budget": "4x"}
    first = plan(digits, **asked)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert plan(digits, **asked) == first
    assert plan(digits, **(asked | {"cache": None})) == first


def test_a_cache_that_cannot_be(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot be made a folder"):
        plan(digits, budget="4x", cache=tmp_path / "file", **ASKED)


def test_an_interrupted_plan_goes_on(digits, tmp_path, monkeypatch):
    asked = ASKED | {"samples": SAMPLES[:1], "cache": tmp_path / "cache", "budget": "4x"}

    def interrupt(stage, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(digits, progress=interrupt, **asked)
    run = []
    alone = Trials._alone
    monkeypatch.setattr(Trials, "_alone", lambda *given: run.append(1) or alone(*given))
    told = []
    plan(digits, progress=lambda *progress: told.append(progress), **asked)
    assert told[-1] == ("measuring", len(run) + 3, len(run) + 3)
    assert len(run) == 3
