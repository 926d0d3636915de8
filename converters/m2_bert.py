"""M2-BERT's checkpoints: what the files name, and the model they make (`m2_bert_model`).

Retrieval encoders with buffers of FlashFFTConv among the weights, masked language models and classifiers, as pickles,
safetensors or inside a training checkpoint.  The positions that filters are made of are trained: they are read, never
recomputed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sparsify.sites import ConvSite
from sparsify.storage.folders import whole_folder

from .family import Shapes
from .models.implicit_filter import complete
from .models.m2_bert import DECODER, EMBEDDING, MODEL_TYPE, PAD, BiConv, M2Bert, M2BertConfig
from .models.m2_bert import rename as rename  # as of every family
from .state_dict import (
    agree,
    assign,
    equal,
    number,
    refuse_other_heads,
    rename_all,
    shape_of,
    strip_wrappers,
    without_tied,
)
from .tensors import write_tensors
from .tokenizers.wordpiece import TextTokenizer

TRUNK = re.compile(r"(?:bert\.)?encoder\.layer\.\d+\.attention\.filter_fn\.implicit_filter_rev\.")
LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")
HEADS = ("cls.", "classifier.")
HEADS_IN_WORDS = "a masked language model's head, cls.predictions, or a classifier's, classifier"
FIRST = "bert.encoder.layer.0"
FILTER = f"{FIRST}.attention.filter_fn"
SITE = re.compile(r"\.attention\.filter_fn2?\.bias$")
ROWS_MULTIPLE = 128  # embeddings are padded to some multiple of rows, at most this
OPTIONS: Mapping[str, str] = {}
BUFFERS = ("pos_emb.t", "modulation.deltas")  # never trained


def matches(shapes: Shapes) -> bool:
    """True if the names are M2-BERT's, with filters that look both ways.  shapes: stored name -> shape."""
    return any(TRUNK.match(strip_wrappers(name)) for name in shapes)


def build(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    options: Mapping[str, Any] = MappingProxyType({}),
    dtype: torch.dtype = torch.float32,
) -> tuple[M2Bert, tuple[str, ...]]:
    """The model these tensors make, and what was decided on the way, a sentence each: see `family.Family.build`."""
    found = rename_all(tensors, rename)
    refuse_other_heads(found, ("bert.", *HEADS), "M2-BERT", HEADS_IN_WORDS)
    notes = ["padding is data to this model: pad as in training for equal numbers, or run texts at their own length"]
    if is_encoder(config) and found.pop("classifier.weight", None) is not None:
        found.pop("classifier.bias", None)
        notes.append("config.json names an encoder of texts: the stored classifier is a placeholder and left out")
    sizes = configure(found, config)
    if sizes.head == "encoder" and not sizes.pooler:
        notes.append("neither a head nor a pooler is stored: embeddings are the pooled states themselves")
    filters = [name.removesuffix(".bias") for name in found if SITE.search(name)]
    tied = False
    if sizes.head == "mlm":
        tied = equal(found.setdefault(DECODER, found[EMBEDDING]), found[EMBEDDING])
        if not tied:
            notes.append("the decoder is stored with values of its own, so it is not tied to the embedding")
    notes += complete(found, filters, BUFFERS, (3, sizes.max_position_embeddings, sizes.hidden_size))
    with torch.device("meta"):
        model = M2Bert(sizes)
    assign(model, found, dtype)
    if tied:
        model.tie()
    return model, tuple(notes)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether config.json's classifier is the class that returns sentence embeddings, whatever head is stored."""
    targets = config.get("auto_map")
    target = targets.get("AutoModelForSequenceClassification") if isinstance(targets, Mapping) else None
    return isinstance(target, str) and target.endswith("BertForTextEncoding")


def configure(found: Mapping[str, Tensor], config: Mapping[str, Any]) -> M2BertConfig:
    """Sizes as the tensors have them; a config that says otherwise is refused.  found: our names -> tensor."""
    rows, width = shape_of(found, EMBEDDING, 2)
    positions, _ = shape_of(found, "bert.embeddings.position_embeddings.weight", 2)
    types, _ = shape_of(found, "bert.embeddings.token_type_embeddings.weight", 2)
    _, _, short = shape_of(found, f"{FIRST}.attention.short_filter.weight", 3)
    blocks, _, inner = shape_of(found, f"{FIRST}.mlp.wo.weight", 3)
    order, features = shape_of(found, f"{FILTER}.implicit_filter.0.weight", 2)
    hidden = [name for name in found if re.fullmatch(rf"{re.escape(FILTER)}\.implicit_filter\.\d+\.bias", name)]
    head = "mlm" if any(name.startswith("cls.") for name in found) else "encoder"
    head = "classifier" if "classifier.weight" in found else head
    dropout = number(config, "hidden_dropout_prob", 0.1)
    sizes = M2BertConfig(
        hidden_size=width,
        intermediate_size=blocks * inner,
        num_hidden_layers=len({match[1] for name in found if (match := LAYER.match(name))}),
        vocab_size=rows,
        max_position_embeddings=positions,
        hyena_filter_order=order,
        hyena_emb_dim=features,
        num_inner_mlps=len(hidden) - 1,
        short_filter_order=short,
        monarch_mlp_nblocks=blocks,
        type_vocab_size=types,
        residual_long_conv=f"{FIRST}.attention.filter_fn2.bias" in found,
        hyena_training_additions=f"{FIRST}.attention.layernorm.weight" in found,
        head=head,
        num_labels=shape_of(found, "classifier.weight", 2)[0] if head == "classifier" else 2,
        pooler="bert.pooler.dense.weight" in found,
        pool_all=config.get("pool_all") is True,
        layer_norm_eps=number(config, "layer_norm_eps", 1e-12),
        hidden_dropout_prob=dropout,
        classifier_dropout=number(config, "classifier_dropout", dropout),
        initializer_range=number(config, "initializer_range", 0.02),
    )
    check_config(config, sizes)
    return sizes


def check_config(config: Mapping[str, Any], sizes: M2BertConfig) -> None:
    """Refuse a config.json that contradicts the weights, or asks for what this module does not compute."""
    only = "the only one supported"
    agree(
        config,
        {
            "hidden_size": (sizes.hidden_size, "columns of the embedding"),
            "intermediate_size": (sizes.intermediate_size, "inputs of mlp.wo"),
            "num_hidden_layers": (sizes.num_hidden_layers, "layers"),
            "max_position_embeddings": (sizes.max_position_embeddings, "positions"),
            "long_conv_l_max": (sizes.max_position_embeddings, "positions"),
            "hyena_filter_order": (sizes.hyena_filter_order, "rows of implicit_filter.0"),
            "hyena_emb_dim": (sizes.hyena_emb_dim, "columns of implicit_filter.0"),
            "monarch_mlp_nblocks": (sizes.monarch_mlp_nblocks, "blocks of mlp.wo"),
            "type_vocab_size": (sizes.type_vocab_size, "rows of token_type_embeddings"),
            "residual_long_conv": (sizes.residual_long_conv, "filter_fn2 tells"),
            "hyena_training_additions": (sizes.hyena_training_additions, "attention.layernorm tells"),
            "bidirectional": (True, "implicit_filter_rev is stored"),
            "pad_token_id": (PAD, only),
            "hidden_act": ("gelu", only),
            "hyena_w_mod": (1, only),
            "use_glu_mlp": (True, only),
            "use_monarch_mlp": (True, only),
            "use_positional_encodings": (True, only),
            "monarch_mixer_sequence_mixing": (True, only),
        },
    )
    tokens = number(config, "vocab_size", sizes.vocab_size)
    if not tokens <= sizes.vocab_size < tokens + ROWS_MULTIPLE:
        raise ValueError(
            f"config.json says vocab_size {tokens}, the embedding has {sizes.vocab_size} rows; "
            f"take config.json and weights from the same checkpoint"
        )


def sites(model: Any, sizes: M2BertConfig | None = None) -> tuple[ConvSite, ...]:
    """The long convolutions of every layer, first to last: the gated one, and the residual one if there is one.

    sizes: those of `model`; None takes `model.config`.
    """
    known: M2BertConfig = model.config if sizes is None else sizes
    seqlen = known.max_position_embeddings
    return tuple(
        ConvSite(
            name=name if name.startswith("bert.") else f"bert.{name}",
            channels=known.hidden_size,
            length=2 * seqlen,
            context=seqlen,
            causal=False,
            materialize=module.materialize,
            install=module.set_conv,
            weights=module.weights,
        )
        for name, module in model.named_modules()
        if isinstance(module, BiConv)
    )


def tokenizer(model: M2Bert, folder: Path) -> TextTokenizer:
    """The vocabulary beside the weights, or that of bert-base-uncased; nothing is read before it is needed."""
    return TextTokenizer(folder, model.config.vocab_size, model.config.max_position_embeddings)


def config_overrides(sizes: M2BertConfig) -> dict[str, Any]:
    """The family's own name: published ones say "bert", and transformers' BertModel would take such a folder."""
    return {"model_type": MODEL_TYPE}


def save(
    model: M2Bert, out: str | Path, tokenizer: TextTokenizer, besides: Mapping[str, Any] | None = None,
    pad_to: int | None = None,
) -> Path:  # fmt: skip
    """The folder `out` with a checkpoint of `model` as `load` reads it: weights, config.json and vocabulary.

    besides: what config.json says beyond the model's own, under names that no family has.
    pad_to: tokens that every text was padded to in training, 0 for none, which the vocabulary remembers.
    Whole or not at all.  A folder that is there already is refused.
    """
    out = Path(out).expanduser().resolve()
    if out.exists():
        raise ValueError(f"{out} is there already; name a new folder")
    with whole_folder(out) as new:
        write_tensors(new, without_tied(model.state_dict(), DECODER, EMBEDDING))
        config = {**(besides or {}), **model.config.to_dict()}
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(new, model.config.max_position_embeddings, pad_to)
    return out
