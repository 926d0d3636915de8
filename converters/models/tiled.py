"""Layers of Hyena models on a CPU, a tile of tokens at a time, so that what linear layers exchange stays in caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.cpu import native
from sparsify.cpu.linear import Call
from sparsify.hooks import is_plain

TILE_ROWS = 2048  # tokens worked on together: few enough for the caches, enough that threads seldom meet; measured

Gates = tuple[Tensor, Tensor]  # x0 and g, each (B, D, L) with unit last stride


def check_ids(input_ids: Tensor, longest: int) -> None:
    """Refuse ids that are not (batch, tokens), or more tokens than the model takes."""
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"got ids of shape {tuple(input_ids.shape)}, expected (batch, tokens), at least one of each")
    if input_ids.shape[-1] > longest:
        raise ValueError(
            f"got {input_ids.shape[-1]} tokens, the model takes {longest}; "
            f"cut the input or choose a checkpoint with a longer context"
        )


class Layers(nn.Module):
    """What holds the layers of a model and runs them one after the other."""

    gradient_checkpointing = False  # transformers sets it, and the function below with it
    _gradient_checkpointing_func: Callable[..., Tensor]

    def through(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A layer as a module; where checkpointing is on, what it needs for gradients is computed again for them."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer.__call__, x)
        return layer(x)


def takes_tiles(x: Tensor) -> bool:
    """Whether tiles pay: x is plain float32 on the CPU, and no compiler or autocast wants to see whole layers."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and is_plain(x)
    return plain and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def learns(model: nn.Module, x: Tensor) -> bool:
    """Whether gradients are wanted of a model on x, or of x."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in model.parameters()))


def tiles(batch: int, seqlen: int) -> Iterator[tuple[slice, slice]]:
    """Sequences and tokens of each tile of a (B, L, ...) tensor: some whole sequences, or a stretch of one.

    Either way a tile is contiguous, and those of one sequence come in order.
    """
    many = max(1, TILE_ROWS // max(1, seqlen))
    for b in range(0, batch, many):
        for t in range(0, seqlen, TILE_ROWS):
            yield slice(b, min(b + many, batch)), slice(t, min(t + TILE_ROWS, seqlen))


def gate_tiles(
    x: Tensor, project: Call, short: nn.Conv1d, buffers: Gates, history: Tensor | None = None, alone: int = 0
) -> Tensor:
    """Fill `buffers` with x0 and g = x1 * v of z = project(x), x (B, L, D), by tiles; return the history that follows.

    short: the short filter of z (B, L, 3D), T taps.  history: rows (B, T - 1, 3D) before z; None for zeros.
    alone: see `short_gate`.
    """
    batch, seqlen, _ = x.shape
    x0, g = buffers
    k, bias = short.weight.flatten(1).contiguous(), short.bias
    assert bias is not None  # Conv1d can do without
    ends: list[Tensor] = []
    for b, t in tiles(batch, seqlen):
        z = project(x[b, t])
        before = ends.pop() if t.start else history if history is None else history[b]
        short_gate(z, k, bias, before, x0[b, :, t], g[b, :, t], alone)
        ends.append(last_rows(z, before, k.shape[1] - 1))
    return torch.cat(ends)


def short_gate(
    z: Tensor, k: Tensor, bias: Tensor, before: Tensor | None, x0: Tensor, g: Tensor, alone: int = 0
) -> None:
    """Writes x0 and g = x1 * v, each (B, D, P), with [x0 | x1 | v] the causal depthwise convolution of z with k.

    z: (B, P, 3D), contiguous like all that is read.  k: (3D, T), last lag first.  bias: (3D).  before: (B, T - 1, 3D),
    the rows before z; None for zeros.  alone: which third of z becomes x0.
    """
    if native.takes(x0):
        native.short_gate(z, k, bias, before, (x0, g), alone)
        return
    seqlen, taps = z.shape[1], k.shape[1]
    z = torch.cat([zeros_before(z, taps - 1) if before is None else before, z], dim=1)
    y = bias.expand(z.shape[0], seqlen, -1)
    for j in range(taps):
        y = torch.addcmul(y, z[:, j : j + seqlen], k[:, j])
    thirds = y.transpose(1, 2).chunk(3, dim=1)
    x0.copy_(thirds[alone])
    g.copy_(thirds[alone - 2] * thirds[alone - 1])


def last_rows(z: Tensor, before: Tensor | None, count: int) -> Tensor:
    """The last `count` rows of `before` and z (B, P, C) together: (B, count, C), a copy; None stands for zeros."""
    if z.shape[1] < count:
        z = torch.cat([zeros_before(z, count) if before is None else before, z], dim=1)
    return z[:, z.shape[1] - count :].clone()


def gates_like(x: Tensor) -> Gates:
    """Room for the x0 and g of hidden states x (B, L, D)."""
    batch, seqlen, width = x.shape
    return x.new_empty(batch, width, seqlen), x.new_empty(batch, width, seqlen)


def zeros_before(z: Tensor, count: int) -> Tensor:
    return z.new_zeros(z.shape[0], count, z.shape[2])


def to_rows(y: Tensor, dtype: torch.dtype) -> Tensor:
    """y (B, D, P) with channels last: (B, P, D), contiguous, of this dtype."""
    if y.shape[-1] > 1 and native.takes(y):
        return native.to_rows(y, 0, y.shape[-1], dtype)
    return y.transpose(1, 2).contiguous().to(dtype)


def gelu_gate(x: Tensor) -> Tensor:
    """gelu(gate) * h, with x = [gate | h]: x (..., 2 F) -> (..., F), dtype of x."""
    if x.device.type == "cpu" and native.available():
        return native.gelu_gate(x)
    gate, h = x.chunk(2, dim=-1)
    return F.gelu(gate) * h
