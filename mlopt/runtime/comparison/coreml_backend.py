"""Core ML's own predictions, on a Mac, instead of ours."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlopt.errors import ConfigError, RunError
from mlopt.runtime.features.described import features_of
from mlopt.runtime.features.images import ImageFeature


class CoreMLModel:
    """A model in Core ML's own framework, through coremltools.

    Attributes
    ----------
    inputs
        The features that the model describes, by name.
    labels
        The output that is the label of a class; empty if there is none.

    Raises
    ------
    ConfigError
        This is not a Mac: Core ML predicts only there.
    RunError
        Core ML cannot load the model.
    """

    def __init__(self, path: Path, function: str | None = None) -> None:
        if platform.system() != "Darwin":
            raise ConfigError(
                f"Core ML predicts on a Mac only, and this is {platform.system() or 'another'} "
                "system; leave the backend out to run the models with PyTorch"
            )
        from coremltools.models import MLModel

        try:
            self._model = MLModel(str(path), function_name=function)
        except Exception as error:
            raise RunError(f"Core ML cannot load {path}: {error}") from error
        description = self._model.get_spec().description
        # a model of several functions describes each of them, but not itself
        name = function or description.defaultFunctionName
        described = next((f for f in description.functions if f.name == name), description)
        self.inputs = features_of(described.input, str(path))
        self.labels = frozenset(filter(None, [described.predictedFeatureName]))
        self._has_state = len(described.state) > 0

    def predict(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return outputs by name, with a new state if the model has one.

        Images may be arrays, as for :meth:`mlopt.runtime.Program.predict`.

        Raises
        ------
        InputError
            An image is not as the model describes it.
        RunError
            Core ML failed.
        """
        given = {name: self._given(name, value) for name, value in data.items()}
        try:
            state = self._model.make_state() if self._has_state else None
            outputs: Mapping[str, Any] = self._model.predict(given, state)
        except Exception as error:
            raise RunError(f"Core ML failed: {type(error).__name__}: {error}") from error
        return outputs

    def _given(self, name: str, value: Any) -> Any:
        feature = self.inputs.get(name)
        if not isinstance(feature, ImageFeature):
            return value
        # coremltools demands images in the mode of the model
        return feature.picture(feature.tensor(value).numpy()[0])
