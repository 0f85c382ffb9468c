"""Time the steps of training with DKM, and measure their memory (called in a fresh process).

Order: imports; of mlopt a few steps of another layer, with the row's own settings, which compiles
or loads kernels and lazy imports; the steps of the plain module; those of the prepared one; one
more of each to see what they save for the backward pass. The peak is that of everything after the
imports but for that last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from benchmarks.lib.dkm_rows import DKM_BY_NAME, DkmRow
from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.progress import say
from benchmarks.lib.row import REFERENCE, Variant
from benchmarks.lib.saved_bytes import saved_bytes
from benchmarks.lib.timing import Timing
from benchmarks.lib.torch_perform import import_tool
from benchmarks.tasks.dkm_tasks import task
from benchmarks.tasks.task import matrices

STRIDE = 1e-4
"""By what the weights move between steps, up or down: about 0.3 % of their spread."""


class SignDescent(torch.optim.Optimizer):
    """Every weight moves by ``STRIDE`` against its gradient: nothing is kept from step to step.

    With weights that stay, the table would settle, and later steps would end early.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign_(), alpha=STRIDE)


def measure_steps(name: str, tool: str, repeats: int) -> dict[str, Any]:
    """``first`` and ``later`` steps and those of the ``plain`` module: summaries of their times.

    And the peak memory, ``weights`` (those that are palettized), and what a later step saves for
    its backward pass, in all and beyond what the plain module saves for its own, a weight.
    ``repeats``: later steps, of coremltools at most as many as the row allows.
    """
    row = DKM_BY_NAME[name]
    if tool == REFERENCE:
        repeats = min(repeats, row.reference_repeats)
    api = import_tool(Variant(tool))
    memory = PeakMemory()
    if tool != REFERENCE:  # it compiles nothing, and its first step takes long on small layers too
        Trial(row, api, "warmup").run(repeats=1)
    say(f"{name}: {tool}, 1 + {repeats} steps")
    trial = Trial(row, api, row.model)
    return trial.run(repeats, memory)


class Trial:
    """A task that is trained first as it is and then with DKM, by the palettizer of ``api``."""

    def __init__(self, row: DkmRow, api: Any, model: str) -> None:
        self.row, self.api, self.task = row, api, task(model)
        self.module = self.task.module.train()

    def run(self, repeats: int, memory: PeakMemory | None = None) -> dict[str, Any]:
        """See ``measure_steps``; the peak is that of ``memory`` when the steps are done."""
        _, plain = self._steps(repeats)
        plain_saved = saved_bytes(self._forward, self.module)
        config = self.api.DKMPalettizerConfig.from_dict({"global_config": dict(self.row.settings)})
        palettizer = self.api.DKMPalettizer(self.module, config)
        weights = matrix_elements(self.module, 2048)
        self.module = palettizer.prepare(inplace=True)
        first, later = self._steps(repeats, palettizer.step)
        peak = memory.above_start_bytes() if memory else None
        saved = saved_bytes(self._forward, self.module)
        if saved <= plain_saved:
            raise RuntimeError(f"{self.row.name}: nothing is palettized")
        return {
            "first": first.summary(),
            "later": later.summary(),
            "plain": plain.summary(),
            "memory": {"peak_above_imports_bytes": peak},
            "weights": weights,
            "saved_bytes": saved,
            "saved_bytes_a_weight": (saved - plain_saved) / weights,
        }

    def _steps(
        self, repeats: int, after: Callable[[], Any] = lambda: None
    ) -> tuple[Timing, Timing]:
        """The times of the first step, which starts what is needed, and of ``repeats`` more."""
        first, later = Timing(), Timing()
        parameters = self.module.parameters()
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=STRIDE)
            if self.row.has_update
            else SignDescent(parameters)
        )
        for turn in range(repeats + 1):
            self._step(optimizer, later if turn else first)
            after()
        return first, later

    def _step(self, optimizer: torch.optim.Optimizer, timing: Timing) -> None:
        """One step of training, of which the update is timed where the row says so."""

        def timed() -> None:
            self._forward().backward()
            if self.row.has_update:
                optimizer.step()

        optimizer.zero_grad()
        timing.measure(timed)
        if not self.row.has_update:
            optimizer.step()

    def _forward(self) -> torch.Tensor:
        assert self.task.loss is not None
        return self.task.loss(self.module, self.task.samples[0])


def matrix_elements(module: nn.Module, threshold: int) -> int:
    """How many weights stand in matrices of more than ``threshold``, which is what both take."""
    sizes = [weight.numel() for _, weight in matrices(module)]
    return sum(size for size in sizes if size > threshold)
