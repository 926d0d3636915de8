"""Where a model convolves: the one type that crosses from the families to the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .filters.filter import AnyFilter

Conv = Callable[..., Tensor]
"""conv(u, gate=None, skip=None) -> gate * (k * u + skip * u).  u, gate, y: (B, H, L).  skip: (H,).

`LongConv` takes a `pregate` besides, which u is multiplied with first."""


class Replaceable:
    """What a module with a long convolution mixes in: its `long_conv` is that operator, or None for its own code."""

    long_conv: Conv | None

    def set_conv(self, conv: Conv | None) -> Conv | None:
        """Put `conv` in place of the long convolution, None for the model's own; returns the one before."""
        before = self.long_conv
        del self.long_conv  # else torch refuses a plain function where a module was
        self.long_conv = conv
        return before


@dataclass(frozen=True)
class ConvSite:
    """One long convolution `u -> k * u` inside a model; gates, skips and projections stay with the model.

    Its functions are methods of the model's modules, so that a copy of the model has sites of its own.
    """

    name: str  # dotted module path, e.g. "backbone.layers.3.mixer"
    channels: int  # H
    length: int  # K, taps of the longest filter that the site can materialise, those at negative lags included
    context: int  # the longest input people give it, a little less than `length` where special tokens take room
    causal: bool
    # materialize(seqlen=None): what so many samples feel of the filter, or the whole of it; float32, on the CPU
    materialize: Callable[..., AnyFilter]
    # puts an operator in place, None for the model's own code; returns the one before
    install: Callable[[Conv | None], Conv | None]
    weights: Callable[[], list[Tensor]] | None = None  # what the filter is made of now; None for one that never changes
