"""Draw the pictures of the documentation from the demo model and the results that are kept: `python docs/draw.py`.

They have the charts and the colours of a conversion's report (`sparsify/report`).  The files in docs/pictures are
committed; tests/test_docs.py draws them again and compares.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import sparsify
from sparsify.filters.split import split
from sparsify.plan import FilterPlan, policies
from sparsify.report import pareto, style
from sparsify.report.charts import svg
from sparsify.report.charts.chart import Axis, Chart, Frame, Line
from sparsify.report.curves import curves
from sparsify.report.filters import LEVELS
from sparsify.report.schema import ParetoPairs, Points

DEMO = ROOT / "demo" / "hyenadna-chr20-8k"
PICTURES = ROOT / "docs" / "pictures"
SITE = "backbone.layers.0.mixer"
SHARE, HEAD = 1 / 8, 64  # what the pictures keep
WIDE, SHOWN = 480, 620  # units that a picture is wide, and pixels where there is room
LEFT, RIGHT = 60, 16  # units beside a chart
HIGH = 150  # units of a chart

PATH = (  # what the data is, what makes it of the line before, and where that is
    ('"ORG/MODEL" or a folder', "", ""),
    ("files, pinned to a revision", "find, download, check", "converters/hub/"),
    ("tensors by name", "read without running code", "converters/tensors.py"),
    ("a model, and its ConvSites", "recognise the family, build it", "converters/registry.py"),
    ("filters k, taps by channel", "compute the taps from weights", "sparsify/swap.py"),
    ("spectra, costs, candidates", "analyse and price", "sparsify/filters/, search/"),
    ("a Plan: what each site keeps", "decide", "sparsify/plan/, sparsify/search/"),
    ("a model with sparse convolutions", "swap them in", "sparsify/swap.py, cpu/, gpu/"),
    ("results, each against dense", "measure quality, leak and speed", "evals/"),
    ("a folder: weights, plan, report", "write whole or not at all", "converters/save.py, report/"),
    ('"YOU/MODEL-sparse"', "one commit", "converters/hub/upload.py"),
)


def css() -> str:
    """The report's colours and rules for charts."""
    light, dark = re.findall(r":root\{(.*?)\}", style.CSS, re.DOTALL)[:2]
    charts = style.CSS[style.CSS.index("text{font") : style.CSS.index(".wide{")]
    return (
        f":root{{{light};--ground:var(--card)}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"svg{{overflow:visible}}{charts}.ink{{fill:var(--ink)}}.strong{{font-weight:600;fill:var(--ink)}}"
        f".box{{fill:var(--page);stroke:var(--rule)}}.ahead{{fill:var(--tail);opacity:.12}}.card{{fill:var(--card)}}"
    )


def picture(title: str, height: float, parts: Sequence[str]) -> str:
    """A whole file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{SHOWN}" height="{SHOWN * height / WIDE:.0f}" '
        f'viewBox="0 0 {WIDE} {height:g}"><title>{escape(title)}</title><style>{css()}</style>'
        f'<rect class="card" width="{WIDE}" height="{height:g}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def placed(chart: Chart, top: float, behind: str = "") -> str:
    """A chart of the report at a height of the picture.  behind: SVG, drawn first."""
    found = re.search(
        r'<div class="chart".*?><svg role="img" height="(\d+)">(.*</desc>)(.*)</svg></div>', svg.drawn(chart), re.DOTALL
    )
    assert found
    return (
        f'<svg class="chart" x="{LEFT}" y="{top:g}" width="{WIDE - LEFT - RIGHT}" height="{found[1]}">'
        f"{found[2]}{behind}{found[3]}</svg>"
    )


def lines(name: str, across: Axis, up: Axis, marks: Mapping[str, Points], cut: float | None = None) -> Chart:
    """A chart of lines.  marks: by their kind."""
    return Chart(name, "", "", across, up, [Line(kind, values) for kind, values in marks.items()], [], HIGH, cut=cut)


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def legend(y: float, entries: Sequence[tuple[str, str]]) -> str:
    """Swatches in one line.  entries: (class of the colour, label)."""
    x, drawn = LEFT, ""
    for kind, label in entries:
        drawn += f'<g class="{kind}"><rect class="dot" x="{x}" y="{y - 9:g}" width="9" height="9" rx="2"/></g>'
        drawn += words(x + 14, y, label)
        x += 14 + round(6.2 * len(label)) + 16
    return drawn


def heights(curves: Iterable[Points]) -> Axis:
    """Upwards, with room for all of these lines; they lie within -1 .. 1."""
    every = [y for line in curves for _, y in line]
    bottom, top = min(every) - 0.05, max(every) + 0.05
    return Axis(bottom, top, {y: signed(y) for y in (-1.0, -0.5, 0.0, 0.5, 1.0) if bottom <= y <= top})


def lags(first: int, last: int) -> Axis:
    """Lags in samples, with a label every 32."""
    return Axis(first, last, {float(d): signed(d) for d in range(first, last + 1, 32)})


def signed(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def leak(k: Any) -> str:
    """The filter as two plans apply it, around lag 0.  k: (H, K); the channel is the worst one of the low-pass."""
    site_band = policies.band(demo().sites[0], SHARE)
    low = FilterPlan("frequency-sparse", mask=site_band).apply(k)
    both = FilterPlan("split", HEAD, site_band).apply(k)
    channel = int(low.leaks().argmax())
    peak = float(k[channel].abs().max())
    span = range(-64, 129)

    def values(filter_: Any) -> list[tuple[int, float]]:
        return [(d, float(filter_.k[channel, d + filter_.lookahead]) / peak) for d in span]

    dense = [(d, float(k[channel, d]) / peak if d >= 0 else 0.0) for d in span]
    low_values, both_values = values(low), values(both)
    across, up = lags(-64, 128), heights([dense, low_values, both_values])
    frame = Frame(across, up, HIGH)
    ahead = f'<rect class="ahead" width="{frame.x(0):g}%" height="{frame.height}"/>'
    parts, y = [], 0
    shown = (
        (f"low-pass, {SHARE:.1%} of the bins", low_values, "tail", low.leaks()[channel]),
        (f"split, {HEAD} taps and {SHARE:.1%} of the tail's bins", both_values, "kept", both.leaks()[channel]),
    )
    for name, line, kind, share in shown:
        parts += [
            words(LEFT, y + 24, name, "strong"),
            words(LEFT, y + 42, f"{share:.2%} of the filter's norm lies at negative lags"),
            placed(lines(name, across, up, {"whole": dense, kind: line}), y + 54, ahead),
            words(LEFT + 6, y + 66, "reads the future"),
        ]
        y += 250
    y += 4
    parts.append(words(WIDE - RIGHT, y - 12, "lag, in samples", "", "end"))
    parts.append(legend(y - 12, [("whole", "dense"), ("tail", "low-pass"), ("kept", "split")]))
    return picture("A filter of the demo model under a low-pass and under a split", y, parts)


def parted(k: Any) -> str:
    """A filter's head and tail in time, and its spectrum with and without the head."""
    site = demo().sites[0]
    kept = FilterPlan("split", HEAD, policies.band(site, SHARE))
    head, tail = (part.k for part in split(k, HEAD, kept.mask))
    channel = int(k.norm(dim=-1).argmax())
    peak = float(k[channel].abs().max())
    span = range(0, 193)
    parts = {
        "whole": [(d, float(k[channel, d]) / peak) for d in span],
        "tail": [(d, float(tail[channel, d]) / peak) for d in span],
        "kept": [(d, float(head[channel, d]) / peak if d < HEAD else 0.0) for d in span],
    }
    found = curves(k, kept, kept.mask.n if kept.mask else 0)
    end, smooth = found.bins[-1][0], found.tail or ()
    shares = {end / part: f"1/{part}" if part > 1 else "1" for part in (512, 64, 8, 1)}
    in_bins = Axis(float(end) / 2048, end, shares, math.log)

    def shown(points: Sequence[Sequence[float]]) -> Points:
        return [(x, y) for x, y in points if x >= end / 2048]

    return picture(
        "Head and tail of a filter of the demo model",
        492,
        [
            words(LEFT, 24, f"taps of one channel: a head of {HEAD} taps and a smooth tail", "strong"),
            placed(lines("taps", lags(0, 192), heights(parts.values()), parts), 40),
            words(WIDE - RIGHT, 226, "lag, in samples", "", "end"),
            words(LEFT, 264, "energy by frequency, dB, all channels", "strong"),
            placed(
                lines(
                    "energy",
                    in_bins,
                    LEVELS,
                    {"whole": shown(found.bins), "tail": shown(smooth)},
                    end * SHARE,
                ),
                280,
            ),
            words(WIDE - RIGHT, 466, "share of the band; a plan keeps what is left of the dashed line", "", "end"),
            legend(484, [("whole", "whole filter"), ("kept", "head"), ("tail", "tail")]),
        ],
    )


def budget() -> str:
    """Plans of the demo model by what they save and what they lose, from the kept results."""
    found = json.loads((ROOT / "evals" / "results" / "front-chr20-8k.json").read_text())
    series = pareto.series_of_fronts(ParetoPairs.from_dict(found))
    chart = pareto.chart(series, None, "fewer taps plus bins")
    entries = [(one.kind, one.name.replace(", the same everywhere", " everywhere")) for one in series]
    hues = ".other{--hue:#7b4fc9}"
    return picture(
        "Plans of the demo model: increase of the perplexity against what is saved",
        472,
        [
            f"<style>{hues}</style>",
            words(LEFT, 24, "increase of the perplexity on held-out windows", "strong"),
            legend(44, entries[:2]),
            legend(62, entries[2:]),
            placed(chart, 78),
            words(WIDE - RIGHT, 456, "times fewer taps plus bins", "", "end"),
        ],
    )


def architecture() -> str:
    """The path of the data: a box for what there is, between two boxes what is done, and where."""
    parts, y = [], 16
    for data, verb, place in PATH:
        if verb:
            parts += [
                f'<path class="grid" d="M60,{y}v30m-4,-6l4,6l4,-6"/>',
                words(76, y + 19, verb),
                words(WIDE - RIGHT, y + 19, place, "ink", "end"),
            ]
            y += 32
        parts += [
            f'<rect class="box" x="16" y="{y}" width="{WIDE - 32}" height="28" rx="6"/>',
            words(30, y + 18, data, "strong"),
        ]
        y += 30
    return picture("The path of the data, and the folders that do each step", y + 12, parts)


_demo: list[Any] = []


def demo() -> Any:
    """The demo checkpoint, loaded once."""
    if not _demo:
        _demo.append(sparsify.load(DEMO))
    return _demo[0]


def drawn() -> Mapping[str, str]:
    """Every picture by its file name."""
    k = demo().filters[SITE].k
    return {
        "leak.svg": leak(k),
        "split.svg": parted(k),
        "budget.svg": budget(),
        "architecture.svg": architecture(),
    }


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, content in drawn().items():
        (PICTURES / name).write_text(content, encoding="utf-8")
        print(f"drew {PICTURES / name}")
