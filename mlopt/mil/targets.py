"""Deployment targets: names for specification versions and opsets."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from mlopt.errors import ModelFormatError, TargetError

if TYPE_CHECKING:
    import coremltools as ct


class Target(enum.IntEnum):
    """A deployment target by its iOS name; its number is the model's specification version.

    Targets compare by age: ``Target.iOS16 < Target.iOS18``.
    """

    iOS15 = 6
    iOS16 = 7
    iOS17 = 8
    iOS18 = 9
    iOS26 = 10

    @property
    def specification_version(self) -> int:
        """The ``specificationVersion`` of a model for this target."""
        return int(self)

    @property
    def opset(self) -> str:
        """The opset of its functions, such as "CoreML5"."""
        return f"CoreML{int(self) - 1}"

    @property
    def ios(self) -> str:
        """Its iOS name, such as "iOS16"."""
        return self.name

    @property
    def macos(self) -> str:
        """Its macOS name, such as "macOS13"."""
        return _MACOS[self]

    @classmethod
    def parse(cls, target: Target | str | ct.target) -> Target:
        """Return the target that ``target`` names.

        Accepted are a ``Target``, a name in any case and spacing ("iOS16", "macos 13", "iOS-18",
        "tvOS16", "watchOS9"), and a member of ``coremltools.target``.

        Raises
        ------
        TargetError
            It names no target that has ML programs.
        """
        if isinstance(target, cls):
            return target
        # coremltools' members are recognised by name: importing it to compare would take seconds.
        name = target if isinstance(target, str) else getattr(target, "name", None)
        if isinstance(name, str):
            named = _NAMES.get(re.sub(r"[\s_-]", "", name).lower())
            if named is not None:
                return named
        raise TargetError(
            f"unknown deployment target {target!r}; known are "
            f"{', '.join(f'{t.ios} ({t.macos})' for t in cls)}"
        )

    @classmethod
    def of_specification(cls, version: int, where: str = "model") -> Target:
        """Return the target of a model's specification version.

        Raises
        ------
        ModelFormatError
            No target that has ML programs is of that version. ``where`` names the model in the
            message.
        """
        try:
            return cls(version)
        except ValueError:
            raise ModelFormatError(
                f"{where}: specification version {version} belongs to no known target; known are "
                f"{', '.join(f'{int(t)} ({t.ios})' for t in cls)}. The model is damaged, or newer "
                "than this version of mlopt."
            ) from None

    def __str__(self) -> str:
        return self.name


def opset_target(opset: str) -> Target:
    """Return the target that has an opset.

    Raises
    ------
    ValueError
        No target has it.
    """
    try:
        return _OPSETS[opset]
    except KeyError:
        raise ValueError(f"unknown opset {opset!r}; known are {', '.join(_OPSETS)}") from None


_MACOS = {
    Target.iOS15: "macOS12",
    Target.iOS16: "macOS13",
    Target.iOS17: "macOS14",
    Target.iOS18: "macOS15",
    Target.iOS26: "macOS26",
}
_OPSETS = {target.opset: target for target in Target}
_NAMES = {t.ios.lower(): t for t in Target} | {name.lower(): t for t, name in _MACOS.items()}
# tvOS counts as iOS does; watchOS was seven versions behind until both were renamed to 26.
_NAMES |= {t.ios.lower().replace("ios", "tvos"): t for t in Target}
_NAMES |= {f"watchos{n}": t for n, t in ((8, Target.iOS15), (9, Target.iOS16), (10, Target.iOS17))}
_NAMES |= {"watchos11": Target.iOS18, "watchos26": Target.iOS26}
