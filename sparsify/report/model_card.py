"""README.md of a converted checkpoint: what it is, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from sparsify import __version__

from . import figures
from .card_metadata import called, front_matter
from .schema import Conversion, Evaluation, FilterKept, Search


def card(result: Conversion, picture: str | None = None) -> str:
    """Markdown from what `sparsify convert` found.  picture: file beside it that `sparsify.report.plots` drew."""
    name = called(result)
    return f"""{front_matter(result)}
# {name}

{result.source} with its long convolutions under the plan *{result.plan}*, made by sparsify {__version__}.
The weights are those of the source, unchanged; without sparsify this folder holds the dense model.

```python
import sparsify

model = sparsify.load("{result.repo or name}").model
```
{promised(result.planned) if result.planned else ""}{shown(result, picture) if picture else ""}
## What is kept

{kept(result.filters)}

{linears(result)}{causality(result)}
{measured(result.evaluation, result.data) if result.evaluation else ""}"""


def promised(planned: Search) -> str:
    """The budget, and the plans that were measured for it."""
    rows = markdown(figures.step_columns(planned), figures.step_rows(planned))
    return "\n".join(["", f"{figures.promise(planned)}.", "", *rows, "", f"- {figures.searched(planned)}", ""])


def shown(result: Conversion, picture: str) -> str:
    what = "speed against loss" if result.planned else "what is kept of the filters"
    return f"\n![{what}]({picture})\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def kept(filters: Sequence[FilterKept]) -> str:
    """A row a convolution."""
    rows = [(f.name, f.plan, f"{f.density:.3f}", f"{f.leak:.1e}") for f in filters]
    return "\n".join(markdown(("convolution", "kept", "density", "taps ahead / taps"), rows))


def linears(result: Conversion) -> str:
    """What the linear layers multiply in, where that is told."""
    said = figures.multiplied(result.linears)
    return f"{said}: the plan says so, and the weights stay float32.\n\n" if said else ""


def causality(result: Conversion) -> str:
    """Whether this model reads the future, in words."""
    if not result.causal:
        return "The model reads both ways, so no plan changes what it may see."
    ahead = max(f.leak for f in result.filters)
    if ahead == 0:
        return "The model is causal, and stays so exactly: no filter has taps ahead."
    return (
        f"The model is causal, and under this plan not quite: up to {ahead:.1e} of a filter's norm lies ahead of "
        "time.  The perplexity with negative lags cut is that of generating, which cannot read the future."
    )


def measured(evaluation: Evaluation, data: str | None) -> str:
    """Dense against sparse, the verdict and the conditions."""
    names, where = figures.variants(evaluation), evaluation.conditions
    rows = markdown(["", *names], figures.figure_rows(evaluation))
    machine = f"{where.hardware}, {where.threads} threads, kernels {where.kernels}, torch {where.torch}"
    speed = evaluation.speed
    if speed:
        rows += ["", *markdown(figures.speed_columns(speed), figures.speed_rows(speed))]
    notes = [
        *evaluation.verdict,
        *([f"{figures.headline(evaluation)}; medians of paired rounds in one process"] if speed else []),
        evaluation.convention,
        f"{machine}, commit {where.commit}, {where.date}",
    ]
    return "\n".join(["", f"## What it costs, on {data}", "", *rows, "", *(f"- {note}" for note in notes), ""])
