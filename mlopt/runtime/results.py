"""Results of operations, made what the program declares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mlopt.errors import RunError
from mlopt.runtime.plan import Step


def as_declared(step: Step, number: int, result: Any, *, may_differ: bool) -> tuple[Any, bool]:
    """Return a result of a step in its dtype, and whether its shape differs for a good reason.

    number: of the output; may_differ: whether shapes already differ from the declared ones.

    Raises
    ------
    RunError
        The shape is not the declared one, and there is no good reason.
    """
    dtype, shape = step.dtypes[number], step.outputs[number].shape
    if not isinstance(result, Tensor) or dtype is None:
        return result, False
    differs = shape is not None and not _fits(tuple(result.shape), shape)
    if shape is not None and differs:
        if not (may_differ or step.operation.declared_loosely):
            raise RunError(
                f"{step.title} gave shape {list(result.shape)} where the program declares "
                f"{_shown(shape)}; it was given inputs that contradict the program, or the "
                "program contradicts itself"
            )
        differs = step.operation.declared_loosely
    elif shape is not None and len(shape) != result.dim():
        result = result.reshape(()) if shape == () else result.reshape(1)
    return result if result.dtype == dtype else result.to(dtype), differs


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    if len(shape) != len(declared):
        # coremltools declares scalars that are tensors of one element, and vice versa
        return shape in ((), (1,)) and declared in ((), (1,))
    return all(a == b or b is None for a, b in zip(shape, declared, strict=True))


def _shown(shape: Iterable[int | None]) -> str:
    return "[" + ", ".join("?" if length is None else str(length) for length in shape) + "]"
