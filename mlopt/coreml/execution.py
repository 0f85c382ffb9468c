"""Execution of a plan: weights are clustered ahead in threads and replaced in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import attrs

from mlopt.coreml.biases import BiasPlace
from mlopt.coreml.joint import Clustered, strategy_of
from mlopt.coreml.plans import Plan, WeightDecision
from mlopt.coreml.progress import Progress
from mlopt.coreml.replacement import Replacements
from mlopt.coreml.rows import kept_row, palettized_row
from mlopt.coreml.weights import Weight
from mlopt.mil.writer import PackageWriter
from mlopt.palette.palettize import NoPaletteError
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep
from mlopt.requests.report import WeightRow
from mlopt.requests.rows import StoredPalette
from mlopt.statistics.guidance import UNGUIDED, Guidance, Guides
from mlopt.threads import done_ahead, share_of

Computed: TypeAlias = "Clustered | NoPaletteError"
"""The palette of a weight, or why there is none."""


def compute(
    weight: Weight, spec: PaletteSpec, workers: int = 1, guidance: Guidance[BiasPlace] = UNGUIDED
) -> Computed:
    """Cluster one weight; return the error if no table can hold it."""
    try:
        return strategy_of(weight).palettize(weight, spec, workers, guidance)
    except NoPaletteError as reason:
        return reason
    finally:
        weight.release()


def carry_out(
    plan: Plan,
    guides: Guides[BiasPlace],
    writer: PackageWriter,
    *,
    workers: int,
    progress: Progress | None,
    computed: Mapping[int, Computed] | None = None,
) -> list[WeightRow]:
    """Cluster weights, then replace them and raise programs in one edit; return a row for each.

    The messages of the package do not change, and can be read, until everything is clustered.
    computed: results of :func:`compute` that are there already, by the identity of their weights.
    """
    replacements = Replacements(writer, plan.raises)
    rows = []
    total = sum(d.weight.size for d in plan.decisions if isinstance(d.result, PaletteSpec))
    done = 0
    jobs = (_job(decision, guides, workers, computed or {}) for decision in plan.decisions)
    with contextlib.closing(done_ahead(jobs, workers)) as results:
        for decision, clustered in zip(plan.decisions, results, strict=True):
            weight = decision.weight
            if clustered is None:
                assert isinstance(decision.result, Keep)
                rows.append(kept_row(decision, decision.result))
                continue
            if isinstance(clustered, Clustered):
                replacements.replace(
                    weight.program,
                    weight.nodes,
                    clustered.palette,
                    file_name=weight.file_name,
                    bias=clustered.bias,
                )
            rows.append(row_of(decision, clustered, guides.of(weight).method))
            done += weight.size
            if progress is not None:
                progress(done, total, weight.name)
    replacements.apply()
    return rows


def _job(
    decision: WeightDecision,
    guides: Guides[BiasPlace],
    workers: int,
    computed: Mapping[int, Computed],
) -> tuple[int, Callable[[], Computed]] | None:
    """Return the size of a weight and the job that clusters it; None where it is kept."""
    if not isinstance(decision.result, PaletteSpec):
        return None
    weight = decision.weight
    if id(weight) in computed:
        return weight.size, partial(computed.__getitem__, id(weight))
    share = share_of(weight.size, workers)
    return weight.size, partial(compute, weight, decision.result, share, guides.of(weight))


def row_of(decision: WeightDecision, clustered: Computed, method: str = "plain") -> WeightRow:
    """Return the row of a weight that was to be palettized; ``method``: as in ``Guidance``."""
    if isinstance(clustered, NoPaletteError):
        return kept_row(decision, Keep(str(clustered)))
    stored = StoredPalette.of(clustered.palette, clustered.distortion, clustered.notes)
    return palettized_row(
        decision,
        attrs.evolve(
            stored,
            method=method,
            output_snr_db=clustered.output_snr_db,
            has_corrected_bias=clustered.bias is not None,
        ),
    )
