"""One self-contained HTML page from what `sparsify convert` found: no script, nothing from elsewhere.

Verdict first, then the figures behind it, the spectra of every filter, the plan and the conditions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .figures import Row, both_parts, figure_rows, milliseconds, part_rows, position_rows, power, ratio, variants
from .figures import speed as speedup
from .plan import FilterPlan
from .spectra import energy_by_bin, energy_by_tap, rising
from .split import split

Points = Sequence[Sequence[float]]  # [[x, y], ...], x ascending

FLOOR_DB = -80.0  # quieter entries are drawn here
ROW = 54  # units that a part of the time takes in height: its name and two bars
COSTLY = 1.01  # perplexity over dense perplexity above which a plan is not shown in green
LEAK_LIMIT = 1e-2  # as in evals/causality.py, which the core does not import: above it a perplexity is not believed
CSS = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1c1b19;--soft:#605d57;--rule:#e3e0d9;
--kept:#2563c9;--tail:#bd5208;--green:#17713f;--amber:#8a5a00;--red:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{--page:#151412;--card:#1e1d1a;--ink:#eeece6;--soft:#aaa69d;
--rule:#37352f;--kept:#79aaff;--tail:#f39a54;--green:#5fcf91;--amber:#e6b450;--red:#ff8379}}
*{box-sizing:border-box}
body{margin:0 auto;padding:clamp(1rem,4vw,3rem);max-width:72rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word;-webkit-text-size-adjust:100%;print-color-adjust:exact}
h1{font-size:1.05rem;font-weight:600;margin:0 0 1rem}h1 i{font-style:normal;color:var(--soft);padding:0 .3em}
h2{font-size:1.2rem;margin:3rem 0 .75rem}h3{font-size:1rem;margin:0}p{margin:.25rem 0;max-width:46rem}
.soft,figcaption,dt,th{color:var(--soft);font-weight:400}.soft,figcaption,footer{font-size:.85rem}
.verdict{border-left:.4rem solid var(--tone);padding:.1rem 0 .1rem 1.1rem}
.verdict strong{color:var(--tone);font-size:.85rem}
.verdict .first{font-size:clamp(1.25rem,3vw,1.75rem);line-height:1.25;font-weight:600;letter-spacing:-.01em;
max-width:54rem;text-wrap:balance;margin-bottom:.4rem}
.verdict p::first-letter{text-transform:uppercase}
.green{--tone:var(--green)}.amber{--tone:var(--amber)}.red{--tone:var(--red)}
dl{margin:0}dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,8.5rem),1fr));gap:1rem;margin-top:1.75rem}
.tiles div{max-width:20rem}
.tiles div,article,pre{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem}
.tiles dd{font-size:1.6rem;line-height:1.3;font-weight:600}.tiles dd+dd{font-size:.85rem;font-weight:400;
color:var(--soft)}
table{border-collapse:collapse;width:100%;max-width:46rem;font-size:clamp(.875rem,2.5vw,1rem);
font-variant-numeric:tabular-nums}
th,td{padding:.4rem 0 .4rem 1rem;border-top:1px solid var(--rule);text-align:right;vertical-align:baseline}
thead th{border:0;font-size:.85rem}tr>:first-child{padding-left:0;width:38%}
.plan tr>:first-child{width:auto}tr>:first-child,.plan tr>:nth-child(2){text-align:left}
:is(td,dd,code) span{white-space:nowrap}
.sites{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,31rem),1fr));gap:1rem;margin-top:1rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13.5rem),1fr));gap:.5rem 1rem}
.positions{grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 3rem;align-items:start}
.positions figure{max-width:30rem}
figure{margin:.6rem 0 0;display:flex;flex-direction:column;container-type:inline-size}
svg{width:100%;height:auto;margin-top:auto}
figcaption b{display:block;color:var(--ink);font-weight:500}
figcaption span{white-space:nowrap;margin-right:.8em}
figcaption i{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.35em}
text{font:12px system-ui,sans-serif;fill:var(--soft)}
@container (min-width:22rem){.sites text{font-size:9px}}
.grid{stroke:var(--rule);fill:none}.cut{stroke:var(--soft);stroke-dasharray:3 3}
.line{fill:none;stroke:var(--hue);stroke-width:1.5;stroke-linejoin:round}.area{fill:var(--hue);opacity:.3}
.kept{--hue:var(--kept)}.tail{--hue:var(--tail)}.whole{--hue:var(--soft)}
figcaption i{background:var(--hue)}.gone .line{opacity:.6}.gone .area{opacity:.1}i.gone{opacity:.4}
.bar{fill:var(--hue);opacity:.75}.dot{fill:var(--hue)}.ring{fill:none;stroke:var(--hue);stroke-width:1.5}
footer dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.5rem 1.5rem}
footer dl{margin-top:1rem}footer p{max-width:none;color:var(--soft)}
pre{white-space:pre-wrap;user-select:all;margin:0;font-size:.9rem}
@media print{:root{--page:#fff}body{padding:0;font-size:10pt}h2{margin-top:1.5rem}h2,.soft{break-after:avoid}
.sites{grid-template-columns:1fr}article,figure,tr,p,.tiles{break-inside:avoid}}
"""


def page(result: Mapping[str, Any]) -> str:
    """The page as text.  result: the dictionary that `sparsify convert` prints, and writes as report.json."""
    source, out, evaluation = escape(result["source"]), escape(result["out"]), result["evaluation"]
    sections = [
        ("Quality and speed", evaluation and quality(evaluation)),
        (
            "Where the time goes, before and after",
            evaluation and evaluation.get("parts") and parts(evaluation["parts"]),
        ),
        ("Where the energy lies, and what is kept of it", spectra(result["filters"])),
        ("Perplexity by position", evaluation and positions(evaluation)),
        (f"Plan: {result['plan']}", plan(result["filters"])),
        ("Conditions", conditions(result)),
        ("Next", f"<pre><code>{text(result['next'])}</code></pre>"),
    ]
    body = "\n".join(f"<section><h2>{escape(title)}</h2>{part}</section>" for title, part in sections if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{out}: sparsify report</title>
<style>{CSS}</style>
</head>
<body>
<h1>{source}<i>→</i>{out}</h1>
{headline(result)}
{body}
</body>
</html>
"""


# --- words and numbers ---------------------------------------------------------------------------------------------


def headline(result: Mapping[str, Any]) -> str:
    """The verdict in its colour, and the three or four numbers to remember."""
    evaluation, kept = result["evaluation"], [f["density"] for f in result["filters"]]
    share = f"{min(kept):.1%}" if min(kept) == max(kept) else f"{min(kept):.1%} to {max(kept):.1%}"
    tiles = [("kept of every filter", share, "taps and bins; dense is 100 %")]
    colour, word = tone(evaluation)
    if evaluation:
        cut = evaluation["perplexity_cut_ratio"] is not None
        value, _, error = ratio(evaluation, "perplexity_cut_ratio" if cut else "perplexity_ratio").partition(" ± ")
        note = "against dense" + (f", ± {error}" if error else "") + (", negative lags cut" if cut else "")
        speed, _, quartiles = speedup(evaluation if evaluation["dense"] else {}).split(",")[0].partition(" ")
        tiles = [("perplexity", value, note), ("speed", speed, f"against dense, quartiles {quartiles}"), *tiles,
                 ("leak", power(evaluation["leak"]), f"trusted up to {LEAK_LIMIT:g}")]  # fmt: skip
    first, *others = sentences(evaluation)
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{text(value)}</dd><dd>{text(note)}</dd></div>"
        for name, value, note in tiles
        if value
    )
    return (
        f'<div class="verdict {colour}"><strong>{word}</strong><p class="first">{escape(first)}</p>'
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in others)
        + f'</div><dl class="tiles">{numbers}</dl>'
    )


def tone(evaluation: Mapping[str, Any] | None) -> tuple[str, str]:
    """Colour, and in words, whether the perplexity as computed can be trusted."""
    if evaluation is None:
        return "amber", "not measured"
    if (evaluation["leak"] or 0) > LEAK_LIMIT:
        return "red", "cannot be trusted"
    if evaluation["perplexity_stderr"] is None:
        return "amber", "without a standard error"
    if (evaluation["perplexity_cut_ratio"] or evaluation["perplexity_ratio"] or 1) > COSTLY:
        return "amber", "can be trusted, and is worse than dense"
    return "green", "can be trusted"


def sentences(evaluation: Mapping[str, Any] | None) -> Sequence[str]:
    """The verdict, most important sentence first; there is always one."""
    if evaluation is None:
        return ["what this plan costs is not known yet", "convert with --data FILE to measure quality and speed"]
    if evaluation["verdict"]:
        return evaluation["verdict"]
    if evaluation["dense"] is None:
        return [f"the plan keeps everything: perplexity {evaluation['perplexity']:.4f}, that of the dense model"]
    against, dense = ratio(evaluation, "perplexity_ratio"), evaluation["dense"]["perplexity"]
    return [f"perplexity {evaluation['perplexity']:.4f}, {against} against dense {dense:.4f}"]


def text(words: str) -> str:
    """Escaped words that break between numbers and options, not inside them: 3.1614 ± 0.1414 only before the ±."""
    return re.sub(r"± \S+( %)?|\([^()]*\)|\S+ (%|ms|tokens/s)|--[\w-]+", r"<span>\g<0></span>", escape(words))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for name, *cells in rows:  # site names may break after their dots
        first = f'<th scope="row">{text(name).replace(".", ".<wbr>")}</th>'
        lines.append(f"<tr>{first}{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def quality(evaluation: Mapping[str, Any]) -> str:
    return table(["", *variants(evaluation)], figure_rows(evaluation))


def plan(filters: Sequence[Mapping[str, Any]]) -> str:
    rows = [(f["name"], f["plan"], f"{f['density']:.3f}", power(f["leak"])) for f in filters]
    return f'<div class="plan">{table(["site", "kept", "density", "taps ahead / taps"], rows)}</div>'


def conditions(result: Mapping[str, Any]) -> str:
    """Small print: which checkpoint, which plan, how it was measured and where."""
    evaluation = result["evaluation"] or {"conditions": {}, "convention": ""}
    names = ["source", "revision", "sha256", "family", "shift", "plan_sha256"]
    known = {name.replace("_", " "): result[name] for name in names} | dict(evaluation["conditions"])
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in known.items()
        if value is not None
    )
    return f"<footer><p>{escape(evaluation['convention'])}</p><dl>{pairs}</dl></footer>"


# --- pictures ------------------------------------------------------------------------------------------------------


def curve(energy: Tensor, points: int = 160) -> list[list[float]]:
    """Energy along a logarithmic axis, as [[x, dB], ...]: the loudest entry of each cell, 0 dB at the peak.

    energy: (T,).  x counts entries from 1 and is the last of its cell, so the last x is T; dB has a floor of -80.
    """
    cells = torch.logspace(0, math.log10(len(energy) + 1), points + 1, dtype=torch.float64).round().long().unique()
    loudest = torch.stack([cell.max() for cell in energy.double().split(cells.diff().tolist())])
    peak = loudest.max().clamp_min(torch.finfo(torch.float64).tiny)
    level = (10 * (loudest / peak).log10()).clamp_min(FLOOR_DB)
    return [[x, round(dB, 1)] for x, dB in zip((cells[1:] - 1).tolist(), level.tolist(), strict=True)]


def curves(k: Tensor, kept: FilterPlan, n: int, ahead: int = 0) -> dict[str, Any]:
    """What `spectra` draws of one filter.

    k: (H, K), tap j at lag j - ahead.  n: points of the spectrum where the plan has no mask.
    """
    n = kept.mask.n if kept.mask else n
    tail = split(k, kept.taps, ahead)[1] if kept.taps and kept.mask else None
    return {
        "taps": curve(energy_by_tap(k, ahead)),
        "bins": curve(energy_by_bin(k, n, ahead)),
        "tail": None if tail is None else curve(energy_by_bin(tail, n, ahead)),
        "kept_taps": kept.taps,
        "kept_band": kept.mask and bands(kept.mask.bins()[rising(n)]),
    }


def bands(bins: Tensor) -> list[list[float]]:
    """Runs of kept bins as [start, stop] shares of the band.  bins: (n,) bool, lowest frequency first."""
    edges = torch.diff(torch.nn.functional.pad(bins.int(), (1, 1)))
    starts, stops = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    return [[start / len(bins), stop / len(bins)] for start, stop in zip(starts, stops, strict=True)]


def spectra(filters: Sequence[Mapping[str, Any]]) -> str:
    """Two panels a site: energy by tap and by bin, with what is kept of it; nothing for filters without curves.

    curves: {taps, bins, tail: as from `curve`, tail None for plans without one; kept_taps: int | None;
    kept_band: [[start, stop], ...] as shares of the band | None}.
    """
    drawn = [f for f in filters if f.get("curves")]
    if not drawn:
        return ""
    note = "Energy in dB below the loudest entry of its curve, both axes logarithmic."
    if any(f["curves"]["tail"] for f in drawn):
        note += (
            " A filter jumps at lag 0, and the jump alone spreads its spectrum (grey line). With the first taps faded"
            " out, the spectrum of the tail (orange) falls fast, so a narrow band holds nearly all of it."
        )
    cards = "".join(
        f'<article><h3>{escape(f["name"])}</h3><p class="soft">{escape(f["plan"])}</p>'
        f'<div class="pair">{by_tap(f["name"], f["curves"])}{by_bin(f["name"], f["curves"])}</div></article>'
        for f in drawn
    )
    return f'<p class="soft">{note}</p><div class="sites">{cards}</div>'


@dataclass(frozen=True)
class Frame:
    """A chart: x from left to right and y from low to high, mapped linearly to width by height SVG units."""

    width: int
    height: int
    left: float
    right: float
    low: float
    high: float
    margin: int = 32  # left of the plot, for labels

    def x(self, value: float) -> float:
        return self.margin + (value - self.left) / (self.right - self.left) * (self.width - self.margin - 8)

    def y(self, value: float) -> float:
        return 18 + (self.high - value) / (self.high - self.low) * (self.height - 38)

    def path(self, points: Points) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def stretch(self, points: Points, start: float, stop: float, kind: str) -> str:
        """A curve from start to stop, its ends interpolated: a line and the area under it."""
        first, last = np.interp([start, stop], *np.array(points).T)
        line = self.path([(start, first), *(p for p in points if start < p[0] < stop), (stop, last)])
        area = f"{line} {self.path([(stop, self.low), (start, self.low)])}Z"
        return f'<g class="{kind}"><path class="area" d="M{area}"/><path class="line" d="M{line}"/></g>'

    def svg(self, title: str, desc: str, ticks: Mapping[float, str], levels: Mapping[float, str], body: str) -> str:
        """The whole chart.  ticks, levels: where labels stand along x and y."""
        axes = [f'<path class="grid" d="M{self.margin},{self.y(y):.1f}H{self.width - 8}"/>'
                f'<text x="{self.margin - 5}" y="{self.y(y) + 4:.1f}" text-anchor="end">{label}</text>'
                for y, label in levels.items()]  # fmt: skip
        for x, label in ticks.items():
            side = "end" if self.x(x) > self.width - 24 else "middle"
            at = self.x(x) + (8 if side == "end" else 0)
            axes.append(f'<text x="{at:.1f}" y="{self.height - 5}" text-anchor="{side}">{label}</text>')
        return (f'<svg viewBox="0 0 {self.width} {self.height}" role="img"><title>{escape(title)}</title>'
                f"<desc>{escape(desc)}</desc>{''.join(axes)}{body}</svg>")  # fmt: skip


def figure(caption: str, legend: Sequence[tuple[str, str]], chart: str) -> str:
    """A chart under its caption and legend.  legend: (class, label)."""
    swatches = " ".join(f'<span><i class="{kind}"></i>{escape(label)}</span>' for kind, label in legend)
    return f"<figure><figcaption><b>{escape(caption)}</b>{swatches}</figcaption>{chart}</figure>"


def by_tap(name: str, curves: Mapping[str, Any]) -> str:
    points, kept = curves["taps"], curves["kept_taps"]
    if kept is None or kept >= points[-1][0]:
        return panel(name, "tap", points, [], [("kept", "whole filter")])
    if curves["tail"]:
        kinds = [("kept", "head, exact"), ("tail", "tail, band-limited")]
    else:
        kinds = [("kept", "kept"), ("kept gone", "dropped")]
    return panel(name, "tap", points, [(1, kept)], kinds, f"{kept:,} taps")


def by_bin(name: str, curves: Mapping[str, Any]) -> str:
    tail, band = curves["tail"], curves["kept_band"]
    if band is None:
        return panel(name, "bin", curves["bins"], [], [("kept", "whole filter")])
    hue, what, points = ("tail", "tail, kept", tail) if tail else ("kept", "kept", curves["bins"])
    kept = [(start * points[-1][0], stop * points[-1][0]) for start, stop in band]
    share = f"{sum(stop - start for start, stop in band):.3g} of the band"
    return panel(name, "bin", points, kept, [(hue, what), (f"{hue} gone", "dropped")], share, tail and curves["bins"])


def panel(
    name: str, unit: str, points: Points, kept: Points, kinds: Sequence[tuple[str, str]], cut: str = "",
    whole: Points | None = None,
) -> str:  # fmt: skip
    """Energy by tap or bin, drawn as the first of `kinds` (class, label) where it is kept and as the second elsewhere.

    kept: [[start, stop], ...]; empty is everywhere.  cut: label of the last stop.  whole: a curve drawn on top.
    """
    end = points[-1][0]
    frame = Frame(280, 150, 0, math.log10(max(end, 2)), FLOOR_DB, 0)
    line, top = ([(math.log10(x), dB) for x, dB in shown] for shown in (points, whole or []))
    edges = [math.log10(min(max(edge, 1), end)) for pair in kept or [(1, end)] for edge in pair]
    stretches = enumerate(pairwise([0, *edges, line[-1][0]]))  # the odd ones are kept
    drawn = [frame.stretch(line, a, b, kinds[1 - i % 2][0]) for i, (a, b) in stretches if a < b]
    if top:
        drawn.append(f'<path class="line whole" d="M{frame.path(top)}"/>')
        kinds = [*kinds, ("whole", "whole filter")]
    if cut:
        x = frame.x(edges[-1])
        side, at = ("end", x - 4) if x > frame.width / 2 else ("start", x + 4)
        drawn.append(f'<path class="cut" d="M{x:.1f},4V{frame.y(FLOOR_DB):.1f}"/>')
        drawn.append(f'<text x="{at:.1f}" y="12" text-anchor="{side}">{cut}</text>')
    ticks = {float(i): compact(10**i) for i in range(int(frame.right) + 1)}
    levels = {dB: f"{dB:.0f}" for dB in (0.0, -20.0, -40.0, -60.0, FLOOR_DB)}
    desc = f"{', '.join(label for _, label in kinds)}; {cut or 'nothing dropped'}; {unit} 1 to {compact(end)}"
    chart = frame.svg(f"{name}: energy by {unit}, dB", desc, ticks, levels, "".join(drawn))
    return figure(f"energy by {unit}, dB", kinds, chart)


def positions(evaluation: Mapping[str, Any]) -> str:
    """Perplexity by position as a chart, dense as rings and sparse as dots, and as a table."""
    rows = {name: row["perplexity_by_position"] for name, row in variants(evaluation).items()}
    buckets = evaluation["perplexity_by_position"]
    values = [bucket["perplexity"] for row in rows.values() for bucket in row]
    step = nice((max(values) - min(values)) / 3 or 1e-3)
    low, high = math.floor(min(values) / step), math.floor(max(values) / step) + 1
    frame = Frame(400, 200, 0, len(buckets), low * step, high * step, margin=50)
    levels = {i * step: f"{i * step:.{max(0, -math.floor(math.log10(step)))}f}" for i in range(low, high + 1)}
    every = 1 + len(buckets) // 9  # so that labels do not touch
    edges = [*(bucket["start"] for bucket in buckets), buckets[-1]["stop"]]
    ticks = {float(i): compact(edge) for i, edge in enumerate(edges) if i % every == 0}
    marks = {name: ("whole", "ring", 5.5) if name == "dense" else ("kept", "dot", 3) for name in rows}
    drawn = []
    for name, (kind, shape, radius) in marks.items():
        points = [(i + 0.5, bucket["perplexity"]) for i, bucket in enumerate(rows[name])]
        dots = "".join(f'<circle class="{shape}" cx="{frame.x(i):.1f}" cy="{frame.y(v):.1f}" r="{radius}"/>'
                       for i, v in points)  # fmt: skip
        drawn.append(f'<g class="{kind}"><path class="line" d="M{frame.path(points)}"/>{dots}</g>')
    title = f"perplexity by tokens read so far, {' and '.join(rows)}"
    chart = frame.svg(title, "the same numbers stand in the table", ticks, levels, "".join(drawn))
    legend = [(kind, name) for name, (kind, _, _) in marks.items()]
    picture = figure("perplexity as computed, by tokens read so far", legend, chart)
    return f'<div class="pair positions">{picture}{table(["tokens", *rows], position_rows(evaluation))}</div>'


def parts(measured: Mapping[str, Any]) -> str:
    """Where the time of one forward pass goes: two bars a part on one scale, and the numbers."""
    before, after = measured["before"], measured["after"]
    rows = both_parts(before, after)
    longest = max(part["seconds"] for part in (*before, *after))
    drawn = [
        f'<text class="name" x="0" y="{ROW * i + 12}">{escape(name)}</text>'
        + bar("whole", ROW * i + 18, then, longest)
        + bar("kept", ROW * i + 33, now, longest)
        for i, (name, then, now) in enumerate(rows)
    ]
    title = "seconds of a forward pass by part, before and after"
    chart = (f'<svg viewBox="0 0 400 {ROW * len(rows)}" role="img"><title>{title}</title>'
             f"<desc>the same numbers stand in the table</desc>{''.join(drawn)}</svg>")  # fmt: skip
    sums = [sum(part["seconds"] for part in found) for found in (before, after)]
    tokens = f"one forward pass of {measured['length']:,} tokens"
    caption = f"{tokens}: {milliseconds(sums[0])} before, {milliseconds(sums[1])} after"
    legend = [("whole", "before"), ("kept", "after")]
    note = (
        "Before is the model's own code, which makes filters and their spectra anew in every pass; after is this plan,"
        " with everything prepared. Taking a pass apart slows it a little."
    )
    head = ["part", "before", "share", "after", "share"]
    numbers = table(head, part_rows(before, after))
    return f'<p class="soft">{note}</p><div class="pair positions">{figure(caption, legend, chart)}{numbers}</div>'


def bar(kind: str, y: int, part: Row | None, longest: float) -> str:
    """One bar with its time at the end; nothing for a part that is not there."""
    if part is None:
        return ""
    width = max(1.0, 320 * part["seconds"] / longest)
    return (f'<g class="{kind}"><rect class="bar" x="0" y="{y}" width="{width:.1f}" height="12" rx="1"/></g>'
            f'<text x="{width + 5:.1f}" y="{y + 10}">{milliseconds(part["seconds"])}</text>')  # fmt: skip


def nice(step: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is at least `step`."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step)


def compact(value: float) -> str:
    """A count in a few characters: 512, 1,024, 16k, 1.05M."""
    if value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:.0f}k" if value < 1e6 else f"{value / 1e6:.3g}M"
