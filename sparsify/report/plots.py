"""One picture for the model card: speed against loss where a budget was asked for, else what is kept of the filters.

Drawn by matplotlib, which is optional: `pip install 'spectral-sparsify[plots]'`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsify.install_check import DISTRIBUTION

from . import pareto
from .charts import png
from .filters import by_bin, by_tap
from .schema import Conversion, FilterKept

NAME = "plan.png"
TO_GET = f"pip install '{DISTRIBUTION}[plots]' brings what draws pictures"
HOW_TO_GET = f"README.md has no picture: {TO_GET}"
SITES = 4  # at most, in a picture of filters


def picture(result: Conversion) -> bytes | None:
    """A PNG of what `sparsify convert` found, None without matplotlib, or where there is nothing to draw."""
    try:
        if result.planned:
            return png.drawn([[("", pareto.chart_of(result.planned))]], 4.5)
        return what_is_kept(result.filters)
    except ImportError:
        return None


def what_is_kept(filters: Sequence[FilterKept]) -> bytes | None:
    """Energy by tap and by bin of some of the filters, as a PNG; None where nothing is known of them."""
    known = [(f, f.curves) for f in filters if f.curves]
    shown = known[:: math.ceil(len(known) / SITES) or 1]
    rows = [[(f"{f.name}: {f.plan}", by_tap(f.name, curves)), ("", by_bin(f.name, curves))] for f, curves in shown]
    return png.drawn(rows, 0.6 + 1.9 * len(rows)) if rows else None
