"""Layer norm that takes along what stands beside it between linear layers: a sum before it, another dtype after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import native

PAYS_AT = 1 << 13  # numbers from which the call of a kernel pays, measured


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension that can add to its input, and choose the dtype of its result."""

    def forward(self, x: Tensor, plus: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The norm of x, in `dtype` (that of x unless given), after x += plus, in place.

        x, plus: (..., D), contiguous.  No gradients if plus or dtype is given.
        """
        if plus is None and dtype is None:
            return super().forward(x)
        dtype = x.dtype if dtype is None else dtype
        if x.numel() >= PAYS_AT and native.takes(x):
            return native.norm(x, self.weight, self.bias, self.eps, plus, dtype)
        if plus is not None:
            x += plus
        return super().forward(x).to(dtype)


def norm(layer: nn.Module, x: Tensor, plus: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """What `LayerNorm` gives of x, from whatever norm stands there."""
    if isinstance(layer, LayerNorm):
        return layer(x, plus=plus, dtype=dtype)
    if plus is not None:
        x += plus
    return layer(x).to(x.dtype if dtype is None else dtype)
