"""ML programs one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlopt.errors import ModelFormatError
from mlopt.runtime.features.checks import check_is_mapping, check_names, several
from mlopt.runtime.features.described import Feature, features_of
from mlopt.runtime.program import Program
from mlopt.runtime.state import State, check_state


class Pipeline:
    """ML programs one after the other: each gets what those before it put out."""

    def __init__(self, model: Any, programs: list[Program], where: str) -> None:
        self._programs = programs
        self.inputs: dict[str, Feature] = features_of(model.description.input, where)
        self.outputs: dict[str, Feature] = features_of(model.description.output, where)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs in their order."""
        return tuple(self._programs)

    def make_state(self) -> State:
        """A new state of all programs."""
        states: dict[str, Any] = {}
        for program in self._programs:
            states |= program.make_state().tensors
        return State(states)

    def predict(
        self,
        data: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        state: State | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Run all programs; see :meth:`Program.predict`."""
        if isinstance(data, Mapping):
            return self._predicted(data, state, seed)
        return [self._predicted(each, None, seed) for each in several(data, state)]

    def _predicted(
        self, data: Mapping[str, Any], state: State | None, seed: int | None
    ) -> dict[str, Any]:
        check_is_mapping(data)
        check_names(data, self.inputs, "input")
        declared = {n: k for program in self._programs for n, k in program.plan.state_types.items()}
        check_state(state, declared)
        values = dict(data)
        for name, feature in self.inputs.items():
            if name not in values:
                values[name] = feature.default_tensor()
        for number, program in enumerate(self._programs):
            own = {name: values[name] for name in program.inputs if name in values}
            part = None
            if state is not None and program.plan.state_types:
                part = State({name: state.tensors[name] for name in program.plan.state_types})
            values |= program.run(own, part, seed=seed).outputs
            later = set(self.outputs).union(*(p.inputs for p in self._programs[number + 1 :]))
            values = {name: value for name, value in values.items() if name in later}
        lacking = [name for name in self.outputs if name not in values]
        if lacking:
            raise ModelFormatError(f"no model of the pipeline puts out {', '.join(lacking)}")
        return {name: values[name] for name in self.outputs}
