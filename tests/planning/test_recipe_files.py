"""Recipes as files: what is written is read again, and what is damaged is named."""

from __future__ import annotations

import json
import math

import attrs
import pytest
import yaml

from mlopt.coreml import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.planning import Point, load_recipe, save_recipe
from mlopt.planning.recipe_files import as_dict, from_dict
from tests.planning.recipes import recipe, tried, weight

NAMES = (
    "encoder.layer_weight_to_fp16",
    "a: b",
    "<x>",
    "- dash",
    "#5",
    "naïve_Größe_重み",
    "with 'both' \"quotes\"",
    "two\nlines\tand a tab",
    "null",
    "1e3",
    "0x10",
    "yes",
    "2026-01-01",
    "*glob[0]?",
    "{brace}",
    "a" * 300,
    " leading and trailing ",
    "\u2028 separator \x7f",
)
FORMS = (
    None,
    OpPalettizerConfig(nbits=4),
    OpPalettizerConfig(mode="uniform", nbits=8, weight_threshold=0, method="diagonal"),
    OpPalettizerConfig(
        nbits=2,
        granularity="per_grouped_channel",
        group_size=16,
        channel_axis=-1,
        cluster_dim=2,
        enable_per_channel_scale=True,
        on_indivisible="divisor",
        lut_dtype="int8",
    ),
    OpPalettizerConfig(mode="unique"),
)


def a_recipe(**options):
    every = tuple(
        tried(form, nbytes=10**number, loss=loss, known=known)
        for number, (form, loss, known) in enumerate(
            zip(
                FORMS,
                (math.inf, 0.0, 1e-300, 0.1 + 0.2, 5e-324),
                ("measured", "predicted", "measured", "predicted", "measured"),
                strict=True,
            )
        )
    )
    weights = [
        weight(name, (number + 1, 3), chosen=every[number % 5], tried=every)
        for number, name in enumerate(NAMES)
    ]
    weights.append(weight("scalar", (), reason='small: "10" elements', tried=()))
    points = (
        Point(label="plan: best", nbytes=12, expected=math.inf),
        Point(label="4-bit", nbytes=5, expected=0.5, measured=0.25),
    )
    defaults = {"limit": 2**53 + 1, "measured": 1 / 3, "gap": 1e-5, "calibration": "ab" * 20}
    return recipe(
        *weights,
        **{**defaults, "points": points, "notes": ("One: two.", "Drei · vier"), **options},
    )


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json", "txt"])
@pytest.mark.parametrize("options", [{}, {"limit": None, "most_loss": 0.125, "are_random": True}])
def test_what_is_written_is_read_again(tmp_path, suffix, options):
    written = a_recipe(**options)
    path = tmp_path / f"recipe.{suffix}"
    save_recipe(written, path)
    assert load_recipe(path) == written
    assert list(load_recipe(path).to_config().op_name_configs) == [*NAMES, "scalar"]


def test_without_weights(tmp_path):
    save_recipe(recipe(), tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe()


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_losses_that_are_no_numbers(tmp_path, suffix):
    path = tmp_path / f"recipe.{suffix}"
    odd = tried(loss=math.nan)
    save_recipe(recipe(weight(chosen=odd, tried=(odd,)), expected=-math.inf), path)
    read = load_recipe(path)
    assert math.isnan(read.weights[0].chosen.loss)
    assert read.expected == -math.inf


def test_another_form_that_was_tried(tmp_path):
    forms = [
        tried(OpPalettizerConfig(nbits=nbits), nbytes=100 * nbits, loss=0.5**nbits)
        for nbits in (2, 4)
    ]
    weights = [weight(name, chosen=forms[0], tried=tuple(forms)) for name in ("v", "w")]
    values = as_dict(recipe(*weights, measured=0.7, expected=0.5, nbytes=1000))
    # by hand, only what is asked for is changed
    values["weights"]["w"]["chosen"]["config"] = {"nbits": 4}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    read = load_recipe(tmp_path / "recipe.json")
    assert [each.chosen for each in read.weights] == forms
    assert (read.nbytes, read.expected, read.measured) == (1200, 0.25 + 0.0625, None)
    assert "1 weight got another of the forms" in read.notes[-1]
    assert from_dict(as_dict(read)) == read
    # what was not tried is not known
    values["weights"]["w"]["chosen"]["config"] = {"nbits": 8}
    assert from_dict(values).measured == 0.7


def test_other_readers_read_the_same(tmp_path):
    written = a_recipe()
    save_recipe(written, tmp_path / "recipe.yaml")
    save_recipe(written, tmp_path / "recipe.json")
    plain = yaml.safe_load((tmp_path / "recipe.yaml").read_text("utf-8"))
    assert plain == json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert from_dict(plain) == written
    # a reader of the file sees each weight's name, and each form on a line
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    assert "naïve_Größe_重み:" in text
    assert all("config" not in line or line.count("known") <= 1 for line in text.splitlines())


def test_the_order_of_weights_is_kept(tmp_path):
    names = [f"w{number}" for number in (10, 2, 33, 1)]
    save_recipe(recipe(*map(weight, names)), tmp_path / "recipe.yaml")
    assert [each.name for each in load_recipe(tmp_path / "recipe.yaml").weights] == names


def changed(**changes):
    """The plain values of a recipe, with something wrong."""
    values = as_dict(recipe(weight("w", config=OpPalettizerConfig(nbits=4))))
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = values
        for key in above:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return values


DAMAGES = {
    "another version": (changed(mlopt_recipe=2), "mapping with mlopt_recipe: 1, got 2"),
    "no version": (changed(mlopt_recipe=None), "got None; `mlopt plan` writes recipes"),
    "bytes of a recipe in words": (changed(nbytes="many"), "nbytes must be int, got 'many'"),
    "bytes that are true": (changed(nbytes=True), "nbytes must be int, got True"),
    "a loss of a recipe in words": (changed(expected="little"), "expected must be float"),
    "a target that is a number": (changed(target=18), "target must be str"),
    "a list": ([1, 2], "got 'list'"),
    "nothing": (None, "got 'NoneType'"),
    "a configuration": ({"global_config": {"nbits": 4}}, "no recipe that can be read"),
    "no weights": (changed(weights=None), "damaged: KeyError: 'weights'"),
    "weights as a list": (changed(weights=["w"]), "damaged"),
    "a weight of nothing": (changed(weights__w="4-bit"), "damaged"),
    "no shape": (changed(weights__w__shape=None), "KeyError: 'shape'"),
    "a shape of words": (changed(weights__w__shape=["many"]), "damaged: ValueError"),
    "a missing part": (changed(target=None), "target"),
    "an unknown part": (changed(colour="red"), "colour"),
    "a wrong config": (changed(weights__w__chosen__config={"nbits": 5}), "nbits must be"),
    "an unknown parameter": (changed(weights__w__chosen__config={"nbitz": 4}), "nbitz"),
    "bytes in words": (changed(weights__w__chosen__nbytes="many"), "damaged: ValueError"),
    "a loss in words": (changed(weights__w__chosen__loss="little"), "damaged: ValueError"),
    "guessed": (changed(weights__w__chosen__known="guessed"), "known must be measured or"),
    "an unknown part of a point": (changed(points=[{"colour": 1}]), "colour"),
}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize(("values", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_files_are_named(tmp_path, values, message, suffix):
    path = tmp_path / f"damaged.{suffix}"
    path.write_text(json.dumps(values) if suffix == "json" else yaml.safe_dump(values), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


DOUBLED = "- &a0 [1]\n" + "".join(f"- &a{n + 1} [*a{n}, *a{n}]\n" for n in range(60))
"""A list that would have 2**60 elements if aliases were written out."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"mlopt_recipe: [1", "not readable as YAML"),
        ("a.yaml", b"\xff\xfe\x00", "not readable as YAML"),
        ("a.json", b"{", "not readable as JSON"),
        ("a.json", b"\xff", "not readable as JSON"),
        ("a.json", b"", "not readable as JSON"),
        ("a.json", b'{"a": {"w": 1, "w": 2}}', "the key 'w' is repeated"),
        ("a.json", b"[" * 10**5, "not readable as JSON"),
        ("a.yaml", b"[" * 10**6, "nested more than 50 levels deep"),
        ("a.yaml", b"- " * 10**4, "nested more than 50 levels deep"),
        ("a.yaml", b"&a [*a]", "got 'list'"),
        ("a.yaml", DOUBLED.encode(), "got 'list'"),
        ("a.yaml", b"", "got 'NoneType'"),
        ("a.yaml", b"mlopt_recipe: 1\nmlopt_recipe: 1\n", "'mlopt_recipe' is repeated in line 2"),
        ("a.yaml", b"!!python/object/apply:os.getcwd []", "not readable as YAML"),
    ],
)
def test_what_is_no_document(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "none.yaml")


def test_a_truncated_file_is_refused(tmp_path):
    save_recipe(a_recipe(), tmp_path / "recipe.json")
    whole = (tmp_path / "recipe.json").read_bytes()
    (tmp_path / "recipe.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not readable as JSON"):
        load_recipe(tmp_path / "recipe.json")


def test_names_that_a_reader_takes_for_numbers(tmp_path):
    save_recipe(recipe(weight("7")), tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").weights[0].name == "7"
    (tmp_path / "recipe.yaml").write_text(text.replace("'7'", "7"), "utf-8")
    with pytest.raises(ConfigError, match="must be text, got 7; put it in quotes"):
        load_recipe(tmp_path / "recipe.yaml")


def test_two_weights_of_a_name_cannot_be_written(tmp_path):
    twice = recipe(weight("w"), attrs.evolve(weight("w"), shape=(2, 2)))
    with pytest.raises(ConfigError, match="'w'"):
        save_recipe(twice, tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()
