"""Tables and indices that keep a weight's outputs: ``refine``, for given second moments.

The objective is the mean squared error of the outputs, ``tr((Q - W) H (Q - W)^T)``, with W the
matrices of a weight, Q those of what is stored for it, and ``H = E[x x^T]`` the second moments of
the inputs. Two steps alternate, as in LNQ (Kim et al., *GuidedQuant*, arXiv 2505.07004):

1. The tables for given indices, in closed form: a quadratic problem of k unknowns per table.
2. The indices for given tables: coordinate descent, for which ``R = (Q - W) H`` is kept up to date.

They start from indices by error feedback (:mod:`mlopt.palette.moments.feedback`), where these are
better than those that are given. Where channels along the columns have tables of their own, the
systems of tables in one row couple. They are solved one after the other, each with those before it
at their new values (Gauss-Seidel): this costs no more than a single table, and the objective falls
with each.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.palette.layout import Layout
from mlopt.palette.moments.grid import table_grid
from mlopt.palette.moments.moments import InputMoments, error_power
from mlopt.palette.moments.problem import ArrangedInputs, Problem, damped, make_problem
from mlopt.palette.value.palettized import INTEGER_TABLE_DTYPES, Palettized
from mlopt.palette.value.quantized import Lattice, QuantizedTable, is_wide_enough
from mlopt.palette.value.spec import PaletteSpec

Floats = npt.NDArray[Any]

ROUNDS = 3

_SETTLED = 1e-3
"""Rounds end where one gains less than this share of the objective."""

_FEW_COLUMNS = 2048
_COLUMNS_PER_ROW = 32
"""Beyond both of these, decomposing H would outweigh the rounds, and rounds begin without it."""

_GAINED = 1e-9
"""The refined palette must be better by this share, so that equals keep the start."""


def can_refine(spec: PaletteSpec, moments: InputMoments) -> str | None:
    """Return why :func:`refine` cannot serve a request, for a report; None where it can.

    The diagonal of the moments then still gives the importance of the elements.
    """
    if spec.mode != "kmeans":
        return f"mode {spec.mode!r} does not choose its tables"
    if moments.second is None:
        return "only the diagonal of the second moments is known"
    layout = Layout.of(spec, moments.arrangement.shape)
    grid = table_grid(
        moments.arrangement, layout.table_shape, layout.cluster_dim, layout.vector_axis
    )
    return grid if isinstance(grid, str) else None


def refine(
    weight: Floats,
    palettized: Palettized,
    moments: InputMoments,
    *,
    importance: Floats | None = None,
    rounds: int = ROUNDS,
    workers: int = 1,
) -> Palettized:
    """Improve a palette for the outputs of its weight.

    Parameters
    ----------
    weight
        What is palettized: of the palette's shape and dtype, finite.
    palettized
        The palette to start from.
    moments
        With ``second`` known, of an arrangement of the weight.
    importance
        Of the weight's shape, not negative: errors are multiplied by its root before H. Elements of
        importance 0 cost nothing and keep their index. None for 1.
    rounds
        At most so many times both steps. Rounds end sooner where one gains less than 0.1 %.
    workers
        Threads. The result does not depend on it, nor on the machine.

    Returns
    -------
    A palette of the same form, tables ascending: the refined one where its objective is lower than
    that of the start, measured in float64 on what is stored, with H damped by 1 % of its mean
    diagonal (:data:`mlopt.palette.moments.moments.DAMPING`); otherwise ``palettized`` itself.

    Work
    ----
    With r rows in all blocks and c columns: ``c**3 / 6`` multiplications in each block and
    ``r c**2 / 2`` for error feedback; at most ``r c**2 (1.5 + SWEEPS)`` in each round, as a rule
    half of that since most indices stay; ``r min(c, k) c`` to add up the systems of tables, which
    take ``k**3 / 6`` each; and three passes of ``r c**2`` before and after.

    Besides the weight and H, memory for H once more, 5 bytes per element (12 with a scale or an
    importance), twice the weight where its matrices are no view of it, and up to 64 MiB of systems.
    There is no bound on c: what holds H has room for the rest.

    Raises
    ------
    ConfigError
        The moments are those of another shape, or :func:`can_refine` has a reason against it.
    """
    _check(weight, palettized, moments)
    quadratic = damped(moments)
    if quadratic is None:
        return palettized
    grid = table_grid(
        moments.arrangement,
        palettized.table_shape,
        palettized.cluster_dim,
        palettized.vector_axis,
    )
    if isinstance(grid, str):
        raise ConfigError(
            f"second moments cannot refine a palette of this form: {grid}; use their diagonal as "
            "importance"
        )
    roots = None if importance is None else np.sqrt(importance.astype(np.float32))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        inputs = ArrangedInputs(moments, grid, quadratic)
        problem = make_problem(weight, palettized, inputs, roots, pool if workers > 1 else None)
        value = _begin(problem)
        for _ in range(rounds):
            gain = problem.fit_tables() + problem.assign()
            value -= gain
            if not gain > _SETTLED * value:
                break
        refined = _stored(problem, palettized)
    if refined is None:
        return palettized

    def error(candidate: Palettized) -> float:
        return error_power(
            moments.arrangement,
            weight,
            candidate.dequantize(),
            quadratic,
            factors=roots,
            workers=workers,
        )

    # below 0 there is no mean square: then the moments are far from any that inputs can have
    is_better = 0.0 <= error(refined) < (1.0 - _GAINED) * error(palettized)
    return refined if is_better else palettized


def _check(weight: Floats, palettized: Palettized, moments: InputMoments) -> None:
    shape = moments.arrangement.shape
    if weight.shape != shape or palettized.shape != shape:
        raise ConfigError(
            f"moments must be those of the weight's inputs, got some for the shape {shape} with a "
            f"weight {weight.shape} and a palette {palettized.shape}; calibrate this model"
        )
    if weight.dtype != palettized.dtype:
        raise ConfigError(
            f"a palette must have its weight's dtype {weight.dtype}, got {palettized.dtype}; "
            "convert one of them"
        )
    if moments.second is None:
        raise ConfigError(
            "refine needs the second moments, got their diagonal alone; use it as importance, or "
            "calibrate with statistics='hessian'"
        )


def _begin(problem: Problem) -> float:
    """Assign labels by error feedback where that is better; return the objective."""
    value = problem.restart()
    units, columns = problem.labels.shape
    if columns > max(_FEW_COLUMNS, _COLUMNS_PER_ROW * units):
        return value
    labels = problem.labels.copy()
    problem.feed_back()
    fed_back = problem.restart()
    if fed_back < value * (1.0 - _GAINED):
        return fed_back
    problem.labels = labels
    return problem.restart()


def _stored(problem: Problem, palettized: Palettized) -> Palettized | None:
    """Round the tables, and assign once more; None where they cannot be stored."""
    flat = problem.inputs.grid.flat
    wide = np.empty((flat.size, *problem.entries.shape[2:]))
    wide[flat] = np.ldexp(problem.entries, problem.exponent)
    rounded = _rounded(wide.reshape(palettized.table.shape), palettized)
    if rounded is None:
        return None
    table, quantized = rounded
    tables = table.reshape(wide.shape).astype(np.float64)
    problem.entries = np.ldexp(tables[flat], -problem.exponent)
    if quantized is None and palettized.dtype.name not in INTEGER_TABLE_DTYPES:
        problem.restart()
    else:
        _begin(problem)
    problem.assign()
    return attrs.evolve(
        palettized,
        table=table,
        indices=problem.indices(palettized.vector_axis),
        quantized=quantized,
    )


def _rounded(
    table: npt.NDArray[np.float64], palettized: Palettized
) -> tuple[Floats, QuantizedTable | None] | None:
    """Round a table to the form of a palette's; None where it is too large or small for it."""
    dtype, quantized = palettized.dtype, palettized.quantized
    if dtype.name in INTEGER_TABLE_DTYPES:
        lattice = Lattice.of_integers(dtype)
        return lattice.codes[lattice.nearest(table)], None
    if quantized is None:
        with np.errstate(over="ignore"):
            stored = table.astype(dtype)
        return (stored, None) if np.isfinite(stored.astype(np.float64)).all() else None
    low, high, name = float(table.min()), float(table.max()), quantized.codes.dtype.name
    if not is_wide_enough(low, high, name, dtype):
        return None
    lattice = Lattice.spanning(low, high, name, dtype)
    codes = lattice.quantized(lattice.nearest(table))
    return codes.decode(), codes
