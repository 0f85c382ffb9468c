"""Sequential palettization: each weight is fitted to the inputs that those before it leave."""

from mlopt.calibration.sequential.palettize import palettize_sequentially

__all__ = ["palettize_sequentially"]
