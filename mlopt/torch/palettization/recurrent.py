"""Recurrent modules whose weights are computed anew in each pass.

``torch.nn.LSTM`` and its like compute with a list of their weights that they keep. For parametrized
weights it would hold their values of an earlier pass, with the graph that computed them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def compute_weights_in_passes(module: nn.Module) -> None:
    """Make a recurrent module compute each parametrized weight once per pass, and keep none.

    It changes the class that ``parametrize`` made for the module, which is undone with it. Other
    modules are left alone.
    """
    if not isinstance(module, nn.RNNBase) or "_flat_weights" not in module.__dict__:
        return
    cls: Any = type(module)
    plain_forward = cls.forward

    def forward(self: nn.RNNBase, *args: Any, **kwargs: Any) -> Any:
        with parametrize.cached():
            return plain_forward(self, *args, **kwargs)

    def flat_weights(self: nn.RNNBase) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    cls.forward = forward
    cls._flat_weights = property(flat_weights, lambda self, weights: None)
    cls._init_flat_weights = cls._update_flat_weights = cls.flatten_parameters = _nothing
    del module.__dict__["_flat_weights"]


def keep_weights_again(module: nn.Module) -> None:
    """Restore a recurrent module that is no longer parametrized."""
    if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
        module._init_flat_weights()


def _nothing(self: nn.RNNBase) -> None:
    """Do nothing: there are no weights to keep."""
