import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopt.choices import ON_INDIVISIBLE
from mlopt.requests.keep import Keep
from mlopt.requests.layout import ChosenLayout, choose_layout

SHAPE = (12, 8, 3)


def chosen(axis=0, *, group_size=None, cluster_dim=1, together=None, on_indivisible="skip"):
    return choose_layout(
        SHAPE,
        axis,
        group_size=group_size,
        cluster_dim=cluster_dim,
        channels_together=SHAPE[axis] if together is None else together,
        on_indivisible=on_indivisible,
    )


@pytest.mark.parametrize(
    ("request_", "layout"),
    [
        ({}, ChosenLayout(None, None)),
        ({"group_size": 4}, ChosenLayout(0, 4)),
        ({"axis": 1, "group_size": 4}, ChosenLayout(1, 4)),
        # one group is one table
        ({"group_size": 12}, ChosenLayout(None, None)),
        ({"group_size": 12, "cluster_dim": 2}, ChosenLayout(0, None)),
        ({"cluster_dim": 2}, ChosenLayout(0, None)),
        ({"group_size": 4, "cluster_dim": 2}, ChosenLayout(0, 4)),
        ({"cluster_dim": 2, "together": 4}, ChosenLayout(0, None)),
    ],
)
def test_what_the_shape_allows(request_, layout):
    assert chosen(**request_) == layout


@pytest.mark.parametrize(
    ("request_", "reason", "category"),
    [
        (
            {"group_size": 5},
            "12 channels on axis 0 do not divide into groups of 5",
            "channels do not divide into groups",
        ),
        (
            {"group_size": 24},
            "12 channels on axis 0 do not divide into groups of 24",
            "channels do not divide into groups",
        ),
        (
            {"group_size": 4, "cluster_dim": 3},
            "cluster_dim 3 does not divide groups of 4 channels; a vector cannot belong to two "
            "groups",
            "cluster_dim does not divide the channels",
        ),
        (
            {"cluster_dim": 5},
            "cluster_dim 5 does not divide the 12 channels on axis 0",
            "cluster_dim does not divide the channels",
        ),
        (
            {"cluster_dim": 4, "together": 6},
            "cluster_dim 4 does not divide the 6 channels on axis 0 of a group",
            "cluster_dim does not divide the channels",
        ),
        (
            {"group_size": 5, "cluster_dim": 5, "on_indivisible": "divisor"},
            "12 channels on axis 0 do not divide into groups of 5",
            "channels do not divide into groups",
        ),
    ],
)
def test_what_it_does_not_allow(request_, reason, category):
    assert chosen(**request_) == Keep(reason, category)


@pytest.mark.parametrize(
    ("request_", "layout", "instead"),
    [
        ({"on_indivisible": "per_tensor"}, (None, None), "one table for the tensor instead"),
        ({"on_indivisible": "divisor"}, (0, 4), "groups of 4 instead"),
        ({"on_indivisible": "divisor", "cluster_dim": 3}, (0, 3), "groups of 3 instead"),
    ],
)
def test_what_is_taken_instead(request_, layout, instead):
    note = f"12 channels on axis 0 do not divide into groups of 5: {instead}"
    assert chosen(group_size=5, **request_) == ChosenLayout(*layout, (note,))


@given(
    channels=st.integers(1, 40),
    group_size=st.none() | st.integers(1, 45),
    cluster_dim=st.integers(1, 6),
    on_indivisible=st.sampled_from(ON_INDIVISIBLE),
)
def test_a_layout_divides_the_channels(channels, group_size, cluster_dim, on_indivisible):
    layout = choose_layout(
        (channels,),
        0,
        group_size=group_size,
        cluster_dim=cluster_dim,
        channels_together=channels,
        on_indivisible=on_indivisible,
    )
    if isinstance(layout, Keep):
        return
    size = layout.group_size or channels
    assert channels % size == 0
    assert size % cluster_dim == 0
    assert (layout.channel_axis is None) == (layout.group_size is None and cluster_dim == 1)
