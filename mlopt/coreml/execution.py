"""Carrying out a plan: weight by weight, clustered ahead in threads and replaced in order."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import attrs

from mlopt.coreml.decisions import subjects_of
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint import JointWeight, palettize_joint
from mlopt.coreml.plans import Plan, WeightDecision
from mlopt.coreml.progress import Progress
from mlopt.coreml.replacement import Replacements
from mlopt.coreml.rows import joint_notes, kept_row, palettized_row
from mlopt.coreml.weights import Weight
from mlopt.mil.package import Package, open_package
from mlopt.mil.writer import PackageWriter
from mlopt.palette.palettize import NoPaletteError
from mlopt.palette.palettize import palettize as palettize_weight
from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep
from mlopt.requests.lookahead import done_ahead, share_of
from mlopt.requests.report import WeightRow


@attrs.frozen(eq=False)
class Computed:
    """What clustering a weight gave, with notes for its row."""

    palette: PackedPalette
    distortion: Distortion
    notes: tuple[str, ...] = ()


Outcome = Computed | NoPaletteError


def compute(weight: Weight | JointWeight, spec: PaletteSpec, workers: int = 1) -> Outcome:
    """Cluster one weight; what no table can hold comes back as the error that says so."""
    try:
        if isinstance(weight, JointWeight):
            palette, distortion, plain_nbytes = palettize_joint(weight, spec, workers)
            return Computed(palette, distortion, joint_notes(palette.nbytes, plain_nbytes))
        palettized, distortion = palettize_weight(weight.value(), spec, workers=workers)
    except NoPaletteError as reason:
        return reason
    finally:
        weight.release()
    notes = () if distortion.note is None else (distortion.note,)
    return Computed(PackedPalette.of(palettized), distortion, notes)


def readable_weights(plan: Plan, source: Any) -> Sequence[Weight | JointWeight] | None:
    """The weights of the plan's decisions in another reading of ``source``; None: not needed.

    Raising a program stores parts of compressed weights anew, and what is being written cannot be
    read. It also makes them others than those that the report is about.
    """
    if not plan.raises:
        return None
    return subjects_of(open_package(source))[0]


def carry_out(
    plan: Plan,
    package: Package,
    writer: PackageWriter,
    *,
    readable: Sequence[Weight | JointWeight] | None,
    workers: int,
    progress: Progress | None,
) -> list[WeightRow]:
    """Raise programs, cluster, and replace the constants; returns the rows in program order.

    ``readable``: what ``readable_weights`` gives.
    """
    decisions = plan.decisions
    replaced: Sequence[Weight | JointWeight] = [decision.subject for decision in decisions]
    if plan.raises:
        for each in plan.raises:
            each.apply(writer)
        # Raising makes new messages: the weights are the same ones, looked up again.
        weights, _ = subjects_of(package)
        replaced = _moved(decisions, weights)
    if readable is not None:
        decisions = tuple(
            attrs.evolve(decision, subject=weight)
            for decision, weight in zip(decisions, readable, strict=True)
        )
    replacements = Replacements(writer)
    rows = []
    total = sum(d.subject.size for d in decisions if isinstance(d.result, PaletteSpec))
    done = 0
    jobs = (_job(decision, workers) for decision in decisions)
    with contextlib.closing(done_ahead(jobs, workers)) as results:
        for weight, decision, computed in zip(replaced, decisions, results, strict=True):
            if computed is None:
                assert isinstance(decision.result, Keep)
                rows.append(kept_row(decision, decision.result))
                continue
            if not isinstance(computed, NoPaletteError):
                replacements.replace(
                    weight.program, weight.nodes, computed.palette, file_name=weight.file_name
                )
            rows.append(row_of(decision, computed))
            done += decision.subject.size
            if progress is not None:
                progress(done, total, decision.subject.name)
    replacements.apply()
    return rows


def _job(decision: WeightDecision, workers: int) -> Callable[[], Outcome] | None:
    """The clustering of a weight; None where it is kept."""
    if not isinstance(decision.result, PaletteSpec):
        return None
    weight = decision.subject
    return partial(compute, weight, decision.result, share_of(weight.size, workers))


def _moved(
    decisions: Sequence[WeightDecision], weights: Sequence[Weight | JointWeight]
) -> list[Weight | JointWeight]:
    """The weights of decisions in a raised program; its new constants concern none.

    Weights that are kept may have no counterpart there, and stay what they were.
    """
    plain = [weight for weight in weights if isinstance(weight, Weight)]
    plain_at = dict(zip(_keys(plain), plain, strict=True))
    keys = iter(_keys([d.subject for d in decisions if isinstance(d.subject, Weight)]))
    joint_at = {
        place: weight
        for joint in weights
        if isinstance(joint, JointWeight)
        for place, weight in zip(joint.places, joint.weights, strict=True)
    }
    moved: list[Weight | JointWeight] = []
    for decision in decisions:
        weight, is_kept = decision.subject, isinstance(decision.result, Keep)
        if isinstance(weight, Weight):
            key = next(keys)
            moved.append(plain_at.get(key, weight) if is_kept else plain_at[key])
        elif is_kept:
            moved.append(weight)
        else:
            # One by one: raising may have made weights equal that have different decisions.
            found = tuple(joint_at[place] for place in weight.places)
            moved.append(attrs.evolve(weight, weights=found))
    return moved


def _keys(weights: Iterable[Weight]) -> list[tuple[Any, ...]]:
    """What tells weights apart: their places, numbered where they repeat, as raising keeps them."""
    seen: Counter[tuple[Any, ...]] = Counter()
    keys = []
    for weight in weights:
        keys.append((*weight.place, seen[weight.place]))
        seen[weight.place] += 1
    return keys


def row_of(decision: WeightDecision, computed: Outcome) -> WeightRow:
    """The row of a weight that was to be palettized."""
    if isinstance(computed, NoPaletteError):
        return kept_row(decision, Keep(str(computed)))
    palette = computed.palette
    codes = None if palette.quantized is None else palette.quantized.codes
    return palettized_row(
        decision,
        palette.nbits,
        palette.nbytes,
        lut_dtype=None if codes is None else codes.dtype.name,
        snr_db=computed.distortion.snr_db,
        notes=computed.notes,
    )
