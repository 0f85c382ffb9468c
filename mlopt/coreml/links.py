"""Notes about files of a source that are links to outside of its package."""

from __future__ import annotations

from mlopt.mil.package import Package


def link_notes(package: Package) -> tuple[str, ...]:
    """Return one line about the files that were read through links, or nothing without any."""
    if not package.links:
        return ()
    shown = ", ".join(f"{inner} ({real})" for inner, real in sorted(package.links.items()))
    return (
        f"The source has links to files outside of its package: {shown}. These files were read and "
        "are not changed; the output has files of its own.",
    )
