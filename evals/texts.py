"""What a language model is measured on, whichever kind it is: next tokens, or masked ones to fill in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from . import mlm, quality
from .data import Windows
from .mlm import Masked
from .quality import Comparison

Text: TypeAlias = Windows | Masked
Run: TypeAlias = Callable[..., Tensor]
"""What `Text.inputs` gives -> logits, of all tokens or of the masked ones."""


def saying(model: Any) -> Run:
    """What to run of a model.

    Of masked tokens it takes its `hidden` states and what it would `predict` from them: the product with the whole
    vocabulary is spared elsewhere.
    """

    def run(ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        logits: Tensor = model(ids) if hidden is None else model.predict(model.hidden(ids)[hidden])
        return logits

    return run


def compare(
    variants: Mapping[str, Run], text: Text, batch_size: int, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Every variant on the same tokens, and its distance from the first, the baseline; see `quality.compare`."""
    if isinstance(text, Masked):
        return mlm.comparison(mlm.compare(variants, text, batch_size, progress), text)
    return quality.compare(variants, text, batch_size, progress)
