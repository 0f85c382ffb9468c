"""Residual streams: what the result of an operation is added to, read off the graph."""

from __future__ import annotations

from collections.abc import Sequence

from mlopt.runtime.plan import Body, Source, Step, slots_read

_ACTIVATIONS = frozenset(
    {
        "clamped_relu",
        "clip",
        "elu",
        "erf",
        "gelu",
        "leaky_relu",
        "relu",
        "relu6",
        "sigmoid",
        "sigmoid_hard",
        "silu",
        "softplus",
        "softsign",
        "scaled_tanh",
        "tanh",
        "thresholded_relu",
    }
)
"""Operations on single elements that do not fall, but for a dip."""


class Streams:
    """The body of a function, asked for what results are added to.

    inputs: the slots that have values before the first step.
    """

    def __init__(self, body: Body, inputs: Sequence[int]) -> None:
        self.body = body
        self._outputs = set(body.outputs)
        self._made = dict.fromkeys(inputs, -1)
        self._readers: dict[int, list[Step]] = {}
        for number, step in enumerate(body.steps):
            self._made |= dict.fromkeys(step.results, number)
            for slot in set(slots_read(step)):
                self._readers.setdefault(slot, []).append(step)

    def added_to(self, step: Step) -> int | None:
        """Return the slot of the tensor that the result of a step is added to.

        Constants may be added, and types cast, in between. None: there is none, the tensor is not
        computed before the step, or the result is read by other operations too.
        """
        (slot, *others) = step.results
        made = self._made[slot]
        while not others:
            readers = self._readers.get(slot, [])
            if len(readers) != 1 or slot in self._outputs:
                return None
            (reader,) = readers
            added = _other_term(reader, slot)
            if isinstance(added, int):
                return added if self._made.get(added, made) < made else None
            if added is None and reader.node.op_type != "cast":
                return None
            slot, *others = reader.results
        return None

    def is_read(self, step: Step) -> bool:
        """Whether anything reads the result of a step."""
        return any(slot in self._readers or slot in self._outputs for slot in step.results)

    def read_by(self, step: Step) -> Step | None:
        """Return the elementwise operation that alone reads the result of a step; None for none."""
        (slot, *others) = step.results
        readers = self._readers.get(slot, [])
        if others or len(readers) != 1 or slot in self._outputs:
            return None
        (reader,) = readers
        given = [(spec.name, sources) for spec, sources in reader.arguments]
        is_alone = given == [("x", (slot,))]
        return reader if is_alone and reader.node.op_type in _ACTIVATIONS else None


def _other_term(step: Step, slot: int) -> Source | None:
    """Return what an addition adds to a slot; None where the step is not one."""
    if step.node.op_type != "add":
        return None
    others = [source for _, sources in step.arguments for source in sources if source != slot]
    return others[0] if len(others) == 1 else None
