"""One picture for the model card: speed against loss where a budget was asked for, else what is kept of the filters.

Drawn by matplotlib, which is optional: `pip install 'spectral-sparsify[plots]'`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsify.install_check import DISTRIBUTION

from . import pareto
from .charts import Axis, share
from .curves import FLOOR_DB
from .figures import PERPLEXITY, gain_unit
from .figures import figure as measured_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "plan.png"
TO_GET = f"pip install '{DISTRIBUTION}[plots]' brings what draws pictures"
HOW_TO_GET = f"README.md has no picture: {TO_GET}"
HUES = {"kept": "#2563c9", "tail": "#bd5208", "whole": "#77736b", "other": "#17713f"}  # as on the page by day
SITES = 4  # at most, in a picture of filters
DPI = 144


def picture(result: Mapping[str, Any]) -> bytes | None:
    """A PNG of what `sparsify convert` found, None without matplotlib, or where there is nothing to draw."""
    planned, filters = result.get("planned"), [row for row in result["filters"] if row.get("curves")]
    try:
        if planned:
            unit = gain_unit(planned["target"])
            return speed_against_loss(pareto.series_of(planned), planned["budget"], unit, measured_figure(planned))
        return what_is_kept(filters) if filters else None
    except ImportError:
        return None


def speed_against_loss(
    series: Sequence[pareto.Series], budget: float | None, unit: str, what: str = PERPLEXITY
) -> bytes:
    """The chart of `pareto.chart` as a PNG."""
    figure = blank(4.5)
    draw_pareto(figure.subplots(), pareto.drawable(series), budget, unit, what)
    return png(figure)


def what_is_kept(filters: Sequence[Mapping[str, Any]]) -> bytes:
    """Energy by tap and by bin of some of the filters, filled where it is kept, as a PNG."""
    shown = filters[:: math.ceil(len(filters) / SITES)]
    figure = blank(0.6 + 1.9 * len(shown))
    draw_filters(figure, shown)
    return png(figure)


def blank(height: float) -> Figure:
    """An empty picture, 8 inches wide.  Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=DPI)
    figure.set_size_inches(8, height)
    return figure


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def draw_pareto(panel: Axes, series: Sequence[pareto.Series], budget: float | None, unit: str, what: str) -> None:
    across, up, even = pareto.axes(series, budget)
    panel.set_xscale("log")
    panel.set_yscale("symlog", linthresh=even)
    fit(panel, across, up)
    panel.axhspan(max(up.low, -even), even, color="#00000010", lw=0)
    if budget is not None:
        panel.axhline(budget, color="#1c1b19", lw=1, ls="--", label=f"budget {share(budget)}")
    for one in series:
        gains, increases = [dot.gain for dot in one.dots], [dot.increase for dot in one.dots]
        if one.line:
            panel.plot(gains, increases, ".-", color=HUES[one.kind], lw=1, ms=3, label=one.name)
            continue
        errors = [dot.stderr or 0 for dot in one.dots]
        name = one.name if one.in_legend else None
        panel.errorbar(gains, increases, errors, fmt="o", ms=6, capsize=3, color=HUES[one.kind], label=name)
        for dot in one.dots:
            if dot.label:
                panel.plot([dot.gain], [dot.increase], "o", ms=12, mfc="none", color=HUES[one.kind])
                ground = {"fc": "white", "lw": 0, "alpha": 0.8, "pad": 1}
                place = dot.gain, dot.increase
                panel.annotate(dot.label, place, (10, -14), textcoords="offset points", bbox=ground)
    panel.set(xlabel=f"times {unit}", ylabel=f"increase of {what}")
    panel.grid(axis="y", alpha=0.25)
    panel.legend(frameon=False, fontsize="small", loc="best")


def draw_filters(figure: Figure, filters: Sequence[Mapping[str, Any]]) -> None:
    panels = figure.subplots(len(filters), 2, squeeze=False)
    for row, (by_tap, by_bin) in zip(filters, panels, strict=True):
        curves = row["curves"]
        taps, bins, tail = curves["taps"], curves["bins"], curves["tail"]
        end = bins[-1][0]
        kept = [(1, curves["kept_taps"] or taps[-1][0])]
        band = [(start * end, stop * end) for start, stop in curves["kept_band"] or [[0, 1]]]
        draw_curve(by_tap, taps, kept, "kept")
        draw_curve(by_bin, tail or bins, band, "tail" if tail else "kept")
        by_tap.set_title(f"{row['name']}: {row['plan']}", fontsize="small", loc="left")
        by_tap.set_ylabel("dB")
    panels[-1][0].set_xlabel("tap")
    panels[-1][1].set_xlabel("bin")


def draw_curve(panel: Axes, points: Sequence[Sequence[float]], kept: Sequence[tuple[float, float]], kind: str) -> None:
    """One curve, filled from start to stop of every pair in `kept`."""
    x, dB = np.array(points, dtype=float).T
    panel.plot(x, dB, color=HUES[kind], lw=1)
    for start, stop in kept:
        a, b = np.clip([start, stop], 1, x[-1])
        inside = np.unique([a, *x[(x > a) & (x < b)], b])
        panel.fill_between(
            inside, np.interp(np.log(inside), np.log(x), dB), FLOOR_DB, color=HUES[kind], alpha=0.3, lw=0
        )
    panel.set(xscale="log", xlim=(1, max(2, x[-1])), ylim=(FLOOR_DB, 3))


def fit(panel: Axes, across: Axis, up: Axis) -> None:
    """Ends and labels of both axes."""
    for name, axis in (("x", across), ("y", up)):
        getattr(panel, f"set_{name}lim")(axis.low, axis.high)
        getattr(panel, f"set_{name}ticks")(list(axis.ticks), list(axis.ticks.values()))
        getattr(panel, f"{name}axis").minorticks_off()
