"""Which axis of a weight holds the output channels, and how its users divide them."""

from __future__ import annotations

from collections.abc import Iterable

from mlopt.mil.program import Consumer


def output_axes(consumers: Iterable[Consumer], rank: int) -> set[int]:
    """The output channel axes that the users of a weight see, each in ``0 .. rank - 1``.

    Axis 0 for all operations but these: ``conv_transpose`` has it at 1; ``matmul`` at -1 of ``y``
    and at -2 of ``x``, the other way round where that operand is transposed. ``gather`` reads rows
    along axis 0. More than one axis means that the users disagree.
    """
    return {_output_axis(consumer) % rank for consumer in consumers}


def _output_axis(consumer: Consumer) -> int:
    if consumer.op_type == "conv_transpose":
        return 1
    if consumer.op_type == "matmul":
        is_y = consumer.parameter == "y"
        transposed = _flag(consumer, "transpose_y" if is_y else "transpose_x")
        return -1 if is_y != transposed else -2
    return 0


def _flag(consumer: Consumer, parameter: str) -> bool:
    try:
        return bool(consumer.node.scalar(parameter, False))
    except ValueError:
        return False


def channels_of_one_group(consumers: Iterable[Consumer], shape: tuple[int, ...], axis: int) -> int:
    """Channels on ``axis`` that belong together: the fewest over the users.

    A convolution with ``groups`` keeps the channels of its groups apart on axis 0 (output channels
    of ``conv``, input channels of ``conv_transpose``); a vector must not reach across.
    """
    fewest = shape[axis]
    for consumer in consumers:
        if consumer.op_type in ("conv", "conv_transpose") and axis == 0:
            try:
                groups = int(consumer.node.scalar("groups", 1))
            except ValueError:
                groups = 1
            fewest = min(fewest, shape[axis] // max(groups, 1))
    return fewest
