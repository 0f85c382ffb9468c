"""Every row runs what it names, and the memory of a network counts each storage once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import runtime_speed
from benchmarks.lib import packages
from benchmarks.runtime_speed import NETWORKS, ROWS, Row, Subject


def test_rows_name_networks_that_there_are() -> None:
    assert {row.network for row in ROWS} == set(NETWORKS)
    assert set(NETWORKS) <= set(packages.BUILDERS)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_weights_are_counted_with_buffers_and_shared_ones_once() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(3, 5))
    network[2].weight = network[0].weight
    # a buffer that is a part of a parameter is no memory of its own
    network.register_buffer("part", network[0].weight.detach()[1:])
    floats = 3 * 5 + 2 * 5 + 4 * 5
    assert runtime_speed.weight_bytes(network) == 4 * floats + 8  # the number of batches is int64


class Sums(nn.Module):
    """Adds its input to a buffer, which is a state once it is converted."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 2


def _build(path: Path) -> None:
    from benchmarks.lib.quiet import import_coremltools

    ct = import_coremltools()
    ct.convert(
        torch.jit.trace(Sums(), torch.zeros(1, 4), check_trace=False),
        inputs=[ct.TensorType("x", (1, 4))],
        outputs=[ct.TensorType("y")],
        states=[ct.StateType(ct.TensorType(shape=(1, 4)), name="total")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    ).save(str(path))


@pytest.mark.filterwarnings("ignore")  # of conversion
def test_a_run_is_all_steps_from_a_fresh_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"x": torch.full((1, 4), float(number))} for number in (1, 2, 3)]

    def restart(network: Any) -> None:
        network.total.zero_()

    monkeypatch.setitem(NETWORKS, "sums", lambda: Subject(Sums, steps, restart))
    monkeypatch.setitem(runtime_speed.BY_NAME, "sums", Row("sums", "sums", "sums"))
    package = tmp_path / "sums.mlpackage"
    _build(package)
    subject = NETWORKS["sums"]()
    for run in (
        runtime_speed._program_run(runtime_speed.BY_NAME["sums"], str(package), steps),
        runtime_speed._network_run(subject, subject.make()),
    ):
        for _ in range(2):
            outputs = torch.cat([output.clone() for output in run()])
            assert torch.equal(outputs[:, 0], torch.tensor([2.0, 6.0, 12.0]))
    found = runtime_speed.measure("sums", str(package), repeats=2)
    assert found["snr_db"] > 100
    assert found["snr_db_as_declared"] > 100
    assert len(found["as_declared"]["wall_s"]) == 2
    low, high = found["spread_of_ratio_as_declared"]
    assert low <= found["ratio_as_declared"] <= high
    assert len(found["ours"]["wall_s"]) == 2
    assert runtime_speed.program_bytes("sums", str(package)) >= 0
    assert runtime_speed.network_bytes("sums")["weights"] == 16
