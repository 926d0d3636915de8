"""README.md of a converted checkpoint: what it is, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__, figures


def card(result: Mapping[str, Any], picture: str | None = None) -> str:
    """Markdown from what `sparsify convert` found.  picture: file beside it that `sparsify.report.plots` drew."""
    name = Path(result["out"]).name
    return f"""---
library_name: sparsify
tags: [sparsify, long-convolution]
---
# {name}

{result["source"]} with its long convolutions under the plan *{result["plan"]}*, made by sparsify {__version__}.
The weights are those of the source, unchanged; without sparsify this folder holds the dense model.

```python
from sparsify.converters import load

model = load("{name}").model
```
{promised(result["planned"]) if result.get("planned") else ""}{shown(result, picture) if picture else ""}\
{measured(result["evaluation"]) if result["evaluation"] else ""}"""


def promised(planned: Mapping[str, Any]) -> str:
    """The budget, and the plans that were measured for it."""
    rows = markdown(figures.STEP_COLUMNS, figures.step_rows(planned))
    return "\n".join(["", f"{figures.promise(planned)}.", "", *rows, "", f"- {figures.searched(planned)}", ""])


def shown(result: Mapping[str, Any], picture: str) -> str:
    what = "speed against loss" if result.get("planned") else "what is kept of the filters"
    return f"\n![{what}]({picture})\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def measured(evaluation: Mapping[str, Any]) -> str:
    """Dense against sparse, the verdict and the conditions."""
    names, where = figures.variants(evaluation), evaluation["conditions"]
    rows = markdown(["", *names], figures.figure_rows(evaluation))
    machine = f"{where['hardware']}, {where['threads']} threads, kernels {where['kernels']}, torch {where['torch']}"
    notes = [
        *evaluation["verdict"],
        evaluation["convention"],
        "speed is that of one window, paired rounds",
        f"{machine}, commit {where['commit']}, {where['date']}",
    ]
    return "\n".join(["", *rows, "", *(f"- {note}" for note in notes), ""])
