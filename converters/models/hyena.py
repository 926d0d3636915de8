"""Hyena: order-2 gated long convolutions with implicit filters (Poli et al. 2023, arXiv 2302.10866).

The model that HyenaDNA and the English Hyena LM share; what their files call it is in `hyena_layout`.  A layer, on
x (B, L, D), with * the causal convolution:

    [x0 | x1 | v] = short(LN1(x) W_in + b_in)                      3 taps, causal
    x = x + (x0 (k * g + D g)) W_out + b_out,  g = x1 v
    x = x + gelu(LN2(x) W_1 + b_1) W_2 + b_2                       tanh's GELU
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.converters.state_dict import empty_embedding, fill_tied, translate
from sparsify.cpu.linear import Call, Linear, input_dtype, prepare
from sparsify.cpu.norm import LayerNorm, norm
from sparsify.fftconv import LongConv
from sparsify.hooks import are, is_hooked
from sparsify.sites import Conv, ConvSite, Replaceable
from sparsify.stream import PIECE, ConvStream, Stream, begin, causal_filter

from .hyena_keys import EMBEDDING, HEAD, rename
from .implicit_filter import ImplicitFilter
from .tiled import Gates, Layers, check_ids, gate_tiles, gates_like, learns, takes_tiles, tiles, to_rows

LONGEST = 1 << 26  # tokens; some sixty times the longest checkpoint there is


@dataclass(frozen=True)
class HyenaConfig:
    """Sizes and choices of one model; all but `layer_norm_epsilon`, `shift` and `modulate` follow from its shapes."""

    d_model: int
    d_inner: int
    n_layer: int
    vocab_rows: int  # rows of the embedding, padding included
    max_seq_len: int  # K: longest filter and longest input, in tokens
    emb_dim: int = 5
    filter_order: int = 64
    num_inner_mlps: int = 2
    short_filter_order: int = 3
    layer_norm_epsilon: float = 1e-5
    shift: float = 0.0  # floor of the decay window: 0.0 in training, 0.05 in the hub's modelling code of HyenaDNA
    modulate: bool = True  # whether there is a decay window

    trained_positions: ClassVar[bool] = False  # whether the filters' positions are learnt, too

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.d_inner, self.n_layer, self.vocab_rows, self.filter_order, self.short_filter_order)
        if min(sizes) < 1 or self.max_seq_len < 3 or self.num_inner_mlps < 0:
            raise ValueError(f"sizes must be positive and max_seq_len at least 3, got {self}")
        if self.max_seq_len > LONGEST:
            raise ValueError(f"max_seq_len {self.max_seq_len} is more than {LONGEST}, for which no filter is made here")
        if not 0 < self.layer_norm_epsilon < 1:
            raise ValueError(f"layer_norm_epsilon must lie in (0, 1), got {self.layer_norm_epsilon}")
        if self.emb_dim < 3 or self.emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3 (time, cosines, sines), got {self.emb_dim}")
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift must lie in [0, 1), got {self.shift}; take 0.0 (training) or 0.05 (hub code)")

    @property
    def context(self) -> int:
        """Tokens of text that fit."""
        return self.max_seq_len


class Calls(NamedTuple):
    """The linear layers of a block, prepared for some rows; see `Linear.prepare`."""

    in_proj: Call
    out_proj: Call
    mlp: Call
    dtype: torch.dtype  # what they best take


@dataclass
class State:
    """What one layer carries from a piece of a sequence to the next; every piece updates it."""

    conv: Conv  # the long convolution, fed in pieces
    history: Tensor | None = None  # (B, T - 1, 3D): what the short filter of T taps still sees; None for zeros
    calls: Calls | None = None  # kept for all pieces, weights as they were then; None prepares anew for every piece


class HyenaOperator(Replaceable, nn.Module):
    """Gated long convolution: y = x0 * (k * g + D g), g = x1 * v, with [x0 | x1 | v] a short convolution of the input.

    u: (B, L, D) -> (B, L, D).
    """

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        width = 3 * config.d_model
        self.in_proj = Linear(config.d_model, width)
        self.short_filter = nn.Conv1d(width, width, config.short_filter_order, groups=width)
        self.filter_fn = ImplicitFilter(
            config.d_model,
            config.max_seq_len,
            emb_dim=config.emb_dim,
            width=config.filter_order,
            inner=config.num_inner_mlps,
            shift=config.shift,
            modulate=config.modulate,
            trained_positions=config.trained_positions,
        )
        self.out_proj = Linear(config.d_model, config.d_model)
        self.long_conv: Conv | None = None  # a prepared operator; None computes the filter anew in each forward

    def forward(self, u: Tensor) -> Tensor:
        x0, x1, v = self.short(self.in_proj(u)).chunk(3, dim=1)
        if isinstance(
            self.long_conv, LongConv
        ):  # takes the gates and the skip along, and knows whether its filter learns
            y = self.long_conv(v, gate=x0, skip=self.filter_fn.bias, pregate=x1, source=self.filter_fn)
            return self.out_proj(y.transpose(1, 2))
        g = x1 * v
        y = self.convolve(g) + self.filter_fn.bias[:, None].to(g.dtype) * g
        return self.out_proj((x0 * y).transpose(1, 2))

    def short(self, z: Tensor) -> Tensor:
        """Causal depthwise convolution: z (B, L, 3D) -> (B, 3D, L)."""
        return self.short_filter(F.pad(z.transpose(1, 2), (self.short_filter.kernel_size[0] - 1, 0)))

    def convolve(self, g: Tensor) -> Tensor:
        if self.long_conv is not None:
            return self.long_conv(g)
        k, seqlen = self.filter_fn(g.shape[-1]), g.shape[-1]
        n = 2 * seqlen  # as the published models have it
        y_f = torch.fft.rfft(g.to(k.dtype), n) * torch.fft.rfft(k, n)
        return torch.fft.irfft(y_f, n)[..., :seqlen].to(g.dtype)

    def mix(self, x: Tensor, project: Call, state: State, buffers: Gates) -> Tensor:
        """x0 * (k * g + D g) by tiles, with z = project(x): x (B, L, D) -> (B, D, L).  x0 and g go into `buffers`."""
        if isinstance(state.conv, LongConv):
            state.conv.refresh(self.filter_fn)
        state.history = gate_tiles(x, project, self.short_filter, buffers, state.history)
        x0, g = buffers
        if type(state.conv) is LongConv and not is_hooked(state.conv):  # in place of x0, for one tensor less
            return state.conv.run(g, gate=x0, skip=self.filter_fn.bias, source=self.filter_fn, out=x0)
        return state.conv(g, gate=x0, skip=self.filter_fn.bias)


class Mlp(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.d_model, config.d_inner)
        self.fc2 = Linear(config.d_inner, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

    def prepare(self, rows: float) -> Call:
        """The same as a function; see `Linear.prepare`."""
        fc1, fc2 = prepare(self.fc1, rows, gelu=True), prepare(self.fc2, rows)
        return lambda x: fc2(fc1(x))


class Block(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mixer = HyenaOperator(config)
        self.norm2 = LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def run_(self, x: Tensor, state: State, buffers: Gates) -> Tensor:
        """The same in place, without gradients, by tiles, so that no tensor is wider than x; returns x.

        buffers is overwritten: one for all layers spares the system from finding fresh memory for each.
        Norms and linear layers see a tile a call, and nothing else is called as a module: see `takes_tiles`.
        """
        batch, seqlen, _ = x.shape
        in_proj, out_proj, mlp, dtype = state.calls or self.prepare(batch * seqlen)
        y = self.mixer.mix(x, lambda tile: in_proj(norm(self.norm1, tile, dtype=dtype)), state, buffers)
        for b, t in tiles(batch, seqlen):
            tile = x[b, t]
            mixed = out_proj(to_rows(y[b, :, t], dtype))
            tile += mlp(norm(self.norm2, tile, plus=mixed, dtype=dtype))
        return x

    def begin(self, batch: int) -> State:
        """What the layer carries from piece to piece of `batch` sequences of which nothing has come yet.

        Its convolution and its weights are those of now, without the lags that read the future.
        """
        conv, source = self.mixer.long_conv, self.mixer.filter_fn
        if isinstance(conv, LongConv):
            conv.refresh(source)
        k = source.materialize() if conv is None else causal_filter(conv, source)
        return State(ConvStream(k.to(next(self.parameters()).device), batch), calls=self.prepare(math.inf))

    def prepare(self, rows: float) -> Calls:
        """The linear layers for `rows` rows in all; math.inf for as many as may come."""
        in_proj, out_proj, mlp = self.mixer.in_proj, self.mixer.out_proj, self.mlp
        mixed = mlp.prepare(rows) if isinstance(mlp, Mlp) else mlp
        return Calls(prepare(in_proj, rows), prepare(out_proj, rows), mixed, input_dtype(in_proj, rows))

    @property
    def takes_tiles(self) -> bool:
        """Whether `run_` computes what `forward` does: every layer is the one made here, and nobody watches any."""
        own = self._modules  # not by attribute: that takes nn.Module five times as long, and this runs in every forward
        mixer, mlp, norms = own["mixer"], own["mlp"], (own["norm1"], own["norm2"])
        if type(mixer) is not HyenaOperator or type(mlp) is not Mlp or mixer.long_conv is None:
            return False
        mixers, mlps = mixer._modules, mlp._modules
        linears, short = (mixers["in_proj"], mixers["out_proj"], mlps["fc1"], mlps["fc2"]), mixers["short_filter"]
        return (
            are(linears, Linear)
            and are(norms, LayerNorm)
            and are((short,), nn.Conv1d)
            and not is_hooked(self, mixer, mlp, short, *linears, *norms)
        )


class Backbone(Layers):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        embedding = empty_embedding(config.vocab_rows, config.d_model)
        self.embeddings = nn.ModuleDict({"word_embeddings": embedding})
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Tensor | None = None,
        states: Sequence[Any] | None = None,
        *,
        embedded: Tensor | None = None,
        every: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D), normalised.

        states: one a layer, as its `begin` made it; input_ids (B, L) go on where those stopped.
        embedded: (B, L, D), in place of input_ids.
        every: a list to append the embedding and the states after each layer to, the last of them normalised.
        """
        embed = self.embeddings["word_embeddings"]
        x = embed(input_ids) if embedded is None else embedded
        trained = learns(self, x)
        if states is not None and trained:
            raise ValueError("pieces of a sequence carry no gradients; use torch.no_grad(), or pass the whole sequence")
        tiled = states is None and not trained and takes_tiles(x)
        own = embedded is None and type(embed) is nn.Embedding and not is_hooked(embed)  # x is nobody else's
        buffers: Gates | None = None
        for i, layer in enumerate(self.layers):
            if every is not None:
                every.append(x)
            if states is None and not (tiled and type(layer) is Block and layer.takes_tiles):
                x, own = self.through(layer, x), False
                continue
            assert isinstance(layer, Block)
            x = x if own and every is None else x.clone(memory_format=torch.contiguous_format)
            own, buffers = True, gates_like(x) if buffers is None else buffers
            if states is None:
                conv = layer.mixer.long_conv
                assert conv is not None  # as `takes_tiles` says
                state = State(conv)
            else:
                state = states[i]
            x = layer.run_(x, state, buffers)
        x = self.ln_f(x)
        if every is not None:
            every.append(x)
        return x


class Hyena(nn.Module):
    """A language model: input_ids (B, L) -> logits (B, L, vocab_rows).

    Padding is data to this model, as in the reference: there is no attention mask to pass.
    """

    def __init__(self, config: HyenaConfig, lm_head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        if lm_head:
            self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the names of every dialect, and refuse tensors that are none of this model's."""
        translate(state_dict, prefix, self.state_dict().keys(), rename)
        if self.is_tied:
            fill_tied(state_dict, prefix + HEAD, prefix + EMBEDDING)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def context(self) -> int:
        return self.config.context

    @property
    def head(self) -> str:
        return "lm"

    @property
    def is_tied(self) -> bool:
        """Whether the words read and the words predicted are one parameter."""
        lm_head = getattr(self, "lm_head", None)
        return lm_head is not None and lm_head.weight is self.backbone.embeddings["word_embeddings"].weight

    @property
    def letters(self) -> range:
        """Ids that generated text is made of."""
        return range(self.config.vocab_rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.hidden(input_ids))

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Last states (B, L, D) of ids that fit."""
        check_ids(input_ids, self.config.max_seq_len)
        return self.backbone(input_ids)

    def stream(self, batch: int = 1, piece: int = PIECE) -> Stream:
        """The model fed in pieces; see `stream`."""
        return stream(self.backbone, self.lm_head, self.letters, batch, piece)


def stream(
    backbone: Backbone, lm_head: nn.Module, letters: Sequence[int] | None, batch: int = 1, piece: int = PIECE
) -> Stream:
    """A language model fed in pieces, for a sequence of any length: lags beyond the filters count as zero.

    Each layer begins with its own state (`sparsify.stream.Streamed`).  piece: tokens worked through at once.
    """
    weight = next(lm_head.parameters())
    if weight.dtype != torch.float32:
        raise ValueError(f"this model is {weight.dtype}, and streams are float32; call model.float() first")
    states = begin(backbone.layers, batch)

    def step(ids: Tensor) -> Tensor:
        return lm_head(backbone(ids, states))

    return Stream(step, batch, piece, letters)


def sites(model: Any, sizes: HyenaConfig | None = None) -> tuple[ConvSite, ...]:
    """The long convolution of every layer of `model`, first to last, under the names that plans know them by.

    sizes: those of the model; None takes `model.config`.
    """
    known: HyenaConfig = model.config if sizes is None else sizes
    return tuple(
        ConvSite(
            name=name[name.index("backbone.") :],
            channels=known.d_model,
            length=known.max_seq_len,
            context=known.context,
            causal=True,
            materialize=module.filter_fn.materialize,
            install=module.set_conv,
            weights=module.filter_fn.weights,
        )
        for name, module in model.named_modules()
        if isinstance(module, HyenaOperator)
    )
