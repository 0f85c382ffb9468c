"""Notes about a source whose files are links out of its package."""

from __future__ import annotations

from mlopt.mil.package import Package


def link_notes(package: Package) -> tuple[str, ...]:
    """A line about the files that have been read through links; none where there are none."""
    if not package.links:
        return ()
    shown = ", ".join(f"{inner} ({real})" for inner, real in sorted(package.links.items()))
    return (
        f"The source has links to what is outside of its package: {shown}. What they lead to was "
        "read and is left as it is; what is written has files of its own.",
    )
