"""Palettization of a model: decide on every weight, then write a new package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlopt.choices import METHODS, Method
from mlopt.coreml.biases import BiasPlace
from mlopt.coreml.calibrated import guides_of
from mlopt.coreml.config import OptimizationConfig, for_palettization
from mlopt.coreml.decisions import decide
from mlopt.coreml.execution import Computed, carry_out, compute, row_of
from mlopt.coreml.guards import COMPRESSED
from mlopt.coreml.joint import can_be_palettized
from mlopt.coreml.links import link_notes
from mlopt.coreml.models import ModelSource, TargetName, as_mlmodel, destination_or_temporary
from mlopt.coreml.plans import Plan
from mlopt.coreml.progress import Progress
from mlopt.coreml.rows import foreseen_row, kept_row
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.writer import PackageWriter, check_destination
from mlopt.requests.checked import integer, word
from mlopt.requests.keep import Keep
from mlopt.requests.report import Report, WeightRow
from mlopt.statistics.guidance import CalibrationSource, Guides
from mlopt.threads import processors

if TYPE_CHECKING:
    from coremltools.models import MLModel


@attrs.define(eq=False, slots=False)
class PalettizationResult:
    """Result of :func:`palettize`.

    Attributes
    ----------
    report
        The account of every weight.
    path
        The package that was written; a temporary one where no ``output`` was given.
    """

    report: Report
    path: Path
    _source: MLModel | None = None
    _is_temporary: bool = False

    @cached_property
    def model(self) -> MLModel:
        """The palettized model as a coremltools ``MLModel``, loaded at the first use."""
        return as_mlmodel(self.path, like=self._source, is_temporary=self._is_temporary)


def palettize_weights(
    mlmodel: MLModel, config: OptimizationConfig, joint_compression: bool = False
) -> MLModel:
    """Palettize the weights of a model; a drop-in for the function of that name in coremltools.

    Parameters
    ----------
    mlmodel
        An ``MLModel`` of type ``mlprogram``. It is not changed.
    config
        Which weights, and how; coremltools' own OptimizationConfig is accepted too.
    joint_compression
        Also palettize the nonzero values of sparse weights and the integers of quantized ones.

    Returns
    -------
    A new ``MLModel``. :func:`palettize` also returns the account of every weight.

    Raises
    ------
    ConfigError, TargetError, ModelFormatError
        See :func:`palettize`.
    """
    return palettize(mlmodel, config, joint_compression=joint_compression).model


def palettize(
    source: ModelSource,
    config: OptimizationConfig,
    *,
    output: str | os.PathLike[str] | None = None,
    minimum_deployment_target: TargetName | None = None,
    strict: bool = False,
    joint_compression: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    calibration: CalibrationSource | None = None,
    method: Method = "auto",
    correct_biases: bool = True,
) -> PalettizationResult:
    """Palettize the weights of a model and account for every one of them.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel`` of type ``mlprogram`` (also with several
        functions, or a pipeline of such). It is not changed.
    config
        Which weights, and how; coremltools' own OptimizationConfig is accepted too.
    output
        Where to write the palettized package; it appears complete or not at all, and may replace
        an earlier one, the source included. None: a temporary package behind ``result.model``.
    minimum_deployment_target
        The newest target that the result may need, such as ``"iOS18"``: the model is raised as far
        as the requests need, never past it. None: the model's own target, or iOS16 if that is
        older.
    strict
        Whether a rule that matches no weight is an error instead of a line of the report.
    joint_compression
        Also palettize weights that are already compressed: the nonzero values of sparse weights,
        whose zeros stay zero, and the integers of quantized ones, whose scales stay. Needs iOS18.
        False: such weights stay as they are.
    workers
        Threads, at least 1. None: the largest `num_kmeans_workers` of the rules, or one per
        processor if that is 1. The result does not depend on it.
    progress
        Called as ``progress(elements_done, elements_in_all, weight_name)``.
    calibration
        Statistics of the inputs that weights multiply, or the path of their file: see
        :func:`mlopt.calibration.calibrate`. Tables of mode kmeans are then fitted to the outputs
        of the operations that read the weights.
    method
        ``"auto"``: the best that the calibration has for a weight. ``"hessian"``: the same (all
        second moments of the inputs, where they are known; those of guided statistics stay weighted
        by gradients). ``"guided"``: the same, and only with guided statistics. ``"diagonal"``:
        their mean squares alone. ``"plain"``: no calibration. Rules may have
        their own.
    correct_biases
        Fold the mean error of the outputs into the bias, where all second moments are used, of a
        linear layer or a convolution that alone reads the weight; where there is none, one is
        added.

    Returns
    -------
    PalettizationResult
        ``.report``, ``.path`` and ``.model``.

    Raises
    ------
    ConfigError
        A rule does not fit the weights it matches, or matches none (``strict``).
    TargetError
        Requests that the target cannot express; all of them, before any clustering.
    ModelFormatError
        The source is damaged or no ML program.
    """
    job = prepare(
        source,
        config,
        output=output,
        minimum_deployment_target=minimum_deployment_target,
        strict=strict,
        joint_compression=joint_compression,
        workers=workers,
        calibration=calibration,
        method=method,
        correct_biases=correct_biases,
    )
    return job.finish(progress=progress)


@attrs.frozen(eq=False, kw_only=True)
class Job:
    """A palettization that is decided, and not carried out.

    source, output: as given to :func:`palettize`; package: the source, opened; plan, guides: what
    happens to its weights, and what a calibration says for them; workers: threads.
    """

    source: ModelSource
    output: str | os.PathLike[str] | None
    package: Package
    plan: Plan
    guides: Guides[BiasPlace]
    workers: int

    def finish(
        self,
        *,
        computed: Mapping[int, Computed] | None = None,
        progress: Progress | None = None,
    ) -> PalettizationResult:
        """Cluster, and write the package.

        computed: what has been clustered before, by the identity of the weights.
        """
        with (
            destination_or_temporary(self.output) as path,
            PackageWriter(self.package, path) as writer,
        ):
            rows = carry_out(
                self.plan,
                self.guides,
                writer,
                workers=self.workers,
                progress=progress,
                computed=computed,
            )
            path = writer.finish()
        report = _report(self.plan, rows, self.package, self.guides.notes)
        like = self.source if hasattr(self.source, "get_spec") else None
        return PalettizationResult(report, path, like, self.output is None)


def prepare(
    source: ModelSource,
    config: OptimizationConfig,
    *,
    output: str | os.PathLike[str] | None,
    minimum_deployment_target: TargetName | None,
    strict: bool,
    joint_compression: bool,
    workers: int | None,
    calibration: CalibrationSource | None,
    method: Method,
    correct_biases: bool,
) -> Job:
    """Decide about every weight; parameters and errors as for :func:`palettize`."""
    config = for_palettization(config)
    method = word(method, "method", METHODS)
    threads = _threads(workers, config)
    if output is not None:
        check_destination(output)
    package = open_package(source)
    plan = decide(
        package,
        config,
        minimum_deployment_target=minimum_deployment_target,
        strict=strict,
        joint_compression=joint_compression,
    )
    guides = guides_of(plan.decisions, calibration, method=method, correct_biases=correct_biases)
    return Job(
        source=source, output=output, package=package, plan=plan, guides=guides, workers=threads
    )


def preview(
    source: ModelSource,
    config: OptimizationConfig,
    *,
    minimum_deployment_target: TargetName | None = None,
    strict: bool = False,
    joint_compression: bool = False,
) -> Report:
    """Return the report of :func:`palettize` without clustering: decisions and exact sizes.

    Nothing is written, and there is no signal-to-noise ratio. ``unique`` and joint compression are
    carried out, since their sizes depend on the values. ``custom`` is counted at 8 bits, with a
    note in the row.

    Parameters and errors as for :func:`palettize`.
    """
    config = for_palettization(config)
    package = open_package(source)
    plan = decide(
        package,
        config,
        minimum_deployment_target=minimum_deployment_target,
        strict=strict,
        joint_compression=joint_compression,
    )
    rows = []
    for decision in plan.decisions:
        if isinstance(decision.result, Keep):
            rows.append(kept_row(decision, decision.result))
        elif decision.result.mode == "unique" or decision.weight.is_compressed:
            rows.append(row_of(decision, compute(decision.weight, decision.result)))
        else:
            rows.append(foreseen_row(decision))
    return _report(plan, rows, package)


def _threads(workers: int | None, config: OptimizationConfig) -> int:
    """Return the number of threads for clustering."""
    if workers is not None:
        return integer(workers, "workers", minimum=1)
    rules = [*config.op_type_configs.values(), *config.op_name_configs.values()]
    asked = [rule.num_kmeans_workers for rule in (config.global_config, *rules) if rule is not None]
    most = max(asked, default=1)
    return min(most, processors()) if most > 1 else processors()


def _report(
    plan: Plan, rows: list[WeightRow], package: Package, more_notes: tuple[str, ...] = ()
) -> Report:
    return Report(
        rows=rows,
        target_before=str(plan.target),
        target_after=str(plan.target_after),
        target_reason=plan.target_reason,
        unmatched_rules=plan.unmatched_rules,
        notes=(*link_notes(package), *plan.notes, *_notes(plan), *more_notes),
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    compressed = [
        decision.weight
        for decision in plan.decisions
        if isinstance(decision.result, Keep) and decision.result.category == COMPRESSED
    ]
    possible = sum(map(can_be_palettized, compressed))
    if not possible or plan.joint_compression:
        return ()
    return (
        f"{possible} of the weights that are already compressed can also be palettized with "
        "joint_compression (--joint); decompressed, all of them can.",
    )
