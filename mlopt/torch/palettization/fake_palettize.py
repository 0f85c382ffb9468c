"""``FakePalettize``: simulated palettization of a weight in training."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from mlopt.errors import ConfigError
from mlopt.palette.value.palettized import Palettized
from mlopt.torch.palettization.forward_passes import hard_pass, soft_pass
from mlopt.torch.palettization.shares import WHOLE, share_of_this_rank
from mlopt.torch.palettization.table_format import stored_palette
from mlopt.torch.palettization.table_state import TableState
from mlopt.torch.palettization.weight_points import points_of
from mlopt.torch.soft_kmeans import Clusters, soft_kmeans
from mlopt.torch.soft_kmeans.eager import outside_graphs


class FakePalettize(TableState):
    """Simulates the palettization of a weight; the gradient passes through (DKM).

    It is a parametrization: ``torch.nn.utils.parametrize`` calls it with the weight that is trained
    wherever the module's weight is used. In training, each weight is the mean of the table's
    entries, weighted by how near they are, and the table follows the weights by soft k-means
    (arXiv 2108.12659; the formulas stand in :mod:`mlopt.torch.soft_kmeans.iterations`). In
    evaluation each weight is the nearest entry. Disabled, it gives the weight as it is.

    Tables move once for each change of the weights: passes over the same weights give the same, be
    they several batches before an update, two uses of a tied weight, or a pass that activation
    checkpointing repeats.
    """

    def enable(self, enabled: bool = True) -> None:
        """Switch palettization on or off."""
        self.enabled.fill_(enabled)

    @outside_graphs
    def forward(self, weight: Tensor) -> Tensor:
        """The weight as stored: of the shape and dtype of ``weight``."""
        if torch._C._is_tracing() or _is_exporting():
            raise ConfigError(
                "a model that is prepared for training cannot be traced; trace the model that "
                "finalize returns"
            )
        if not self.enabled:
            return weight
        # one rank alone must not keep anything, or its tables would differ from those of the rest
        share = share_of_this_rank() if self.options.in_shares else WHOLE
        is_alone = share.ranks > 1 and not (self.training and torch.is_grad_enabled())
        is_fixed = is_alone or (not self.training and bool(self.started))
        with (
            torch.autocast(weight.device.type, enabled=False),
            self.unchanged() if is_fixed else contextlib.nullcontext(),
        ):
            if self.training:
                points = points_of(weight, self.options, has_importance=True)
                stored = soft_pass(self, points, WHOLE if is_alone else share)
            else:
                starts = self.must_start
                points = points_of(weight, self.options, has_importance=starts)
                stored = hard_pass(self, points, starts=starts)
            dense = self.options.layout.weight(stored)
            if points.scale is not None:
                # a channel of zeros is passed on, so that training can move it away from zero
                scaled = torch.where(points.scale > 0, dense * points.scale, weight)
                dense = scaled.to(weight.dtype)
        passed: Tensor = _DenseGradient.apply(dense)  # type: ignore[no-untyped-call]
        return passed

    @torch.no_grad()
    def palettized(self, weight: Tensor) -> Palettized:
        """Return the palette of a weight: nearest entries, after a last move of the table.

        In the weight's dtype; tables of 8 bits as ``palettize`` makes them from these entries.
        """
        options = self.options
        points = points_of(weight.detach(), options, has_importance=True)
        if self.must_start:
            self.start(points, WHOLE)
        _, centroids = soft_kmeans(
            points.kept,
            Clusters(self.centroids, self.temperature_for(points.moments), self.pinned.bool()),
            options.for_tables_alone(
                mode="hard" if options.mode == "hard" else "dkm", iterations=options.iterations
            ),
            importance=points.importance,
        )
        self.centroids.copy_(self.unless_stale(centroids, points))
        unscaled = options.layout.weight(points.kept).to(weight.dtype)
        return stored_palette(unscaled, self.table(), points.scale, options)


class _DenseGradient(torch.autograd.Function):
    """The identity with a dense gradient: modules that look rows up may send sparse ones."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Tensor:
        return pull.to_dense() if pull.is_sparse else pull


def _is_exporting() -> bool:
    # PyTorch before 2.7 cannot say
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return is_exporting is not None and bool(is_exporting())
