"""Attention against its formula in numpy, and against coremltools' own inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.runtime.ops.attention import scaled_dot_product_attention
from tests.runtime.programs import assert_of_halves, inferred, run

RANDOM = np.random.default_rng(0)
BATCHES = [(2,), (2, 3), (2, 1, 3)]
L, S, E, EV = 4, 6, 8, 5


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def attended(query, key, value, mask=None):
    scores = np.einsum("...le,...se->...ls", query.astype(np.float64), key)
    scores = scores / np.sqrt(query.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return np.einsum("...ls,...sv->...lv", weights, value)


def tensors(*batch: int) -> dict[str, np.ndarray]:
    return {
        "query": normal(*batch, L, E),
        "key": normal(*batch, S, E),
        "value": normal(*batch, S, EV),
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
def test_without_a_mask(batch, target):
    given = tensors(*batch)
    build = lambda **given: [mb.scaled_dot_product_attention(**given)]  # noqa: E731
    (found,) = run(build, given, target=target)
    np.testing.assert_allclose(found, attended(**given), rtol=2e-5, atol=2e-6)
    (guess,) = inferred(build, given, target=target)
    np.testing.assert_allclose(found, guess, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_are_broadcast(batch, kind):
    given, masks = tensors(*batch), []
    for shape in ((S,), (1, S), (L, S), (1,) * len(batch) + (1, S), (*batch, L, S)):
        mask = RANDOM.random(shape) < 0.6
        mask[..., 1] = True  # something is left for everyone
        masks.append(mask if kind == "bool" else np.where(mask, normal(*shape), -np.inf))
    masks = [mask if kind == "bool" else mask.astype(np.float32) for mask in masks]

    def build(**given):
        return [mb.scaled_dot_product_attention(**given, attn_mask=mask) for mask in masks]

    found = run(build, given, target="iOS18")
    guesses = inferred(build, given, target="iOS18")
    for each, guess, mask in zip(found, guesses, masks, strict=True):
        wanted = attended(**given, mask=mask)
        np.testing.assert_allclose(each, wanted, rtol=2e-5, atol=2e-6, err_msg=str(mask.shape))
        np.testing.assert_allclose(each, guess, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_batches_are_broadcast(axis):
    given = tensors(2, 3)
    one = {name: given[name].take([0], axis=axis) for name in ("key", "value")}
    # coremltools refuses different lengths that it knows
    query = torch.from_numpy(given["query"])
    found = scaled_dot_product_attention(query, *map(torch.from_numpy, one.values()))
    np.testing.assert_allclose(found, attended(given["query"], **one), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("batch", [(1,), (1, 2), (1, 1, 2)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_who_may_attend_to_nothing_gets_zeros(batch, kind):
    mask = np.ones((L, S), bool)
    mask[2] = False
    given = tensors(*batch)
    values = mask if kind == "bool" else np.where(mask, 0, -np.inf).astype(np.float32)
    build = lambda **given: mb.scaled_dot_product_attention(**given, attn_mask=values)  # noqa: E731
    (found,) = run(build, given, target="iOS18")
    wanted = attended(**given)
    wanted[..., 2, :] = 0
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("batch", [(2,), (2, 3)])
@pytest.mark.parametrize("mask_dtype", [None, np.float16, np.float32, np.bool_])
def test_half_precision(batch, mask_dtype):
    given, mask = tensors(*batch), None
    if mask_dtype is not None:
        mask = (RANDOM.random((L, S)) < 0.5) | (np.arange(S) == 0)
        mask = mask if mask_dtype == np.bool_ else np.where(mask, 0, -3e4).astype(mask_dtype)

    def build(**given):
        half = {name: mb.cast(x=x, dtype="fp16") for name, x in given.items()}
        masked = {} if mask is None else {"attn_mask": mask}
        return mb.cast(x=mb.scaled_dot_product_attention(**half, **masked), dtype="fp32")

    (found,) = run(build, given, target="iOS18", computed="as_declared")
    rounded = {name: x.astype(np.float16) for name, x in given.items()}
    np.testing.assert_allclose(found, attended(**rounded, mask=mask), rtol=2e-3, atol=2e-3)
    assert_of_halves(found)


@pytest.mark.parametrize(
    "shapes",
    [((4, 8), (4, 8), (4, 8)), ((2, 4, 8), (4, 8), (4, 8)), ((1, 2, 4, 8),) * 2 + ((2, 4, 8),)],
)
def test_bad_ranks(shapes):
    with pytest.raises(ValueError, match="same rank, at least 3"):
        scaled_dot_product_attention(*map(torch.zeros, shapes))
