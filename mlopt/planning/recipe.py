"""``Recipe``: which form every weight of a model gets, what that costs, and how it is known."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import attrs

from mlopt.choices import LossName
from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.op_config import OpPalettizerConfig

Known: TypeAlias = Literal["measured", "predicted"]
"""How the loss of a form is known: the model was run with it, or statistics say it."""


@attrs.frozen(kw_only=True)
class Tried:
    """A form of a weight that was considered.

    Attributes
    ----------
    config
        The palette that it asks for; None: the weight stays as it is.
    nbytes
        What the package has more with the weight in this form than without the weight, in bytes.
    loss
        The loss of the model's outputs if this weight alone has the form, in the unit of the
        recipe's loss.
    known
        How the loss is known.
    """

    config: OpPalettizerConfig | None
    nbytes: int
    loss: float
    known: Known

    @property
    def words(self) -> str:
        """The form for a reader, such as ``"4-bit kmeans, per tensor"``."""
        return "as it is" if self.config is None else self.config.summary


@attrs.frozen(kw_only=True)
class RecipeWeight:
    """What a recipe says of one weight.

    Attributes
    ----------
    name, shape, dtype
        As a report has them.
    content
        The digest of its plain values: see :func:`mlopt.statistics.weight_statistics.content_of`.
    chosen
        The form that it gets.
    tried
        All forms that were considered, the chosen one included, by bytes.
    reason
        Why there was nothing to choose, or "" where there was.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    content: str
    chosen: Tried
    tried: tuple[Tried, ...] = ()
    reason: str = ""

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits of an element in the package, tables counted."""
        return 8 * self.chosen.nbytes / self.size


@attrs.frozen(kw_only=True)
class Point:
    """A package that was considered: its size, and its loss.

    Attributes
    ----------
    label
        What it is, such as ``"plan"`` or ``"4-bit kmeans, per tensor, for every weight"``.
    nbytes
        The bytes of the whole package.
    expected
        The sum of the losses of its weights.
    measured
        The loss of the package as it ran on the samples of the plan; None: it was not run.
    metric
        What the user's metric says of it; None: that was not asked.
    """

    label: str
    nbytes: int
    expected: float
    measured: float | None = None
    metric: float | None = None


@attrs.frozen(kw_only=True)
class Recipe:
    """Which form every weight of a model gets.

    Attributes
    ----------
    weights
        All weights, in program order.
    target
        The oldest deployment target of the result, such as ``"iOS18"``.
    loss
        What is counted: ``"squared"`` is the squared error of each output relative to its mean
        square, averaged over the outputs; ``"kl"`` the divergence of classes or next tokens, in
        nats.
    samples
        How many samples the model was run on.
    are_random
        Whether these were drawn at random, for want of better ones.
    nbytes, nbytes_before
        The bytes of the package, as written and of the model.
    limit
        The bytes that it may have, or None where a quality was asked for.
    most_loss
        The loss that it may have, or None where a size was asked for.
    expected, measured
        As in :class:`Point`, of the package with these forms.
    metric, least_metric
        What the user's metric says of the package, and what it was to be at least; None without.
    gap
        By how much of the sum of losses a better choice can exist at most, by the losses of the
        forms as they are known: 0.0 is a proof that there is none.
    joint_compression
        Whether weights that are sparse or quantized were planned as well.
    calibration
        What identifies the calibration that tables were fitted with; None: none.
    points
        Packages on the front of size against loss, and those to compare with.
    notes
        What a reader should know, one sentence each.
    """

    weights: tuple[RecipeWeight, ...]
    target: str
    loss: LossName
    samples: int
    are_random: bool
    nbytes: int
    nbytes_before: int
    limit: int | None = None
    most_loss: float | None = None
    expected: float
    measured: float | None = None
    metric: float | None = None
    least_metric: float | None = None
    gap: float = 0.0
    joint_compression: bool = False
    calibration: str | None = None
    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()

    def to_config(self) -> OptimizationConfig:
        """Return the rules that palettize a model so: one for each weight, by its name."""
        rules = {weight.name: weight.chosen.config for weight in self.weights}
        return OptimizationConfig(op_name_configs=rules)

    @property
    def bits(self) -> float:
        """Bits of an element of the weights, everything in the package counted."""
        return 8 * self.nbytes / max(sum(weight.size for weight in self.weights), 1)
