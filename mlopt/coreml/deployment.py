"""The deployment target of a model, and raising it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlopt.coreml.models import ModelSource, TargetName, rewritten_mlmodel
from mlopt.errors import TargetError
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.raising.upgrade import OpsetRaise, plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.mil.writer import PackageWriter, check_destination

if TYPE_CHECKING:
    from coremltools.models import MLModel


def set_deployment_target(model: ModelSource, target: TargetName) -> MLModel:
    """Raise a model to a deployment target, as if it had been converted for that.

    Every operation that the target's opset redefines is rewritten with the same meaning: new
    parameters get values that keep the meaning, negative indices count from the front, compressed
    weights take the newer form. Nothing else changes. :func:`raise_target` does the same from file
    to file.

    Parameters
    ----------
    model
        An ``MLModel`` of type ``mlprogram`` (also with several functions, or a pipeline of such),
        or the path of an ``.mlpackage``. It is not changed.
    target
        Such as ``"iOS18"``, ``"macOS15"`` or ``coremltools.target.iOS18``. With the model's own
        target the result is a copy.

    Returns
    -------
    A new ``MLModel``.

    Raises
    ------
    TargetError
        The target is older than the model's, or unknown, or the meaning of some operations cannot
        be kept; all of them are listed, each with its function and the reason.
    ModelFormatError
        The model is damaged or is not an ML program.
    """
    like = model if hasattr(model, "get_spec") else None
    return rewritten_mlmodel(lambda path: raise_target(model, path, target), like=like)


def deployment_target(source: ModelSource) -> str:
    """Return the name of a model's deployment target; of a pipeline, the newest of its programs.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel``.

    Raises
    ------
    ModelFormatError
        The model is damaged or is not an ML program.
    """
    return str(_current(open_package(source)))


def raise_target(source: ModelSource, output: str | os.PathLike[str], target: TargetName) -> Path:
    """Write a package whose deployment target is raised, from file to file.

    In a pipeline every ML program is raised, and models of other kinds stay as they are.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel``. It is not changed.
    output
        The package to write; it appears complete or not at all.
    target
        As for :func:`set_deployment_target`.

    Returns
    -------
    The path of the package.

    Raises
    ------
    TargetError, ModelFormatError
        As for :func:`set_deployment_target`.
    """
    _, path = write_raised(source, output, target)
    return path


def write_raised(
    source: ModelSource, output: str | os.PathLike[str], target: TargetName
) -> tuple[Target, Path]:
    """Do what :func:`raise_target` does; return the earlier target and the path."""
    wanted = Target.parse(target)
    check_destination(output)
    package = open_package(source)
    earlier = _current(package)
    plans = _plans(package, wanted)
    with PackageWriter(package, output) as writer:
        for plan in plans:
            plan.apply(writer)
        return earlier, writer.finish()


def _current(package: Package) -> Target:
    version = max(program.specification_version for program in package.programs)
    return Target.of_specification(version)


def _plans(package: Package, target: Target) -> list[OpsetRaise]:
    """Plan every program of a package, or refuse with the reasons of all."""
    current = _current(package)
    if target < current:
        raise TargetError(
            f"{package.path}: the model is for {current} ({current.macos}) and cannot be lowered "
            f"to {target} ({target.macos}), only raised. Convert its source again with "
            f"minimum_deployment_target={target}."
        )
    plans, refusals = [], []
    for program in package.programs:
        try:
            plans.append(plan_opset_raise(program, target))
        except TargetError as error:
            refusals.append(str(error))
    if refusals:
        raise TargetError("\n".join(refusals))
    return plans
