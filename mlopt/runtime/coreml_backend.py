"""Core ML's own predictions, on a Mac, in the place of ours."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlopt.errors import ConfigError


class CoreMLModel:
    """A model in Core ML's own framework, through coremltools.

    Raises
    ------
    ConfigError
        This is no Mac: only there is a Core ML that predicts.
    """

    def __init__(self, path: Path, function: str | None = None) -> None:
        if platform.system() != "Darwin":
            raise ConfigError(
                f"Core ML predicts on a Mac only, and this is {platform.system() or 'another'} "
                "system; leave the backend out to run the models with PyTorch"
            )
        from coremltools.models import MLModel

        self._model = MLModel(str(path), function_name=function)

    def predict(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Outputs by name, of a new state where the model has one."""
        states = self._model.get_spec().description.state
        state = self._model.make_state() if len(states) else None
        found: Mapping[str, Any] = self._model.predict(dict(data), state)
        return found
