"""Targets: what a weight should be, for the inputs that the compressed layers before it leave.

A weight W gives ``W x_f`` in the float model. In the compressed one its inputs are x, and where the
result is added to a residual stream, that is off by ``s = r_f - r``. The weight that would make up
for a share of both is the solution of a least-squares problem over the inputs, with weights w of
the positions, means taken off where a bias absorbs them::

    W* = W + alpha (W E[w (x_f - x) x^T] + E[w s x^T]) E[w x x^T]^-1
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.calibration.readers import Reader
from mlopt.errors import ConfigError
from mlopt.palette.moments import InputMoments
from mlopt.palette.moments.moments import DAMPING
from mlopt.statistics.guidance import Guidance, Shift

Array = npt.NDArray[Any]


@attrs.frozen(eq=False)
class Part:
    """Part of what an operation is given for a sample.

    inputs, wanted: the inputs [blocks, positions, columns] in the compressed model and the float
    one; stream: the error of the stream that the result is added to, [blocks, positions, rows], or
    None; factors: what the positions count, float32 [blocks, positions], or None for 1.
    """

    inputs: Tensor
    wanted: Tensor
    stream: Tensor | None
    factors: Tensor | None


class Target:
    """Sums over the inputs of one weight, and the guidance that follows from them.

    Products are summed in float32, means in float64. With c columns and r rows in a block, memory
    is ``2 c**2 + r c`` numbers for it, and twice that at the end.
    """

    def __init__(self, reader: Reader) -> None:
        self.arrangement = reader.arrangement
        blocks, columns = self.arrangement.blocks, self.arrangement.columns
        self._second = torch.zeros(blocks, columns, columns)
        self._crossed: Tensor | None = None  # (x_f - x) x^T
        self._streamed: Tensor | None = None  # s x^T
        self._means = torch.zeros(2, blocks, columns, dtype=torch.float64)  # of x, x_f - x
        self._stream_mean = torch.zeros(blocks, self.arrangement.rows, dtype=torch.float64)
        self._total = torch.zeros(blocks, dtype=torch.float64)
        self.count = 0

    def add(self, parts: Iterable[Part]) -> None:
        """Add what the operation is given for a sample."""
        for part in parts:
            x, missing = part.inputs.float(), part.wanted.float()
            missing = missing - x
            weighted = x if part.factors is None else x * part.factors[..., None]
            turned = weighted.transpose(1, 2)
            self.count += x.shape[1]
            self._second.baddbmm_(turned, x)
            if part.factors is None:
                self._total += x.shape[1]
            else:
                self._total += part.factors.double().sum(1).cpu()
            self._means[0] += weighted.sum(1).double().cpu()
            if bool(missing.any()):
                self._crossed = _added(self._crossed, missing.transpose(1, 2), weighted)
                self._means[1] += _summed(missing, part.factors)
            if part.stream is not None:
                stream = part.stream.float()
                self._streamed = _added(self._streamed, stream.transpose(1, 2), weighted)
                self._stream_mean += _summed(stream, part.factors)

    def guidance(
        self, weight: Array, before: Guidance[Any], *, alpha: float, title: str
    ) -> Guidance[Any]:
        """Return the guidance of a weight, of the bias that ``before`` has.

        Raises
        ------
        ConfigError
            Inputs were NaN, infinite, or too large to be squared.
        """
        total = torch.where(self._total > 0, self._total, 1.0)
        means = self._means / total[:, None]
        if not bool(torch.isfinite(self._second).all() and torch.isfinite(means).all()):
            raise ConfigError(
                f"an input of {title} has NaN or infinite elements, or such whose squares are; "
                "leave the sample out, or mend the model"
            )
        shares = self._total / self._total.mean()
        scale = 1.0 / self._total.mean().clamp(min=torch.finfo(torch.float64).tiny)
        second = (self._second * scale.float()).numpy()
        second = (second + second.transpose(0, 2, 1)) / 2
        moments = InputMoments(
            arrangement=self.arrangement,
            second=second,
            diagonal=np.ascontiguousarray(second.diagonal(axis1=1, axis2=2)),
            mean=means[0].float().numpy(),
            count=self.count,
            shares=shares.float().numpy(),
        )
        shift = self._shift(weight, means, total, alpha=alpha, is_centred=before.bias is not None)
        return Guidance(
            "sequential",
            moments if before.bias is None else moments.centred(),
            before.bias,
            None if before.bias is None else moments,
            before.notes,
            shift,
        )

    def _shift(
        self, weight: Array, means: Tensor, total: Tensor, *, alpha: float, is_centred: bool
    ) -> Shift | None:
        if self._crossed is None and self._streamed is None:
            return None
        matrices = torch.from_numpy(
            np.ascontiguousarray(self.arrangement.matrices(weight), np.float32)
        )
        missing = torch.zeros(matrices.shape)
        if self._crossed is not None:
            missing = missing.baddbmm_(matrices, self._crossed)
        if self._streamed is not None:
            missing += self._streamed
        mean = (matrices.double() @ means[1][..., None])[..., 0]
        mean += self._stream_mean / total[:, None]
        wide, second = missing.double(), self._second.double()
        if is_centred:
            wide -= (total[:, None] * mean)[..., None] * means[0][:, None]
            second -= total[:, None, None] * means[0][:, :, None] * means[0][:, None]
        diagonal = second.diagonal(dim1=1, dim2=2)
        damping = DAMPING * diagonal.mean(1, keepdim=True)
        diagonal += torch.where(damping > 0, damping, 1.0)
        solved = torch.linalg.solve(second, wide.transpose(1, 2)).transpose(1, 2)
        shift = self.arrangement.weight((alpha * solved).float().numpy())
        return Shift(np.ascontiguousarray(shift), mean.reshape(-1).numpy())


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right) if total is None else total.baddbmm_(left, right)


def _summed(values: Tensor, factors: Tensor | None) -> Tensor:
    """Return the weighted sum over positions, float64 on the CPU."""
    return (values if factors is None else values * factors[..., None]).sum(1).double().cpu()
