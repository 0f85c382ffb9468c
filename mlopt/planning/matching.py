"""What a recipe has to do with a model: the same one, a fine-tuned copy of it, or another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.models import ModelSource
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.weights import Weight, weights_of
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from mlopt.planning.recipe import Recipe, RecipeWeight
from mlopt.requests.checked import did_you_mean, near_matches
from mlopt.statistics import content_of
from mlopt.text.names import shortlist
from mlopt.text.words import counted

_CAST = "_to_fp16"
"""What coremltools appends to the names of constants that it converts to float16."""


@attrs.frozen(kw_only=True)
class Matching:
    """A recipe and a model that it can be applied to.

    Attributes
    ----------
    config
        The rules for the model: one for each of its weights, by name.
    same
        Names of the weights that are those of the recipe.
    changed
        Names of weights with the name and shape that the recipe knows, and other values: of another
        version of the model, such as a fine-tuned one.
    retyped
        Those of ``changed`` that have another dtype, with the recipe's: their bytes are others.
    renamed
        The names in the recipe of weights that have other names in the model, by those: weights of
        the same values, or of a name that differs by ``_to_fp16``, which converters append.
    unknown
        Names of weights that the recipe does not know; they stay as they are.
    absent
        Names of weights that the recipe leaves as they are, and the model lacks.
    """

    config: OptimizationConfig
    same: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    retyped: dict[str, str] = attrs.Factory(dict)
    renamed: dict[str, str] = attrs.Factory(dict)
    unknown: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The differences, one sentence each; none where the model is the one of the recipe."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        if self.changed:
            count = len(self.changed)
            every = "" if self.same else "all "
            yield (
                f"The recipe was made for other values of {every}{counted(count, 'weight')} of the "
                f"same names and shapes ({shortlist(self.changed)}): of another version of the "
                "model."
            )
        if self.retyped:
            types = ", ".join(f"{name!r} ({dtype} there)" for name, dtype in self.retyped.items())
            yield f"Weights of another type than in the recipe, and so of other sizes: {types}."
        if self.renamed:
            names = ", ".join(f"{new!r} ({old!r} there)" for new, old in self.renamed.items())
            yield f"Weights of other names than in the recipe: {names}."
        if self.unknown:
            yield (
                f"{counted(len(self.unknown), 'weight')} that the recipe does not know, left as "
                f"they are: {shortlist(self.unknown)}."
            )
        if self.absent:
            yield (
                f"{counted(len(self.absent), 'weight')} that the recipe leaves as they are, and "
                f"the model lacks: {shortlist(self.absent)}."
            )


def match(recipe: Recipe, model: ModelSource, *, strict: bool = False) -> Matching:
    """Match a recipe with a model, by the names and shapes of weights, and by their values.

    A weight that the recipe palettizes has to be there with the same shape: under its name, under
    another one with the same values, or, in a copy of another precision, under its name with or
    without ``_to_fp16``. Other differences are listed in what is returned. Reads all weights, one
    at a time.

    Parameters
    ----------
    model
        The path of an ``.mlpackage``, or an ``MLModel``.
    strict
        Whether every difference is an error.

    Raises
    ------
    ConfigError
        The recipe is for another model; the message lists each weight that does not fit. Or there
        are differences (``strict``).
    ModelFormatError
        The model is damaged or no ML program.
    """
    package = open_package(model)
    weights, _ = weights_of(package)
    found = _Found.of(recipe, weights)
    if found.problems:
        palettized = sum(each.chosen.config is not None for each in recipe.weights)
        raise ConfigError(
            f"the recipe is for another model: {len(found.problems)} of the "
            f"{counted(palettized, 'weight')} that it palettizes do not fit {package.path}:\n"
            + "\n".join(f"- {problem}" for problem in found.problems)
            + "\nPlan this model (`mlopt plan`)."
        )
    matching = found.matching(weights)
    if strict and matching.notes:
        raise ConfigError(
            "the model is not the one of the recipe (strict):\n"
            + "\n".join(f"- {note}" for note in matching.notes)
        )
    return matching


@attrs.define(eq=False)
class _Found:
    """What was found of the weights of a recipe, by the number of a model's weight."""

    pairs: dict[int, tuple[RecipeWeight, bool]] = attrs.Factory(dict)
    absent: list[str] = attrs.Factory(list)
    problems: list[str] = attrs.Factory(list)

    @classmethod
    def of(cls, recipe: Recipe, weights: Sequence[Weight]) -> _Found:
        """Look for each weight of a recipe: by name, values, name in another precision."""
        contents = [_content(weight) for weight in weights]
        numbers: dict[str, list[int]] = {}
        for number, weight in enumerate(weights):
            for name in weight.names:
                numbers.setdefault(name, []).append(number)
        found = cls()
        missing = []
        for each in recipe.weights:
            named = numbers.get(each.name, [])
            if not named:
                missing.append(each)
            elif (problem := found.problem(each, named, weights)) is None:
                found.pairs[named[0]] = each, contents[named[0]] == each.content
            elif each.chosen.config is not None:
                found.problems.append(problem)
        for each in missing:
            alike = [i for i, content in enumerate(contents) if content == each.content]
            alike += [i for i in numbers.get(_other_precision(each.name), [])]
            free = [i for i in alike if i not in found.pairs and weights[i].shape == each.shape]
            if free:
                found.pairs[free[0]] = each, contents[free[0]] == each.content
            elif each.chosen.config is None:
                found.absent.append(each.name)
            else:
                near = did_you_mean(near_matches(each.name, numbers))
                found.problems.append(f"{each.name}: the model has no weight of this name{near}")
        return found

    def problem(
        self, wanted: RecipeWeight, named: Sequence[int], weights: Sequence[Weight]
    ) -> str | None:
        """Return why weights of a name are not that of a recipe, None if there is no reason."""
        if len(named) > 1:
            return f"{wanted.name}: {len(named)} weights of the model have this name"
        weight, (other, _) = weights[named[0]], self.pairs.get(named[0], (wanted, True))
        if weight.shape != wanted.shape:
            return (
                f"{wanted.name}: the recipe has the shape {list(wanted.shape)}, the model "
                f"{list(weight.shape)}"
            )
        if other.chosen.config != wanted.chosen.config:
            return (
                f"{wanted.name}: in the model it is the same weight as {other.name}, for which the "
                "recipe has another form"
            )
        return None

    def matching(self, weights: Sequence[Weight]) -> Matching:
        """Return the account of all weights of the model."""
        rules: dict[str, OpPalettizerConfig | None] = {}
        renamed: dict[str, str] = {}
        retyped: dict[str, str] = {}
        same: list[str] = []
        changed: list[str] = []
        unknown: list[str] = []
        for number, weight in enumerate(weights):
            each, is_same = self.pairs.get(number, (None, False))
            # also for those that are unknown: the name of another may be a glob that matches them;
            # no rule can be for a weight without a name
            if weight.name:
                rules[weight.name] = None if each is None else each.chosen.config
            if each is None:
                unknown.append(weight.name)
                continue
            (same if is_same else changed).append(weight.name)
            if each.name not in weight.names:
                renamed[weight.name] = each.name
            if each.dtype != weight.dtype:
                retyped[weight.name] = each.dtype
        return Matching(
            config=OptimizationConfig(op_name_configs=rules),
            same=tuple(same),
            changed=tuple(changed),
            retyped=retyped,
            renamed=renamed,
            unknown=tuple(unknown),
            absent=tuple(self.absent),
        )


def _other_precision(name: str) -> str:
    """Return the name that a weight has in the model of float32, or else in that of float16."""
    return name.removesuffix(_CAST) if name.endswith(_CAST) else name + _CAST


def _content(weight: Weight) -> str:
    content = content_of(weight.value())
    weight.release()
    return content
