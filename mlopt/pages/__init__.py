"""Pages: results as one HTML file that needs no network, for a reader and for a record.

Charts are SVG, drawn by matplotlib (``pip install 'mlopt[report]'``), and every number in them is
in a table of the page too. Pages follow the theme of their reader, light or dark, and the width of
the screen. They hold no script and no date: the same result gives the same page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlopt.pages.document import check_page, write_page
from mlopt.pages.inventory import inventory_page
from mlopt.pages.plan import plan_page

if TYPE_CHECKING:
    from mlopt.pages.comparison import comparison_page

__all__ = ["check_page", "comparison_page", "inventory_page", "plan_page", "write_page"]


def __getattr__(name: str) -> Any:
    """Load the page of comparisons, which needs torch, when it is asked for."""
    if name != "comparison_page":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlopt.pages.comparison import comparison_page

    return comparison_page
