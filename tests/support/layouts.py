"""Checkpoints as people publish them: every layout of HyenaDNA, at any size, with random weights.

Names, shapes and formulas are written down here once more, on purpose: the converters are checked against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsify import ConvSite
from sparsify.converters import hyena_dna

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    n_layer: int
    d_model: int
    d_inner: int
    l_max: int
    emb_dim: int = 5
    order: int = 64
    rows: int = 16  # of the embedding


CHECKPOINTS = {  # LongSafari/hyenadna-*
    "tiny-1k-seqlen": Sizes(2, 128, 512, 1026),
    "tiny-1k-seqlen-d256": Sizes(2, 256, 1024, 1026),
    "tiny-16k-seqlen-d128": Sizes(2, 128, 512, 16386),
    "small-32k-seqlen": Sizes(4, 256, 1024, 32770),
    "medium-160k-seqlen": Sizes(8, 256, 1024, 160002),
    "medium-450k-seqlen": Sizes(8, 256, 1024, 450002),
    "large-1m-seqlen": Sizes(8, 256, 1024, 1000002),
}
TINY = Sizes(2, 12, 20, 66, order=8)
LABELS = 3


@dataclass(frozen=True)
class Dialect:
    """How one kind of file names things."""

    prefix: str = ""
    head_prefix: str = ""
    head: str | None = "lm_head"
    wrapped: bool = False  # gradient checkpointing: mixer.layer., mlp.layer.
    freqs: tuple[int, ...] = (1,)
    raw_config: bool = False
    lightning: bool = False  # weights.ckpt with hyper-parameters and counters around the tensors


DIALECTS = {
    "hf": Dialect(prefix="hyena."),
    "hf base": Dialect(head=None),
    "hf classifier": Dialect(prefix="hyena.", head="score"),
    "raw": Dialect("model.", "model.", freqs=(1, 3, 5), raw_config=True, lightning=True),
    "raw checkpointed": Dialect("model.", "model.", wrapped=True, freqs=(1, 3, 5), raw_config=True, lightning=True),
    "raw without a head": Dialect(head=None, freqs=(1, 3, 5), raw_config=True),
    "plain": Dialect(raw_config=True),
    "compiled": Dialect("module._orig_mod.hyena.", "module._orig_mod."),
}


def shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a language model and of a classifier: plain name -> shape."""
    d, f, k, e, o = s.d_model, s.d_inner, s.l_max, s.emb_dim, s.order
    layer = {
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "mixer.in_proj.weight": (3 * d, d),
        "mixer.in_proj.bias": (3 * d,),
        "mixer.short_filter.weight": (3 * d, 1, 3),
        "mixer.short_filter.bias": (3 * d,),
        "mixer.filter_fn.bias": (d,),
        "mixer.filter_fn.pos_emb.z": (1, k, e),
        "mixer.filter_fn.pos_emb.t": (1, k, 1),
        "mixer.filter_fn.modulation.deltas": (1, 1, d),
        "mixer.filter_fn.implicit_filter.0.weight": (o, e),
        "mixer.filter_fn.implicit_filter.0.bias": (o,),
        "mixer.filter_fn.implicit_filter.1.freq": (1, o),
        "mixer.filter_fn.implicit_filter.2.weight": (o, o),
        "mixer.filter_fn.implicit_filter.2.bias": (o,),
        "mixer.filter_fn.implicit_filter.4.weight": (o, o),
        "mixer.filter_fn.implicit_filter.4.bias": (o,),
        "mixer.filter_fn.implicit_filter.6.weight": (d, o),
        "mixer.out_proj.weight": (d, d),
        "mixer.out_proj.bias": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
        "mlp.fc1.weight": (f, d),
        "mlp.fc1.bias": (f,),
        "mlp.fc2.weight": (d, f),
        "mlp.fc2.bias": (d,),
    }
    return {
        "backbone.embeddings.word_embeddings.weight": (s.rows, d),
        **{f"backbone.layers.{i}.{name}": shape for i in range(s.n_layer) for name, shape in layer.items()},
        "backbone.ln_f.weight": (d,),
        "backbone.ln_f.bias": (d,),
        "lm_head.weight": (s.rows, d),
        "score.weight": (LABELS, d),
    }


def positions(s: Sizes) -> dict[str, Tensor]:
    """The three buffers of a filter, in float64."""
    n, k = torch.arange(s.l_max, dtype=torch.float64), s.l_max
    bands = (s.emb_dim - 1) // 2
    f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    t, phase = n / (k - 1), torch.outer(2 * math.pi * n / k, f)
    z = torch.cat([t[:, None], phase.cos(), -phase.sin()], dim=1)
    deltas = torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, s.d_model, dtype=torch.float64)
    return {"pos_emb.z": z[None], "pos_emb.t": t[None, :, None], "modulation.deltas": deltas[None, None]}


def weights(s: Sizes, seed: int = 0) -> Tensors:
    """Random float32 tensors under plain names; the head equals the embedding, as in pretraining."""
    draw, buffers = torch.Generator().manual_seed(seed), positions(s)
    tensors: Tensors = {}
    for name, shape in shapes(s).items():
        buffer = next((b for b in buffers if name.endswith(b)), None)
        noise = torch.randn(shape, generator=draw)
        if buffer is not None:
            tensors[name] = buffers[buffer].float()
        elif name.endswith("freq") or "norm" in name or ".ln_f" in name:
            tensors[name] = (0.0 if name.endswith("bias") else 1.0) + 0.1 * noise
        else:
            tensors[name] = noise / math.sqrt(shape[-1] if len(shape) == 2 else 3)
    tensors["lm_head.weight"] = tensors["backbone.embeddings.word_embeddings.weight"]
    return tensors


def dress(plain: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The same tensors (or shapes) under the names of a dialect."""
    dressed = {}
    for name, value in plain.items():
        if not name.startswith("backbone."):
            if name == f"{dialect.head}.weight":
                dressed[dialect.head_prefix + name] = value
            continue
        if dialect.wrapped:
            name = name.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer.")
        copies = dialect.freqs if name.endswith("1.freq") else (1,)
        for i in copies:
            dressed[dialect.prefix + name.replace("1.freq", f"{i}.freq")] = value
    return dressed


def config(s: Sizes, dialect: Dialect) -> dict[str, Any]:
    """config.json as published."""
    if dialect.raw_config:
        wrapping = {"checkpoint_mixer": True, "checkpoint_mlp": True} if dialect.wrapped else {}
        layer = {"_name_": "hyena", "emb_dim": s.emb_dim, "filter_order": s.order, "local_order": 3, "l_max": s.l_max}
        return {
            "d_model": s.d_model,
            "n_layer": s.n_layer,
            "d_inner": s.d_inner,
            "vocab_size": 12,
            **wrapping,
            "pad_vocab_size_multiple": 8,
            "layer": {**layer, "modulate": True, "w": 10, "lr": 6e-4},
        }
    return {
        "architectures": ["HyenaDNAForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_hyena.HyenaConfig"},
        "d_model": s.d_model,
        "d_inner": None,  # allowed, and left open here
        "emb_dim": s.emb_dim,
        "filter_order": s.order,
        "hyena_order": 2,
        "layer_norm_epsilon": 1e-5,
        "max_seq_len": s.l_max,
        "model_type": "hyenadna",
        "n_layer": s.n_layer,
        "num_inner_mlps": 2,
        "pad_token_id": 4,
        "pad_vocab_size_multiple": 8,
        "short_filter_order": 3,
        "vocab_size": 12,
    }


def write(folder: Path, dialect: str = "plain", s: Sizes = TINY, plain: Tensors | None = None) -> Path:
    """A checkpoint folder in a dialect; returns it.  plain: weights under plain names, random without."""
    kind = DIALECTS[dialect]
    tensors = dress(weights(s) if plain is None else plain, kind)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(s, kind)))
    if kind.lightning:
        tensors |= {"train_torchmetrics.num-tokens.count": torch.tensor(7)}
        torch.save({"epoch": 3, "pytorch-lightning_version": "1.8.6", "state_dict": tensors}, folder / "weights.ckpt")
    else:
        save_file({name: t.clone() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def mark(weights: Path, text: str) -> None:
    """Make a safetensors file unlike any other, its tensors as they were."""
    save_file(load_file(weights), weights, {"format": "pt", "mark": text})


def write_tiny(folder: Path) -> Path:
    """A checkpoint of two layers and 64 nucleotides of context, in the plain dialect; returns its folder."""
    return write(folder)


def tiny_model() -> tuple[nn.Module, tuple[ConvSite, ...]]:
    """The model of `write_tiny`, and its sites."""
    model, _ = hyena_dna.build(dress(weights(TINY), DIALECTS["plain"]), config(TINY, DIALECTS["plain"]))
    return model.eval().requires_grad_(False), hyena_dna.sites(model)


def untied(s: Sizes = TINY) -> Tensors:
    """Weights whose head is not the embedding, as after fine-tuning."""
    plain = weights(s)
    return {**plain, "lm_head.weight": weights(s, seed=1)["lm_head.weight"]}
