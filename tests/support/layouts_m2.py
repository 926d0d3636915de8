"""M2-BERT's checkpoints as people publish them: every layout, at any size, with random weights.

Names, shapes and formulas are written down here once more, on purpose: the converters are checked against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layouts
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsify.converters import m2_bert
from sparsify.evals.mlm import Masked, mask
from sparsify.sites import ConvSite

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    n_layer: int
    d: int
    f: int
    k: int
    order: int = 128
    vocab: int = 30528
    emb_dim: int = 5
    blocks: int = 4


CHECKPOINTS = {
    "retrieval-2k": Sizes(12, 768, 3072, 2048),
    "retrieval-8k": Sizes(12, 768, 3072, 8192),
    "retrieval-32k": Sizes(12, 768, 3072, 32768),
    "80M": Sizes(12, 768, 3072, 128),
    "110M": Sizes(12, 960, 3840, 128),
    "260M": Sizes(12, 1536, 6144, 128),
    "341M": Sizes(12, 1792, 7168, 128),
}
TINY = Sizes(2, 16, 24, 32, order=8, vocab=40)
LABELS = 3
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "film", "is", "was", "good", "bad", "not", "very"),
    *("un", "##able", "##ly", "##s", ".", ",", "!", "e", "cafe", "we", "saw", "it", "and", "then", "left", "early"),
)  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """How one kind of file names things."""

    prefix: str = ""
    head: str | None = "mlm"  # or "classifier"; None leaves the head out
    pooler: bool = False
    shared: bool = False  # safetensors: of names that share memory only the first stays
    flashfft: int = 0  # buffers of another library's FFT, in bfloat16, in every filter
    additions: bool = False
    bare: bool = False  # without `bert.`
    file: str = "pytorch_model.bin"
    config: bool = True


HEADS = {"mlm": "cls.", "classifier": "classifier."}
DIALECTS = {
    "retrieval": Dialect(head="classifier", pooler=True, flashfft=6),
    "mlm": Dialect(),
    "safetensors": Dialect(head="classifier", pooler=True, shared=True, file="model.safetensors"),
    "safetensors mlm": Dialect(shared=True, file="model.safetensors"),
    "safetensors without a head": Dialect(head=None, pooler=True, shared=True, file="model.safetensors"),
    "composer": Dialect("model.", additions=True, file="model.pt", config=False),
    "bare": Dialect(head=None, bare=True),
}


def filter_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Tensors of one long convolution."""

    def network(name: str) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.0.weight": (s.order, s.emb_dim),
            f"{name}.0.bias": (s.order,),
            f"{name}.2.weight": (s.order, s.order),
            f"{name}.2.bias": (s.order,),
            f"{name}.4.weight": (s.order, s.order),
            f"{name}.4.bias": (s.order,),
            f"{name}.6.weight": (s.d, s.order),
        }

    return {
        "bias": (s.d,),
        "pos_emb.z": (1, s.k, s.emb_dim),
        "pos_emb.t": (1, s.k, 1),
        **network("implicit_filter"),
        "implicit_filter.1.freq": (1, s.order),
        **network("implicit_filter_rev"),
        "modulation.deltas": (1, 1, s.d),
    }


def shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of every head, with training additions: plain name -> shape."""
    d, f, n = s.d, s.f, s.blocks
    layer = {
        **{f"attention.filter_fn.{name}": shape for name, shape in filter_shapes(s).items()},
        **{f"attention.filter_fn2.{name}": shape for name, shape in filter_shapes(s).items()},
        "attention.in_linear.weight": (3 * d, d),
        "attention.in_linear.bias": (3 * d,),
        "attention.out_linear.weight": (d, d),
        "attention.out_linear.bias": (d,),
        "attention.layernorm.weight": (d,),
        "attention.layernorm.bias": (d,),
        "attention.short_filter.weight": (3 * d, 1, 3),
        "attention.short_filter.bias": (3 * d,),
        "mlp.gated_layers.weight": (n, 2 * f // n, d // n),
        "mlp.wo.weight": (n, d // n, f // n),
        "mlp.wo.bias": (d,),
        "mlp.layernorm.weight": (d,),
        "mlp.layernorm.bias": (d,),
    }
    return {
        "bert.embeddings.word_embeddings.weight": (s.vocab, d),
        "bert.embeddings.position_embeddings.weight": (s.k, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "bert.embeddings.LayerNorm.weight": (d,),
        "bert.embeddings.LayerNorm.bias": (d,),
        **{f"bert.encoder.layer.{i}.{name}": shape for i in range(s.n_layer) for name, shape in layer.items()},
        "bert.pooler.dense.weight": (d, d),
        "bert.pooler.dense.bias": (d,),
        "classifier.weight": (LABELS, d),
        "classifier.bias": (LABELS,),
        "cls.predictions.transform.dense.weight": (d, d),
        "cls.predictions.transform.dense.bias": (d,),
        "cls.predictions.transform.LayerNorm.weight": (d,),
        "cls.predictions.transform.LayerNorm.bias": (d,),
        "cls.predictions.decoder.weight": (s.vocab, d),
        "cls.predictions.decoder.bias": (s.vocab,),
    }


def weights(s: Sizes = TINY, seed: int = 0) -> Tensors:
    """Random float32 tensors under plain names: positions as training moves them, a decoder tied to the embedding."""
    draw = torch.Generator().manual_seed(seed)
    buffers = layouts.positions(layouts.Sizes(s.n_layer, s.d, s.f, s.k, s.emb_dim))  # as HyenaDNA's before training
    tensors: Tensors = {}
    for name, shape in shapes(s).items():
        buffer = next((b for b in buffers if name.endswith(b)), None)
        noise = torch.randn(shape, generator=draw)
        if buffer is not None:
            moved = 0.05 * noise if buffer == "pos_emb.z" else 0.0
            tensors[name] = (buffers[buffer] + moved).float()
        elif name.endswith("freq") or "orm." in name:
            tensors[name] = (0.0 if name.endswith("bias") else 1.0) + 0.1 * noise
        else:
            tensors[name] = noise / math.sqrt(shape[-1] if len(shape) > 1 else 3)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    return tensors


def dress(plain: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The same tensors (or shapes) under the names of a dialect."""
    dressed: dict[str, Any] = {}
    for name, value in plain.items():
        if not name.startswith("bert.") and not (dialect.head and name.startswith(HEADS[dialect.head])):
            continue
        if (".pooler." in name and not dialect.pooler) or (".attention.layernorm." in name and not dialect.additions):
            continue
        if dialect.shared and name == "cls.predictions.decoder.weight":
            continue  # the embedding's name comes first
        own = name.removeprefix("bert.") if dialect.bare else name
        for copy in copies(own, dialect):
            dressed[dialect.prefix + copy] = value
    return dressed


def copies(name: str, dialect: Dialect) -> list[str]:
    """The names that one parameter is stored under: the frequencies of a filter have six."""
    if not name.endswith("implicit_filter.1.freq") or dialect.shared:
        return [name]
    stem = name.removesuffix("implicit_filter.1.freq")
    return [f"{stem}{network}.{i}.freq" for network in ("implicit_filter", "implicit_filter_rev") for i in (1, 3, 5)]


def extras(s: Sizes, dialect: Dialect) -> Tensors:
    """What lies among the weights without being one."""
    bert = dialect.prefix + ("" if dialect.bare else "bert.")
    found: Tensors = {} if dialect.shared else {f"{bert}embeddings.position_ids": torch.arange(s.k)[None]}
    for i in range(s.n_layer):
        for site in ("filter_fn", "filter_fn2"):
            for j in range(dialect.flashfft):
                table = torch.zeros(16, 16, 2, dtype=torch.bfloat16)
                found[f"{bert}encoder.layer.{i}.attention.{site}.flashfft.twiddle_factors_fft_{j}"] = table
    if dialect.flashfft:
        found[f"{bert}encoder.flashfft.f_sqrt_N_fft"] = torch.zeros(16, 16, 2, dtype=torch.bfloat16)
    return found


def config(s: Sizes, dialect: Dialect) -> dict[str, Any]:
    """config.json as published; {} where there is none."""
    if not dialect.config:
        return {}
    return {
        "alibi_starting_size": s.k,
        "architectures": ["BertForMaskedLM" if dialect.head == "mlm" else "BertForSequenceClassification"],
        "bidirectional": True,
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": s.d,
        "hyena_emb_dim": s.emb_dim,
        "hyena_filter_order": s.order,
        "hyena_training_additions": dialect.additions,
        "hyena_w": 10,
        "hyena_w_mod": 1,
        "initializer_range": 0.02,
        "intermediate_size": s.f,
        "layer_norm_eps": 1e-12,
        "long_conv_l_max": s.k,
        "max_position_embeddings": s.k,
        "model_type": "bert",
        "monarch_mlp_nblocks": s.blocks,
        "num_attention_heads": 12,
        "num_hidden_layers": s.n_layer,
        "pad_token_id": 0,
        "pool_all": False,
        "position_embedding_type": "absolute",
        "residual_long_conv": True,
        "type_vocab_size": 2,
        "use_glu_mlp": True,
        "use_monarch_mlp": True,
        "use_positional_encodings": True,
        "vocab_size": s.vocab,
    }


def tiny_model() -> tuple[nn.Module, tuple[ConvSite, ...]]:
    """A masked language model of random weights, and its sites."""
    kind = DIALECTS["mlm"]
    model, _ = m2_bert.build(dress(weights(), kind), config(TINY, kind))
    return model.eval().requires_grad_(False), m2_bert.sites(model)


def masked_windows(count: int = 60, seed: int = 0) -> Masked:
    """Random tokens of the tiny model's vocabulary between [CLS] and [SEP], some of them masked."""
    ids = torch.randint(5, len(WORDS), (count, TINY.k), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = WORDS.index("[CLS]"), WORDS.index("[SEP]")
    return mask(ids, range(5), WORDS.index("[MASK]"), available=count)


def write(folder: Path, dialect: str = "mlm", s: Sizes = TINY, plain: Tensors | None = None, **changed: Any) -> Path:
    """A checkpoint folder in a dialect, with a vocabulary; returns it.  changed: of its config.json."""
    kind = DIALECTS[dialect]
    tensors = dress(weights(s) if plain is None else plain, kind) | extras(s, kind)
    folder.mkdir(parents=True)
    if kind.config:
        (folder / "config.json").write_text(json.dumps(config(s, kind) | changed))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if kind.file.endswith(".safetensors"):
        save_file({name: t.clone() for name, t in tensors.items()}, folder / kind.file, {"format": "pt"})
    else:
        torch.save({"state": {"model": tensors}} if kind.file == "model.pt" else tensors, folder / kind.file)
    return folder
