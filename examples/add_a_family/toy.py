"""A family of your own in one file: gated convolutions whose filters are sums of decaying exponentials.

    k[h, t] = sum over s of R[h, s] exp(-exp(a[h, s]) t)          t = 0, 1, ...: such a filter has no last tap
    x = x + W_out (gate * (k * v + D v)),   [gate | v] = W_in norm(x)

Everything `sparsify` does works with it once it is registered, plans within a budget and reports included:

    import sparsify
    from sparsify.converters import registry

    import toy

    registry.register("toy", toy)
    sparsify.convert("my-toy-checkpoint", "out", taps=64, data="text.txt")

The contract, function by function, is `sparsify.converters.family.Family`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import ConvSite, Filter, LongConv
from sparsify.converters.family import Shapes
from sparsify.converters.state_dict import assign, rename_all, shape_of, strip_wrappers, whole
from sparsify.sites import Conv, Replaceable

OPTIONS: Mapping[str, str] = {}  # what a user may choose where the checkpoint leaves it open


# --- the model -----------------------------------------------------------------------------------------------------


class ExponentialFilter(nn.Module):
    """The filter of every channel, and the coefficient D of the skip beside it: what a `LongConv` follows."""

    exact = True  # its weights stay float32 whatever the model's dtype

    def __init__(self, channels: int, states: int, longest: int) -> None:
        super().__init__()
        self.residues = nn.Parameter(torch.empty(channels, states))
        self.log_rates = nn.Parameter(torch.empty(channels, states))
        self.skip = nn.Parameter(torch.empty(channels))
        self.longest = longest

    def trace(self, seqlen: int | None = None) -> Filter:
        """What `seqlen` samples feel of the filter, with its gradients; None stands for the model's context."""
        t = torch.arange(seqlen or self.longest, device=self.skip.device)
        decay = torch.exp(-self.log_rates.exp()[:, :, None] * t)
        return Filter((self.residues[:, :, None] * decay).sum(1))

    @torch.no_grad()
    def materialize(self, seqlen: int | None = None) -> Filter:
        """The same without gradients, on the CPU."""
        return self.trace(seqlen).to("cpu")

    def weights(self) -> list[Tensor]:
        """What the taps are made of."""
        return [self.residues, self.log_rates]


class Layer(Replaceable, nn.Module):
    """x (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, states: int, longest: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * width)
        self.filter = ExponentialFilter(width, states, longest)
        self.out_proj = nn.Linear(width, width)
        self.long_conv: Conv | None = None  # where a planned convolution is put; None is the model's own code

    def forward(self, x: Tensor) -> Tensor:
        gate, v = self.in_proj(self.norm(x)).transpose(1, 2).chunk(2, dim=1)
        if isinstance(self.long_conv, LongConv):  # takes the gate and the skip along, and follows the weights
            y = self.long_conv(v, gate=gate, skip=self.filter.skip, source=self.filter)
        else:
            conv = self.long_conv or LongConv(self.filter.trace(v.shape[-1]))
            y = gate * (conv(v) + self.filter.skip[:, None] * v)
        return x + self.out_proj(y.transpose(1, 2))


class Toy(nn.Module):
    """A language model: ids (B, L) -> logits (B, L, rows)."""

    head = "lm"

    def __init__(self, rows: int, width: int, layers: int, states: int, context: int) -> None:
        super().__init__()
        self.config = {"context": context}
        self.embedding = nn.Embedding(rows, width)
        self.layers = nn.ModuleList(Layer(width, states, context) for _ in range(layers))
        self.lm_head = nn.Linear(width, rows, bias=False)

    @property
    def context(self) -> int:
        return self.config["context"]

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


# --- its text ------------------------------------------------------------------------------------------------------


class Bytes:
    """One id a byte of UTF-8."""

    alphabet = None
    vocab_size = 256
    id_range = (32, 127)

    def normalize(self, text: str, upper: bool = False) -> str:
        return text

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def describe(self, folder: Path) -> None:
        """Nothing to write: transformers has no tokenizer of bytes that needs a file."""


# --- the family ----------------------------------------------------------------------------------------------------


def matches(shapes: Shapes) -> bool:
    return any(name.endswith("filter.log_rates") for name in shapes)


def build(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], options: Mapping[str, Any], dtype: torch.dtype
) -> tuple[Toy, tuple[str, ...]]:
    """Sizes follow from the tensors, but for the context, which config.json may name."""
    found = rename_all(tensors, rename)
    rows, width = shape_of(found, "embedding.weight", 2)
    _, states = shape_of(found, "layers.0.filter.residues", 2)
    layers = len({name.split(".")[1] for name in found if name.startswith("layers.")})
    with torch.device("meta"):
        model = Toy(rows, width, layers, states, whole(config, "context", 1024))
    assign(model, found, dtype)
    return model, ()


def sites(model: Any, sizes: Any = None) -> tuple[ConvSite, ...]:
    return tuple(
        ConvSite(
            name=name,
            channels=len(layer.filter.skip),
            length=layer.filter.longest,
            context=layer.filter.longest,
            causal=True,
            materialize=layer.filter.materialize,
            install=layer.set_conv,
            weights=layer.filter.weights,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, Layer)
    )


def tokenizer(model: Toy, folder: Path) -> Bytes:
    return Bytes()


def config_overrides(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sizes)


def rename(name: str) -> str | None:
    return strip_wrappers(name)
