"""A few seconds of the long form, always with the same inputs; and that it can fail."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from mlopt.mil import checks
from mlopt.mil.blob import BlobWriter
from tests.fuzz import driver, trial
from tests.fuzz.mutators import mutate
from tests.fuzz.seeds import MODEL, WEIGHTS, Files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials run in forked processes")


@pytest.fixture(scope="module")
def packages(
    tmp_path_factory: pytest.TempPathFactory, seed_packages: dict[str, Files]
) -> dict[str, Files]:
    trial.warm_up(seed_packages, tmp_path_factory.mktemp("warm"))
    return seed_packages


@pytest.mark.long
def test_nothing_but_documented_errors_and_correct_results(packages: dict[str, Files]) -> None:
    summary = driver.run(packages, inputs=250, seed=20)
    assert not summary.failures, str(summary)
    assert summary.inputs == 250
    assert 0 < summary.peak < driver.MEMORY or not os.path.exists("/proc/self/clear_refs")
    for step in ("open", "palettize", "decompress", "raise", "predict"):
        # Both ways are taken often, or the damage is of the wrong kind.
        assert summary.ends[step, "done"] > 35
        refused = sum(
            n for (name, how), n in summary.ends.items() if name == step and how != "done"
        )
        assert refused > 2


@pytest.mark.long
def test_seeds_pass_every_step(packages: dict[str, Files], tmp_path: Path) -> None:
    for name, files in packages.items():
        ends = trial.run(files, tmp_path / "trial", random.Random(name))
        refused = {step: how for step, how in ends.items() if how != "done"}
        # Some requests cannot be met for the target that the seed has.
        assert refused.keys() <= {"palettize", "raise"}, (name, refused)
        assert set(refused.values()) <= {"TargetError", "ConfigError"}


@pytest.mark.long
def test_inputs_are_the_same_each_time(packages: dict[str, Files]) -> None:
    for number in range(20):
        first, second = (driver.input_of(packages, 3, number) for _ in range(2))
        assert first[:2] == second[:2]
    changed = [mutate(packages["plain iOS18"], random.Random(i))[0] for i in range(50)]
    assert sum(files != packages["plain iOS18"] for files in changed) > 40


def test_failures_are_found_and_kept(
    packages: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another exception, a wrong output, a dying process: each is reported, and the rest runs."""
    only = {"plain iOS18": packages["plain iOS18"]}

    def failures() -> list[str]:
        summary = driver.run(only, inputs=12, seed=0, failures=tmp_path)
        assert summary.inputs == 12
        return [what for _, what in summary.failures]

    assert failures() == []
    with monkeypatch.context() as patch:
        patch.setattr(checks, "check_immediate", lambda *a: 1 / 0)
        assert any("open: ZeroDivisionError" in what for what in failures())
    with monkeypatch.context() as patch:
        patch.setattr(checks, "check_immediate", lambda *a: os._exit(3))
        assert any("the process died" in what for what in failures())
    with monkeypatch.context() as patch:
        add = BlobWriter.add

        def spoil(self: Any, dtype: Any, data: Any, padding: int = 0, **options: Any) -> int:
            return add(self, dtype, bytes(len(bytes(data))), padding, **options)

        patch.setattr(BlobWriter, "add", spoil)
        assert any("copy: AssertionError: a constant of the copy" in what for what in failures())
    kept = next(tmp_path.glob("0-*"))
    assert (kept / "what.txt").read_text().startswith("plain iOS18: ")


def test_what_a_process_does_not_get_is_a_failure(
    packages: dict[str, Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and time are bounded, or the test above shows nothing of it."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("memory is only bounded on Linux")
    only = {"plain iOS18": packages["plain iOS18"]}
    once: list[Any] = []  # in each process that is forked

    def take(action: Any) -> Any:
        return lambda *a: None if once else once.append(action())

    actions = {
        "bytes of memory": lambda: len(b"x" * (driver.MEMORY + (8 << 20))),
        "MemoryError": lambda: len(b"x" * (2 * driver._ADDRESSES)),
        "_TooLong": lambda: [0 for _ in iter(int, 1)],
    }
    monkeypatch.setattr(trial, "PATIENCE", 1)
    for expected, action in actions.items():
        with monkeypatch.context() as patch:
            patch.setattr(checks, "check_immediate", take(action))
            summary = driver.run(only, inputs=3, seed=0)
            assert any(expected in what for _, what in summary.failures), expected


def test_seeds_are_small_and_of_every_form(packages: dict[str, Files]) -> None:
    from mlopt.mil.messages import Model

    types = set()
    for files in packages.values():
        assert sum(map(len, files.values())) < 100_000
        assert any(name.endswith("weight.bin") for name in files)
        model = Model.FromString(files[MODEL])
        members = [model] if model.WhichOneof("Type") == "mlProgram" else model.pipeline.models
        for member in members:
            for function in member.mlProgram.functions.values():
                for block in function.block_specializations.values():
                    types |= {op.type for op in block.operations}
    assert {
        "constexpr_" + form
        for form in (
            "lut_to_dense",
            "affine_dequantize",
            "sparse_to_dense",
            "blockwise_shift_scale",
            "lut_to_sparse",
            "sparse_blockwise_shift_scale",
        )
    } <= types
    assert WEIGHTS in packages["plain iOS18"]
