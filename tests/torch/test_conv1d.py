"""GPT-2 in the form of transformers, whose linear layers are ``Conv1D``."""

import functools

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from mlopt.torch import convert
from mlopt.torch.palettization import (
    DKMPalettizer,
    DKMPalettizerConfig,
    SKMPalettizer,
    SKMPalettizerConfig,
)
from tests.torch.conversions import compressed_weights, outputs, plainly_converted, quietly
from tests.torch.palettization.test_post_training import FORMS, palettized

WIDTH, HEADS, LENGTH, VOCABULARY = 32, 4, 6, 48
IDS = torch.arange(LENGTH)[None] * 7 % VOCABULARY


class Conv1D(nn.Module):
    """What transformers has under this name, with which it defines GPT-2."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.2)

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


# mlopt knows it by its qualified name
Conv1D.__module__ = "transformers.pytorch_utils"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.mlp_fc, self.mlp_proj = Conv1D(4 * WIDTH, WIDTH), Conv1D(WIDTH, 4 * WIDTH)

    def forward(self, x):
        query, key, value = (
            part.view(1, LENGTH, HEADS, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(WIDTH, dim=2)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(1, LENGTH, WIDTH))
        return x + self.mlp_proj(nn.functional.gelu(self.mlp_fc(self.ln_2(x))))


class GPT2(nn.Module):
    """Two blocks; ten matrices, eight of them in ``Conv1D``, and the head is tied."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList([Block(), Block()])
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(LENGTH))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2().eval()


MATRICES = [name for name, p in gpt2().named_parameters() if p.dim() == 2]


@functools.cache
def network(form):
    return palettized(gpt2(), **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_all_matrices_are_palettized(form):
    _, report = network(form)
    kept = {"wpe.weight"} if form in ("output groups", "uint8 table in groups") else set()
    assert {row.name for row in report.palettized} == set(MATRICES) - kept
    assert len(MATRICES) == 10


@pytest.mark.parametrize("form", ["4 bits", "vectors"])
def test_the_converted_model_computes_what_the_module_does(form):
    model, report = network(form)
    found = quietly(convert, model, IDS, compute_precision=ct.precision.FLOAT32)
    assert len(compressed_weights(found)) == len(report.palettized)
    with torch.no_grad():
        expected = model(IDS).numpy()
        other = gpt2()(IDS).numpy()
    (computed,) = outputs(found, (IDS,))
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(other - expected).max() > 1e-2


def test_coremltools_by_itself_keeps_the_palettes():
    model, report = network("output groups")
    found = plainly_converted(model, (IDS,), compute_precision=ct.precision.FLOAT32)
    assert len(compressed_weights(found)) == len(report.palettized)
    with torch.no_grad():
        expected = model(IDS).numpy()
    np.testing.assert_allclose(outputs(found, (IDS,))[0], expected, rtol=1e-4, atol=1e-5)


def test_output_channels_are_columns():
    model, _ = network("output groups")
    weight = model.h[0].mlp_fc.weight
    for group in weight.split(4, dim=1):
        assert group.unique().numel() <= 4
    assert weight[:4].unique().numel() > 4
    scaled, _ = palettized(gpt2(), n_bits=1, enable_per_channel_scale=True)
    assert all(c.abs().unique().numel() <= 2 for c in scaled.h[0].mlp_fc.weight.unbind(1))


def test_other_palettizers_take_them_too():
    data = [IDS, IDS.flip(1)]
    loss = lambda model, ids: nn.functional.cross_entropy(model(ids)[0], ids[0])  # noqa: E731
    config = SKMPalettizerConfig.from_dict({"global_config": {"n_bits": 3}})
    sensitive = SKMPalettizer(gpt2(), config)
    quietly(sensitive.compress, dataloader=data, loss_fn=loss)
    rows = sensitive.report().palettized
    assert {row.name for row in rows} == set(MATRICES)
    assert not any("without a sensitivity" in (row.note or "") for row in rows)

    rules = {"module_type_configs": {"Conv1D": {"weight_threshold": 0}}}
    trained = DKMPalettizer(gpt2(), DKMPalettizerConfig.from_dict(rules))
    model = trained.prepare()
    loss(model, IDS).backward()
    assert model.h[0].c_attn.parametrizations.weight.original.grad.abs().sum() > 0
    trained.finalize()
    rows = trained.report().palettized
    assert {row.name for row in rows} == {name for name in MATRICES if name.startswith("h.")}
    assert {row.nbits for row in rows} == {4}  # as linear layers have by default
