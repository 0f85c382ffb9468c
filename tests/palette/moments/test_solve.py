"""The solver as a whole: against brute force, and what holds for every input."""

import itertools

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette import PaletteSpec, Palettized, palettize
from mlopt.palette.moments import Arrangement, InputMoments, can_refine, refine
from tests.palette import references as ref
from tests.palette.moments import examples as ex

SHAPES = {
    "linear": ex.matrix(8, 12),
    "matmul": Arrangement((12, 8), (12, 8), (1, 0), 1, 8, 12),
    "convolution": ex.convolution(8, 4, (3,)),
    "grouped": ex.convolution(8, 4, (3, 1), groups=2),
    "depthwise": ex.convolution(8, 1, (3, 4), groups=8),
    "transposed": ex.transposed(4, 8, (3,)),
    "grouped transposed": ex.transposed(8, 4, (3,), groups=2),
}
FORMS = [
    {},
    {"channel_axis": 0, "group_size": 4},
    {"channel_axis": 1, "group_size": 2},
    {"channel_axis": 0, "cluster_dim": 2},
    {"channel_axis": 1, "cluster_dim": 2},
    {"channel_axis": 1, "cluster_dim": 2, "group_size": 4},
    {"channel_axis": -1, "group_size": 1},
    {"scale_axis": 0},
    {"scale_axis": 1, "channel_axis": 0, "group_size": 2},
    {"scale_axis": 0, "channel_axis": 0, "cluster_dim": 2},
    {"lut_dtype": "int8"},
    {"lut_dtype": "uint8", "channel_axis": 0, "group_size": 2},
    {"lut_dtype": "uint8", "scale_axis": 0},
]


def random_weight(shape, name="float16", seed=0):
    rng = np.random.default_rng(seed)
    return (0.05 * rng.standard_normal(shape)).astype(ref.FORMATS[name])


def same(a, b):
    assert a.table.tobytes() == b.table.tobytes()
    assert a.indices.tobytes() == b.indices.tobytes()


def all_assignments(moments, weight, entries):
    """Labels with their best table and its objective, for every assignment of a tiny weight."""
    second = ex.damped(moments)[0]
    root = np.linalg.cholesky(second).T
    target = (weight.astype(np.float64) @ root.T).reshape(-1)
    # entries can be exchanged, so the first label may be 0
    for rest in itertools.product(range(entries), repeat=weight.size - 1):
        labels = np.array([0, *rest], np.uint8).reshape(weight.shape)
        design = np.einsum("ij,rjk->rik", root, np.eye(entries)[labels]).reshape(-1, entries)
        table, *_ = np.linalg.lstsq(design, target, rcond=None)
        yield labels, table, float(((design @ table - target) ** 2).sum())


@pytest.mark.parametrize("seed", range(6))
def test_optimum_of_tiny_weights(seed):
    arrangement = ex.matrix(2, 4)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((2, 4)).astype(np.float32)
    inputs = rng.standard_normal((50, 1, 4)) + rng.standard_normal((50, 1, 1))
    moments = ex.of_inputs(arrangement, inputs)
    begun = list(all_assignments(moments, weight, 2))
    least = min(value for _, _, value in begun)
    reached = []
    for labels, table, value in begun:
        start = Palettized(table.astype(np.float32).reshape(1, 1, 2, 1), labels)
        refined = refine(weight, start, moments, rounds=20)
        reached.append(ex.objective(moments, weight, refined.dequantize()))
        assert least * (1 - 1e-5) <= reached[-1] <= value * (1 + 1e-5)
    assert min(reached) == pytest.approx(least, rel=1e-5)
    assert np.sum(np.array(reached) < least * 1.02) >= 3
    assert np.quantile(reached, 0.5) < 2 * least
    start, _ = palettize(weight, PaletteSpec(nbits=1), moments.importance())
    plain, _ = palettize(weight, PaletteSpec(nbits=1), moments=moments)
    after = ex.objective(moments, weight, plain.dequantize())
    assert least * (1 - 1e-5) <= after <= ex.objective(moments, weight, start.dequantize())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_layout_is_never_worse_than_its_start(shape, form):
    axis = form.get("channel_axis")
    unit = form.get("group_size") or form.get("cluster_dim", 1)
    if axis is not None and shape.shape[axis] % unit:
        pytest.skip("channels cannot be divided so")
    spec = PaletteSpec(nbits=2, **form)
    moments = ex.random_moments(shape)
    weight = random_weight(shape.shape)
    start, _ = palettize(weight, spec, moments.importance())
    refined, distortion = palettize(weight, spec, moments=moments)
    assert refined.table.shape == start.table.shape
    assert refined.vector_axis == start.vector_axis
    assert (refined.quantized is None) == (start.quantized is None)
    if refined.scale is not None:
        np.testing.assert_array_equal(refined.scale, start.scale)
    wide = refined.table.astype(np.float64)
    if spec.cluster_dim == 1:
        assert np.all(np.diff(wide[..., 0], axis=-1) >= 0)
    before = ex.objective(moments, weight, start.dequantize())
    after = ex.objective(moments, weight, refined.dequantize())
    if can_refine(spec, moments) is None:
        assert after < before
    else:
        same(refined, start)
    errors = refined.dequantize().astype(np.float64) - weight
    assert distortion.noise == pytest.approx(float((errors**2).sum()), rel=1e-9)


def test_vectors_along_inputs_are_named():
    spec = PaletteSpec(nbits=2, channel_axis=1, cluster_dim=2)
    moments = ex.random_moments(SHAPES["linear"])
    assert "axis 1, which is one of inputs" in can_refine(spec, moments)
    weight = random_weight((8, 12))
    start, _ = palettize(weight, spec)
    with pytest.raises(ConfigError, match="one of inputs"):
        refine(weight, start, moments)


def test_reasons_against_refining():
    moments = ex.random_moments(SHAPES["linear"])
    assert can_refine(PaletteSpec(nbits=2), moments) is None
    assert "mode 'unique'" in can_refine(PaletteSpec(mode="unique"), moments)
    alone = attrs.evolve(moments, second=None)
    assert "only the diagonal" in can_refine(PaletteSpec(nbits=2), alone)
    # half of axis 0 makes rows, half of it columns
    cut = ex.random_moments(Arrangement((8, 6), (2, 4, 6), (0, 1, 2), 1, 2, 24))
    spec = PaletteSpec(nbits=2, channel_axis=0, group_size=2)
    assert "partly rows and partly columns" in can_refine(spec, cut)
    assert can_refine(PaletteSpec(nbits=2), cut) is None
    depthwise = PaletteSpec(nbits=2, channel_axis=0, cluster_dim=2)
    moments = ex.random_moments(SHAPES["depthwise"])
    assert "across blocks" in can_refine(depthwise, moments)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    blocks=st.integers(1, 3),
    nbits=st.sampled_from([1, 2, 4]),
    name=st.sampled_from(list(ref.FORMATS)),
    count=st.integers(1, 12),
    exponents=st.tuples(st.integers(-6, 3), st.integers(-12, 12)),
    seed=st.integers(0, 1 << 16),
    masked=st.booleans(),
    scaled=st.booleans(),
)
def test_objective_never_rises(
    rows, columns, blocks, nbits, name, count, exponents, seed, masked, scaled
):
    rng = np.random.default_rng(seed)
    arrangement = ex.matrix(rows, columns, blocks)
    weight = (rng.standard_normal(arrangement.shape) * 2.0 ** exponents[0]).astype(
        ref.FORMATS[name]
    )
    inputs = np.round(ex.random_inputs(arrangement, seed, count), 1) * 2.0 ** exponents[1]
    moments = ex.of_inputs(arrangement, inputs)
    importance = rng.integers(0, 3, weight.shape) if masked else None
    spec = PaletteSpec(nbits=nbits, scale_axis=0 if scaled else None)
    squares = moments.importance() * (1 if importance is None else importance)
    start, _ = palettize(weight, spec, squares)
    refined, _ = palettize(weight, spec, importance, moments=moments)
    before = ex.objective(moments, weight, start.dequantize(), importance)
    after = ex.objective(moments, weight, refined.dequantize(), importance)
    assert after <= before * (1 + 1e-6)


@pytest.mark.parametrize("name", ref.FORMATS)
def test_large_gain_in_every_format(name):
    arrangement = ex.matrix(24, 32)
    moments = ex.random_moments(arrangement)
    weight = random_weight(arrangement.shape, name)
    start, _ = palettize(weight, PaletteSpec(nbits=3), moments.importance())
    refined, _ = palettize(weight, PaletteSpec(nbits=3), moments=moments)
    assert refined.dtype == weight.dtype
    before = ex.objective(moments, weight, start.dequantize())
    assert ex.objective(moments, weight, refined.dequantize()) < 0.6 * before


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_integer_weights_keep_integer_tables(name):
    arrangement = ex.matrix(12, 16)
    moments = ex.random_moments(arrangement)
    rng = np.random.default_rng(0)
    weight = np.clip(rng.standard_normal((12, 16)) * 40 + (128 if name == "uint8" else 0), 0, 127)
    weight = weight.astype(name)
    spread = np.repeat(rng.random((12, 1)).astype(np.float32) ** 2, 16, axis=1)
    refined, _ = palettize(weight, PaletteSpec(nbits=3), spread, moments=moments)
    start, _ = palettize(weight, PaletteSpec(nbits=3), spread * moments.importance())
    assert refined.dtype == weight.dtype
    before = ex.objective(moments, weight, start.dequantize(), spread)
    assert ex.objective(moments, weight, refined.dequantize(), spread) < before


@pytest.mark.parametrize("form", FORMS[:5] + FORMS[7:8], ids=str)
def test_without_correlation_exact_clusters_stay(form):
    arrangement = ex.matrix(8, 12)
    moments = ex.identity_moments(arrangement)
    for seed in range(8):
        weight = random_weight(arrangement.shape, "float32", seed)
        spec = PaletteSpec(nbits=2, **form)
        plain, _ = palettize(weight, spec)
        refined, _ = palettize(weight, spec, moments=moments)
        before = ex.objective(moments, weight, plain.dequantize())
        after = ex.objective(moments, weight, refined.dequantize())
        assert after <= before * (1 + 1e-6)
        if spec.cluster_dim == 1:  # these are optimal, so nothing is better
            np.testing.assert_array_equal(plain.indices, refined.indices)
            np.testing.assert_allclose(plain.table, refined.table, rtol=1e-6)


def test_diagonal_is_exact_weighted_clustering():
    arrangement = SHAPES["grouped"]
    moments = attrs.evolve(ex.random_moments(arrangement), second=None)
    weight = random_weight(arrangement.shape)
    for form in FORMS:
        spec = PaletteSpec(nbits=2, **form)
        weighted, distortion = palettize(weight, spec, moments.importance())
        by_moments, other = palettize(weight, spec, moments=moments)
        same(weighted, by_moments)
        assert distortion == other
        mask = weight > 0
        weighted, _ = palettize(weight, spec, mask * moments.importance())
        same(weighted, palettize(weight, spec, mask, moments=moments)[0])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_workers_change_nothing(form, monkeypatch):
    monkeypatch.setattr("mlopt.palette.moments.problem._WORK", 1)
    arrangement = ex.matrix(32, 12)
    moments = ex.random_moments(arrangement)
    weight = random_weight(arrangement.shape)
    results = [
        palettize(weight, PaletteSpec(nbits=3, **form), moments=moments, workers=workers)[0]
        for workers in (1, 2, 5)
    ]
    same(results[0], results[1])
    same(results[0], results[2])


def test_parts_of_a_table_are_added_up(monkeypatch):
    arrangement = ex.matrix(32, 12)
    moments = ex.random_moments(arrangement)
    weight = random_weight(arrangement.shape)
    spec = PaletteSpec(nbits=2, channel_axis=0, group_size=16)
    whole, _ = palettize(weight, spec, moments=moments)
    monkeypatch.setattr("mlopt.palette.moments.problem._PART", 5)
    monkeypatch.setattr("mlopt.palette.moments.problem._NORMAL_BYTES", 300)
    parts, _ = palettize(weight, spec, moments=moments)
    np.testing.assert_allclose(parts.table, whole.table, atol=1e-3)


def test_units_in_powers_of_two_change_no_index():
    arrangement = ex.matrix(12, 16)
    inputs = ex.random_inputs(arrangement)
    weight = random_weight(arrangement.shape, "float32")
    spec = PaletteSpec(nbits=3)
    plain, _ = palettize(weight, spec, moments=ex.of_inputs(arrangement, inputs))
    for of_weight, of_inputs in ((-100, 0), (90, 0), (0, -45), (0, 50), (-60, 55)):
        other, _ = palettize(
            weight * np.float32(2.0**of_weight),
            spec,
            moments=ex.of_inputs(arrangement, inputs * 2.0**of_inputs),
        )
        np.testing.assert_array_equal(other.indices, plain.indices)
        np.testing.assert_array_equal(other.table, plain.table * np.float32(2.0**of_weight))


def test_inputs_that_were_always_zero():
    arrangement = ex.matrix(6, 8, blocks=2)
    weight = random_weight(arrangement.shape)
    inputs = ex.random_inputs(arrangement)
    inputs[:, :, ::2] = 0
    for dead_block in (False, True):
        inputs[:, 0] *= not dead_block
        moments = ex.of_inputs(arrangement, inputs)
        start, _ = palettize(weight, PaletteSpec(nbits=2), moments.importance())
        refined, _ = palettize(weight, PaletteSpec(nbits=2), moments=moments)
        before = ex.objective(moments, weight, start.dequantize())
        assert ex.objective(moments, weight, refined.dequantize()) < before
    dead = ex.of_inputs(arrangement, 0 * inputs)
    plain, _ = palettize(weight, PaletteSpec(nbits=2))
    same(palettize(weight, PaletteSpec(nbits=2), moments=dead)[0], plain)


def test_columns_of_a_table_need_not_be_neighbours():
    # groups on the kernel's axis: every third column has the same table
    arrangement = ex.convolution(8, 4, (3,))
    moments = ex.random_moments(arrangement)
    weight = random_weight(arrangement.shape)
    spec = PaletteSpec(nbits=2, channel_axis=2, group_size=1)
    start, _ = palettize(weight, spec, moments.importance())
    refined, _ = palettize(weight, spec, moments=moments)
    before = ex.objective(moments, weight, start.dequantize())
    assert ex.objective(moments, weight, refined.dequantize()) < 0.95 * before


def test_a_table_on_both_axes():
    # tables for squares of 4 x 4, as a palette made elsewhere may have them
    arrangement = ex.matrix(8, 8)
    moments = ex.random_moments(arrangement)
    weight = random_weight(arrangement.shape, "float32")
    table = np.linspace(-0.1, 0.1, 4, dtype=np.float32)
    tables = np.broadcast_to(table[:, None], (2, 2, 4, 1)).copy()
    start = Palettized(tables, np.abs(weight[..., None] - table).argmin(-1).astype(np.uint8))
    refined = refine(weight, start, moments)
    assert len(np.unique(refined.table)) > 12
    before = ex.objective(moments, weight, start.dequantize())
    assert ex.objective(moments, weight, refined.dequantize()) < 0.9 * before


def test_moments_of_another_weight_are_refused():
    moments = ex.random_moments(ex.matrix(4, 6))
    weight = random_weight((4, 6))
    spec = PaletteSpec(nbits=2)
    with pytest.raises(ConfigError, match="those of the weight's inputs"):
        palettize(weight.T, spec, moments=moments)
    start, _ = palettize(weight, spec)
    with pytest.raises(ConfigError, match="those of the weight's inputs"):
        refine(weight.T, start, moments)
    with pytest.raises(ConfigError, match="its weight's dtype"):
        refine(weight.astype(np.float32), start, moments)
    with pytest.raises(ConfigError, match="needs the second moments"):
        refine(weight, start, attrs.evolve(moments, second=None))
    for spec in (PaletteSpec(mode="unique"), PaletteSpec(mode="uniform", nbits=2)):
        with pytest.raises(ConfigError, match="for mode 'kmeans' alone"):
            palettize(weight, spec, moments=moments)


def test_matrices_that_no_inputs_have_do_no_harm():
    arrangement = ex.matrix(6, 5)
    rng = np.random.default_rng(0)
    second = rng.standard_normal((1, 5, 5)).astype(np.float32) * 3
    second += second.swapaxes(1, 2)
    diagonal = np.ones((1, 5), np.float32)
    second[0, range(5), range(5)] = 1
    moments = InputMoments(arrangement, second, diagonal, 0 * diagonal, 1)
    weight = random_weight(arrangement.shape)
    assert np.linalg.eigvalsh(second[0])[0] < -1
    refined, _ = palettize(weight, PaletteSpec(nbits=2), moments=moments)
    assert np.isfinite(refined.table).all()
    assert moments.output_error(weight, refined.dequantize()) >= 0


def test_memory_layout_of_the_weight_changes_nothing():
    arrangement = ex.matrix(8, 12)
    moments = ex.random_moments(arrangement)
    weight = random_weight(arrangement.shape)
    plain, _ = palettize(weight, PaletteSpec(nbits=2), moments=moments)
    same(plain, palettize(np.asfortranarray(weight), PaletteSpec(nbits=2), moments=moments)[0])
    weight.flags.writeable = False
    moments.second.flags.writeable = False
    same(plain, palettize(weight, PaletteSpec(nbits=2), moments=moments)[0])
    assert isinstance(moments, InputMoments)
