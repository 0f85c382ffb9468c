"""Conversion of ``mlopt palettize`` options to the library's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import typer

if TYPE_CHECKING:
    from mlopt.coreml.config import OptimizationConfig


@attrs.frozen(kw_only=True)
class Settings:
    """The options given; all fields but the last two are OpPalettizerConfig's.

    None, or an empty tuple: not given.
    """

    nbits: int | None
    mode: str | None
    granularity: str | None
    group_size: int | None
    channel_axis: int | None
    cluster_dim: int | None
    enable_per_channel_scale: bool | None
    weight_threshold: int | None
    on_indivisible: str | None
    lut_dtype: str | None
    skip: tuple[str, ...]
    skip_type: tuple[str, ...]

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given."""
        return {
            name: value for name, value in attrs.asdict(self).items() if value not in (None, ())
        }

    def configuration(self, file: Path | None) -> OptimizationConfig:
        """Return the configuration of a YAML file, or of the options if there is none.

        Raises
        ------
        typer.BadParameter
            A file and options are given, or an option that has no effect without another.
        ConfigError
            The configuration is invalid.
        """
        from mlopt.coreml.config import OptimizationConfig
        from mlopt.coreml.op_config import OpPalettizerConfig

        given = self.given
        if file is not None:
            self.check_none_beside("--config", "write that into the file, or leave it out")
            return OptimizationConfig.from_yaml(file)
        for name in ("group_size", "on_indivisible"):
            if name in given and self.granularity != "per_grouped_channel":
                # The library ignores it, as coremltools does; here it was typed on purpose.
                raise typer.BadParameter(
                    "it applies to groups of channels; also give --granularity per_grouped_channel",
                    param_hint=f"'{_option(name)}'",
                )
        skipped = {name: dict.fromkeys(given.pop(name, ())) for name in ("skip", "skip_type")}
        return OptimizationConfig(
            global_config=OpPalettizerConfig(**given),
            op_name_configs=skipped["skip"],
            op_type_configs=skipped["skip_type"],
        )

    def check_none_beside(self, option: str, remedy: str, *more: str) -> None:
        """Refuse options that are given beside a file with the whole configuration.

        more: further options that are given.
        """
        options = [*(_option(name) for name in self.given), *more]
        if options:
            raise typer.BadParameter(
                f"the file is the whole configuration, got {', '.join(options)} as well; {remedy}",
                param_hint=f"'{option}'",
            )


def _option(field: str) -> str:
    return "--" + field.removeprefix("enable_").replace("_", "-")
