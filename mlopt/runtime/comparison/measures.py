"""Distance measures of two tensors, accumulated over samples."""

from __future__ import annotations

import math
from typing import Literal

import attrs
import torch
from torch import Tensor

from mlopt.runtime.comparison.content import FLOAT16_ENDS, Content, Ends

Status = Literal[
    "different", "equal", "zero", "constant", "saturated", "not finite", "empty", "unmeasured"
]
"""different, equal: of an informative reference; zero, constant, saturated: the candidate is equal,
and so would be any other that is not informative either; not finite: NaN or infinite in all
elements, or not in the same ones; empty: no elements; unmeasured: no samples."""

_FIRST = 5
"""Number of best classes that are compared as a set."""


@attrs.define
class Distance:
    """The distance of a candidate from a reference, over all samples that were added.

    elements: of all samples; left_out: those that are NaN or infinite in one or in both, which are
    not in the sums; mismatched: those of them that differ between both; reference, candidate: the
    content of each.

    Sums are in float64. Everything is NaN if nothing was measured: no sample was added, there is no
    element or none is left, or some are mismatched. If both are zero everywhere, the ratio and the
    cosine are NaN too, since both are 0 / 0.
    """

    samples: int = 0
    elements: int = 0
    left_out: int = 0
    mismatched: int = 0
    reference: Content = attrs.Factory(Content)
    candidate: Content = attrs.Factory(Content)
    _signal: float = 0.0
    _noise: float = 0.0
    _products: float = 0.0
    _candidate_signal: float = 0.0
    _largest: float = 0.0
    _largest_difference: float = 0.0

    @classmethod
    def within(cls, ends: Ends | None) -> Distance:
        """Return a distance of tensors with these ends; see :class:`Content`."""
        ends = FLOAT16_ENDS if ends is None else ends
        return cls(reference=Content(ends), candidate=Content(ends))

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Add a sample: two tensors of the same shape."""
        if reference.shape != candidate.shape:
            raise ValueError(f"shapes differ: {list(reference.shape)} and {list(candidate.shape)}")
        a, b = reference.detach().double().reshape(-1), candidate.detach().double().reshape(-1)
        finite = a.isfinite() & b.isfinite()
        same = (a == b) | (a.isnan() & b.isnan())
        self.samples += 1
        self.elements += a.numel()
        self.reference.add(a)
        self.candidate.add(b)
        self.left_out += int((~finite).sum())
        self.mismatched += int((~finite & ~same).sum())
        a, b = a[finite], b[finite]
        if not a.numel():
            return
        difference = a - b
        self._signal += float(a.square().sum())
        self._candidate_signal += float(b.square().sum())
        self._noise += float(difference.square().sum())
        self._products += float(torch.dot(a, b))
        self._largest = max(self._largest, float(a.abs().max()))
        self._largest_difference = max(self._largest_difference, float(difference.abs().max()))

    @property
    def status(self) -> Status:
        """The verdict of the numbers; ``"equal"`` only if the reference is informative."""
        if not self.samples:
            return "unmeasured"
        if not self.elements:
            return "empty"
        if self._is_unknown:
            return "not finite"
        if self._noise > 0.0:
            return "different"
        state = self.reference.state
        return "equal" if state == "informative" else state

    @property
    def snr_db(self) -> float:
        """Ten times the logarithm of the squared signal over the squared error; inf if equal."""
        if self._is_unknown or self._is_zero:
            return math.nan
        if self._noise == 0.0:
            return math.inf
        return -math.inf if self._signal == 0.0 else 10 * math.log10(self._signal / self._noise)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between both, all samples in a row; 0 if only one is zero."""
        if self._is_unknown or self._is_zero:
            return math.nan
        norms = math.sqrt(self._signal * self._candidate_signal)
        if norms == 0.0:
            return 0.0
        return min(1.0, self._products / norms)

    @property
    def max_absolute(self) -> float:
        """The largest absolute difference of two elements."""
        return math.nan if self._is_unknown else self._largest_difference

    @property
    def max_relative(self) -> float:
        """The largest difference over the largest magnitude of the reference."""
        if self._is_unknown:
            return math.nan
        if self._largest_difference == 0.0:
            return 0.0
        return math.inf if self._largest == 0.0 else self._largest_difference / self._largest

    @property
    def _is_zero(self) -> bool:
        return self._signal == self._candidate_signal == 0.0

    @property
    def _is_unknown(self) -> bool:
        return self.samples == 0 or self.mismatched > 0 or self.left_out == self.elements


@attrs.define
class Agreement:
    """How often two classifiers agree.

    samples: all that were added; top1: those with the same best class; not_a_number: those with NaN
    among the scores, which count as disagreeing; ranked: those of more than five classes, of which
    the best five are compared; top5: the shares of these five that are in both, added up.
    """

    samples: int = 0
    top1: int = 0
    ranked: int = 0
    top5: float = 0.0
    not_a_number: int = 0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Add a sample: scores of the classes, [C] both; of equal ones the first counts."""
        # the best five of at most five classes are always the same
        is_ranked = len(reference) > _FIRST
        self.samples += 1
        self.ranked += is_ranked
        if bool(reference.isnan().any() | candidate.isnan().any()):
            self.not_a_number += 1
            return
        a, b = (
            torch.argsort(t.double(), descending=True, stable=True).tolist()
            for t in (reference, candidate)
        )
        self.top1 += a[0] == b[0]
        if is_ranked:
            self.top5 += len(set(a[:_FIRST]) & set(b[:_FIRST])) / _FIRST

    @property
    def top1_share(self) -> float:
        """The share of samples with the same best class."""
        return self.top1 / self.samples

    @property
    def top5_share(self) -> float | None:
        """The mean share of the best five classes that are in both; None for five or fewer."""
        return self.top5 / self.ranked if self.ranked else None
