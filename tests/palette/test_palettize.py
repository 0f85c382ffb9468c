"""The one way from a weight to its palette, against plain numpy and scikit-learn."""

import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from mlopt.errors import ConfigError
from mlopt.palette import NoPaletteError, PaletteSpec, Palettized, palettize
from tests.palette import references as ref

ROOT = Path(__file__).parents[2]


def random_weight(shape, name="float16", seed=0):
    rng = np.random.default_rng(seed)
    return (0.05 * rng.standard_normal(shape)).astype(ref.FORMATS[name])


def noise_of(weight, stored):
    return float(((weight.astype(np.float64) - stored.astype(np.float64)) ** 2).sum())


def check(weight, spec, palettized, distortion):
    """Check what holds for every palette, and that the distortion is what it says."""
    stored = palettized.dequantize()
    assert stored.shape == palettized.shape == weight.shape
    assert stored.dtype == palettized.dtype == weight.dtype
    assert palettized.cluster_dim == spec.cluster_dim
    groups = [1] * weight.ndim
    if spec.group_size is not None:
        groups[spec.channel_axis] = weight.shape[spec.channel_axis] // spec.group_size
    assert palettized.table_shape == tuple(groups)
    if spec.nbits is not None:
        assert palettized.nbits == spec.nbits
    assert palettized.nbits in spec.allowed_nbits
    if spec.cluster_dim > 1:
        assert palettized.vector_axis == spec.channel_axis % weight.ndim
    if spec.scale_axis is None:
        assert palettized.scale is None
    else:
        lengths = [1] * weight.ndim
        lengths[spec.scale_axis] = weight.shape[spec.scale_axis]
        assert palettized.scale.shape == tuple(lengths)
    assert distortion.noise == pytest.approx(noise_of(weight, stored), rel=1e-10, abs=1e-30)
    signal = float((weight.astype(np.float64) ** 2).sum())
    assert distortion.signal == pytest.approx(signal, rel=1e-10)


def halves(weight):
    """A lut_function: the sign decides; lists, as users may give them."""
    positive = weight.astype(np.float64) > 0
    return [-0.05, 0.05], positive.astype(np.uint8)


def specs(rank):
    """Requests of every mode, granularity, vector length and scale for a weight of a rank."""
    axes = range(-rank, rank)
    for axis, group, d, scale in itertools.product(axes, (None, 2, 4, 8), (1, 2), (None, 0, -1)):
        if group == 8 and axis % rank:  # the other axes are 4 long
            continue
        place = {
            "channel_axis": None if group is None and d == 1 else axis,
            "group_size": group,
            "cluster_dim": d,
            "scale_axis": scale,
        }
        if place["channel_axis"] is None and axis:
            continue
        yield PaletteSpec(nbits=2, **place)
        if d == 1:
            yield PaletteSpec(mode="uniform", nbits=3, **place)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.covering(1)
def test_every_combination(rank, name):
    weight = random_weight((8, 4, 4, 4, 4)[:rank], name)
    weight.flags.writeable = False
    before = weight.tobytes()
    for spec in specs(rank):
        palettized, distortion = palettize(weight, spec)
        check(weight, spec, palettized, distortion)
        stored = palettized.dequantize()
        # better than a constant: something of the weight is there
        assert distortion.noise < 0.9 * distortion.signal, spec
        if spec.mode == "uniform" and spec.scale_axis is None:
            assert np.isin(stored.astype(float), palettized.table.astype(float)).all()
    assert weight.tobytes() == before


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("scale_axis", [None, 0, 1])
def test_custom_and_unique(name, scale_axis):
    weight = random_weight((8, 6, 2), name)
    custom = PaletteSpec(mode="custom", lut_function=halves, scale_axis=scale_axis)
    palettized, distortion = palettize(weight, custom)
    check(weight, custom, palettized, distortion)
    assert palettized.nbits == 1
    few = np.random.default_rng(0).integers(-3, 4, weight.shape).astype(weight.dtype)
    for group, d, nbits in ((None, 1, 3), (2, 1, 3), (4, 2, 6)):
        spec = PaletteSpec(
            mode="unique", channel_axis=0, group_size=group, cluster_dim=d, allowed_nbits=(3, 6, 8)
        )
        palettized, distortion = palettize(few, spec)
        check(few, spec, palettized, distortion)
        assert distortion.noise == 0
        assert palettized.nbits <= nbits
        np.testing.assert_array_equal(palettized.dequantize(), few)


def test_unique_takes_the_width_that_is_allowed():
    weight = np.arange(5, dtype=np.float16)
    for allowed, nbits in (((1, 2, 3, 4, 6, 8), 3), ((1, 2, 4, 6, 8), 4), ((8,), 8)):
        palettized, _ = palettize(weight, PaletteSpec(mode="unique", allowed_nbits=allowed))
        assert palettized.nbits == nbits
        assert palettized.table.ravel().tolist() == [0, 1, 2, 3] + [4] * ((1 << nbits) - 4)


def test_unique_gives_up_with_the_reason():
    weight = np.arange(257, dtype=np.float16)
    with pytest.raises(NoPaletteError, match="more than 256 distinct values"):
        palettize(weight, PaletteSpec(mode="unique"))
    assert palettize(weight[:256], PaletteSpec(mode="unique"))[1].noise == 0
    with pytest.raises(NoPaletteError, match="more than 16 distinct vectors of 2"):
        palettize(
            np.arange(34, dtype=np.float32),
            PaletteSpec(mode="unique", channel_axis=0, cluster_dim=2, allowed_nbits=(1, 4)),
        )


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("mode", ["kmeans", "uniform"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.covering(2)
def test_groups_are_as_if_alone(axis, weighted, mode, name):
    weight = random_weight((6, 12, 18), name)
    importance = np.random.default_rng(0).integers(1, 9, weight.shape) * 1.0 if weighted else None
    spec = PaletteSpec(mode=mode, nbits=3, channel_axis=axis, group_size=3)
    palettized, _ = palettize(weight, spec, importance)
    parts = weight.shape[axis] // 3
    for g, part in enumerate(np.split(weight, parts, axis=axis)):
        h = None if importance is None else np.split(importance, parts, axis=axis)[g]
        alone, _ = palettize(part, PaletteSpec(mode=mode, nbits=3), h)
        table = palettized.table.take(g, axis % 3).ravel()
        np.testing.assert_array_equal(table, alone.table.ravel())
        indices = np.split(palettized.indices, parts, axis=axis)[g]
        np.testing.assert_array_equal(indices, alone.indices)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vectors_get_the_nearest_entry(axis, d):
    weight = random_weight((12, 6, 18), "float32")
    spec = PaletteSpec(nbits=3, channel_axis=axis, group_size=6, cluster_dim=d)
    palettized, distortion = palettize(weight, spec)
    check(weight, spec, palettized, distortion)
    for g, part in enumerate(np.split(weight, weight.shape[axis] // 6, axis=axis)):
        vectors = np.moveaxis(part, axis, -1).reshape(-1, d).astype(np.float64)
        table = palettized.table.take(g, axis % 3).reshape(8, d).astype(np.float64)
        squares = ((vectors[:, None] - table) ** 2).sum(axis=2)
        indices = np.split(palettized.indices, weight.shape[axis] // 6, axis=axis)[g]
        indices = np.moveaxis(indices, axis, -1).reshape(-1)
        taken = squares[np.arange(len(vectors)), indices]
        np.testing.assert_allclose(taken, squares.min(axis=1), rtol=1e-6, atol=1e-12)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "transposed": lambda w: np.ascontiguousarray(w.T).T,
    "reversed": lambda w: np.ascontiguousarray(w[::-1, ::-1])[::-1, ::-1],
    "strided": lambda w: np.repeat(np.repeat(w, 2, 0), 3, 1)[::2, ::3],
}


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_changes_nothing_and_inputs_stay(layout, name):
    weight = random_weight((12, 16), name)
    importance = np.random.default_rng(0).integers(0, 9, weight.shape).astype(np.float64)
    few = np.random.default_rng(0).integers(-3, 4, weight.shape).astype(weight.dtype)
    place = {"channel_axis": 1, "group_size": 4}
    for source, spec, h in (
        (weight, PaletteSpec(nbits=3), None),
        (weight, PaletteSpec(nbits=3), importance),
        (weight, PaletteSpec(nbits=3, **place), importance),
        (weight, PaletteSpec(nbits=3, scale_axis=0, **place), None),
        (weight, PaletteSpec(nbits=3, scale_axis=1), importance),
        (weight, PaletteSpec(nbits=3, cluster_dim=2, **place), importance),
        (weight, PaletteSpec(mode="uniform", nbits=3, **place), None),
        (weight, PaletteSpec(mode="custom", lut_function=halves, scale_axis=0), None),
        (few, PaletteSpec(mode="unique", **place), None),
    ):
        shown = LAYOUTS[layout](source)
        shown_importance = None if h is None else LAYOUTS[layout](h)
        assert not shown.flags.c_contiguous
        for array in (shown, shown_importance):
            if array is not None:
                array.flags.writeable = False
        expected, expected_distortion = palettize(source, spec, h)
        got, distortion = palettize(shown, spec, shown_importance)
        assert got.table.tobytes() == expected.table.tobytes()
        assert got.indices.tobytes() == expected.indices.tobytes()
        assert distortion.noise == pytest.approx(expected_distortion.noise, rel=1e-12)
        np.testing.assert_array_equal(shown, source)
        if h is not None:
            np.testing.assert_array_equal(shown_importance, h)


@pytest.mark.parametrize("name", ref.FORMATS)
def test_importance_moves_the_error_to_what_matters_less(name):
    weight = random_weight((16, 64), name)
    importance = np.ones(weight.shape)
    importance[:4] = 1000
    plain, distortion = palettize(weight, PaletteSpec(nbits=2))
    heeded, weighted_distortion = palettize(weight, PaletteSpec(nbits=2), importance)
    misses = [(weight.astype(float) - p.dequantize().astype(float)) ** 2 for p in (plain, heeded)]
    assert (importance * misses[1]).sum() < (importance * misses[0]).sum()
    # what is reported is plain nonetheless
    assert weighted_distortion.noise == pytest.approx(misses[1].sum(), rel=1e-12)
    assert weighted_distortion.noise > distortion.noise


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.float64])
def test_importance_of_any_dtype(dtype):
    weight = random_weight((9, 50), "float32")
    importance = np.random.default_rng(0).integers(0, 20, weight.shape)
    for spec in (
        PaletteSpec(nbits=3),
        PaletteSpec(nbits=3, channel_axis=0, group_size=3),
        PaletteSpec(nbits=3, scale_axis=0),
        PaletteSpec(nbits=3, channel_axis=1, cluster_dim=2),
    ):
        expected, _ = palettize(weight, spec, importance.astype(np.float64))
        got, _ = palettize(weight, spec, importance.astype(dtype))
        assert got.table.tobytes() == expected.table.tobytes()
        assert got.indices.tobytes() == expected.indices.tobytes()


@pytest.mark.parametrize(
    "name",  # one that is clustered through its codes, and one that is not
    [
        "float16",
        "float32",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("bfloat16", "float64")),
    ],
)
def test_workers_change_no_byte(name):
    weight = random_weight((64, 9000), name)
    importance = np.random.default_rng(0).random(weight.shape)
    for spec in (
        PaletteSpec(nbits=4, channel_axis=0, group_size=1),
        PaletteSpec(nbits=4, channel_axis=1, group_size=9, scale_axis=0),
        PaletteSpec(nbits=2, channel_axis=0, group_size=32, cluster_dim=4),
    ):
        for h in (None, importance):
            one = palettize(weight, spec, h, workers=1)
            two = palettize(weight, spec, h, workers=4)
            assert one[0].table.tobytes() == two[0].table.tobytes()
            assert one[0].indices.tobytes() == two[0].indices.tobytes()
            assert one[1] == two[1]


# --- against other clusterings -----------------------------------------------------------------


def scikit_learn_table(points, nbits):
    """Table and labels as coremltools has scikit-learn make them."""
    flat = np.asarray(points).reshape(-1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KMeans(1 << nbits, init="k-means++", tol=1e-2, n_init=1, random_state=0).fit(flat)
    return model.cluster_centers_.ravel(), model.labels_.reshape(points.shape)


@pytest.mark.parametrize("name", ["float16", "float32"])
@pytest.mark.parametrize("nbits", [1, 2, 4, 6])
def test_never_above_scikit_learn(nbits, name):
    below = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        draw = (rng.standard_normal, rng.laplace, rng.random, rng.standard_exponential)[seed % 4]
        weight = (0.1 * draw(size=(40, 50))).astype(ref.FORMATS[name])
        _, distortion = palettize(weight, PaletteSpec(nbits=nbits))
        table, labels = scikit_learn_table(weight, nbits)
        theirs = noise_of(weight, table.astype(weight.dtype)[labels])
        assert distortion.noise <= theirs * (1 + 1e-12)
        below += distortion.noise < theirs * (1 - 1e-6)
    assert below >= 6


@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_scale_at_or_below_other_ways_to_cluster_quotients(nbits, name):
    for seed in range(6):
        weight = random_weight((16, 120), "float64", seed)
        weight *= np.random.default_rng(seed).exponential(size=(16, 1)) + 0.01
        weight = weight.astype(ref.FORMATS[name])
        palettized, distortion = palettize(weight, PaletteSpec(nbits=nbits, scale_axis=0))
        largest = np.abs(weight.astype(np.float64)).max(axis=1, keepdims=True)
        np.testing.assert_array_equal(palettized.scale.astype(np.float64), largest)
        quotients = (weight.astype(np.float64) / largest).astype(np.float32)
        # all quotients alike, as if every channel mattered as much
        alike, _ = palettize(quotients, PaletteSpec(nbits=nbits))
        table = alike.table.astype(weight.dtype)
        unweighted = Palettized(table, alike.indices, scale=palettized.scale)
        assert distortion.noise < noise_of(weight, unweighted.dequantize())
        # and as coremltools does, dividing in the weight's own dtype
        if name != "bfloat16":
            table, labels = scikit_learn_table(weight / palettized.scale, nbits)
            table = table.astype(weight.dtype).reshape(1, 1, -1, 1)
            theirs = Palettized(table, labels.astype(np.uint8), scale=palettized.scale)
            assert distortion.noise < noise_of(weight, theirs.dequantize())


# --- scaling and permuting ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize(
    "spec",
    [
        PaletteSpec(nbits=4),
        PaletteSpec(nbits=4, channel_axis=0, group_size=2),
        PaletteSpec(nbits=4, scale_axis=0),
        PaletteSpec(mode="uniform", nbits=4),
        PaletteSpec(nbits=4, channel_axis=0, cluster_dim=2),
    ],
    ids=["tensor", "groups", "scale", "uniform", "vectors"],
)
def test_a_power_of_two_passes_through(spec, name):
    # magnitudes in [4, 64), so that no table entry of float16 becomes subnormal; 16 entries leave
    # none between the signs
    rng = np.random.default_rng(0)
    weight = rng.choice([-1.0, 1.0], (8, 60)) * 2.0 ** rng.uniform(2, 6, (8, 60))
    weight = weight.astype(ref.FORMATS[name])
    small = (weight.astype(np.float64) * 2.0**-12).astype(weight.dtype)
    np.testing.assert_array_equal(small.astype(np.float64) * 2.0**12, weight.astype(np.float64))
    there, here = palettize(weight, spec), palettize(small, spec)
    factor = 1.0 if spec.scale_axis is not None else 2.0**-12
    expected = there[0].table.astype(np.float64) * factor
    np.testing.assert_array_equal(here[0].table.astype(np.float64), expected)
    np.testing.assert_array_equal(here[0].indices, there[0].indices)
    assert here[1].noise == there[1].noise * 2.0**-24


@given(
    st.sampled_from(sorted(ref.FORMATS)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_permutation_moves_indices_only(name, seed, n, nbits, weighted):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(n).astype(ref.FORMATS[name])
    # whole numbers, whose sums do not depend on the order
    importance = rng.integers(0, 5, n).astype(float) if weighted else None
    order = rng.permutation(n)
    there, _ = palettize(weight, PaletteSpec(nbits=nbits), importance)
    moved = None if importance is None else importance[order]
    here, _ = palettize(weight[order], PaletteSpec(nbits=nbits), moved)
    assert here.table.tobytes() == there.table.tobytes()
    np.testing.assert_array_equal(here.indices, there.indices[order])


@given(st.sampled_from(sorted(ref.FORMATS)), st.integers(0, 2**32 - 1), st.integers(2, 600))
@settings(max_examples=40, deadline=None)
def test_more_bits_never_cost_more(name, seed, n):
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(3, n).astype(ref.FORMATS[name])
    noises = [palettize(weight, PaletteSpec(nbits=nbits))[1].noise for nbits in (1, 2, 3, 4, 6, 8)]
    assert all(after <= before for before, after in itertools.pairwise(noises))
    if n <= 256:
        assert noises[-1] == 0


@given(
    st.sampled_from(sorted(ref.FORMATS)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(6,), (4, 6), (3, 4, 5), (2, 2, 3, 4)]),
    st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=40, deadline=None)
def test_what_came_out_comes_out_again(name, seed, shape, nbits):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(ref.FORMATS[name])
    stored = palettize(weight, PaletteSpec(nbits=nbits))[0].dequantize()
    again, distortion = palettize(stored, PaletteSpec(nbits=nbits))
    assert distortion.noise == 0
    np.testing.assert_array_equal(again.dequantize(), stored)
    unique, distortion = palettize(stored, PaletteSpec(mode="unique"))
    assert distortion.noise == 0
    np.testing.assert_array_equal(unique.dequantize(), stored)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_extreme_numbers(end, name):
    # Sums of them, or of their squares, must neither overflow nor vanish.
    dtype = ref.FORMATS[name]
    one = np.asarray(1, dtype)
    smallest = float(np.nextafter(one * 0, one))
    largest = float(np.nextafter(np.asarray(np.inf, dtype), one))
    for unit in (64 * smallest,) if end == "smallest" else (largest / 2048,):
        weight = (np.random.default_rng(0).integers(-2000, 2000, 400) * unit).astype(dtype)
        palettized, _ = palettize(weight, PaletteSpec(nbits=3))
        table = palettized.table.ravel().astype(np.float64) / unit
        values, masses = ref.distinct(weight.astype(np.float64) / unit)
        best = ref.least_costs(ref.segment_costs(values, masses), 8)[-1]
        assert ref.nearest_cost(weight.astype(np.float64) / unit, table) <= best * 1.02


# --- errors -------------------------------------------------------------------------------------


def test_input_that_is_refused():
    weight = np.ones((6, 4), np.float16)
    spec = PaletteSpec(nbits=2)
    for bad, message in (
        (weight.astype(np.int16), r"must be one of .*float16.*int8.* got int16"),
        (weight.astype(np.complex64), r"got complex64"),
        (np.float16(1).reshape(()), r"must not be empty, got shape \(\)"),
        (np.ones((0, 4), np.float16), r"must not be empty, got shape \(0, 4\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            palettize(bad, spec)
    for bad_spec, message in (
        (
            PaletteSpec(nbits=2, channel_axis=2, group_size=2),
            r"channel_axis must be in \[-2, 2\), got 2.*\(6, 4\)",
        ),
        (PaletteSpec(nbits=2, scale_axis=-3), r"scale_axis must be in \[-2, 2\), got -3"),
        (
            PaletteSpec(nbits=2, channel_axis=0, group_size=4),
            r"group_size must divide the channels, got 4 for the 6 channels on axis 0.*divisor",
        ),
        (
            PaletteSpec(nbits=2, channel_axis=1, cluster_dim=3),
            r"cluster_dim must divide the channels, got 3 for the 4 channels on axis 1",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            palettize(weight, bad_spec)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("mode", ["kmeans", "uniform", "unique"])
def test_weights_that_are_not_finite_are_refused(name, number, mode):
    weight = random_weight((30, 40), name)
    weight[17, 3] = number
    spec = PaletteSpec(mode=mode, nbits=None if mode == "unique" else 4)
    with pytest.raises(ConfigError, match=r"must be finite.*\(30, 40\).*leave it as it is"):
        palettize(weight, spec)
    # the first and the last element too
    for place in (0, -1):
        edge = random_weight(40, name)
        edge[place] = number
        with pytest.raises(ConfigError, match="must be finite"):
            palettize(edge, spec)


def test_importance_that_is_refused():
    weight = np.ones((6, 4), np.float16)
    for bad, message in (
        (np.ones((4, 6)), r"weight's shape \(6, 4\), got \(4, 6\)"),
        (np.ones(4), r"weight's shape \(6, 4\), got \(4,\)"),
        (-np.ones((6, 4)), r"not negative, got values from -1.0"),
        (np.full((6, 4), np.inf), r"finite and not negative, got values from inf to inf"),
        (np.full((6, 4), np.nan), r"finite and not negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            palettize(weight, PaletteSpec(nbits=2), bad)


# --- the same everywhere ------------------------------------------------------------------------

PRINT_DIGESTS = """
import hashlib, warnings
warnings.simplefilter("ignore")
import ml_dtypes, numpy as np
from mlopt.palette import PaletteSpec, palettize

def weights(shape, dtype):
    # integer arithmetic, so that the input is the same wherever this runs
    state, numbers = 12345, []
    for _ in range(int(np.prod(shape))):
        total = 0
        for _ in range(4):
            state = (state * 1103515245 + 12345) % (1 << 31)
            total += state >> 16
        numbers.append((total - 65534) / (1 << 15))
    return np.array(numbers).reshape(shape).astype(dtype)

for dtype, place, nbits, weighted in CASES:
    weight = weights(SHAPE, getattr(np, dtype, None) or getattr(ml_dtypes, dtype))
    importance = np.square(weights(SHAPE, np.float64)[::-1]) if weighted else None
    palettized, distortion = palettize(weight, PaletteSpec(nbits=nbits, **place), importance)
    digest = hashlib.sha256(palettized.table.tobytes() + palettized.indices.tobytes())
    if palettized.scale is not None:
        digest.update(palettized.scale.tobytes())
    if palettized.quantized is not None:
        digest.update(palettized.quantized.scale.tobytes())
    print(digest.hexdigest(), distortion.noise.hex())
"""

GROUPS = {"channel_axis": 0, "group_size": 2}
SCALED_GROUPS = {"channel_axis": 1, "group_size": 4, "scale_axis": 0}
VECTORS = {"channel_axis": 0, "cluster_dim": 2}
INTEGERS = {"lut_dtype": "int8"}


def digests(shape, cases, **environment):
    """What a fresh process prints for weights of a shape."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    result = subprocess.run(
        [sys.executable, "-c", f"SHAPE, CASES = {shape}, {cases}\n{PRINT_DIGESTS}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(cases)
    return lines


def test_the_same_bytes_without_compilation():
    # Python's own floats round every operation: nothing is fused or reordered by the compiler.
    cases = [
        (name, place, nbits, weighted)
        for name in ("float16", "bfloat16", "float32")
        for place in ({}, GROUPS, SCALED_GROUPS)
        for nbits, weighted in ((1, False), (3, True), (3, False))
    ]
    cases.append(("float32", VECTORS, 2, True))
    cases.append(("float16", GROUPS | INTEGERS, 2, True))
    cases.append(("float32", VECTORS | {"lut_dtype": "uint8"}, 2, True))
    shape = (8, 24)
    assert digests(shape, cases, NUMBA_DISABLE_JIT="1") == digests(shape, cases)


@pytest.mark.long
def test_the_same_bytes_without_vector_instructions():
    cases = [
        ("float16", {}, 4, False),
        ("float16", GROUPS, 4, False),
        ("float16", SCALED_GROUPS, 4, False),
        ("float16", {}, 4, True),
        ("float16", GROUPS, 3, True),
        ("float32", {}, 4, True),
        ("float16", GROUPS | INTEGERS, 4, False),
        ("float32", VECTORS | INTEGERS, 3, True),
    ]
    shape = (16, 60)
    # Python's own floats instead of kernels: to compile them all for a plain machine takes minutes.
    plain = digests(
        shape,
        cases,
        NUMBA_DISABLE_JIT="1",
        NPY_DISABLE_CPU_FEATURES=" ".join(dispatched_features()),
    )
    assert plain == digests(shape, cases)


def dispatched_features():
    """What numpy was built to use beyond its baseline and finds on this machine."""
    umath = sys.modules["numpy._core._multiarray_umath"]
    return [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]


@pytest.mark.parametrize("name", list(ref.FORMATS))
@pytest.mark.parametrize(
    "options",
    [
        {"nbits": 2},
        {"nbits": 2, "channel_axis": 0, "group_size": 4},
        {"nbits": 2, "channel_axis": 0, "cluster_dim": 2},
        {"nbits": 2, "lut_dtype": "int8"},
        {"nbits": 2, "mode": "uniform"},
        {"mode": "unique"},
        {"mode": "custom", "lut_function": halves},
    ],
    ids=lambda options: "-".join(f"{getattr(v, '__name__', v)}" for v in options.values()),
)
def test_channels_of_zeros_stay_zero_under_a_scale_and_take_no_entry(options, name):
    weight = random_weight((16, 8), name)
    weight[3:9] = 0  # one group of 4 has nothing else
    if options.get("mode") == "unique":
        weight[:] = np.sign(weight.astype(np.float64)).astype(weight.dtype)
        options = {**options, "allowed_nbits": (1,)}  # +-1; zeros would be a third
    spec = PaletteSpec(scale_axis=0, **options)
    palettized, distortion = palettize(weight, spec)
    check(weight, spec, palettized, distortion)
    assert not palettized.scale[3:9].any()
    assert not palettized.dequantize()[3:9].any()
    if "channel_axis" not in options and options.get("mode") != "custom":
        without = np.delete(weight, np.s_[3:9], axis=0)
        alone, _ = palettize(without, spec)
        np.testing.assert_array_equal(alone.table, palettized.table)


def test_a_weight_of_zeros_under_a_scale_stays_zero():
    palettized, distortion = palettize(
        np.zeros((4, 6), np.float16), PaletteSpec(nbits=2, scale_axis=0)
    )
    assert distortion.noise == 0
    assert not palettized.dequantize().any()
