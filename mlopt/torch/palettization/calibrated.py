"""Calibration as the palettizers use it: the guidance of the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mlopt.choices import METHODS, Method
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.checked import word
from mlopt.statistics.guidance import CalibrationSource, Candidate, Guidance, Guides, guides_for
from mlopt.torch.modules import ModelParameter, Owner
from mlopt.torch.palettization.decisions import ParameterDecision
from mlopt.torch.tensors import FLOATS, as_array

_WITH_BIAS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def guides_of(
    decisions: Sequence[ParameterDecision],
    source: CalibrationSource | None,
    *,
    method: Method = "auto",
    correct_biases: bool = True,
) -> Guides[ModelParameter]:
    """Match a calibration with the parameters that are to be palettized.

    Raises
    ------
    ConfigError
        A method that needs a calibration has none, or the calibration knows none of the parameters.
    """
    method = word(method, "method", METHODS)
    candidates = _candidates(decisions, correct_biases=correct_biases)
    return guides_for(candidates, source, method=method)


def with_notes_on_biases(
    decisions: Sequence[ParameterDecision], guides: Guides[ModelParameter]
) -> list[ParameterDecision]:
    """Return the decisions, with a note for each bias that absorbs the mean error of a weight."""
    weights = {
        id(guidance.bias): decision.weight.name
        for decision in decisions
        if (guidance := guides.of(decision.weight)).bias is not None
    }
    return [
        attrs.evolve(
            decision,
            notes=(*decision.notes, f"takes up the mean error of {weights[id(decision.weight)]!r}"),
        )
        if id(decision.weight) in weights
        else decision
        for decision in decisions
    ]


def corrected(bias: ModelParameter, mean_error: npt.NDArray[np.float64]) -> torch.Tensor:
    """Return a bias plus the mean error [outputs], on the CPU in the dtype of the bias."""
    tensor = bias.tensor.detach().cpu()
    limit = torch.finfo(tensor.dtype).max
    return (tensor.double() + torch.from_numpy(mean_error)).clamp(-limit, limit).to(tensor.dtype)


def importance_of_outputs(
    sensitivity: npt.NDArray[np.float32], guidance: Guidance[ModelParameter]
) -> npt.NDArray[np.float32]:
    """Return the importance of a weight's elements beside the moments of its inputs.

    A sensitivity, E[(g x)^2], has the squares of the inputs x in it, which the moments have too.
    What is left for each output is the mean squared gradient there, as if that did not depend on x:
    the sum of the sensitivities over that of the squares. Without moments all is left.
    """
    moments = guidance.moments
    if moments is None:
        return sensitivity
    arrangement = moments.arrangement
    matrices = arrangement.matrices(sensitivity).astype(np.float64)
    squares = moments.diagonal.sum(axis=1, dtype=np.float64)
    # a block whose inputs were always 0 has no gradients either
    shares = matrices.sum(axis=2) / np.where(squares > 0, squares, 1)[:, None]
    spread = np.broadcast_to(shares[..., None], matrices.shape)
    return np.ascontiguousarray(arrangement.weight(spread), np.float32)


def _candidates(
    decisions: Sequence[ParameterDecision], *, correct_biases: bool
) -> Iterator[Candidate[ModelParameter]]:
    by_tensor = {id(decision.weight.tensor): decision.weight for decision in decisions}
    for decision in decisions:
        parameter, spec = decision.weight, decision.result
        if not isinstance(spec, PaletteSpec):
            continue
        yield Candidate(
            weight=parameter,
            name=parameter.name,
            shape=tuple(parameter.tensor.shape),
            spec=spec,
            value=partial(as_array, parameter.tensor),
            is_lookup=all(isinstance(o.module, nn.Embedding) for o in parameter.owners),
            bias=_bias_of(parameter, by_tensor) if correct_biases else None,
        )


def _bias_of(
    parameter: ModelParameter, by_tensor: dict[int, ModelParameter]
) -> ModelParameter | None:
    """Return the bias that can absorb the mean error of a weight; None where there is no such.

    Both have to be those of one module alone: what several share has errors with several means.
    """
    owner = _only_owner(parameter)
    if owner is None or owner.parameter_name != "weight" or not _adds_bias(owner):
        return None
    bias = by_tensor.get(id(owner.module._parameters.get("bias")))
    if bias is None or _only_owner(bias) is None or bias.overlaps:
        return None
    return bias if bias.tensor.dtype in FLOATS else None


def _only_owner(parameter: ModelParameter) -> Owner | None:
    # one module may have several names
    owners = {(id(owner.module), owner.parameter_name) for owner in parameter.owners}
    return None if len(owners) > 1 or parameter.twins else parameter.owners[0]


def _adds_bias(owner: Owner) -> bool:
    if isinstance(owner.module, _WITH_BIAS):
        return True
    # Conv1D of transformers
    adapter: Any = owner.adapter
    return adapter is not None and adapter.is_linear and adapter.axes(2) == (1, 0)
