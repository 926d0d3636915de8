"""README.md of a converted checkpoint: what it is, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import __version__, figures


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
    names, where = figures.variants(evaluation), evaluation["conditions"]
    head = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    rows = [f"| {' | '.join(row)} |" for row in figures.figure_rows(evaluation)]
    machine = f"{where['hardware']}, {where['threads']} threads, kernels {where['kernels']}, torch {where['torch']}"
    notes = [
        *evaluation["verdict"],
        evaluation["convention"],
        "speed is that of one window, paired rounds",
        f"{machine}, commit {where['commit']}, {where['date']}",
    ]
    return "\n".join(["", *head, *rows, "", *(f"- {note}" for note in notes), ""])
