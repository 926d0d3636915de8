"""Filters as the Hyena family stores them: a small network of sinusoids of time, times a decay window.

    z[n] = time and its Fourier features          a = sin(freq * (W z + b)), layer by layer
    k[n] = (W_last a) * (exp(-t[n] |delta|) + shift)

A two-sided filter has a second network, which shares the frequencies, for the lags -1, -2, ... .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.filters.filter import AnyFilter, BlockedFilter, Filter, is_large
from sparsify.freshness import COARSE, weights_of
from sparsify.hooks import is_hooked

FILTER_ROWS = 1 << 16  # positions materialised at a time: 32 MiB of float64 features a layer of the filter MLP


class PositionalEmbedding(nn.Module):
    """z (1, K, E): time and its Fourier features, a parameter if trained; t (1, K, 1): time in [0, 1]."""

    z: Tensor
    t: Tensor

    def __init__(self, emb_dim: int, seqlen: int, trained: bool = False) -> None:
        super().__init__()
        z = torch.empty(1, seqlen, emb_dim)
        if trained:
            self.z = nn.Parameter(z)
        else:
            self.register_buffer("z", z)
        self.register_buffer("t", torch.empty(1, seqlen, 1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        seqlen, emb_dim = self.z.shape[1:]
        bands = (emb_dim - 1) // 2
        n = torch.arange(seqlen, dtype=torch.float64, device=self.z.device)
        f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=self.z.device)
        angle = 2 * math.pi / seqlen * n[:, None] * f
        t = (n / max(1, seqlen - 1))[:, None]
        self.t.copy_(t)
        self.z.copy_(torch.cat([t, angle.cos(), -angle.sin()], dim=-1))


class Sine(nn.Module):
    """x -> sin(freq * x), one trained frequency a unit, shared by every layer of the filter MLP."""

    def __init__(self, width: int, freq: float = 10.0) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), freq))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq.to(x) * x)


class Modulation(nn.Module):
    """Decay window exp(-t |delta_c|) + shift of channel c, from slow (-3.07) to fast (-15.35)."""

    deltas: Tensor

    def __init__(self, channels: int, shift: float) -> None:
        super().__init__()
        self.shift = shift
        self.register_buffer("deltas", torch.empty(1, 1, channels))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        slow, fast = math.log(0.01) / 1.5, math.log(0.01) / 0.3
        self.deltas.copy_(torch.linspace(slow, fast, self.deltas.shape[-1], dtype=torch.float64))

    def forward(self, t: Tensor) -> Tensor:
        return torch.exp(-t * self.deltas[0].to(t).abs()) + self.shift


class ImplicitFilter(nn.Module):
    """The filter of every channel, and the skip coefficient `bias` (H) that goes with it.

    forward: seqlen -> k (H, seqlen), tap j at lag j; two-sided (H, 2 seqlen), tap j at lag j - seqlen.  `materialize`
    and `trace` give the same as a `Filter`.
    """

    exact = True  # its weights stay float32 whatever the model's dtype: half precision cannot tell the taps apart

    def __init__(
        self,
        channels: int,
        seqlen: int,
        *,
        emb_dim: int = 5,
        width: int = 64,
        inner: int = 2,
        shift: float = 0.0,
        modulate: bool = True,
        two_sided: bool = False,
        trained_positions: bool = False,
    ) -> None:
        super().__init__()
        self.modulate = modulate
        self.bias = nn.Parameter(torch.empty(channels))
        self.pos_emb = PositionalEmbedding(emb_dim, seqlen, trained_positions)
        self.implicit_filter = network(emb_dim, width, inner, channels, Sine(width))
        self.implicit_filter_rev = network(emb_dim, width, inner, channels) if two_sided else None
        self.modulation = Modulation(channels, shift)

    def reset_parameters(self) -> None:
        """Positions and window as defined, a random skip; the networks keep torch's own initialisation."""
        self.pos_emb.reset_parameters()
        self.modulation.reset_parameters()
        nn.init.normal_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImplicitFilter:
        """Moves with the model, but keeps its dtype; see `exact`."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype not in COARSE else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def forward(self, seqlen: int) -> Tensor:
        """The lags that `seqlen` samples feel, differentiable; float32, or float64 in a model of that."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        with torch.autocast(self.pos_emb.z.device.type, enabled=False):
            return both_sides([self.taps(side, 0, seqlen, dtype) for side in self.sides()])

    @property
    def length(self) -> int:
        """Taps on each side that the filter was trained with."""
        return self.pos_emb.t.shape[1]

    def trace(self, seqlen: int | None = None) -> Filter:
        """What `seqlen` samples feel of the filter, or the whole, with its gradients."""
        return self.as_filter(self(self.length if seqlen is None else min(seqlen, self.length)))

    @torch.no_grad()
    def materialize(self, seqlen: int | None = None) -> AnyFilter:
        """The same computed in float64, on the CPU, in the model's precision; a large one in blocks."""
        length, device = self.length, self.pos_emb.t.device
        length = length if seqlen is None else min(seqlen, length)
        if is_large(len(self.bias), length * len(self.sides())):
            return self.blocked(length)
        device = device if has_float64(device) else torch.device("cpu")
        dtype = torch.float64 if self.bias.dtype == torch.float64 else torch.float32
        pieces = [(i, min(i + FILTER_ROWS, length)) for i in range(0, length, FILTER_ROWS)]
        sides = [
            torch.cat([self.taps(side, *piece, torch.float64, device).to("cpu", dtype) for piece in pieces], dim=-1)
            for side in self.sides()
        ]
        return self.as_filter(both_sides(sides))

    def blocked(self, length: int) -> BlockedFilter:
        """`materialize` some channels at a time.

        The network's last hidden layer, which all channels share, is computed once, in float64, and kept in float32
        while the filter is in use.
        """
        features: list[Tensor] = []

        @torch.no_grad()
        def make(rows: slice) -> Filter:
            if not features:
                features.extend(self.features(side, length) for side in self.sides())
            sides = []
            for side, z in zip(self.sides(), features, strict=True):
                *_, last = self.layers(side)
                k = next(last.parameters())[rows].to("cpu", torch.float32) @ z
                if self.modulate:
                    k *= self.window(rows, length)
                sides.append(k)
            return self.as_filter(both_sides(sides))

        sizes = torch.empty(len(self.bias), length * len(self.sides()), device="meta")
        return BlockedFilter(self.as_filter(sizes), make, shorter=lambda seqlen: self.blocked(min(seqlen, length)))

    def features(self, side: nn.ModuleDict, length: int) -> Tensor:
        """What the last layer of one side's network is given: (width, length) float32, on the CPU."""
        found = torch.empty(next(self.layers(side)[-1].parameters()).shape[1], length)
        for start in range(0, length, FILTER_ROWS):
            z = self.pos_emb.z[0, start : min(start + FILTER_ROWS, length)].to("cpu", torch.float64)
            for layer in self.layers(side)[:-1]:
                z = self.implicit_filter["1"](linear_in(layer, z))
            found[:, start : start + len(z)] = z.T
        return found

    def window(self, rows: slice, length: int) -> Tensor:
        """The decay window of some channels: (channels, length) float32, on the CPU."""
        t = self.pos_emb.t[0, :length, 0].to("cpu", torch.float32)
        decay = self.modulation.deltas[0, 0, rows].to("cpu", torch.float32).abs()
        return torch.exp_(-decay[:, None] * t).add_(self.modulation.shift)

    @staticmethod
    def layers(side: nn.ModuleDict) -> list[nn.Module]:
        """The linear layers of one side's network; what lies between them are the sines."""
        return [layer for name, layer in side.items() if int(name) % 2 == 0]

    def as_filter(self, k: Tensor) -> Filter:
        return Filter(k, k.shape[-1] // 2 if self.implicit_filter_rev is not None else 0)

    def settled(self) -> bool:
        """Whether the taps depend on the weights alone: no layer has hooks, a parametrization or an adapter."""
        for side in self.sides():
            for layer in side._modules.values():
                if type(layer) not in (nn.Linear, Sine) or is_hooked(layer):
                    return False
        return type(self.modulation) is Modulation and type(self.pos_emb) is PositionalEmbedding

    def weights(self) -> list[Tensor]:
        """The tensors that the taps are made of, as they are now; the skip coefficients are none of them."""
        own = self._modules
        parts = (own["pos_emb"], own["implicit_filter"], own["modulation"], own.get("implicit_filter_rev"))
        return weights_of(*(part for part in parts if part is not None))

    def sides(self) -> list[nn.ModuleDict]:
        """The networks: that of the lags from 0 on, and that of the lags -1, -2, ... if there is one."""
        return [self.implicit_filter] + ([] if self.implicit_filter_rev is None else [self.implicit_filter_rev])

    def taps(
        self, side: nn.ModuleDict, start: int, stop: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> Tensor:
        """Taps start .. stop - 1 of one side, counted from lag 0 or -1: (H, stop - start).

        device: where to compute them; None is where the weights are.
        """
        device = self.pos_emb.t.device if device is None else device
        z, t = (x[0, start:stop].to(device, dtype) for x in (self.pos_emb.z, self.pos_emb.t))
        sine = self.implicit_filter["1"]
        *hidden, last = self.layers(side)
        for layer in hidden:
            z = sine(linear_in(layer, z))
        k = linear_in(last, z)
        return (k * self.modulation(t) if self.modulate else k).transpose(0, 1)


def linear_in(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the precision of x; one with hooks, or another module in its place, computes in its own."""
    if type(layer) is nn.Linear and not is_hooked(layer):
        return F.linear(x, layer.weight.to(x), None if layer.bias is None else layer.bias.to(x))
    own = next((w.dtype for w in layer.parameters() if w.is_floating_point()), torch.float32)
    return layer(x.to(own)).to(x)


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's and some of Intel's do not."""
    try:
        return bool((torch.ones(1, dtype=torch.float64, device=device) + 1).sum().item() == 2)
    except (RuntimeError, TypeError):
        return False


def network(emb_dim: int, width: int, inner: int, channels: int, sine: Sine | None = None) -> nn.ModuleDict:
    """Layers under the names of the reference's nn.Sequential, whose odd entries are one shared Sine."""
    layers: dict[str, nn.Module] = {"0": nn.Linear(emb_dim, width)}
    layers |= {} if sine is None else {"1": sine}
    layers |= {str(2 * i + 2): nn.Linear(width, width) for i in range(inner)}
    layers[str(2 * inner + 2)] = nn.Linear(width, channels, bias=False)
    return nn.ModuleDict(layers)


def both_sides(sides: list[Tensor]) -> Tensor:
    """One filter of one or two sides (H, K): lags 0, 1, ... alone, or behind the lags ..., -2, -1."""
    forward, *reverse = sides
    return torch.cat([reverse[0].flip(-1), forward], dim=-1) if reverse else forward


def complete(
    found: dict[str, Tensor], filters: Sequence[str], buffers: Iterable[str], sizes: tuple[int, int, int]
) -> list[str]:
    """Put what is missing or too coarse of never trained buffers into `found`, computed in float64.

    Returns what the user should know of it, and of trained ones that are too coarse, a sentence each.
    filters: names of the modules that hold a filter.  buffers: of pos_emb.z, pos_emb.t and modulation.deltas.
    sizes: features, positions and channels.
    """
    notes = []
    names = {f"{name}.{buffer}": buffer for name in filters for buffer in buffers}
    poor = {name: buffer for name, buffer in names.items() if name not in found or found[name].dtype in COARSE}
    if poor:
        features, seqlen, channels = sizes
        with torch.device(next(iter(found.values())).device):
            positions, window = PositionalEmbedding(features, seqlen), Modulation(channels, 0.0)
        positions.reset_parameters()
        window.reset_parameters()
        computed = {"pos_emb.z": positions.z, "pos_emb.t": positions.t, "modulation.deltas": window.deltas}
        found.update({name: computed[buffer] for name, buffer in poor.items()})
        notes.append(f"recomputed, as missing or stored in half precision: {', '.join(sorted(set(poor.values())))}")
    if any(found[z].dtype in COARSE for name in filters if (z := f"{name}.pos_emb.z") in found):
        notes.append("the filters' trained positions are stored in half precision, too coarse for a long filter")
    return notes
