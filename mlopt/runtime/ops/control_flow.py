"""Branches and loops (MIL, ``defs/*/control_flow.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlopt.runtime.call import Call
from mlopt.runtime.registry import operation


@operation("cond", in_half=True)
def cond(pred: bool, call: Call) -> tuple[Any, ...]:
    """The results of the first block if ``pred`` is true, otherwise of the second."""
    if len(call.blocks) != 2:
        raise ValueError(f"it needs two blocks, got {len(call.blocks)}")
    return call.blocks[0 if pred else 1](())


@operation("while_loop", in_half=True)
def while_loop(loop_vars: Any, call: Call) -> tuple[Any, ...]:
    """The last values of ``loop_vars``: the second block gives the next while the first is true.

    Both blocks get the values of the loop.
    """
    if len(call.blocks) != 2:
        raise ValueError(f"it needs two blocks, got {len(call.blocks)}")
    condition, body = call.blocks
    values = loop_vars if isinstance(loop_vars, tuple) else (loop_vars,)
    while _holds(condition(values)):
        values = body(values)
    return values


@operation("select", declared_loosely=True, in_half=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements of ``a`` where ``cond`` is true and of ``b`` where it is not, all broadcast."""
    return torch.where(cond.bool(), a, b)


def _holds(results: tuple[Any, ...]) -> bool:
    (result,) = results
    if not isinstance(result, Tensor) or result.numel() != 1:
        raise ValueError("the condition of a loop must be a scalar")
    return bool(result.item())
