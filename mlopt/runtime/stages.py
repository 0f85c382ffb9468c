"""Stages: the models of a pipeline, and which of them can be run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from mlopt.errors import ConfigError, ModelFormatError
from mlopt.mil.program import Program as MILProgram
from mlopt.text.names import shortlist

_PIPELINES = ("pipeline", "pipelineClassifier", "pipelineRegressor")
_RUN = ("mlProgram", "nonMaximumSuppression")


@attrs.frozen(eq=False)
class Stage:
    """A model, alone or in pipelines.

    name: those of the pipelines it is in and its own, ``"outer/inner"``, "" for the outermost;
    message: the ``Model``; program: of an ML program; parts: the models of a pipeline.
    """

    name: str
    message: Any
    program: MILProgram | None
    parts: tuple[Stage, ...]

    @property
    def kind(self) -> str:
        """The type of the model, such as ``"mlProgram"``."""
        return str(self.message.WhichOneof("Type") or "none")

    @property
    def is_pipeline(self) -> bool:
        """Whether it consists of models."""
        return self.kind in _PIPELINES

    def all(self) -> Iterator[Stage]:
        """The models in it at any depth, each pipeline before its own."""
        for part in self.parts:
            yield part
            yield from part.all()


def stage_of(model: Any, programs: Iterator[MILProgram], name: str = "") -> Stage:
    """Return a model and those in it; ``programs``: the ML programs of all, in order."""
    kind = model.WhichOneof("Type")
    if kind not in _PIPELINES:
        return Stage(name, model, next(programs) if kind == "mlProgram" else None, ())
    pipeline = model.pipeline if kind == "pipeline" else getattr(model, kind).pipeline
    parts = []
    for number, inner in enumerate(pipeline.models):
        own = pipeline.names[number] if number < len(pipeline.names) else f"model{number}"
        parts.append(stage_of(inner, programs, f"{name}/{own}" if name else own))
    return Stage(name, model, None, tuple(parts))


def chosen(root: Stage, wanted: int | str, where: str) -> Stage:
    """Return one model of a pipeline, by position or name; a string may also be the position.

    Raises
    ------
    ConfigError
        There is none, or several share the name.
    """
    if not root.is_pipeline:
        raise ConfigError(
            f"stage is for pipelines; {where} is not a pipeline, but of type {root.kind}; "
            "leave it out"
        )
    named = [stage for stage in root.all() if stage.name == wanted]
    if len(named) > 1:
        raise ConfigError(f"{where}: {len(named)} stages are named {wanted!r}; give the position")
    if named:
        return named[0]
    position = int(wanted) if str(wanted).isdecimal() else -1
    if 0 <= position < len(root.parts):
        return root.parts[position]
    raise ConfigError(
        f"{where}: the pipeline has no stage {wanted!r}; give a position from 0 to "
        f"{len(root.parts) - 1}, or a name: {shortlist([stage.name for stage in root.all()])}"
    )


def check_can_run(stage: Stage, where: str) -> None:
    """Refuse a model of a kind that cannot be run, or a pipeline that has one.

    Raises
    ------
    ModelFormatError
        With all stages that cannot be run, and how to run the others alone.
    """
    whole = (stage, *stage.all())
    models = [part for part in whole if not part.is_pipeline]
    others = [part for part in models if part.kind not in _RUN]
    if not others:
        return
    runnable = [part.name for part in models if part.kind in _RUN]
    if not stage.is_pipeline:
        raise ModelFormatError(
            f"{where}: {_titled(stage)} cannot be run; only ML programs and nonMaximumSuppression "
            "models can"
        )
    remedy = (
        f"Each of these can be run alone, with stage= or --stage: {shortlist(runnable)}"
        if runnable
        else "It has no others"
    )
    raise ModelFormatError(
        f"{where}: the pipeline has stages that cannot be run: "
        f"{', '.join(map(_titled, others))}. Only ML programs and nonMaximumSuppression models "
        f"can. {remedy}"
    )


def _titled(stage: Stage) -> str:
    name = f"stage {stage.name!r}" if stage.name else "the model"
    return f"{name} of type {stage.kind}"
