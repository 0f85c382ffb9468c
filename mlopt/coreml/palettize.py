"""Palettizing a model: the decisions carried out, weight by weight, into a new package."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.decisions import Decision, Keep, Plan, decide
from mlopt.coreml.emission import PackedPalette, PaletteOperations
from mlopt.coreml.models import as_mlmodel, temporary_package
from mlopt.coreml.report import Report, WeightRow
from mlopt.coreml.rows import exact_nbytes, kept_row, palettized_row
from mlopt.coreml.weights import Weight, weights_of
from mlopt.errors import ConfigError
from mlopt.mil.edits import Edits
from mlopt.mil.names import UniqueNames
from mlopt.mil.package import Package, open_package
from mlopt.mil.program import Program
from mlopt.mil.targets import Target
from mlopt.mil.writer import PackageWriter, check_destination
from mlopt.palette.distortion import Distortion
from mlopt.palette.palettize import NoPaletteError
from mlopt.palette.palettize import palettize as palettize_weight
from mlopt.palette.spec import PaletteSpec

Progress = Callable[[int, int, str], None]
"""Called after each weight: elements done, elements in all, the weight's name."""


@attrs.define(eq=False, slots=False)
class PalettizationResult:
    """What :func:`palettize` returns.

    Attributes
    ----------
    report
        The account of every weight.
    path
        The package that was written; a temporary one where no ``output`` was given.
    """

    report: Report
    path: Path
    _source: Any = None
    _is_temporary: bool = False

    @cached_property
    def model(self) -> Any:
        """The palettized model as a coremltools ``MLModel``, loaded when first asked for."""
        return as_mlmodel(self.path, like=self._source, is_temporary=self._is_temporary)


def palettize_weights(
    mlmodel: Any, config: OptimizationConfig, joint_compression: bool = False
) -> Any:
    """Palettize the weights of a model; a drop-in for the function of that name in coremltools.

    Parameters
    ----------
    mlmodel
        An ``MLModel`` of type ``mlprogram``. It is not changed.
    config
        Which weights, and how.
    joint_compression
        Compress what is sparse or quantized already. Not available yet: True is refused.

    Returns
    -------
    A new ``MLModel``. :func:`palettize` returns the account of every weight as well.

    Raises
    ------
    ConfigError, TargetError, ModelFormatError
        See :func:`palettize`.
    """
    if joint_compression:
        raise ConfigError(
            "joint_compression=True is not available yet; leave it False, and weights that are "
            "compressed already stay as they are"
        )
    return palettize(mlmodel, config).model


def palettize(
    source: Any,
    config: OptimizationConfig,
    *,
    output: str | os.PathLike[str] | None = None,
    minimum_deployment_target: Any = None,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PalettizationResult:
    """Palettize the weights of a model and account for every one of them.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel`` of type ``mlprogram`` (also with several
        functions, or a pipeline of such). It is not changed.
    config
        Which weights, and how.
    output
        Where to write the palettized package; it appears complete or not at all, and may replace
        an earlier one, the source included. None: a temporary package behind ``result.model``.
    minimum_deployment_target
        The newest target that the result may need, such as ``"iOS18"``: the model is raised as far
        as the requests need, never past it. None: the model's own target, or iOS16 if that is
        older.
    strict
        A rule that matches no weight is an error, not a line of the report.
    workers
        Threads; None for one a processor. The result does not depend on it.
    progress
        Called as ``progress(elements_done, elements_in_all, weight_name)``.

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
    _check_config(config)
    if output is not None:
        check_destination(output)
    package = open_package(source)
    plan = decide(
        package, config, minimum_deployment_target=minimum_deployment_target, strict=strict
    )
    with contextlib.ExitStack() as cleanup:
        path = Path(output) if output is not None else temporary_package(cleanup)
        with PackageWriter(package, path) as writer:
            rows = _carry_out(plan, package, writer, workers or processors(), progress)
            path = writer.finish()
        cleanup.pop_all()
    report = _report(plan, rows)
    is_model = hasattr(source, "get_spec")
    return PalettizationResult(report, path, source if is_model else None, output is None)


def preview(
    source: Any,
    config: OptimizationConfig,
    *,
    minimum_deployment_target: Any = None,
    strict: bool = False,
) -> Report:
    """The report that :func:`palettize` would give, without clustering: decisions and exact sizes.

    Nothing is written, and no signal-to-noise ratio is known. ``unique`` is carried out, since its
    size depends on the values; ``custom`` is counted at 8 bits, which the row's note says.

    Parameters and errors as for :func:`palettize`.
    """
    _check_config(config)
    package = open_package(source)
    plan = decide(
        package, config, minimum_deployment_target=minimum_deployment_target, strict=strict
    )
    rows = []
    for decision in plan.decisions:
        if isinstance(decision.outcome, Keep):
            rows.append(kept_row(decision, decision.outcome))
        elif decision.outcome.mode == "unique":
            rows.append(_row(decision, _compute(decision.weight, decision.outcome)))
        else:
            note = None
            nbits = decision.outcome.nbits
            if nbits is None:
                nbits, note = 8, "lut_function decides the size, counted at 8 bits"
            size = exact_nbytes(decision.weight, decision.outcome, nbits)
            lut_dtype = decision.outcome.lut_dtype
            rows.append(palettized_row(decision, nbits, size, lut_dtype=lut_dtype, note=note))
    return _report(plan, rows)


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_config(config: Any) -> None:
    if not isinstance(config, OptimizationConfig):
        raise ConfigError(
            f"config must be an mlopt.coreml.OptimizationConfig, got {type(config).__name__}; wrap "
            "a single OpPalettizerConfig as OptimizationConfig(global_config=...)"
        )


_Computed = tuple[PackedPalette, Distortion] | NoPaletteError


def _compute(weight: Weight, spec: PaletteSpec, workers: int = 1) -> _Computed:
    """Cluster one weight; what no table can hold comes back as the error that says so."""
    try:
        palettized, distortion = palettize_weight(weight.value(), spec, workers=workers)
    except NoPaletteError as reason:
        return reason
    finally:
        weight.release()
    return PackedPalette.of(palettized), distortion


def _carry_out(
    plan: Plan, package: Package, writer: PackageWriter, workers: int, progress: Progress | None
) -> list[WeightRow]:
    """Raise programs, cluster, and replace the constants; returns the rows in program order."""
    if plan.raises:
        for each in plan.raises:
            each.apply(writer)
        # Raising makes new messages: the weights are the same ones, looked up again.
        weights, _ = weights_of(package)
        decisions = _moved(plan.decisions, weights)
    else:
        decisions = list(plan.decisions)
    names = _Names()
    edits = Edits()
    rows = []
    total = sum(d.weight.size for d in decisions if isinstance(d.outcome, PaletteSpec))
    done = 0
    with contextlib.closing(_computed(decisions, workers)) as results:
        for decision, computed in results:
            if computed is None:
                assert isinstance(decision.outcome, Keep)
                rows.append(kept_row(decision, decision.outcome))
                continue
            if not isinstance(computed, NoPaletteError):
                _replace(decision.weight, computed[0], writer, edits, names)
            rows.append(_row(decision, computed))
            done += decision.weight.size
            if progress is not None:
                progress(done, total, decision.weight.name)
    edits.apply()
    return rows


def _computed(
    decisions: list[Decision], workers: int
) -> Generator[tuple[Decision, _Computed | None], None, None]:
    """The decisions in order, each with its result; a few weights ahead are worked on meanwhile.

    Few, because what is worked on is held in memory. A weight that is much larger than the rest
    gets all threads for its groups.
    """
    waiting: deque[tuple[Decision, Future[_Computed] | None]] = deque()
    ahead = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for decision in decisions:
            future = None
            if isinstance(decision.outcome, PaletteSpec):
                share = workers if decision.weight.size >= 1 << 22 else 1
                future = pool.submit(_compute, decision.weight, decision.outcome, share)
                ahead += 1
            waiting.append((decision, future))
            while ahead > workers + 1:
                first, computing = waiting.popleft()
                ahead -= computing is not None
                yield first, None if computing is None else computing.result()
        while waiting:
            first, computing = waiting.popleft()
            yield first, None if computing is None else computing.result()
    finally:
        # not waited for: after an interrupt, a large weight may take long and nobody wants it
        pool.shutdown(wait=False, cancel_futures=True)


def _moved(decisions: tuple[Decision, ...], weights: list[Weight]) -> list[Decision]:
    """The decisions about the weights of a raised program; its new constants concern none."""
    before, found = _keys([d.weight for d in decisions]), _keys(weights)
    moved = dict(zip(found, weights, strict=True))
    return [
        attrs.evolve(decision, weight=moved.get(key, decision.weight))
        for key, decision in zip(before, decisions, strict=True)
    ]


def _keys(weights: list[Weight]) -> list[tuple[Any, ...]]:
    """What tells weights apart: the place of the first constant, and its number where it repeats.

    Blocks of one function may have constants of equal names; raising keeps their order.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    keys = []
    for weight in weights:
        first = weight.constants[0]
        place = id(weight.program), first.function, first.name, first.parameter, first.index
        keys.append((*place, seen[place]))
        seen[place] += 1
    return keys


def _replace(
    weight: Weight,
    palette: PackedPalette,
    writer: PackageWriter,
    edits: Edits,
    names: _Names,
) -> None:
    """Store a palette once and let every constant of the weight become operations on it."""
    storage = weight.constants[0].storage
    opsets = {function.name: function.opset for function in weight.program.functions}
    operations: dict[Target, PaletteOperations] = {}
    for constant in weight.constants:
        target = next(t for t in Target if t.opset == opsets[constant.function])
        if target not in operations:
            operations[target] = PaletteOperations(
                palette, writer, target=target, file_name=storage and storage[0]
            )
        unique_name = names.of_function(weight.program, constant.function)
        edits.replace(
            constant.block, constant.op, operations[target].replacing(constant, unique_name)
        )


class _Names:
    """Names that are not in use yet, by function; a program is read when one is first wanted."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, str], UniqueNames] = {}

    def of_function(self, program: Program, name: str) -> Callable[[str], str]:
        def unique(wanted: str) -> str:
            key = id(program), name
            if key not in self._names:
                function = next(f for f in program.functions if f.name == name)
                self._names[key] = UniqueNames(program.nodes(), function)
            return self._names[key](wanted)

        return unique


def _row(decision: Decision, computed: _Computed) -> WeightRow:
    if isinstance(computed, NoPaletteError):
        return kept_row(decision, Keep(str(computed), str(computed)))
    palette, distortion = computed
    codes = None if palette.quantized is None else palette.quantized.codes
    return palettized_row(
        decision,
        palette.nbits,
        palette.nbytes,
        lut_dtype=None if codes is None else codes.dtype.name,
        snr_db=distortion.snr_db,
    )


def _report(plan: Plan, rows: list[WeightRow]) -> Report:
    return Report(
        rows=rows,
        target_before=str(plan.target),
        target_after=str(plan.target_after),
        target_reason=plan.target_reason,
        unmatched_rules=plan.unmatched_rules,
    )
