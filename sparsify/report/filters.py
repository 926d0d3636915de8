"""Pictures of filters: where the energy of each lies and what is kept of it, and a map of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby, pairwise, takewhile

from .charts.chart import Area, Axis, Chart, Line, compact, decades
from .charts.svg import drawn, swatches
from .curves import FLOOR_DB
from .schema import Curves, FilterKept, Points
from .tables import dotted

Filters = Sequence[FilterKept]

OPEN = 12  # sites up to which every filter is shown without a click
TALL = 12  # sites up to which rows of the map are tall
SHADES = 8  # steps of loudness in the map
LEVELS = Axis(FLOOR_DB, 0.0, {dB: f"{dB:.0f}".replace("-", "−") for dB in (0.0, -20.0, -40.0, -60.0, FLOOR_DB)})


def spectra(filters: Filters) -> str:
    """Two panels a site: energy by tap and by bin, with what is kept of it; nothing for filters without curves."""
    known = [(f, f.curves) for f in filters if f.curves]
    if not known:
        return ""
    note = "Energy in dB below the loudest entry of its curve, both axes logarithmic."
    if any(curves.tail for _, curves in known):
        note += (
            " A filter jumps at lag 0, and the jump alone spreads its spectrum (grey line). With the first taps faded"
            " out, the spectrum of the tail (orange) falls fast, so a narrow band holds nearly all of it."
        )
    cards = "".join(
        f'<article><h3>{dotted(escape(f.name))}</h3><p class="soft">{escape(f.plan)}</p>'
        f'<div class="pair">{drawn(by_tap(f.name, curves))}{drawn(by_bin(f.name, curves))}</div></article>'
        for f, curves in known
    )
    sites = f'<div class="sites">{cards}</div>'
    if len(known) > OPEN:
        sites = f"<details><summary>Curves of all {len(known)} filters</summary>{sites}</details>"
    return f'<p class="soft">{note}</p>{sites}'


def by_tap(name: str, curves: Curves) -> Chart:
    points, kept = curves.taps, curves.kept_taps
    if kept is None or kept >= points[-1][0]:
        return panel(name, "tap", points, [], [("kept", "whole filter")])
    if curves.tail:
        kinds = [("kept", "head, exact"), ("tail", "tail, band-limited")]
    else:
        kinds = [("kept", "kept"), ("kept gone", "dropped")]
    return panel(name, "tap", points, [(1, kept)], kinds, f"{kept:,} taps")


def by_bin(name: str, curves: Curves) -> Chart:
    tail, band = curves.tail, curves.kept_band
    if band is None:
        return panel(name, "bin", curves.bins, [], [("kept", "whole filter")])
    hue, what, points = ("tail", "tail, kept", tail) if tail else ("kept", "kept", curves.bins)
    kept = [(start * points[-1][0], stop * points[-1][0]) for start, stop in band]
    covered = sum(stop - start for start, stop in band)
    share = curves.kept_share or covered
    cut = f"{share:.3g} of the band"
    if share < 0.99 * covered:
        cut += ", in fine teeth"  # of a comb; the parts that it stands in are drawn
    return panel(name, "bin", points, kept, [(hue, what), (f"{hue} gone", "dropped")], cut, tail and curves.bins)


def panel(
    name: str, unit: str, points: Points, kept: Points, kinds: Sequence[tuple[str, str]], cut: str = "",
    whole: Points | None = None,
) -> Chart:  # fmt: skip
    """Energy by tap or bin, drawn as the first of `kinds` (class, label) where it is kept and as the second elsewhere.

    kept: [[start, stop], ...]; empty is everywhere.  cut: how much is kept, in words.  whole: a curve drawn on top.
    """
    end = points[-1][0]
    edges = [min(max(edge, 1), end) for pair in kept or [(1, end)] for edge in pair]
    stretches = enumerate(pairwise([1, *edges, end]))  # the odd ones are kept
    marks: list[Line | Area] = [Area(kinds[1 - i % 2][0], points, a, b) for i, (a, b) in stretches if a < b]
    if end == 1:
        marks = [Line(kinds[0][0], [(1, 0), (2, 0)])]
    if whole:
        marks.append(Line("whole", whole))
        kinds = [*kinds, ("whole", "whole filter")]
    if cut:
        kinds = [(kinds[0][0], f"{kinds[0][1]}: {cut}"), *kinds[1:]]
    return Chart(
        title=f"{name}: energy by {unit}, dB",
        desc=f"{', '.join(label for _, label in kinds)}; {unit} 1 to {compact(end)}",
        caption=f"energy by {unit}, dB",
        across=decades(end),
        up=LEVELS,
        marks=marks,
        legend=kinds,
        cut=edges[-1] if cut else None,
    )


# --- the map -------------------------------------------------------------------------------------------------------


def site_map(filters: Filters) -> str:
    """All sites at a glance: a row each, its taps and its band on even scales, painted where they are kept."""
    rows = [(f, f.curves, f.curves.cells) for f in filters if f.curves and f.curves.cells]
    if not rows:
        return ""
    height = 22 if len(rows) <= TALL else 13
    names, lines = short([f.name for f, *_ in rows]), []
    for name, (f, curves, cells) in zip(names, rows, strict=True):
        hues = (cells.taps, "kept"), (cells.bins, "tail" if curves.tail else "kept")
        strips = "".join(f"<td>{strip(shares, kind, height)}</td>" for shares, kind in hues)
        lines.append(f'<tr title="{escape(f.name)}: {escape(f.plan)}"><th scope="row">{dotted(escape(name))}</th>'
                     f"{strips}<td>{f.density:.1%}</td></tr>")  # fmt: skip
    legend = [("kept", "kept"), ("whole gone", "dropped")]
    if any(curves.tail for _, curves, _ in rows):
        legend[1:1] = [("tail", "kept of the tail's spectrum")]
    widest = f"min({max(map(len, names)) + 1}ch,30vw)"
    return f"""<p class="soft">Even scales: what is painted is kept, and the painted area is what has to be
computed. Where only a part is kept, as of a comb, the colour is lower. The stronger a colour, the more energy lies
there; a thin line is an axis along which nothing is cut.</p>
<figure><figcaption>{swatches(legend)}</figcaption><table class="map"><thead><tr>
<th scope="col" style="width:{widest}">site</th><th scope="col">taps →</th><th scope="col">frequencies →</th>
<th scope="col">kept</th></tr></thead><tbody>{"".join(lines)}</tbody></table></figure>"""


def strip(cells: Points | None, kind: str, height: int) -> str:
    """One row of the map along one axis.  cells: [[share that is kept, dB], ...], None: nothing is cut here."""
    if cells is None:
        body, title, count = '<path class="cut" d="M0,.5H1"/>', "nothing cut", 1
    else:
        count = len(cells)
        shaded = [(held, round((SHADES - 1) * (1 - dB / FLOOR_DB))) for held, dB in cells]
        body, x = "", 0
        for (held, shade), run in groupby(shaded):
            width = len(list(run))
            body += tile("whole", x, width, 0, 1, 0.08 + 0.32 * shade / (SHADES - 1)) if held < 1 else ""
            body += tile(kind, x, width, 1 - held, held, 0.45 + 0.55 * shade / (SHADES - 1)) if held else ""
            x += width
        title = f"kept {sum(held for held, _ in cells) / count:.3g}"
    return (f'<svg role="img" viewBox="0 0 {count} 1" height="{height}" preserveAspectRatio="none">'
            f"<title>{title}</title>{body}</svg>")  # fmt: skip


def tile(kind: str, x: int, width: int, top: float, height: float, strength: float) -> str:
    corner = f'y="{top:.3g}" ' if top else ""
    return f'<rect class="{kind}" x="{x}" {corner}width="{width}" height="{height:.3g}" opacity="{strength:.2f}"/>'


def short(names: Sequence[str]) -> list[str]:
    """Names without the parts at both ends that all share, but for the part before they differ."""
    parts = [name.split(".") for name in names]
    if len(set(names)) < 2:
        return list(names)
    first, last = shared(parts), shared([part[::-1] for part in parts])
    found = [".".join(part[max(0, first - 1) : max(first, len(part) - last)]) for part in parts]
    return found if len(set(found)) == len(set(names)) else list(names)


def shared(parts: Sequence[Sequence[str]]) -> int:
    """How many leading entries are the same in all."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
