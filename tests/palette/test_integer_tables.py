"""Tables of integers: with a scale for weights of floats, and as they are for integer weights."""

import attrs
import numpy as np
import pytest
from sklearn.cluster import KMeans

from mlopt.errors import ConfigError
from mlopt.palette import (
    NoPaletteError,
    PaletteSpec,
    Palettized,
    can_quantize_table,
    measure_distortion,
    palettize,
)
from mlopt.palette.value.quantized import Lattice
from tests.palette import references as ref

LUT_DTYPES = ("int8", "uint8")


def trained(shape, name, seed=0):
    """What trained weights look like: heavy tails, some rows larger, more on one side than not."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(5, shape) * 0.04 * np.exp(rng.standard_normal((shape[0], 1)) / 2)
    return (weight + 0.005).astype(ref.FORMATS[name])


def error(weight, stored, importance=None):
    squares = np.square(weight.astype(np.float64) - stored.astype(np.float64))
    return float((squares if importance is None else squares * importance).sum())


def check(weight, spec, palettized):
    """Check the form of a quantized palette."""
    table = palettized.quantized
    assert table.codes.dtype == spec.lut_dtype
    assert table.codes.shape == palettized.table.shape
    assert (table.offset is None) == (spec.lut_dtype == "int8")
    assert palettized.table.dtype == weight.dtype
    offset = 0 if table.offset is None else int(table.offset.ravel()[0])
    decoded = (table.codes.astype(np.float64) - offset) * float(table.scale.ravel()[0])
    assert palettized.table.tobytes() == decoded.astype(weight.dtype).tobytes()
    groups = palettized.table.shape[0]
    size = groups * (1 << palettized.nbits) * palettized.cluster_dim
    size += weight.dtype.itemsize + (spec.lut_dtype == "uint8")
    assert palettized.table_nbytes == size


def naive(weight, spec, importance=None):
    """Float tables rounded to 8 bits as coremltools rounds, every value moved to the nearest."""
    plain, _ = palettize(weight, attrs.evolve(spec, lut_dtype=None), importance)
    wide = plain.table.astype(np.float64)
    lattice = Lattice.spanning(wide.min(), wide.max(), spec.lut_dtype, weight.dtype)
    table = lattice.points[lattice.nearest(wide)]
    scale = np.ones((len(weight), 1)) if plain.scale is None else plain.scale.astype(np.float64)
    points = weight.astype(np.float64) / scale
    heavy = np.square(scale) * (np.ones(weight.shape) if importance is None else importance)
    stored = np.empty(weight.shape)
    size, d = len(weight) // len(table), spec.cluster_dim
    for g, entries in enumerate(table[:, 0]):
        rows = slice(g * size, (g + 1) * size)
        vectors, h = (np.moveaxis(a[rows].reshape(size // d, d, -1), 1, 2) for a in (points, heavy))
        far = np.full((*vectors.shape[:2], len(entries)), 0.0)
        for c in range(d):
            far += h[..., c, None] * np.square(vectors[..., c, None] - entries[:, c])
        nearest = entries[far.argmin(axis=2)]
        stored[rows] = np.moveaxis(nearest, 2, 1).reshape(size, -1)
    return (stored * scale).astype(weight.dtype)


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("nbits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.covering(2)
def test_no_worse_than_rounding_the_table(lut_dtype, name, nbits, group_size, scaled):
    weight = trained((64, 80), name, nbits)
    spec = PaletteSpec(
        nbits=nbits,
        channel_axis=None if group_size is None else 0,
        group_size=group_size,
        scale_axis=0 if scaled else None,
        lut_dtype=lut_dtype,
    )
    palettized, distortion = palettize(weight, spec)
    check(weight, spec, palettized)
    stored = palettized.dequantize()
    assert distortion.noise == pytest.approx(error(weight, stored), rel=1e-9)
    # with a scale the products are rounded once more, which no clustering can know of
    slack = 1.0 + (
        0.0 if not scaled else {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6}[name]
    )
    assert error(weight, stored) <= error(weight, naive(weight, spec)) * slack
    exact, _ = palettize(weight, attrs.evolve(spec, lut_dtype=None))
    assert error(weight, stored) <= 1.3 * error(weight, exact.dequantize()) or nbits >= 6


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
@pytest.mark.parametrize("name", ["float16", "float32"])
@pytest.mark.parametrize("group_size", [None, 16])
def test_no_worse_than_rounding_the_table_by_importance(lut_dtype, name, group_size):
    weight = trained((64, 80), name)
    importance = np.random.default_rng(1).exponential(size=weight.shape) ** 3
    importance[importance < 0.1] = 0.0
    spec = PaletteSpec(
        nbits=4,
        channel_axis=None if group_size is None else 0,
        group_size=group_size,
        lut_dtype=lut_dtype,
    )
    palettized, _ = palettize(weight, spec, importance)
    check(weight, spec, palettized)
    ours = error(weight, palettized.dequantize(), importance)
    assert ours <= error(weight, naive(weight, spec, importance), importance)


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_vectors(lut_dtype, d, weighted):
    weight = trained((64, 80), "float16")
    importance = np.random.default_rng(1).exponential(size=weight.shape) if weighted else None
    spec = PaletteSpec(nbits=4, channel_axis=0, group_size=32, cluster_dim=d, lut_dtype=lut_dtype)
    palettized, _ = palettize(weight, spec, importance)
    check(weight, spec, palettized)
    stored = palettized.dequantize()
    rounded = naive(weight, spec, importance)
    assert error(weight, stored, importance) <= error(weight, rounded, importance)


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("group_size", [None, 16])
def test_uniform(lut_dtype, name, group_size):
    weight = trained((64, 80), name)
    spec = PaletteSpec(
        mode="uniform",
        nbits=3,
        channel_axis=None if group_size is None else 0,
        group_size=group_size,
        lut_dtype=lut_dtype,
    )
    palettized, _ = palettize(weight, spec)
    check(weight, spec, palettized)
    step = float(palettized.quantized.scale.ravel()[0])
    wide = weight.astype(np.float64)
    stored = palettized.dequantize().astype(np.float64)
    for g, part in enumerate(np.split(wide, len(palettized.table))):
        entries = palettized.table[g].astype(np.float64).ravel()
        steps = np.linspace(part.min(), part.max(), 8)
        slack = 1.2 if name == "bfloat16" else 0.6
        np.testing.assert_allclose(entries, steps, atol=slack * step)
        there = np.split(stored, len(palettized.table))[g]
        misses = np.abs(part[..., None] - entries).min(axis=-1)
        np.testing.assert_allclose(np.abs(part - there), misses, atol=1e-12)


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
def test_custom_keeps_the_indices_of_the_function(lut_dtype):
    weight = trained((8, 6), "float16")
    labels = np.arange(weight.size) % 3
    entries = [0.05, -0.031, 0.0101]
    spec = PaletteSpec(
        mode="custom", lut_function=lambda w: (entries, labels), lut_dtype=lut_dtype, scale_axis=0
    )
    palettized, _ = palettize(weight, spec)
    check(weight, spec, palettized)
    np.testing.assert_array_equal(palettized.indices.ravel(), labels)
    step = float(palettized.quantized.scale.ravel()[0])
    np.testing.assert_allclose(palettized.table.ravel()[:3], entries, atol=0.55 * step)


def test_unique_has_no_quantized_table():
    with pytest.raises(ConfigError, match=r"'unique'.*exactly.*use mode 'kmeans'.*lut_dtype=None"):
        PaletteSpec(mode="unique", lut_dtype="int8")
    with pytest.raises(ConfigError, match=r"lut_dtype must be None or one of.*got 'int4'"):
        PaletteSpec(nbits=4, lut_dtype="int4")


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
@pytest.mark.parametrize("mode", ["kmeans", "uniform"])
def test_zeros(lut_dtype, mode):
    weight = np.zeros((8, 4), np.float16)
    spec = PaletteSpec(mode=mode, nbits=2, lut_dtype=lut_dtype)
    palettized, distortion = palettize(weight, spec)
    check(weight, spec, palettized)
    assert distortion.noise == 0
    np.testing.assert_array_equal(palettized.dequantize(), weight)


def halves(weight):
    return [-0.0005, 0.0005], (weight.astype(np.float64) > 0).astype(np.uint8)


@pytest.mark.parametrize(
    "spec",
    [
        PaletteSpec(nbits=4),
        PaletteSpec(mode="uniform", nbits=4),
        PaletteSpec(nbits=4, channel_axis=0, cluster_dim=2),
        PaletteSpec(mode="custom", lut_function=halves),
    ],
    ids=lambda spec: f"{spec.mode}-{spec.cluster_dim}",
)
@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
def test_a_tiny_weight_keeps_a_table_of_floats(spec, lut_dtype):
    """A scale of subnormal float16 may count as zero where the model runs."""
    weight = (trained((64, 32), "float32") / 100).astype(np.float16)
    wanted = attrs.evolve(spec, lut_dtype=lut_dtype)
    assert can_quantize_table(weight, wanted) == (spec.mode == "custom")
    palettized, _ = palettize(weight, wanted)
    assert palettized.quantized is None
    plain, _ = palettize(weight, spec)
    assert palettized.table.tobytes() == plain.table.tobytes()
    # scaled channels reach 1, and float32 has smaller numbers
    for other in (
        (weight, attrs.evolve(wanted, scale_axis=0, lut_function=None, mode="kmeans", nbits=4)),
        (weight.astype(np.float32), wanted),
    ):
        assert palettize(*other)[0].quantized is not None


def test_large_float32_weights_are_counted_not_sorted():
    weight = trained((512, 256), "float32")
    spec = PaletteSpec(nbits=4, lut_dtype="int8")
    palettized, _ = palettize(weight, spec)
    check(weight, spec, palettized)
    halves = [palettize(weight, spec, np.ones_like(weight), workers=w)[0] for w in (1, 2)]
    for other in halves:
        assert other.table.tobytes() == palettized.table.tobytes()
        assert other.indices.tobytes() == palettized.indices.tobytes()
    assert error(weight, palettized.dequantize()) <= error(weight, naive(weight, spec))


# --- weights of integers --------------------------------------------------------------------------


def integers(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    numbers = np.rint(rng.standard_normal(shape) * 30 + (128 if dtype == np.uint8 else 0))
    bounds = np.iinfo(dtype)
    return numbers.clip(bounds.min, bounds.max).astype(dtype)


def least_integer_error(values, masses, k):
    """The least error of ``k`` integers, by a dense dynamic program over segments of the values."""
    x, h = np.asarray(values, np.int64), np.asarray(masses, np.float64)
    n = len(x)
    costs = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            mean = round(float((h[i:j] * x[i:j]).sum() / h[i:j].sum()))
            costs[i, j] = min(
                (h[i:j] * np.square(x[i:j] - c)).sum() for c in (mean - 1, mean, mean + 1)
            )
    path = costs[0]
    least = path[-1]
    for _ in range(1, k):
        path = (path[:, None] + costs).min(axis=0)
        least = min(least, path[-1])
    return least


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("nbits", [1, 2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_integer_tables_are_the_best(dtype, nbits, weighted):
    weight = integers((32, 40), dtype, nbits)
    importance = None
    if weighted:
        importance = np.random.default_rng(2).exponential(size=weight.shape)
        importance[weight % 5 == 0] = 0.0
    spec = PaletteSpec(nbits=nbits, channel_axis=0, group_size=16)
    palettized, distortion = palettize(weight, spec, importance)
    assert palettized.dtype == palettized.dequantize().dtype == palettized.table.dtype == dtype
    assert palettized.quantized is None
    assert palettized.nbytes == 32 * 40 * nbits // 8 + 2 * (1 << nbits)
    stored = palettized.dequantize()
    assert distortion.noise == error(weight, stored)
    for rows in (slice(0, 16), slice(16, 32)):
        part = None if importance is None else importance[rows]
        values, masses = ref.distinct(weight[rows], part)
        least = least_integer_error(values, masses, 1 << nbits)
        assert error(weight[rows], stored[rows], part) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_eight_bits_hold_every_integer(dtype):
    weight = np.arange(512).astype(dtype).reshape(16, 32)
    for mode in ("kmeans", "unique", "uniform"):
        spec = PaletteSpec(mode=mode, nbits=None if mode == "unique" else 8)
        palettized, distortion = palettize(weight, spec)
        assert distortion.noise == 0
        np.testing.assert_array_equal(palettized.dequantize(), weight)
        assert palettized.table.dtype == dtype


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integer_weights_in_every_mode(dtype):
    weight = integers((32, 40), dtype)
    uniform, _ = palettize(weight, PaletteSpec(mode="uniform", nbits=3))
    steps = np.rint(np.linspace(weight.min(), weight.max(), 8))
    np.testing.assert_allclose(uniform.table.ravel(), steps, atol=1)
    vectors = PaletteSpec(nbits=4, channel_axis=0, cluster_dim=2)
    palettized, distortion = palettize(weight, vectors)
    points = weight.reshape(16, 2, 40).transpose(0, 2, 1).reshape(-1, 2).astype(np.float64)
    theirs = KMeans(16, n_init=4, random_state=0).fit(points)
    rounded = np.rint(theirs.cluster_centers_)
    assert distortion.noise <= 1.03 * (
        np.square(points[:, None] - rounded).sum(axis=2).min(axis=1).sum()
    )
    assert palettized.table.dtype == dtype
    with pytest.raises(NoPaletteError, match="more than 4 distinct values"):
        palettize(weight, PaletteSpec(mode="unique", allowed_nbits=(1, 2)))
    seen = []

    def function(group):
        seen.append(group.dtype)
        return [3.4, 60.6], (group > 50).astype(np.uint8)

    custom, _ = palettize(weight, PaletteSpec(mode="custom", lut_function=function))
    assert (seen, custom.table.ravel().tolist()) == ([dtype], [3, 61])
    np.testing.assert_array_equal(custom.dequantize(), np.where(weight > 50, 61, 3))
    for entries in ([0, 256], [-129, 0], [np.nan, 0]):
        far = PaletteSpec(mode="custom", lut_function=lambda w, e=entries: (e, w * 0))
        with pytest.raises(ConfigError, match="must be from"):
            palettize(weight, far)


def test_integers_have_no_scale():
    with pytest.raises(ConfigError, match="no per-channel scale"):
        palettize(np.ones((4, 4), np.int8), PaletteSpec(nbits=2, scale_axis=0))


# --- values of no importance ----------------------------------------------------------------------

MASKED = [
    PaletteSpec(nbits=3),
    PaletteSpec(nbits=3, lut_dtype="int8"),
    PaletteSpec(nbits=3, channel_axis=0, group_size=8),
    PaletteSpec(nbits=3, channel_axis=0, group_size=8, lut_dtype="uint8"),
    PaletteSpec(nbits=3, scale_axis=0),
    PaletteSpec(mode="uniform", nbits=3),
    PaletteSpec(mode="uniform", nbits=3, channel_axis=0, group_size=8),
    PaletteSpec(nbits=3, channel_axis=0, cluster_dim=2),
]


def masked_ids(spec):
    parts = (spec.mode, spec.group_size, spec.cluster_dim, spec.scale_axis, spec.lut_dtype)
    return "-".join(map(str, parts))


@pytest.mark.parametrize("spec", MASKED, ids=masked_ids)
@pytest.mark.parametrize("name", ["float16", "float32", "int8"])
def test_values_of_no_importance_change_nothing(spec, name):
    """Whatever stands where the importance is zero: the table is that of the others."""
    if name == "int8" and (spec.scale_axis is not None or spec.lut_dtype is not None):
        pytest.skip("no scales for integers")
    weight = integers((32, 24), np.int8) if name == "int8" else trained((32, 24), name)
    mask = np.random.default_rng(1).random(weight.shape) < 0.5
    mask[:, 0] = True
    if spec.cluster_dim > 1:
        mask = np.repeat(mask[::2], 2, axis=0)
    bounds = [0] if spec.scale_axis is not None else [0, 5, -5]
    found = []
    for value in bounds:
        for kind in (bool, np.float16, np.float32, np.float64):
            other = np.where(mask, weight, np.asarray(value, weight.dtype))
            found.append(palettize(other, spec, mask.astype(kind))[0])
    for palettized in found[1:]:
        assert palettized.table.tobytes() == found[0].table.tobytes()
        np.testing.assert_array_equal(
            palettized.indices[mask[:: spec.cluster_dim]],
            found[0].indices[mask[:: spec.cluster_dim]],
        )
    if spec.scale_axis is None and spec.group_size is None and spec.cluster_dim == 1:
        alone, _ = palettize(weight[mask], spec)
        assert alone.table.tobytes() == found[0].table.tobytes()
        np.testing.assert_array_equal(found[0].dequantize()[mask], alone.dequantize())


@pytest.mark.parametrize("name", ["float16", "float32", "int8"])
@pytest.mark.parametrize("mode", ["kmeans", "unique"])
@pytest.mark.parametrize("groups", [False, True])
def test_few_values_of_importance_are_stored_as_they_are(name, mode, groups):
    weight = np.arange(128).reshape(16, 8) % 97
    mask = weight % 30 == 7  # 7, 37, 67: at most three of them in a group
    weight = weight.astype(ref.FORMATS.get(name, np.int8))
    assert mask[:8].any()
    assert mask[8:].any()
    spec = PaletteSpec(
        mode=mode,
        nbits=2 if mode == "kmeans" else None,
        channel_axis=0 if groups else None,
        group_size=8 if groups else None,
        allowed_nbits=(1, 2),
    )
    palettized, distortion = palettize(weight, spec, mask)
    stored = palettized.dequantize()
    np.testing.assert_array_equal(stored[mask], weight[mask])
    assert set(stored.ravel().tolist()) <= {7, 37, 67}
    assert distortion.noise > 0
    assert measure_distortion(weight, palettized, mask).noise == 0


@pytest.mark.parametrize("spec", MASKED, ids=masked_ids)
@pytest.mark.parametrize("name", ["float16", "float32"])
def test_a_group_of_no_importance_counts_as_uniform(spec, name):
    weight = trained((32, 24), name)
    mask = np.ones(weight.shape, bool)
    mask[8:16] = False
    palettized, _ = palettize(weight, spec, mask)
    stored = palettized.dequantize()
    assert np.isfinite(stored).all()
    if spec.group_size is not None:
        part = attrs.evolve(spec, lut_dtype=None)
        alone, _ = palettize(weight[8:16], part)
        there = error(weight[8:16], stored[8:16])
        assert there <= 1.5 * error(weight[8:16], alone.dequantize())
    nothing, _ = palettize(weight, spec, np.zeros_like(mask))
    plain, _ = palettize(weight, spec)
    assert nothing.table.tobytes() == plain.table.tobytes()
    assert nothing.indices.tobytes() == plain.indices.tobytes()


def test_unique_vectors_of_no_importance_take_no_entry():
    weight = np.arange(64).reshape(8, 8).astype(np.float32)
    mask = np.zeros((8, 8), bool)
    mask[:2, :3] = True
    mask[4, 4] = True  # one element makes its vector count
    spec = PaletteSpec(mode="unique", channel_axis=0, cluster_dim=2, allowed_nbits=(2,))
    palettized, _ = palettize(weight, spec, mask)
    stored = palettized.dequantize()
    for vector in ((slice(0, 2), slice(0, 3)), (slice(4, 6), slice(4, 5))):
        np.testing.assert_array_equal(stored[vector], weight[vector])


def test_distortion_where_it_counts():
    weight = np.array([[1.0, 2.0, 4.0]], np.float16)
    palettized = Palettized(np.ones((1, 1, 2, 1), np.float16), np.zeros((1, 3), np.uint8))
    found = measure_distortion(weight, palettized, np.array([[True, True, False]]))
    assert (found.signal, found.noise) == (21.0, 1.0)
