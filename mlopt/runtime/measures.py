"""How far two tensors are apart, added up over samples."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor


@attrs.define
class Distance:
    """The distance of a candidate from a reference, of all samples that were added.

    Sums are of float64. A sample that is not finite in the same places makes the distance NaN.
    """

    samples: int = 0
    elements: int = 0
    _signal: float = 0.0
    _noise: float = 0.0
    _products: float = 0.0
    _candidate: float = 0.0
    _largest: float = 0.0
    _largest_difference: float = 0.0
    _is_broken: bool = False

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Add a sample: two tensors of the same shape."""
        if reference.shape != candidate.shape:
            raise ValueError(f"shapes differ: {list(reference.shape)} and {list(candidate.shape)}")
        a, b = reference.detach().double().reshape(-1), candidate.detach().double().reshape(-1)
        self.samples += 1
        self.elements += a.numel()
        same = (a == b) | (a.isnan() & b.isnan())
        finite = a.isfinite() & b.isfinite()
        if not bool((finite | same).all()):
            self._is_broken = True
        a, b = a[finite], b[finite]
        if not a.numel():
            return
        difference = a - b
        self._signal += float(a.square().sum())
        self._candidate += float(b.square().sum())
        self._noise += float(difference.square().sum())
        self._products += float(torch.dot(a, b))
        self._largest = max(self._largest, float(a.abs().max()))
        self._largest_difference = max(self._largest_difference, float(difference.abs().max()))

    @property
    def snr_db(self) -> float:
        """Ten times the logarithm of the squared signal over the squared error; inf if equal."""
        if self._is_broken:
            return math.nan
        if self._noise == 0.0:
            return math.inf
        return -math.inf if self._signal == 0.0 else 10 * math.log10(self._signal / self._noise)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between both, all samples in a row; 1 if both are zero."""
        if self._is_broken:
            return math.nan
        norms = math.sqrt(self._signal * self._candidate)
        if norms == 0.0:
            return 1.0 if self._signal == self._candidate else 0.0
        return min(1.0, self._products / norms)

    @property
    def max_absolute(self) -> float:
        """The largest difference of two elements."""
        return math.nan if self._is_broken else self._largest_difference

    @property
    def max_relative(self) -> float:
        """The largest difference over the largest magnitude of the reference."""
        if self._is_broken:
            return math.nan
        if self._largest_difference == 0.0:
            return 0.0
        return math.inf if self._largest == 0.0 else self._largest_difference / self._largest


@attrs.define
class Agreement:
    """How often two classifiers say the same: the top answer, and the first five as a set."""

    samples: int = 0
    top1: int = 0
    top5: float = 0.0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Add a sample: scores of the classes, [C] both; of equal ones the first counts."""
        a, b = (
            torch.argsort(t.double(), descending=True, stable=True) for t in (reference, candidate)
        )
        self.samples += 1
        self.top1 += int(a[0] == b[0])
        first = min(5, len(a))
        self.top5 += len(set(a[:first].tolist()) & set(b[:first].tolist())) / first
