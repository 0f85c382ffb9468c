"""Perplexity, agreement and divergence of language models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from scipy.special import log_softmax, rel_entr, softmax

from mlopt.errors import ConfigError, InputError
from mlopt.runtime import compare
from mlopt.runtime.comparison import next_token
from mlopt.runtime.comparison.next_token import NextToken
from tests.runtime.comparison.language_models import (
    HEADS,
    LENGTH,
    TABLE,
    TEXTS,
    WORDS,
    language_model,
    logits_of,
    masked_model,
)
from tests.runtime.comparison.small_models import palettized
from tests.runtime.programs import convert

PERPLEXITY, AGREEMENT, DIVERGENCE = (
    "perplexity",
    "next-token agreement",
    "next-token KL divergence",
)


def rows_of(comparison):
    return {row.name: row for row in comparison.metrics}


def judged(first, second, texts, kept=slice(None)):
    """Perplexities by torch, agreement and divergence by scipy, of logits [T, V]."""
    surprises = [
        [
            torch.nn.functional.cross_entropy(
                torch.from_numpy(logits[kept][:-1]),
                torch.from_numpy(text[0].astype(np.int64)[kept][1:]),
                reduction="none",
            )
            for logits, text in zip(model, texts, strict=True)
        ]
        for model in (first, second)
    ]
    a, b = (np.concatenate([logits[kept] for logits in model]) for model in (first, second))
    return (
        *(float(torch.cat(parts).mean().exp()) for parts in surprises),
        float((a.argmax(-1) == b.argmax(-1)).mean()),
        float(rel_entr(softmax(a, -1), softmax(b, -1)).sum(-1).mean()),
    )


@pytest.mark.parametrize("at_once", [1 << 22, 2 * WORDS])
def test_against_torch_and_scipy(monkeypatch, at_once):
    monkeypatch.setattr(next_token, "_ELEMENTS_AT_ONCE", at_once)
    found = rows_of(compare(*map(language_model, HEADS), TEXTS))
    texts = [text["ids"] for text in TEXTS]
    expected = judged(*([logits_of(head, ids) for ids in texts] for head in HEADS), texts)
    assert list(found) == [PERPLEXITY, AGREEMENT, DIVERGENCE]
    row = found[PERPLEXITY]
    assert (row.reference, row.candidate) == pytest.approx(expected[:2], rel=1e-5)
    assert row.count == 2 * (LENGTH - 1)
    assert found[AGREEMENT].pair == expected[2]
    assert (found[AGREEMENT].count, found[AGREEMENT].unit) == (2 * LENGTH, "share")
    assert found[DIVERGENCE].pair == pytest.approx(expected[3], rel=1e-5)
    assert found[DIVERGENCE].unit == "nats"


def test_a_language_model_against_itself():
    model = language_model(HEADS[0])
    found = rows_of(compare(model, model, TEXTS))
    assert found[PERPLEXITY].reference == found[PERPLEXITY].candidate > 1
    assert found[AGREEMENT].pair == 1.0
    assert found[DIVERGENCE].pair == 0.0


def test_text_and_json_of_next_tokens():
    found = compare(*map(language_model, HEADS), TEXTS)
    text, values = str(found), json.loads(found.to_json())["metrics"]
    rows = rows_of(found)
    assert f"{rows[AGREEMENT].pair:.2%}" in text
    assert f"{rows[DIVERGENCE].pair:.6g} nats" in text
    assert values[0] == {
        "name": "perplexity",
        "output": "logits",
        "reference": rows[PERPLEXITY].reference,
        "candidate": rows[PERPLEXITY].candidate,
        "pair": None,
        "unit": "",
        "count": 2 * (LENGTH - 1),
        "note": "",
    }
    assert [row["unit"] for row in values] == ["", "share", "nats"]


def test_random_tokens_have_no_perplexity():
    found = compare(*map(language_model, HEADS), random=2)
    row = rows_of(found)[PERPLEXITY]
    assert (row.reference, row.candidate, row.count) == (None, None, None)
    assert "perplexity: the tokens are random; give samples of text." in str(found)
    assert rows_of(found)[AGREEMENT].count == 2 * LENGTH


def test_probabilities_and_logarithms_of_them():
    def probabilities(logits, name):
        return mb.softmax(x=logits, axis=-1, name=name)

    def logarithms(logits, name):
        return mb.log(x=mb.softmax(x=logits, axis=-1), epsilon=0.0, name=name)

    expected = rows_of(compare(*map(language_model, HEADS), TEXTS))
    for finish in (probabilities, logarithms):
        found = rows_of(compare(*(language_model(h, finish=finish) for h in HEADS), TEXTS))
        for name, row in found.items():
            values, of_logits = (
                [v for v in (r.reference, r.candidate, r.pair) if v is not None]
                for r in (row, expected[name])
            )
            assert values == pytest.approx(of_logits, rel=1e-4)


def test_the_last_position_only():
    def last(logits, name):
        return mb.slice_by_index(
            x=logits, begin=[0, -1, 0], end=[1, 0, WORDS], end_mask=[False, True, False], name=name
        )

    found = compare(*(language_model(head, finish=last) for head in HEADS), TEXTS)
    rows = rows_of(found)
    a, b = (np.stack([logits_of(h, t["ids"])[-1] for t in TEXTS]) for h in HEADS)
    assert rows[PERPLEXITY].reference is None
    assert "perplexity: 'logits' has the last position only, shape [1, 1, 19]" in str(found)
    assert rows[AGREEMENT].pair == (a.argmax(-1) == b.argmax(-1)).mean()
    assert rows[DIVERGENCE].pair == pytest.approx(
        rel_entr(softmax(a, -1), softmax(b, -1)).sum(-1).mean(), rel=1e-5
    )
    assert rows[AGREEMENT].count == 2


@pytest.mark.parametrize("kept", [slice(0, 5), slice(2, None), slice(1, 4)])
def test_a_mask_leaves_positions_out(kept):
    mask = np.zeros((1, LENGTH), np.int32)
    mask[:, kept] = 1
    texts = [text | {"mask": mask} for text in TEXTS]
    texts[0]["ids"] = np.where(mask == 1, texts[0]["ids"], 0)
    models = [masked_model(head) for head in HEADS]
    found = rows_of(compare(*models, texts, mask="mask"))
    ids = [text["ids"] for text in texts]
    expected = judged(*([logits_of(h, i) for i in ids] for h in HEADS), ids, kept)
    row = found[PERPLEXITY]
    assert (row.reference, row.candidate) == pytest.approx(expected[:2], rel=1e-5)
    assert found[AGREEMENT].pair == pytest.approx(expected[2])
    assert found[DIVERGENCE].pair == pytest.approx(expected[3], rel=1e-5)
    assert found[AGREEMENT].count == 2 * mask.sum()
    everywhere = rows_of(compare(*models, texts))
    assert everywhere[AGREEMENT].count == 2 * LENGTH
    nothing = [text | {"mask": np.zeros_like(mask)} for text in TEXTS]
    none = compare(*models, nothing, mask="mask")
    assert {row.pair for row in none.metrics} == {None}
    assert "the mask 'mask' leaves no position." in str(none)


def test_embeddings_are_not_logits():
    model, small = palettized("encoder", 4)
    assert compare(model, small, random=1).metrics == ()

    def vectors(ids):
        return mb.gather(x=TABLE.T.copy().repeat(5, 1), indices=ids, axis=0, name="y")

    model = convert(vectors, {"ids": np.zeros((1, 3), np.int32)})
    assert compare(model, model, {"ids": np.ones((1, 3), np.int32)}).metrics == ()


def two_outputs(ids):
    vectors = mb.gather(x=TABLE, indices=ids, axis=0)
    return (
        mb.linear(x=vectors, weight=HEADS[0], name="first"),
        mb.linear(x=vectors, weight=HEADS[1], name="second"),
    )


def test_which_output_is_asked_where_two_fit():
    model = convert(two_outputs, {"ids": TEXTS[0]["ids"]})
    found = compare(model, model, TEXTS)
    assert [row.name for row in found.metrics] == ["next token"]
    assert "tokens 'ids' with logits 'first'; tokens 'ids' with logits 'second'" in str(found)
    with pytest.raises(ConfigError, match=r"several .* fit: .*'second'; name the input"):
        compare(model, model, TEXTS, tokens="ids")
    texts = [text["ids"] for text in TEXTS]
    for name, head in zip(("first", "second"), HEADS, strict=True):
        row = rows_of(compare(model, model, TEXTS, logits=name))[PERPLEXITY]
        logits = [logits_of(head, ids) for ids in texts]
        assert (row.output, row.reference) == (
            name,
            pytest.approx(judged(logits, logits, texts)[0], rel=1e-5),
        )


def test_names_that_are_given_need_no_table_of_that_length():
    # a table of more words than there are logits: padded, as many are
    def build(ids):
        vectors = mb.gather(x=np.concatenate([TABLE, TABLE]), indices=ids, axis=0)
        return mb.linear(x=vectors, weight=HEADS[0], name="logits")

    model = convert(build, {"ids": TEXTS[0]["ids"]})
    assert compare(model, model, TEXTS).metrics == ()
    for names in ({"tokens": "ids"}, {"logits": "logits"}):
        assert rows_of(compare(model, model, TEXTS, **names))[PERPLEXITY].reference > 1


def test_logits_of_nan():
    model = language_model(HEADS[0])
    broken = language_model(HEADS[0] * np.float32(math.nan))
    found = compare(model, broken, TEXTS)
    rows = rows_of(found)
    assert rows[PERPLEXITY].reference > 1
    assert math.isnan(rows[PERPLEXITY].candidate)
    assert rows[AGREEMENT].pair == 0.0
    assert math.isnan(rows[DIVERGENCE].pair)
    assert (
        "14 of 14 positions of the candidate have logits that are NaN or infinite, and count as no "
        "agreement; `mlopt compare --float16 MODEL` shows" in str(found)
    )
    assert json.loads(found.to_json())["metrics"][0]["candidate"] == "nan"


def meter(**names):
    names = {"tokens": "ids", "logits": "logits", "mask": None} | names
    return NextToken(**names, vocabularies={}, probabilities=frozenset(), are_drawn=False)


def test_words_that_are_impossible():
    logits = np.array([[0.0, -math.inf, 1.0], [0.0, -math.inf, 2.0]], np.float32)
    sums = meter()
    sums.add({"ids": np.array([0, 2])}, {"logits": logits}, {"logits": logits})
    assert [row.pair for row in sums.rows()][1:] == [1.0, 0.0]
    lost = meter()
    other = logits.copy()
    other[0, 2] = -math.inf
    lost.add({"ids": np.array([0, 2])}, {"logits": logits}, {"logits": other})
    first, _, last = lost.rows()
    assert first.candidate == last.pair == math.inf
    assert first.reference == pytest.approx(np.exp(-log_softmax(logits[0])[2]))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ({"tokens": "x"}, ConfigError, "tokens='x': the reference has no such input; its inputs"),
        ({"mask": "x"}, ConfigError, "mask='x': the reference has no such input"),
        ({"logits": "x"}, ConfigError, "no such output; its outputs are 'logits'"),
    ],
)
def test_names_that_do_not_exist(names, error, message):
    model = language_model(HEADS[0])
    with pytest.raises(error, match=message):
        compare(model, model, TEXTS, **names)


def test_what_does_not_fit():
    scores = {"logits": np.zeros((1, 4, WORDS), np.float32)}
    for ids, message in (
        (np.array([[0, 3, WORDS, 1]]), r"hold 19; .* whole numbers from 0 to 18; padding"),
        (np.array([[0, 3, -1, 1]]), "hold -1"),
        (np.array([[0, 3, 0.5, 1]]), "hold 0.5"),
    ):
        with pytest.raises(InputError, match=message):
            meter().add({"ids": ids}, scores, scores)
    with pytest.raises(ConfigError, match=r"ids \[1, 9\].*logits \[1, 4, 19\]"):
        meter().add({"ids": np.zeros((1, 9), int)}, scores, scores)
    with pytest.raises(InputError, match=r"mask 'mask' has shape \[1, 1, 4, 4\].*\[1, 4\]"):
        meter(mask="mask").add(
            {"ids": np.zeros((1, 4), int), "mask": np.zeros((1, 1, 4, 4))}, scores, scores
        )
    with pytest.raises(InputError, match="a sample has no 'mask'"):
        meter(mask="mask").add({"ids": np.zeros((1, 4), int)}, scores, scores)
    # a text whose words are unknown has no perplexity where nobody asked for one
    quiet = NextToken(None, None, None, {"ids": WORDS}, frozenset(), False)
    quiet.add({"ids": np.array([[0, 3, -1, 1]])}, scores, scores)
    assert "hold -1" in next(iter(quiet.rows())).note
