"""Pages: a plan as one HTML file that needs no network.

Charts are SVG, drawn by matplotlib (``pip install 'mlopt[report]'``), and every number in them is
in a table of the page too. Pages follow the theme of their reader, light or dark, and the width of
the screen.
"""

from mlopt.pages.document import check_page, write_page
from mlopt.pages.plan import plan_page

__all__ = ["check_page", "plan_page", "write_page"]
