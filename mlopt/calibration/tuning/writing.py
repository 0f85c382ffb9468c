"""Writing a package with tuned constants: each in the form and place that it had."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlopt.calibration.tuning.tunables import key_of
from mlopt.mil.package import Package
from mlopt.mil.program import Constant
from mlopt.mil.values import immediate_value
from mlopt.mil.writer import PackageWriter


def write_tuned(
    package: Package, path: Path, values: Mapping[Hashable, npt.NDArray[np.floating]]
) -> Path:
    """Write a package whose constants of these keys have new values; return its folder.

    Raises
    ------
    DestinationError, ModelFormatError
        See ``PackageWriter``.
    """
    with PackageWriter(package, path) as writer:
        for program in package.programs:
            # in the order of the file, which gets the same layout
            constants = sorted(program.constants(), key=lambda each: each.storage or ("", 0))
            keyed = [(key_of(constant), constant) for constant in constants]
            for key, constant in keyed:
                if key in values:
                    _replace(constant, values[key], writer)
                else:
                    writer.keep(constant.message)
        return writer.finish()


def _replace(constant: Constant, values: npt.NDArray[np.floating], writer: PackageWriter) -> None:
    """Give a constant new values, in the message or the weight file as before."""
    if constant.storage is None:
        new = immediate_value(values, constant.dtype, constant.shape)
    else:
        name = constant.message.blobFileValue.fileName
        new = writer.add_blob(
            constant.dtype, np.ascontiguousarray(values), constant.shape, file_name=name
        )
    constant.message.CopyFrom(new)
