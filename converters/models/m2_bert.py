"""M2-BERT: an encoder of two-sided long convolutions and block-diagonal products (Fu et al. 2023, arXiv 2310.12109).

A layer, on x (B, L, D), with * a convolution over both directions:

    [x1 | x2 | v] = short(x W_in + b_in)                          3 taps, causal
    s = (x2 (k1 * (x1 v) + b1 x1 v) + k2 * x + b2 x) W_out + b_out  no residual, no norm around this half
    y = LN(B_2(gelu(g) h) + s),  [g | h] = B_1(s)                 B: block-diagonal

Padding is data: the convolutions see it, so the length that a text is padded to is part of the input.  The models are
trained on texts padded to `max_position_embeddings` with id 0.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.converters.state_dict import empty_embedding, fill_tied, is_leftover, strip_wrappers, translate
from sparsify.cpu.linear import BlockDiagonal, Call, Linear
from sparsify.cpu.norm import LayerNorm
from sparsify.fftconv import LongConv
from sparsify.hooks import are, is_hooked
from sparsify.sites import Conv, Replaceable

from .implicit_filter import ImplicitFilter
from .tiled import Gates, Layers, check_ids, gate_tiles, gates_like, gelu_gate, learns, takes_tiles, tiles, to_rows

MODEL_TYPE = "m2_bert"
EMBEDDING = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
SHARED_FREQ = re.compile(r"\.implicit_filter(?:_rev)?\.\d*[13579]\.freq$")
CLASSES = {"mlm": "BertForMaskedLM", "classifier": "BertForSequenceClassification", "encoder": "BertModel"}
NOT_IN_JSON = ("head", "pooler", "num_inner_mlps", "short_filter_order")  # of a config: the tensors alone tell these
PAD = 0
MIXER_NORM_EPS = 1e-5  # of the norm that training additions put before a mixer; all others are the config's


@dataclass(frozen=True)
class M2BertConfig:
    """Sizes and choices of one model, under the names that config.json has for them where it has some."""

    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int
    vocab_size: int  # rows of the embedding, padding included (30528 for 30522 tokens)
    max_position_embeddings: int  # K: longest input, and taps of a filter in either direction
    hyena_filter_order: int = 128
    hyena_emb_dim: int = 5
    num_inner_mlps: int = 2
    short_filter_order: int = 3
    monarch_mlp_nblocks: int = 4
    type_vocab_size: int = 2
    residual_long_conv: bool = True
    hyena_training_additions: bool = False  # a norm before every mixer
    head: str = "mlm"
    num_labels: int = 2  # of a classifier; one is a regression
    pooler: bool = False  # a dense layer and tanh on the pooled state; a classifier has one always
    pool_all: bool = False  # pool by the mean over the attention mask, instead of the state of [CLS]
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    classifier_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        sizes = (self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.vocab_size, self.num_labels)
        if min(*sizes, self.hyena_filter_order, self.short_filter_order, self.type_vocab_size) < 1:
            raise ValueError(f"sizes must be positive, got {self}")
        if self.max_position_embeddings < 3 or self.num_inner_mlps < 0:
            raise ValueError(f"max_position_embeddings must be at least 3, got {self}")
        if self.hyena_emb_dim < 3 or self.hyena_emb_dim % 2 == 0:
            raise ValueError(f"hyena_emb_dim must be odd and at least 3, got {self.hyena_emb_dim}")
        blocks = self.monarch_mlp_nblocks
        if blocks < 1 or self.hidden_size % blocks or self.intermediate_size % blocks:
            raise ValueError(
                f"got {blocks} blocks for widths {self.hidden_size} and {self.intermediate_size}; "
                f"take a number that divides both"
            )
        if self.head not in CLASSES:
            raise ValueError(f"got head {self.head!r}; choose one of {', '.join(CLASSES)}")

    @property
    def context(self) -> int:
        """Tokens of text that fit beside [CLS] and [SEP]."""
        return self.max_position_embeddings - 2

    def to_dict(self) -> dict[str, Any]:
        """config.json of such a model; what the tensors tell is in it for other readers."""
        own = {name: value for name, value in asdict(self).items() if name not in NOT_IN_JSON}
        return {
            "architectures": [CLASSES[self.head]],
            "model_type": MODEL_TYPE,
            **own,
            "long_conv_l_max": self.max_position_embeddings,
            "bidirectional": True,
            "hidden_act": "gelu",
            "pad_token_id": PAD,
            "use_glu_mlp": True,
            "use_monarch_mlp": True,
            "use_positional_encodings": True,
        }


def rename(name: str) -> str | None:
    """Our name for a stored tensor; None for what no model needs."""
    name = strip_wrappers(name)
    if ".flashfft." in name or name.endswith("embeddings.position_ids") or is_leftover(name):
        return None  # tables of another library's FFT, 0, 1, 2, ..., and what is of a training run alone
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"  # saved without its head's class around it
    return SHARED_FREQ.sub(".implicit_filter.1.freq", name)  # one parameter, which some files store six times


class Embeddings(nn.Module):
    """Word, token type and position, normalised: ids (B, L) -> (B, L, D)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.word_embeddings = empty_embedding(config.vocab_size, config.hidden_size, padding_idx=PAD)
        self.position_embeddings = empty_embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = empty_embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None, embedded: Tensor | None = None
    ) -> Tensor:
        """embedded: (B, L, D), in place of the word embeddings of input_ids (B, L)."""
        x = self.word_embeddings(input_ids) if embedded is None else embedded
        types = x.new_zeros(x.shape[:2], dtype=torch.int64) if token_type_ids is None else token_type_ids
        x = x + self.token_type_embeddings(types) + self.position_embeddings.weight[: x.shape[1]]
        return self.dropout(self.LayerNorm(x))


class BiConv(Replaceable, ImplicitFilter):
    """A long convolution in both directions: gate * (k * g + bias g), g = pregate * u.  u, gate, pregate: (B, D, L)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.max_position_embeddings,
            emb_dim=config.hyena_emb_dim,
            width=config.hyena_filter_order,
            inner=config.num_inner_mlps,
            two_sided=True,
            trained_positions=True,
        )
        self.long_conv: Conv | None = None  # a prepared operator; None computes the filter anew in each forward

    def convolve(self, u: Tensor, gate: Tensor | None = None, pregate: Tensor | None = None) -> Tensor:
        if isinstance(self.long_conv, LongConv):
            return self.long_conv(u, gate=gate, skip=self.bias, pregate=pregate, source=self)
        g = u if pregate is None else pregate * u
        if self.long_conv is not None:
            return self.long_conv(g, gate=gate, skip=self.bias)
        y = self.anew(g) + self.bias[:, None].to(g.dtype) * g
        return y if gate is None else gate * y

    def anew(self, g: Tensor) -> Tensor:
        """k * g, as the published models compute it: one circular kernel of 2 L points holds both directions."""
        seqlen = g.shape[-1]
        k = self(seqlen)
        n = 2 * seqlen
        k_f = torch.fft.rfft(k.roll(-seqlen, dims=-1), n)
        return torch.fft.irfft(torch.fft.rfft(g.to(k.dtype), n) * k_f, n)[..., :seqlen].to(g.dtype)


class Mixer(nn.Module):
    """The half of a layer that mixes along the sequence: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        additions = config.hyena_training_additions
        self.layernorm = nn.LayerNorm(width, eps=MIXER_NORM_EPS) if additions else None
        self.filter_fn = BiConv(config)
        self.filter_fn2 = BiConv(config) if config.residual_long_conv else None
        self.in_linear = Linear(width, 3 * width)
        self.out_linear = Linear(width, width)
        self.short_filter = nn.Conv1d(3 * width, 3 * width, config.short_filter_order, groups=3 * width)

    def forward(self, x: Tensor) -> Tensor:
        u = x if self.layernorm is None else self.layernorm(x)
        z = F.pad(self.in_linear(u).transpose(1, 2), (self.short_filter.kernel_size[0] - 1, 0))
        x1, x2, v = self.short_filter(z).chunk(3, dim=1)
        y = self.filter_fn.convolve(v, gate=x2, pregate=x1)
        if self.filter_fn2 is not None:
            y = y + self.filter_fn2.convolve(u.transpose(1, 2))
        return self.out_linear(y.transpose(1, 2))

    def mix(self, x: Tensor, project: Call, buffers: Gates) -> Tensor:
        """What `forward` gives to `out_linear`, (B, D, L), by tiles and without gradients.

        project: `in_linear`, prepared.  `buffers` is overwritten.
        """
        u = x if self.layernorm is None else self.layernorm(x)
        gate_tiles(u, project, self.short_filter, buffers, alone=1)
        x2, g = buffers
        y = self.filter_fn.convolve(g, gate=x2)
        return y if self.filter_fn2 is None else y + self.filter_fn2.convolve(u.transpose(1, 2))


class Mlp(nn.Module):
    """The half of a layer that mixes channels, with the layer's only residual: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        width, inner, blocks = config.hidden_size, config.intermediate_size, config.monarch_mlp_nblocks
        self.gated_layers = BlockDiagonal(blocks, width, 2 * inner, bias=False)
        self.wo = BlockDiagonal(blocks, inner, width, bias=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gate, h = self.gated_layers(x).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(F.gelu(gate) * h)) + x)

    def prepare(self, rows: float) -> Call:
        """The same as a function, without dropout and gradients; see `Linear.prepare`."""
        gated_layers, wo = self.gated_layers.prepare(rows), self.wo.prepare(rows)
        return lambda x: self.layernorm(x.float(), plus=wo(gelu_gate(gated_layers(x))))


class Layer(nn.Module):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.attention = Mixer(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attention(x))

    def run_(self, x: Tensor, buffers: Gates) -> Tensor:
        """The same in place, by tiles, without gradients and dropout; returns x.  `buffers` is overwritten."""
        batch, seqlen, _ = x.shape
        rows, mixer = batch * seqlen, self.attention
        y = mixer.mix(x, mixer.in_linear.prepare(rows), buffers)
        project, mlp, dtype = mixer.out_linear.prepare(rows), self.mlp.prepare(rows), mixer.out_linear.takes(rows)
        for b, t in tiles(batch, seqlen):
            x[b, t] = mlp(project(to_rows(y[b, :, t], dtype)))
        return x

    @property
    def takes_tiles(self) -> bool:
        """Whether `run_` computes what `forward` does: every layer is the one made here, and nobody watches any."""
        own = self._modules  # not by attribute: that takes nn.Module five times as long, and this runs in every forward
        mixer, mlp = own["attention"], own["mlp"]
        if type(mixer) is not Mixer or type(mlp) is not Mlp:
            return False
        mixers, mlps = mixer._modules, mlp._modules
        filters = [mixers[name] for name in ("filter_fn", "filter_fn2") if mixers.get(name) is not None]
        if not are(filters, BiConv) or any(getattr(part, "long_conv", None) is None for part in filters):
            return False
        linears, short = (mixers["in_linear"], mixers["out_linear"]), mixers["short_filter"]
        blocks, norms = (mlps["gated_layers"], mlps["wo"]), (mlps["layernorm"],)
        if not (are(linears, Linear) and are(blocks, BlockDiagonal) and are(norms, LayerNorm)):
            return False
        before = () if mixers.get("layernorm") is None else (mixers["layernorm"],)
        return are((short,), nn.Conv1d) and not is_hooked(
            self, mixer, mlp, mlps["dropout"], short, *linears, *blocks, *norms, *before
        )


class Encoder(Layers):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, every: list[Tensor] | None = None) -> Tensor:
        """States (B, L, D) after the last layer.  every: a list to append x and the states after each layer to."""
        tiled = not self.training and not learns(self, x) and takes_tiles(x)
        own, buffers = False, None  # whether x is nobody else's
        for layer in self.layer:
            if every is not None:
                every.append(x)
            if tiled and type(layer) is Layer and layer.takes_tiles:
                x = x if own and every is None else x.clone(memory_format=torch.contiguous_format)
                own, buffers = True, gates_like(x) if buffers is None else buffers
                x = layer.run_(x, buffers)
            else:
                x, own = self.through(layer, x), False
        if every is not None:
            every.append(x)
        return x


class Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class Bert(nn.Module):
    """Everything but the head: ids (B, L) -> last states (B, L, D)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.longest, self.pool_all = config.max_position_embeddings, config.pool_all
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config.hidden_size) if config.pooler or config.head == "classifier" else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        embedded: Tensor | None = None,
        every: list[Tensor] | None = None,
    ) -> Tensor:
        """embedded: word embeddings (B, L, D), in place of input_ids.  every: as of `Encoder`."""
        tokens = input_ids if embedded is None else embedded[..., 0]
        assert tokens is not None
        check_ids(tokens, self.longest)
        return self.encoder(self.embeddings(input_ids, token_type_ids, embedded), every)

    def pool(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, D) of last states x (B, L, D)."""
        if not self.pool_all:
            pooled = x[:, 0]
        elif attention_mask is None:
            pooled = x.mean(1)
        else:
            share = attention_mask.to(x.dtype)[..., None]
            pooled = (x * share).sum(1) / share.sum(1).clamp_min(1)
        return pooled if self.pooler is None else self.pooler(pooled)


class Transform(nn.Module):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """States (..., D) -> logits (..., rows of the vocabulary)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class MaskedWords(nn.Module):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class M2Bert(nn.Module):
    """input_ids (B, L) -> logits (B, L, V) of "mlm", scores (B, labels) of "classifier", (B, D) of "encoder".

    Made from a config it is initialised as for training; on the meta device there is nothing to initialise.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        if config.head == "mlm":
            self.cls = MaskedWords(config)
            self.tie()
        if config.head == "classifier":
            self.dropout = nn.Dropout(config.classifier_dropout)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        if not self.bert.embeddings.word_embeddings.weight.is_meta:
            self.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the names of every dialect, and refuse tensors that are none of this model's."""
        translate(state_dict, prefix, self.state_dict().keys(), rename)
        if self.is_tied:
            fill_tied(state_dict, prefix + DECODER, prefix + EMBEDDING)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def context(self) -> int:
        return self.config.context

    @property
    def head(self) -> str:
        return self.config.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """attention_mask: (B, L), 1 where `pool_all` takes the mean, all unless given; nothing else looks at it."""
        if self.config.head == "mlm":
            return self.predict(self.hidden(input_ids, token_type_ids))
        pooled = self.embed(input_ids, attention_mask, token_type_ids)
        return self.classifier(self.dropout(pooled)) if self.config.head == "classifier" else pooled

    def hidden(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Last states (B, L, D)."""
        return self.bert(input_ids, token_type_ids)

    def predict(self, states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D): what "mlm" says of some positions without computing all."""
        if self.config.head != "mlm":
            raise ValueError(f"this model has the head {self.config.head!r}; with_head('mlm') makes one that predicts")
        return self.cls.predictions(states)

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Sentence embeddings (B, D), whatever the head: the pooled state, through the pooler where there is one."""
        return self.bert.pool(self.hidden(input_ids, token_type_ids), attention_mask)

    @property
    def is_tied(self) -> bool:
        """Whether the words read and the words predicted are one parameter."""
        return self.config.head == "mlm" and (
            self.cls.predictions.decoder.weight is self.bert.embeddings.word_embeddings.weight
        )

    def tie(self) -> None:
        """One parameter for the words read and the words predicted."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def with_head(self, head: str, num_labels: int = 2, pool_all: bool | None = None) -> M2Bert:
        """A new model with a fresh head and a copy of the rest, whose convolutions are its own again.

        A pooler is copied where there is one, and fresh where a classifier needs one.
        """
        pool_all = self.config.pool_all if pool_all is None else pool_all
        model = M2Bert(replace(self.config, head=head, num_labels=num_labels, pool_all=pool_all))
        trunk = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("bert.")}
        model.load_state_dict(trunk, strict=False)
        return model.to(next(self.parameters()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights and zero biases, but for filters and block-diagonal layers; norms as torch has them."""
        own = [module for module in self.modules() if isinstance(module, ImplicitFilter | BlockDiagonal)]
        inside = {part for module in own for part in module.modules()}
        for part in own:
            part.reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module not in inside:
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module not in inside and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.bert.embeddings.word_embeddings.weight[PAD] = 0
