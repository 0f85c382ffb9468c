"""What a request may say."""

import attrs
import pytest

from mlopt.errors import ConfigError, MlOptError
from mlopt.palette import PaletteSpec


def any_table(weight):
    return [0.0], weight


@pytest.mark.parametrize(
    "request_",
    [
        {"nbits": 4},
        {"nbits": 8, "scale_axis": 0},
        {"mode": "kmeans", "nbits": 1, "channel_axis": -1, "group_size": 16, "cluster_dim": 4},
        {"nbits": 2, "channel_axis": 0, "cluster_dim": 2},
        {"mode": "uniform", "nbits": 6, "channel_axis": 1, "group_size": 1},
        {"mode": "unique"},
        {"mode": "unique", "channel_axis": 0, "cluster_dim": 3},
        {"mode": "custom", "lut_function": any_table},
        {"nbits": 5, "allowed_nbits": (5,)},
    ],
)
def test_requests_that_hold(request_):
    spec = PaletteSpec(**request_)
    for name, value in request_.items():
        assert getattr(spec, name) == value
    assert spec == PaletteSpec(**request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"mode": "median", "nbits": 4}, r"mode must be one of .*'kmeans'.*got 'median'"),
        ({}, r"mode 'kmeans' needs nbits.*got nbits=None"),
        ({"mode": "uniform"}, r"mode 'uniform' needs nbits"),
        ({"mode": "unique", "nbits": 4}, r"'unique' chooses nbits itself; leave it None.*nbits=4"),
        (
            {"mode": "custom", "nbits": 4, "lut_function": any_table},
            r"'custom' chooses nbits itself",
        ),
        ({"nbits": 5}, r"nbits must be one of \(1, 2, 3, 4, 6, 8\), got 5"),
        ({"nbits": 0}, r"nbits must be one of .* got 0"),
        ({"nbits": 3, "allowed_nbits": (1, 2, 4, 6, 8)}, r"one of \(1, 2, 4, 6, 8\), got 3"),
        ({"nbits": 4, "lut_function": any_table}, r"lut_function belongs to mode 'custom'"),
        ({"mode": "custom"}, r"lut_function belongs to mode 'custom'"),
        ({"nbits": 4, "cluster_dim": 0}, r"cluster_dim must be at least 1, got 0"),
        ({"mode": "uniform", "nbits": 4, "cluster_dim": 2}, r"'uniform' has no vector form"),
        ({"nbits": 4, "group_size": 8}, r"need a channel_axis, got None"),
        ({"nbits": 4, "cluster_dim": 2}, r"need a channel_axis, got None"),
        ({"nbits": 4, "channel_axis": 0, "group_size": 0}, r"group_size must be at least 1, got 0"),
        (
            {"nbits": 4, "channel_axis": 0, "group_size": 6, "cluster_dim": 4},
            r"cluster_dim \(4\) must divide group_size \(6\)",
        ),
    ],
)
def test_requests_that_contradict_themselves(request_, message):
    with pytest.raises(ConfigError, match=message) as caught:
        PaletteSpec(**request_)
    assert isinstance(caught.value, MlOptError)
    assert isinstance(caught.value, ValueError)


def test_a_request_is_frozen():
    spec = PaletteSpec(nbits=4)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        spec.nbits = 2
    assert attrs.evolve(spec, nbits=2).nbits == 2
    assert hash(spec) == hash(PaletteSpec(nbits=4))
