"""One self-contained HTML page from what `sparsify convert` found: no script, nothing from elsewhere.

Verdict first, then speed against loss, the figures behind it, what is kept of every filter, and the conditions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from . import figures, pareto
from .figures import figure_rows, percent, power, ratio, times, variants
from .filters import site_map, spectra
from .measured import parts, positions
from .schema import LEAK_LIMIT, Conversion, Evaluation, FilterKept, PlannedSite, Search, Speed
from .style import CSS
from .tables import NUMBERS, table, text

COSTLY = 1.01  # perplexity over dense perplexity above which a plan is not shown in green
ROUNDING = 1e-6  # what the order of sums may change in a measured increase


def page(result: Conversion) -> str:
    """The page as text.  result: what `sparsify convert` prints, and writes as report.json."""
    source, out, evaluation = escape(result.source), escape(result.out), result.evaluation
    planned, filters = result.planned, result.filters
    sections = [
        ("Speed against loss", planned and f'<div class="pareto">{pareto.section(planned)}</div>'),
        ("Quality", evaluation and quality(evaluation)),
        ("Speed and memory", evaluation and evaluation.speed and speed(evaluation.speed)),
        (
            "Where the time goes, before and after",
            evaluation and evaluation.parts and parts(evaluation.parts),
        ),
        ("What is kept of every filter", site_map(filters)),
        ("Where the energy lies", spectra(filters)),
        ("Perplexity by position", evaluation and evaluation.perplexity_by_position and positions(evaluation)),
        (f"Plan: {result.plan}", plan(filters, planned, figures.multiplied(result.linears))),
        ("How it was found", planned and search(planned)),
        ("Conditions", conditions(result)),
        ("Next", f"<pre><code>{text(result.next)}</code></pre>"),
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


# --- the verdict ---------------------------------------------------------------------------------------------------


def headline(result: Conversion) -> str:
    """The verdict in its colour, and the few numbers to remember."""
    planned, evaluation = result.planned, result.evaluation
    colour, word = tone(evaluation, planned)
    timed = figures.headline(evaluation) if evaluation else ""
    promised = figures.promise(planned) if planned else ""
    first, *others = [said for said in (timed, promised, *sentences(evaluation)) if said]
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{text(value)}</dd><dd>{text(note)}</dd></div>"
        for name, value, note in tiles(result.filters, evaluation, planned)
        if value
    )
    return (
        f'<div class="verdict {colour}"><strong>{word}</strong><p class="first">{text(first, NUMBERS)}</p>'
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in others)
        + f'</div><dl class="tiles">{numbers}</dl>'
    )


def tiles(
    filters: Sequence[FilterKept], evaluation: Evaluation | None, planned: Search | None
) -> list[tuple[str, str, str]]:
    """Numbers to remember: name, value, note."""
    kept = [100 * f.density for f in filters]
    spread = "" if min(kept) == max(kept) else f" on average, {min(kept):.1f} to {max(kept):.1f} %"
    found = [("kept", f"{sum(kept) / len(kept):.1f} %", f"of a filter's taps and bins{spread}")]
    if planned:
        found.insert(0, ("gain", figures.gain(planned), figures.gain_unit(planned.target)))
    if evaluation:
        cut = evaluation.perplexity_cut_ratio is not None
        value, _, error = ratio(*evaluation.honest_ratio).partition(" ± ")
        note = "against dense" + (f", ± {error}" if error else "") + (", negative lags cut" if cut else "")
        taken = evaluation.speed
        found = [
            *(
                [
                    (
                        "speed",
                        times(taken.headline.speedup),
                        f"against the published code, measured: {figures.brought(taken)}",
                    )
                ]
                if taken
                else []
            ),
            (evaluation.figure, value, note),
            *found,
            ("leak", power(evaluation.leak), f"trusted up to {LEAK_LIMIT:g}"),
        ]
    return found


def tone(evaluation: Evaluation | None, planned: Search | None = None) -> tuple[str, str]:
    """Colour, and in words, whether the perplexity as computed can be trusted, and whether a budget is kept."""
    if evaluation is None:
        return "amber", "not measured"
    if (evaluation.leak or 0) > LEAK_LIMIT:
        return "red", "cannot be trusted"
    if evaluation.perplexity_stderr is None:
        return "amber", "without a standard error"
    ratio, stderr = evaluation.honest_ratio
    if planned:
        measured = (ratio or 1) - 1 + (stderr or 0)
        inside = measured <= planned.budget + ROUNDING
        return ("green", "within the budget") if inside else ("amber", "measured outside the budget")
    if (ratio or 1) > COSTLY:
        return "amber", "can be trusted, and is worse than dense"
    return "green", "can be trusted"


def sentences(evaluation: Evaluation | None) -> Sequence[str]:
    """The verdict, most important sentence first; there is always one."""
    if evaluation is None:
        return ["what this plan costs is not known yet", "convert with --data FILE to measure quality and speed"]
    if evaluation.verdict:
        return evaluation.verdict
    value = f"{evaluation.figure} {evaluation.perplexity:.4f}"
    if evaluation.dense is None:
        return [f"the plan keeps everything: {value}, that of the dense model"]
    against, dense = ratio(evaluation.perplexity_ratio, evaluation.perplexity_ratio_stderr), evaluation.dense.perplexity
    return [f"{value}, {against} against dense {dense:.4f}"]


# --- tables --------------------------------------------------------------------------------------------------------


def quality(evaluation: Evaluation) -> str:
    return table(["", *variants(evaluation)], figure_rows(evaluation))


def speed(speed: Speed) -> str:
    """The model before and after."""
    return table(figures.speed_columns(speed), figures.speed_rows(speed))


def plan(filters: Sequence[FilterKept], planned: Search | None, linears: str) -> str:
    """What is kept of every site, what that is predicted to gain and to lose, and what is said of the linear layers."""
    head = ["site", "kept", "density", "taps ahead / taps"]
    rows: list[tuple[str, ...]] = [(f.name, f.plan, f"{f.density:.3f}", power(f.leak)) for f in filters]
    if planned:
        sites = {site.name: site for site in planned.sites}
        head += ["gain, predicted", f"{planned.figure}, predicted"]
        rows = [(*row, *predicted(sites[row[0]])) for row in rows]
    return wide("plan", table(head, rows)) + (f"<p>{escape(linears)}.</p>" if linears else "")


def predicted(site: PlannedSite) -> tuple[str, str]:
    return times(site.dense_cost / site.cost), percent(math.expm1(site.loss))


def search(planned: Search) -> str:
    """The plans that were measured on the way."""
    steps = table(figures.step_columns(planned), figures.step_rows(planned))
    return f'<p class="soft">{escape(figures.searched(planned))}</p>{wide("steps", steps)}'


def wide(kind: str, table: str) -> str:
    """A table that scrolls within itself where the page is narrow."""
    return f'<div class="{kind} wide" tabindex="0">{table}</div>'


def conditions(result: Conversion) -> str:
    """Small print: which checkpoint, which plan, how it was measured and where."""
    convention, taken_under = "", {}
    if evaluation := result.evaluation:
        convention, taken_under = evaluation.convention, evaluation.conditions.to_dict()
    names = ["source", "revision", "sha256", "family", "plan_sha256"]
    known = {name.replace("_", " "): result[name] for name in names} | {**result.options, **taken_under}
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in known.items()
        if value is not None
    )
    return f"<footer><p>{escape(convention)}</p><dl>{pairs}</dl></footer>"
