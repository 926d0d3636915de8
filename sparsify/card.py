"""README.md of a converted checkpoint: what it is, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import __version__

FIGURES = (  # label, key in the report
    ("perplexity", "perplexity"),
    ("perplexity, negative lags cut", "perplexity_cut"),
    ("leak: how far logits move when the future changes", "leak"),
    ("speedup", "speedup"),
)


def card(result: Mapping[str, Any]) -> str:
    """Markdown from what `sparsify convert` found."""
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
{measured(result["evaluation"]) if result["evaluation"] else ""}"""


def measured(evaluation: Mapping[str, Any]) -> str:
    """Dense against sparse, the verdict and the conditions."""
    dense, where = evaluation["dense"] or evaluation, evaluation["conditions"]
    rows = []
    for label, key in FIGURES:
        cells = ["" if row[key] is None else f"{row[key]:.4g}" for row in (dense, evaluation)]
        rows.append(f"| {label} | {cells[0]} | {cells[1]} |")
    notes = [
        *evaluation["verdict"],
        evaluation["convention"],
        f"{where['hardware']}, {where['threads']} threads, torch {where['torch']}, {where['date']}",
    ]
    return "\n".join(["\n| | dense | sparse |\n|---|---|---|", *rows, "", *(f"- {note}" for note in notes), ""])
