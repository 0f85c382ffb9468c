"""Recurrent layers: their inputs, and their hidden states before each step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.calibration.readers.products import linear_reader
from mlopt.calibration.readers.reader import Arguments, NoStatisticsError, Reader, Use
from mlopt.palette.moments import Arrangement


def recurrent_reader(use: Use) -> Reader:
    """Return the reader of a weight [gates * H, I] or [gates * H, H] of lstm, gru or rnn.

    The hidden states are the outputs, one step later. They are known if all steps are put out.
    """
    if use.parameter.startswith("weight_ih"):
        # what the products are added to, before the gates, is not a result
        return attrs.evolve(linear_reader(use), outputs=None)
    step = use.step
    if not use.constant("output_sequence", False):
        raise NoStatisticsError(f"{step.title} puts out its last step only, not its states")
    if step.node.op_type == "gru" and not use.constant("reset_after", False):
        raise NoStatisticsError(
            f"{step.title} multiplies another state by the rows of each gate (reset_after is false)"
        )
    is_both = use.constant("direction", "forward") == "bidirectional"
    is_back = use.parameter.endswith("_back")
    rows, columns = use.shape

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        first, sequence = arguments["initial_h"], results[0]
        if is_both:
            part = slice(columns, None) if is_back else slice(None, columns)
            first, sequence = first[..., part], sequence[..., part]
        # the layer that goes back puts its steps out beside those of the same inputs
        sequence = sequence.flip(0) if is_back else sequence
        states = torch.cat((first[None].to(sequence.dtype), sequence[:-1]))
        return [states.reshape(1, -1, columns)]

    arrangement = Arrangement(
        shape=use.shape, split=use.shape, order=(0, 1), blocks=1, rows=rows, columns=columns
    )
    # nothing else multiplies these states
    geometry = ("states", id(step), is_back)
    return Reader(
        arrangement=arrangement, sources=use.sources("x"), geometry=geometry, inputs=inputs
    )
