"""One self-contained HTML page from what `sparsify convert` found: no script, nothing from elsewhere.

Verdict first, then the figures behind it, the spectra of every filter, the plan and the conditions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import show

Points = Sequence[Sequence[float]]  # [[x, y], ...], x ascending
Ranges = Sequence[tuple[float, float]]

FLOOR_DB = -80.0  # quieter entries are drawn here
LEAK_LIMIT = 1e-2  # as in evals/causality.py, which the core does not import: above it a perplexity is not believed
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 320, 30, 8, 20, 20  # of a chart and its margins, in SVG units
FIGURES: Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]] = (  # label, cell of one variant
    ("perplexity", lambda r: show.spread(r["perplexity"], r["perplexity_stderr"])),
    ("perplexity, negative lags cut", lambda r: show.spread(r["perplexity_cut"], r["perplexity_cut_stderr"])),
    ("against dense, paired", lambda r: show.ratio(r, "perplexity_ratio")),
    ("cut against dense, paired", lambda r: show.ratio(r, "perplexity_cut_ratio")),
    ("bits a token", lambda r: show.number(r["bits_per_token"])),
    ("leak: how far logits move when the future changes", lambda r: power(r["leak"])),
    ("KL from dense, nats", lambda r: power(r["kl"], 2)),
    ("top-1 agreement", lambda r: "" if r["top1_agreement"] is None else f"{r['top1_agreement']:.2%}"),
    ("speed, with quartiles", show.speed),
)
CSS = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1c1b19;--soft:#605d57;--rule:#e3e0d9;
--kept:#2563c9;--tail:#bd5208;--green:#17713f;--amber:#8a5a00;--red:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{--page:#151412;--card:#1e1d1a;--ink:#eeece6;--soft:#aaa69d;
--rule:#37352f;--kept:#79aaff;--tail:#f39a54;--green:#5fcf91;--amber:#e6b450;--red:#ff8379}}
*{box-sizing:border-box}
body{margin:0 auto;padding:clamp(1rem,4vw,3rem);max-width:80rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere;-webkit-text-size-adjust:100%;print-color-adjust:exact}
h1{font-size:1.05rem;font-weight:600;margin:0 0 1rem}h1 i{font-style:normal;color:var(--soft);padding:0 .3em}
h2{font-size:1.2rem;margin:3rem 0 .75rem}h3{font-size:1rem;margin:0}p{margin:.25rem 0;max-width:46rem}
.soft,figcaption,dt,th{color:var(--soft);font-weight:400}.soft,figcaption,footer{font-size:.85rem}
.verdict{border-left:.4rem solid var(--tone);padding:.1rem 0 .1rem 1.1rem}
.verdict strong{color:var(--tone);font-size:.85rem}
.verdict .first{font-size:clamp(1.25rem,3vw,1.75rem);line-height:1.25;font-weight:600;letter-spacing:-.01em}
.verdict p::first-letter{text-transform:uppercase}
.green{--tone:var(--green)}.amber{--tone:var(--amber)}.red{--tone:var(--red)}
dl{margin:0}dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,11rem),1fr));gap:1rem;margin-top:1.75rem}
.tiles div,article,pre{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem}
.tiles dd{font-size:1.6rem;line-height:1.3;font-weight:600}.tiles dd+dd{font-size:.85rem;font-weight:400}
table{border-collapse:collapse;width:100%;max-width:46rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem 0 .4rem 1rem;border-top:1px solid var(--rule);text-align:right;vertical-align:baseline}
thead th{border:0;font-size:.85rem}tr>:first-child{text-align:left;padding-left:0}
.sites{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,33rem),1fr));gap:1rem;margin-top:1rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:1rem;align-items:start}
.positions{max-width:62rem;gap:1rem 3rem}
figure{margin:.6rem 0 0}svg{display:block;width:100%;height:auto;margin-top:.3rem}figure span{white-space:nowrap}
figure i{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin:0 .35em 0 .8em}
text{font:11px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--rule);fill:none}.cut{stroke:var(--soft);stroke-dasharray:3 3}
.band{fill:var(--ink);opacity:.06}
.line{fill:none;stroke:var(--hue);stroke-width:1.5;stroke-linejoin:round}.area{fill:var(--hue);opacity:.3}
.kept{--hue:var(--kept)}.tail{--hue:var(--tail)}.whole,.dense{--hue:var(--soft)}
i{background:var(--hue)}h1 i{background:none}g.gone,i.gone{opacity:.35}
.dot{fill:var(--hue)}.ring{fill:none;stroke:var(--hue);stroke-width:1.5}
footer dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.5rem 1.5rem;margin:1rem 0}
footer p{max-width:none;color:var(--soft)}pre{white-space:pre-wrap;user-select:all;margin:0;font-size:.9rem}
@media print{body{padding:0;font-size:10pt}h2{margin-top:1.5rem;break-after:avoid}
.sites{grid-template-columns:1fr}article,figure,tr,.tiles{break-inside:avoid}}
"""


def page(result: Mapping[str, Any]) -> str:
    """The page as text.  result: the dictionary that `sparsify convert` prints, and writes as report.json."""
    source, out, evaluation = escape(result["source"]), escape(result["out"]), result["evaluation"]
    sections = [
        ("Quality and speed", evaluation and figures(evaluation)),
        ("Where the energy lies, and what is kept of it", spectra(result["filters"])),
        ("Perplexity by position", evaluation and positions(evaluation)),
        (f"Plan: {result['plan']}", plan(result["filters"])),
        ("Conditions", conditions(result)),
        ("Next", f"<pre><code>{escape(result['next'])}</code></pre>"),
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
    tiles = [("kept of every filter", share, "taps and bins, dense is 100 %")]
    colour, word = tone(evaluation)
    if evaluation:
        honest = "perplexity_ratio" if evaluation["perplexity_cut_ratio"] is None else "perplexity_cut_ratio"
        value, _, error = show.ratio(evaluation, honest).partition(" ± ")
        note = "negative lags cut" if honest == "perplexity_cut_ratio" else "paired"
        tiles.insert(0, ("perplexity against dense", value, note + (f", ± {error}" if error else "")))
        value, _, rest = show.speed(evaluation).partition(" ")
        tiles.insert(1, ("speed against dense", value, rest))
        tiles.append(("leak", power(evaluation["leak"]), f"trusted up to {LEAK_LIMIT:g}"))
    first, *others = sentences(evaluation)
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class='soft'>{escape(note)}</dd></div>"
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
    return "green", "can be trusted"


def sentences(evaluation: Mapping[str, Any] | None) -> Sequence[str]:
    """The verdict, most important sentence first; there is always one."""
    if evaluation is None:
        return ["what this plan costs is not known yet", "convert with --data FILE to measure quality and speed"]
    if evaluation["verdict"]:
        return evaluation["verdict"]
    if evaluation["dense"] is None:
        return [f"the plan keeps everything: perplexity {evaluation['perplexity']:.4f}, that of the dense model"]
    against, dense = show.ratio(evaluation, "perplexity_ratio"), evaluation["dense"]["perplexity"]
    return [f"perplexity {evaluation['perplexity']:.4f}, {against} against dense {dense:.4f}"]


def power(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}e}"


def variants(evaluation: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Name -> what was measured: dense and sparse, or dense alone where the plan keeps everything."""
    return {"dense": evaluation["dense"], "sparse": evaluation} if evaluation["dense"] else {"dense": evaluation}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def figures(evaluation: Mapping[str, Any]) -> str:
    columns = variants(evaluation)
    rows = [(label, *(cell(row) for row in columns.values())) for label, cell in FIGURES]
    return table(["", *columns], [row for row in rows if any(row[1:])])


def plan(filters: Sequence[Mapping[str, Any]]) -> str:
    rows = [(f["name"], f["plan"], f"{f['density']:.3f}", power(f["leak"])) for f in filters]
    return table(["site", "kept", "density", "taps ahead / taps"], rows)


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


def spectra(filters: Sequence[Mapping[str, Any]]) -> str:
    """Two panels a site: energy by tap and by bin, with what is kept of it."""
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


def by_tap(name: str, curves: Mapping[str, Any]) -> str:
    points, kept = curves["taps"], curves["kept_taps"]
    end = points[-1][0]
    if kept is None or kept >= end:
        return panel(f"{name}: energy by tap", "tap", points, [(1, end)], [("kept", "filter, all taps")])
    rest = ("tail", "tail, band-limited") if curves["tail"] else ("kept gone", "dropped")
    kinds = [("kept", "head, exact" if curves["tail"] else "kept"), rest]
    return panel(f"{name}: energy by tap", "tap", points, [(1, kept)], kinds, f"{kept:,} taps")


def by_bin(name: str, curves: Mapping[str, Any]) -> str:
    tail, band, title = curves["tail"], curves["kept_band"], f"{name}: energy by bin"
    points, hue, what = (tail, "tail", "tail") if tail else (curves["bins"], "kept", "filter")
    end = points[-1][0]
    if band is None:
        return panel(title, "bin", points, [(1, end)], [(hue, f"{what}, all bins")])
    ranges = [(max(1.0, start * end), max(1.0, stop * end)) for start, stop in band]
    share = f"{sum(stop - start for start, stop in band):.3g}"
    kinds = [(hue, f"{what}, kept"), (f"{hue} gone", "dropped")]
    return panel(title, "bin", points, ranges, kinds, f"{share} of the band", curves["bins"] if tail else None)


def panel(
    title: str, unit: str, points: Points, ranges: Ranges, kinds: Sequence[tuple[str, str]], cut: str = "",
    whole: Points | None = None,
) -> str:  # fmt: skip
    """A curve over a logarithmic axis, inside `ranges` as the first of `kinds` (class, label), elsewhere as the second.

    cut: what the end of the last range is labelled with.  whole: a curve to compare with, drawn as a line on top.
    """
    height, end = 170, points[-1][0]
    along = scale(0, math.log(max(end, 2)), LEFT, WIDTH - RIGHT)
    down = scale(0, FLOOR_DB, TOP, height - BOTTOM)

    def x(value: float) -> float:
        return along(math.log(value))

    edges = [1.0, *(edge for pair in ranges for edge in pair), end]  # kept stretches alternate with others
    stretches = [(a, b, kinds[1 - i % 2][0]) for i, (a, b) in enumerate(pairwise(edges)) if b > a]
    drawn = [stretch(points, a, b, kind, x, down) for a, b, kind in stretches]
    ticks = [(x(10**i), compact(10**i)) for i in range(int(math.log10(end)) + 1)]
    levels = [(down(dB), f"{dB:.0f}") for dB in np.linspace(0, FLOOR_DB, 5)]
    if whole:
        drawn.append(f'<path class="line whole" d="M{path(whole, x, down)}"/>')
    if cut:
        at = x(ranges[-1][1])
        side = "end" if at > WIDTH / 2 else "start"
        drawn.insert(0, "".join(f'<rect class="band" x="{x(a):.1f}" y="{TOP}" width="{x(b) - x(a):.1f}" '
                                f'height="{height - BOTTOM - TOP}"/>' for a, b in ranges))  # fmt: skip
        drawn.append(f'<path class="cut" d="M{at:.1f},{TOP - 6}V{height - BOTTOM}"/>')
        drawn.append(f'<text x="{at:.1f}" y="{TOP - 8}" text-anchor="{side}">{escape(cut)}</text>')
    legend = [*kinds, ("whole", "whole filter")] if whole else kinds
    swatches = "".join(f'<span><i class="{kind}"></i>{escape(label)}</span> ' for kind, label in legend)
    desc = f"{title}, dB, {unit} 1 to {end:,}; {', '.join(label for _, label in legend)} {cut}".strip()
    chart = svg(height, title, desc, axes(height, ticks, levels) + "".join(drawn))
    return f"<figure><figcaption>energy by {unit}{swatches}</figcaption>{chart}</figure>"


def positions(evaluation: Mapping[str, Any]) -> str:
    """Perplexity by position as a chart, dense as rings and sparse as dots, and as a table."""
    columns, height = variants(evaluation), 200
    rows = {name: row["perplexity_by_position"] for name, row in columns.items()}
    buckets = evaluation["perplexity_by_position"]
    values = [bucket["perplexity"] for row in rows.values() for bucket in row]
    step = nice((max(values) - min(values)) / 3 or 1e-3)
    low, high = math.floor(min(values) / step), math.ceil(max(values) / step + 1e-9)
    x = scale(-0.5, len(buckets) - 0.5, LEFT + 12, WIDTH - RIGHT)
    y = scale(low * step, high * step, height - BOTTOM, TOP)
    digits = max(0, -math.floor(math.log10(step)))
    levels = [(y(i * step), f"{i * step:.{digits}f}") for i in range(low, high + 1)]
    every = 1 + len(buckets) // 9  # so that labels do not touch
    ticks = [(x(i - 0.5), compact(b["start"])) for i, b in enumerate(buckets) if i % every == 0]
    drawn = []
    for name, row in rows.items():
        kind, shape, radius = ("dense", "ring", 5) if name == "dense" else ("kept", "dot", 3)
        at = [(i, bucket["perplexity"]) for i, bucket in enumerate(row)]
        drawn.append(f'<g class="{kind}"><path class="line" d="M{path(at, x, y)}"/>')
        drawn += [f'<circle class="{shape}" cx="{x(i):.1f}" cy="{y(v):.1f}" r="{radius}"/>' for i, v in at]
        drawn.append("</g>")
    title = f"perplexity by position, {' and '.join(rows)}"
    chart = svg(height, title, f"{title}; the same numbers are in the table", axes(height, ticks, levels) + "".join(drawn))
    legend = "".join(f'<span><i class="{"dense" if n == "dense" else "kept"}"></i>{n}</span> ' for n in rows)
    numbers = [
        (f"{b['start']:,} – {b['stop'] - 1:,}", *(show.number(row[i]["perplexity"]) for row in rows.values()))
        for i, b in enumerate(buckets)
    ]
    figure = f"<figure><figcaption>tokens read so far{legend}</figcaption>{chart}</figure>"
    return f'<div class="pair positions">{figure}{table(["tokens", *rows], numbers)}</div>'


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """The linear map of low .. high to first .. last."""
    return lambda value: first + (value - low) / (high - low) * (last - first)


def path(points: Points | Sequence[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def stretch(
    points: Points, start: float, stop: float, kind: str, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """A curve from start to stop, its ends interpolated: a line and the area under it."""
    xs, levels = np.array(points).T
    first, last = np.interp(np.log([start, stop]), np.log(xs), levels)
    line = path([(start, first), *(p for p in points if start < p[0] < stop), (stop, last)], x, y)
    below = f"{x(stop):.1f},{y(FLOOR_DB):.1f} {x(start):.1f},{y(FLOOR_DB):.1f}Z"
    return f'<g class="{kind}"><path class="area" d="M{line} {below}"/><path class="line" d="M{line}"/></g>'


def axes(height: int, ticks: Sequence[tuple[float, str]], levels: Sequence[tuple[float, str]]) -> str:
    """Grid and labels: ticks (x, label) below, levels (y, label) on the left."""
    left = float(levels[0][1] != "0") * 12 + LEFT
    drawn = [f'<path class="grid" d="M{left},{y:.1f}H{WIDTH - RIGHT}"/>'
             f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>' for y, label in levels]  # fmt: skip
    drawn += [f'<path class="grid" d="M{x:.1f},{height - BOTTOM}v4"/>'
              f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{label}</text>' for x, label in ticks]  # fmt: skip
    return "".join(drawn)


def svg(height: int, title: str, desc: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(desc)}</desc>{body}</svg>"
    )


def nice(step: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is at least `step`."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step)


def compact(value: float) -> str:
    """A count in a few characters: 512, 1,024, 16k, 1.05M."""
    if value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:.0f}k" if value < 1e6 else f"{value / 1e6:.3g}M"
