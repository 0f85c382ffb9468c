"""Base class of the palettizers of models."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from mlopt.errors import ConfigError
from mlopt.requests.report import Report
from mlopt.torch.adapters import known_modules
from mlopt.torch.palettization.config import OptimizationConfig

ConfigT = TypeVar("ConfigT", bound=OptimizationConfig[Any])


class Palettizer(Generic[ConfigT]):
    """A model, its configuration, and the report of what was done.

    ``config_class`` of a subclass: the class of its configurations.
    """

    config_class: ClassVar[type[Any]]

    def __init__(self, model: nn.Module, config: ConfigT | Any | None = None) -> None:
        config = self.config_class() if config is None else config
        if not isinstance(config, self.config_class):
            config = self.config_class.taken_over(config)
        self._model = model
        self._config: ConfigT = config
        self._report: Report | None = None

    @property
    def supported_modules(self) -> tuple[type[nn.Module], ...]:
        """The classes of modules whose weights can be palettized; derived classes are covered."""
        return known_modules()

    def report(self) -> Report:
        """The report of the last ``compress``: a row for each parameter of the model.

        Raises
        ------
        ConfigError
            Nothing has been compressed yet.
        """
        if self._report is None:
            raise ConfigError("nothing to report yet; call compress first")
        return self._report
