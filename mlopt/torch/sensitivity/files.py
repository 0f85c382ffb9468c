"""Files of sensitivities, and their checks against a model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlopt.errors import ConfigError
from mlopt.torch.sensitivity.ranks import current_ranks
from mlopt.torch.sensitivity.sensitivities import Sensitivities
from mlopt.whole_files import whole_file


def save_sensitivities(
    sensitivities: Sensitivities | Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Write sensitivities to a file: ``torch.save`` of a dict of parameter names to tensors.

    It is the file that coremltools takes for ``sensitivity_path``, and a tied parameter is in it
    under each of its names (its values once). Parameters without a gradient are not.

    The file appears complete or not at all: it is written next to ``path``, then renamed. An
    existing one is replaced. Errors of the file system pass through as ``OSError``.
    """
    if isinstance(sensitivities, Sensitivities):
        aliases = sensitivities.aliases.items()
        values = sensitivities.values
        values = values | {name: values[first] for name, first in aliases if first in values}
    else:
        values = dict(sensitivities)
    with whole_file(path) as file:
        torch.save(values, file)


def save_on_first_rank(sensitivities: Sensitivities, path: str | os.PathLike[str]) -> None:
    """As ``save_sensitivities``, but of the ranks of ``torch.distributed`` only the first writes.

    All must call it. The file is there on all of them afterwards where they share a file system;
    an error is raised on all.
    """
    ranks = current_ranks()
    error: OSError | None = None
    if ranks is None or ranks.rank == 0:
        try:
            save_sensitivities(sensitivities, path)
        except OSError as raised:
            error = raised
    if ranks is not None:
        error = ranks.shared(error, 0)
    if error is not None:
        raise error


def load_sensitivities(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the sensitivities of a file that ``save_sensitivities`` or coremltools wrote.

    Returns
    -------
    Name of a parameter -> tensor on the CPU, of the dtype that the file has. coremltools divides
    the values of each parameter by their largest, raises them to at least 1e-12, and gives ones to
    a parameter whose gradient is zero.

    Raises
    ------
    ConfigError
        The file is not such a dict. Nothing in it is run: only tensors and containers are read.
    OSError
        The file cannot be opened.
    """
    wanted = "a dict of parameter names to tensors, as save_sensitivities writes it"
    with open(path, "rb") as stream:
        try:
            values: Any = torch.load(stream, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{path} is not a file of sensitivities, {wanted}: {error}"
            ) from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold {wanted}, got {type(values).__name__}")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConfigError(
                f"{path} must hold {wanted}, got {name!r} with {type(value).__name__}"
            )
    return {name: value.detach() for name, value in values.items()}


def check_sensitivities(
    values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Check sensitivities against the parameters that they are for.

    Parameters
    ----------
    values
        Name -> sensitivity. Names that ``parameters`` lacks are not looked at.
    parameters
        Name -> parameter, for all that should have sensitivities.

    Returns
    -------
    The names in ``parameters`` that have no sensitivity, in their order.

    Raises
    ------
    ConfigError
        A sensitivity differs in shape from its parameter, or is not real, negative or not finite.
    """
    missing = []
    for name, parameter in parameters.items():
        if name not in values:
            missing.append(name)
            continue
        value = values[name]
        if value.shape != parameter.shape:
            raise ConfigError(
                f"the sensitivity of {name!r} has shape {tuple(value.shape)}, but the parameter "
                f"{tuple(parameter.shape)}: both must be of the same model; compute them again"
            )
        if value.is_complex() or value.layout is not torch.strided:
            raise ConfigError(
                f"the sensitivity of {name!r} must be a dense tensor of real numbers, got "
                f"{value.dtype} with {value.layout}"
            )
        if not value.numel():
            continue
        low, high = (float(extreme) for extreme in torch.aminmax(value))
        if not (low >= 0 and high < float("inf")):
            raise ConfigError(
                f"the sensitivity of {name!r} ranges from {low:.6g} to {high:.6g}: squares of "
                f"gradients are finite and not negative; compute them again"
            )
    return tuple(missing)
