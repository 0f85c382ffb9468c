"""What to say where a package is missing that only an extra of mlopt installs."""

from __future__ import annotations


def matplotlib_missing() -> str | None:
    """Return why nothing can be drawn, and the remedy; None where matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "drawing needs matplotlib; install mlopt with its extra: pip install 'mlopt[report]'"
    return None
