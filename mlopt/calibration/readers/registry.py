"""The operations whose weights have statistics."""

from __future__ import annotations

from collections.abc import Callable

from mlopt.calibration.readers.convolutions import conv_reader, conv_transpose_reader
from mlopt.calibration.readers.lookups import gather_along_axis_reader, gather_reader
from mlopt.calibration.readers.products import einsum_reader, linear_reader, matmul_reader
from mlopt.calibration.readers.reader import NoStatisticsError, Reader, Use
from mlopt.calibration.readers.recurrent import recurrent_reader

_READERS: dict[tuple[str, str], Callable[[Use], Reader]] = {
    ("linear", "weight"): linear_reader,
    ("matmul", "x"): matmul_reader,
    ("matmul", "y"): matmul_reader,
    ("einsum", "values"): einsum_reader,
    ("conv", "weight"): conv_reader,
    ("conv_transpose", "weight"): conv_transpose_reader,
    ("gather", "x"): gather_reader,
    ("gather_along_axis", "x"): gather_along_axis_reader,
    **{
        (op_type, parameter): recurrent_reader
        for op_type in ("lstm", "gru", "rnn")
        for parameter in ("weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back")
    },
}


def reader_of(use: Use) -> Reader:
    """Return how an operation multiplies inputs by a weight.

    Raises
    ------
    NoStatisticsError
        It does not, or not so that there are statistics of it; the message says why.
    """
    step = use.step
    make = _READERS.get((step.node.op_type, use.parameter))
    if make is None:
        raise NoStatisticsError(
            f"{step.title} reads it as {use.parameter}, which multiplies no inputs"
        )
    return make(use)
