"""Targets: what a weight should be, for the inputs that the compressed layers before it leave.

A weight W gives ``W x_f`` in the float model. In the compressed one its inputs are x, and where the
result is added to a residual stream, that is off by ``s = r_f - r``. The weight that would make up
for a share of both is the solution of a least-squares problem over the inputs, with weights w of
the positions, means taken off where a bias absorbs them::

    W* = W + alpha (W E[w (x_f - x) x^T] + E[w s x^T]) (E[w x x^T] + damping)^-1

How much of that holds for other inputs is measured: it is solved on three samples of four, for
several dampings, and checked on the fourth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.calibration.readers import Reader
from mlopt.errors import ConfigError
from mlopt.palette.moments import Arrangement, InputMoments
from mlopt.palette.moments.moments import DAMPING
from mlopt.statistics.guidance import Guidance

Array = npt.NDArray[Any]

_EVERY = 4
"""Of so many samples one is kept for the check."""

_DAMPINGS = (DAMPING, 10 * DAMPING, 100 * DAMPING)
"""Shares of the mean diagonal that are tried as damping of what is missing."""


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


class Sums:
    """Sums over positions, by block: of products in float32, of others in float64.

    second: of w x x^T; crossed: of w (x_f - x) x^T, None where all are 0; streamed: of w s x^T,
    None for no stream; inputs, missing, stream: of w x, w (x_f - x), w s; total: of w; count: of 1.
    """

    def __init__(self, arrangement: Arrangement) -> None:
        blocks, rows, columns = arrangement.blocks, arrangement.rows, arrangement.columns
        self.second = torch.zeros(blocks, columns, columns)
        self.crossed: Tensor | None = None
        self.streamed: Tensor | None = None
        self.inputs = torch.zeros(blocks, columns, dtype=torch.float64)
        self.missing = torch.zeros(blocks, columns, dtype=torch.float64)
        self.stream = torch.zeros(blocks, rows, dtype=torch.float64)
        self.total = torch.zeros(blocks, dtype=torch.float64)
        self.count = 0

    def add(self, part: Part) -> None:
        """Add part of what the operation is given."""
        x = part.inputs.float()
        missing = part.wanted.float() - x
        weighted = x if part.factors is None else x * part.factors[..., None]
        self.count += x.shape[1]
        self.second.baddbmm_(weighted.transpose(1, 2), x)
        self.total += x.shape[1] if part.factors is None else part.factors.double().sum(1).cpu()
        self.inputs += weighted.sum(1).double().cpu()
        if bool(missing.any()):
            self.crossed = _added(self.crossed, missing.transpose(1, 2), weighted)
            self.missing += _summed(missing, part.factors)
        if part.stream is not None:
            stream = part.stream.float()
            self.streamed = _added(self.streamed, stream.transpose(1, 2), weighted)
            self.stream += _summed(stream, part.factors)

    def include(self, other: Sums) -> None:
        """Add the sums over other positions; those of the other are used up."""
        self.second += other.second
        self.crossed = _both(self.crossed, other.crossed)
        self.streamed = _both(self.streamed, other.streamed)
        for own, more in zip(self._firsts(), other._firsts(), strict=True):
            own += more
        self.count += other.count

    def _firsts(self) -> tuple[Tensor, ...]:
        return self.inputs, self.missing, self.stream, self.total

    def is_finite(self) -> bool:
        """Whether no input was NaN, infinite, or too large to be squared."""
        return all(bool(torch.isfinite(each).all()) for each in (self.second, *self._firsts()))

    def missed(self, matrices: Tensor, *, is_centred: bool) -> tuple[Tensor, Tensor]:
        """Return the sums of w (W (x_f - x) + s) x^T and of w x x^T, float64.

        matrices: W, float32 [blocks, rows, columns]; is_centred: about the means of all.
        """
        wanted = torch.zeros(matrices.shape)
        if self.crossed is not None:
            wanted = wanted.baddbmm_(matrices, self.crossed)
        if self.streamed is not None:
            wanted += self.streamed
        wide, second = wanted.double(), self.second.double()
        if is_centred:
            means = self.inputs / torch.where(self.total > 0, self.total, 1.0)[:, None]
            sums = (matrices.double() @ self.missing[..., None])[..., 0] + self.stream
            wide -= sums[..., None] * means[:, None]
            second -= self.inputs[..., None] * means[:, None]
        return wide, second


class Target:
    """What the inputs of one weight ask for.

    With c columns and r rows in a block, memory is ``2 (2 c**2 + r c)`` numbers for it, and that
    again in the end. Work: a product of [r, c] and [c, c] matrices for each position, and for
    three dampings ``c**3 / 3 + r c**2``.
    """

    def __init__(self, reader: Reader) -> None:
        self.arrangement = reader.arrangement
        self._seen, self._other = Sums(self.arrangement), Sums(self.arrangement)

    def add(self, parts: Iterable[Part], number: int) -> None:
        """Add what the operation is given for a sample of this number."""
        sums = self._other if number % _EVERY == _EVERY - 1 else self._seen
        for part in parts:
            sums.add(part)

    def guidance(
        self, weight: Array, before: Guidance[Any], *, alpha: float, title: str
    ) -> Guidance[Any]:
        """Return the guidance of a weight whose bias, if ``before`` has one, takes all means.

        Raises
        ------
        ConfigError
            Inputs were NaN, infinite, or too large to be squared.
        """
        if not (self._seen.is_finite() and self._other.is_finite()):
            raise ConfigError(
                f"an input of {title} has NaN or infinite elements, or such whose squares are; "
                "leave the sample out, or mend the model"
            )
        is_centred = before.bias is not None
        matrices = torch.from_numpy(
            np.ascontiguousarray(self.arrangement.matrices(weight), np.float32)
        )
        damping, share = self._checked(matrices, is_centred=is_centred)
        self._seen.include(self._other)
        shift = None
        if alpha * share > 0:
            solved = _solutions(*self._seen.missed(matrices, is_centred=is_centred), [damping])[0]
            shift = self.arrangement.weight((alpha * share * solved).float().numpy())
        return Guidance(
            "sequential",
            self._moments(),
            is_centred=is_centred,
            notes=before.notes,
            shift=shift,
        )

    def _checked(self, matrices: Tensor, *, is_centred: bool) -> tuple[float, float]:
        """Return the best damping on the samples kept for that, and the share that holds there.

        That is the multiple, from 0 to 1, of the solution on the others that has the least error.
        """
        if self._seen.crossed is None and self._seen.streamed is None:
            return DAMPING, 0.0
        if not self._other.count:
            # too few samples for a check
            unknowns = self.arrangement.columns
            return DAMPING, max(0.0, 1.0 - unknowns / max(self._seen.count, 1))
        wanted, second = self._other.missed(matrices, is_centred=is_centred)
        best, chosen = 0.0, (DAMPING, 0.0)
        solutions = _solutions(*self._seen.missed(matrices, is_centred=is_centred), _DAMPINGS)
        for damping, solved in zip(_DAMPINGS, solutions, strict=True):
            gain = float((solved * wanted).sum())
            power = float((torch.bmm(solved, second) * solved).sum())
            if gain <= 0 or power <= 0:
                continue
            share = min(1.0, gain / power)
            less = 2 * share * gain - share**2 * power
            if less > best:
                best, chosen = less, (damping, share)
        return chosen

    def _moments(self) -> InputMoments:
        sums = self._seen
        mean_total = float(sums.total.mean()) or 1.0
        second = (sums.second / mean_total).numpy()
        second = (second + second.transpose(0, 2, 1)) / 2
        totals = torch.where(sums.total > 0, sums.total, 1.0)
        return InputMoments(
            arrangement=self.arrangement,
            second=second,
            diagonal=np.ascontiguousarray(second.diagonal(axis1=1, axis2=2)),
            mean=(sums.inputs / totals[:, None]).float().numpy(),
            count=sums.count,
            shares=(sums.total / mean_total).float().numpy(),
        )


def _solutions(wanted: Tensor, second: Tensor, dampings: Sequence[float]) -> list[Tensor]:
    """Return ``wanted (second + damping)^-1``, float64 [blocks, rows, columns], for each."""
    diagonal = second.diagonal(dim1=1, dim2=2)
    undamped, mean = diagonal.clone(), diagonal.mean(1, keepdim=True)
    turned, solved = wanted.transpose(1, 2), []
    for damping in dampings:
        diagonal.copy_(undamped + torch.where(mean > 0, damping * mean, 1.0))
        solved.append(torch.linalg.solve(second, turned).transpose(1, 2))
    diagonal.copy_(undamped)
    return solved


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right) if total is None else total.baddbmm_(left, right)


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _summed(values: Tensor, factors: Tensor | None) -> Tensor:
    """Return the weighted sum over positions, float64 on the CPU."""
    return (values if factors is None else values * factors[..., None]).sum(1).double().cpu()
