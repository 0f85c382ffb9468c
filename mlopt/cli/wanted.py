"""What ``mlopt palettize`` is to do with each model: follow rules, or a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import typer

from mlopt.cli.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlopt.coreml.config import OptimizationConfig
    from mlopt.coreml.palettize import PalettizationResult
    from mlopt.planning.recipe import Recipe
    from mlopt.requests.report import Report


@attrs.frozen
class Wanted:
    """Rules, or a recipe; the other is None. cache: of the plan, None for none."""

    rules: OptimizationConfig | None
    recipe: Recipe | None
    cache: Path | None = None

    @classmethod
    def of(
        cls, settings: Settings, config: Path | None, recipe: Path | None, cache: Path | None
    ) -> Wanted:
        """Return what options or one of two files ask for.

        Raises
        ------
        typer.BadParameter
            A recipe is given, and anything else; or a cache without one.
        ConfigError
            A file is damaged.
        """
        if recipe is None:
            if cache is not None:
                raise typer.BadParameter("it belongs to a --recipe", param_hint="'--cache'")
            return cls(settings.configuration(config), None)
        more = ("--config",) if config is not None else ()
        remedy = "leave it out, or edit the recipe"
        settings.check_none_beside("--recipe", remedy, *more)
        from mlopt.planning.recipe_files import load

        return cls(None, load(recipe), cache)

    def completed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of the way; with joint compression if the recipe is for that."""
        is_joint = self.recipe is not None and self.recipe.joint_compression
        return {**options, "joint_compression": options["joint_compression"] or is_joint}

    def foreseen(
        self, model: Path, options: dict[str, Any], calibrated: dict[str, Any]
    ) -> tuple[Report, int]:
        """Return the report without clustering, and the bytes of the package.

        options: of ``preview``; calibrated: what ``foreseen_package_bytes`` gets besides.
        """
        from mlopt.coreml.foreseen import foreseen_package_bytes
        from mlopt.coreml.palettize import preview

        config, options = self.rules, dict(options)
        notes: tuple[str, ...] = ()
        if self.recipe is not None:
            from mlopt.planning.matching import match

            matching = match(self.recipe, model, strict=options["strict"])
            config, notes = matching.config, matching.notes
            options |= {
                "minimum_deployment_target": options["minimum_deployment_target"]
                or self.recipe.target,
                "strict": False,
            }
        assert config is not None
        report = preview(model, config, **options)
        report = attrs.evolve(report, notes=(*notes, *report.notes))
        del options["strict"]
        return report, foreseen_package_bytes(model, config, **options, **calibrated)

    def way(
        self, model: Path, data: str | None, samples: int | None, *, quiet: bool
    ) -> Callable[..., PalettizationResult]:
        """Return the function that palettizes: all weights at once, or in sequence on samples."""
        chosen = None
        if data is not None:
            from mlopt.cli.calibration_data import samples_of
            from mlopt.runtime import load

            chosen = samples_of(data, load(model), count=samples, quiet=quiet)
        if self.recipe is not None:
            from mlopt.planning.applying import apply_recipe

            return partial(apply_recipe, self.recipe, model, samples=chosen, cache=self.cache)
        assert self.rules is not None
        if chosen is None:
            from mlopt.coreml.palettize import palettize

            return partial(palettize, model, self.rules)
        from mlopt.calibration import palettize_sequentially

        return partial(palettize_sequentially, model, self.rules, chosen)
