"""Rows of a comparison of float32 with float16: the measurements of one operation."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs

from mlopt.runtime.comparison.measures import Distance
from mlopt.text.json_text import finite_or_text

Kind = Literal["overflows", "vanishes", "not finite", "imprecise", "cancels", "inside"]
"""overflows: finite numbers are infinite in float16; vanishes: numbers become zero; not finite: NaN
or infinite in float16 though all arguments are finite and the result would fit; imprecise: much is
lost by rounding, as of numbers below the smallest normal one; cancels: the error of the arguments
grows, as in a difference of nearly equal numbers; inside: the result fits, but squares or
exponentials within the operation do not, where a device computes these in float16 as well."""

IMPRECISE_DB = 50.0
"""Below it rounding counts as lossy: that to float16 has a ratio of about 74 dB."""
CANCELLED_DB = 10.0
"""How far a ratio must fall at an operation that counts as cancelling."""
HARMLESS_DB = 60.0
"""From this ratio on, an operation's effect on the outputs counts as harmless."""


@attrs.define
class Float16Row:
    """One operation whose result is declared float16 (or bfloat16), over all samples.

    name, op_type, output, dtype: of the operation, its output, and the type that is declared.
    elements: of the output, in all samples; least, greatest: the smallest magnitude that is not
    zero and the largest finite one, in float32 (NaN where there is none); overflowed, vanished:
    how many elements become infinite or zero when they are rounded; subnormal: how many others are
    below the smallest normal number; not_finite: how many are NaN or infinite in float16 for
    another reason. These counts are of what enters here: where arguments have it already, as far
    as they do, nothing is counted (``carried``: how many elements merely carry an overflow on).
    inside: the largest square, sum of squares or exponential within the operation, None where there
    is none beyond float16.
    entering: the distance of the rounded result from the result in float32; so_far: that of the
    result as the program computes it, all errors before it included (not of nested blocks).
    lost_db: how much lower the ratio is after the operation than in the worst of its arguments.
    effect_db: the lowest ratio of an output of the model when this result alone is rounded, and all
    else is float32: inf for equal, NaN for not finite, None where it was not measured;
    effect_output: which output that is.
    """

    name: str
    op_type: str
    output: str
    dtype: str
    elements: int = 0
    least: float = math.nan
    greatest: float = math.nan
    overflowed: int = 0
    vanished: int = 0
    subnormal: int = 0
    not_finite: int = 0
    carried: int = 0
    inside: float | None = None
    lost_db: float = 0.0
    entering: Distance = attrs.Factory(Distance)
    so_far: Distance = attrs.Factory(Distance)
    effect_db: float | None = None
    effect_output: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is wrong with it; empty if nothing is."""
        is_rough = self.entering.status == "different" and self.entering.snr_db < IMPRECISE_DB
        is_lossy = self.overflowed > 0 or self.vanished > 0 or is_rough
        is_wrong = self.so_far.status == "different" and self.so_far.snr_db < IMPRECISE_DB
        is_of_kind: dict[Kind, bool] = {
            "overflows": self.overflowed > 0,
            "vanishes": self.vanished > 0,
            "imprecise": is_rough and not self.vanished,
            "not finite": self.not_finite > 0,
            "cancels": self.lost_db >= CANCELLED_DB and is_wrong and not is_lossy,
            "inside": self.inside is not None,
        }
        return tuple(kind for kind, is_so in is_of_kind.items() if is_so)

    @property
    def is_lossy(self) -> bool:
        """Whether rounding its result loses something."""
        return bool({"overflows", "vanishes", "imprecise"}.intersection(self.kinds))

    @property
    def is_harmless(self) -> bool:
        """Whether it hardly changes the outputs, or little is lost in the first place."""
        if self.effect_db is None:
            return self.kinds == ("vanishes",) and self.entering.snr_db >= HARMLESS_DB
        return self.effect_db >= HARMLESS_DB and set(self.kinds) <= {
            "overflows",
            "vanishes",
            "imprecise",
        }

    @property
    def badness(self) -> tuple[float, ...]:
        """Return a sort key: the worst first."""
        if self.is_harmless:
            return (3.0, math.inf if self.effect_db is None else self.effect_db)
        if self.effect_db is None or self.effect_db >= HARMLESS_DB:
            return (
                2.0,
                -float(self.not_finite > 0),
                -float(self.inside is not None),
                -self.lost_db,
            )
        return (0.0, 0.0) if math.isnan(self.effect_db) else (1.0, self.effect_db)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; numbers that are not finite as text."""
        fields = attrs.asdict(self, recurse=False)
        del fields["entering"], fields["so_far"]
        return {
            **{name: finite_or_text(value) for name, value in fields.items()},
            "kinds": list(self.kinds),
            "entering_snr_db": finite_or_text(self.entering.snr_db),
            "so_far_snr_db": finite_or_text(self.so_far.snr_db),
        }
