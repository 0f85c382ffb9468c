"""Pipelines: models run one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlopt.errors import ModelFormatError
from mlopt.runtime.call import OutputType
from mlopt.runtime.execution import Observer
from mlopt.runtime.features.checks import check_is_mapping, check_names, several
from mlopt.runtime.features.described import Feature
from mlopt.runtime.program import Program
from mlopt.runtime.state import State, check_state
from mlopt.runtime.suppression import Suppression


class Pipeline:
    """A pipeline: each model gets the outputs of those before it.

    Attributes
    ----------
    inputs, outputs
        The features that the pipeline describes, by name.
    stages
        Its models in their order: programs, non-maximum suppressions, and pipelines in it.
    optional
        The names of inputs that have a default in one of the models.
    """

    def __init__(
        self,
        inputs: Mapping[str, Feature],
        outputs: Mapping[str, Feature],
        stages: Sequence[Program | Suppression | Pipeline],
    ) -> None:
        self.stages = tuple(stages)
        self.optional = frozenset(name for stage in stages for name in _optional(stage))
        self.inputs: dict[str, Feature] = {
            name: attrs.evolve(feature, is_optional=True) if name in self.optional else feature
            for name, feature in inputs.items()
        }
        self.outputs: dict[str, Feature] = dict(outputs)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The ML programs in order, including those of nested pipelines."""
        return tuple(program for stage in self.stages for program in _programs(stage))

    @property
    def state_types(self) -> dict[str, OutputType]:
        """The declared types of its programs' states, by name."""
        return {
            n: kind for program in self.programs for n, kind in program.plan.state_types.items()
        }

    def make_state(self) -> State:
        """A new state of all programs."""
        states: dict[str, Any] = {}
        for program in self.programs:
            states |= program.make_state().tensors
        return State(states)

    def predict(
        self,
        data: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        state: State | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Run all models; see :meth:`Program.predict`."""
        if isinstance(data, Mapping):
            return self.run(data, state, seed=seed)
        return [self.run(each, seed=seed) for each in several(data, state)]

    def run(
        self,
        data: Mapping[str, Any],
        state: State | None = None,
        *,
        observer: Observer | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Run all models on one dictionary of inputs, and return the outputs.

        observer: as for :meth:`Program.run`, called after each operation of the ML programs.
        """
        check_is_mapping(data)
        check_names(data, self.inputs, "input")
        check_state(state, self.state_types)
        values = dict(data)
        for name, feature in self.inputs.items():
            if name not in values and name not in self.optional:
                values[name] = feature.default_tensor()
        for number, stage in enumerate(self.stages):
            own = {name: values[name] for name in stage.inputs if name in values}
            values |= _answer(stage, own, state, seed=seed, observer=observer)
            later = set(self.outputs).union(*(s.inputs for s in self.stages[number + 1 :]))
            values = {name: value for name, value in values.items() if name in later}
        lacking = [name for name in self.outputs if name not in values]
        if lacking:
            raise ModelFormatError(f"no model of the pipeline outputs {', '.join(lacking)}")
        return {name: values[name] for name in self.outputs}


def _optional(stage: Program | Suppression | Pipeline) -> Collection[str]:
    return () if isinstance(stage, Program) else stage.optional


def _programs(stage: Program | Suppression | Pipeline) -> Iterator[Program]:
    if isinstance(stage, Pipeline):
        yield from stage.programs
    elif isinstance(stage, Program):
        yield stage


def _answer(
    stage: Program | Suppression | Pipeline,
    data: Mapping[str, Any],
    state: State | None,
    *,
    seed: int | None,
    observer: Observer | None,
) -> dict[str, Any]:
    """Return the outputs of a stage, run with its own states out of those of all stages."""
    if isinstance(stage, Suppression):
        return stage.predict(data)
    own = stage.plan.state_types if isinstance(stage, Program) else stage.state_types
    part = None
    if state is not None and own:
        part = State({name: state.tensors[name] for name in own})
    outputs = stage.run(data, part, observer=observer, seed=seed)
    return outputs if isinstance(outputs, dict) else outputs.outputs
