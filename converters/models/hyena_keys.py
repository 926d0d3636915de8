"""What checkpoints of the Hyena models call their tensors, and the sizes that follow from the shapes.

HyenaDNA and the English Hyena LM have the same names; the rows of the embedding tell them apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sparsify.converters.state_dict import (
    agree,
    is_leftover,
    listed,
    number,
    refuse_other_heads,
    shape_of,
    strip_wrappers,
    whole,
)

TRUNK = re.compile(r"backbone\.layers\.\d+\.mixer\.(?:layer\.)?filter_fn\.implicit_filter\.")
CHECKPOINTED = re.compile(r"\.(mixer|mlp)\.layer\.")  # what gradient checkpointing wraps gains a `.layer`
SHARED_FREQ = re.compile(r"\.implicit_filter\.\d*[13579]\.freq$")
LAYER = re.compile(r"backbone\.layers\.(\d+)\.")
EMBEDDING = "backbone.embeddings.word_embeddings.weight"
HEAD = "lm_head.weight"
RESEARCH_HEAD = re.compile(r"(?:head|decoder(?:\.\d+)?)\.output_transform\.")
FILTER = "backbone.layers.0.mixer.filter_fn"
LM_ROWS = 50264  # of the embedding of a Hyena LM: GPT-2's 50,257 tokens, padded
MULTIPLE = 8  # that an embedding's rows are padded to, unless config.json says otherwise
TOLD_BY = {
    "d_model": "columns of the embedding",
    "d_inner": "rows of mlp.fc1",
    "n_layer": "layers",
    "max_seq_len": "positions in pos_emb",
    "emb_dim": "columns of implicit_filter.0",
    "filter_order": "rows of implicit_filter.0",
    "num_inner_mlps": "inner layers of implicit_filter",
    "short_filter_order": "taps of short_filter",
}
ONLY = {
    "hyena_order": (2, "the only order supported"),
    "order": (2, "the only order supported"),
    "normalized": (False, "normalised filters are not supported"),
}


def embedding_rows(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the embedding if the names are those of a Hyena model, 0 where there is none, else None.

    shapes: stored name -> shape.
    """
    names = {plain_name(name): shape for name, shape in shapes.items()}
    if not any(TRUNK.match(name) for name in names):
        return None
    return next(iter(names.get(EMBEDDING, ())), 0)


def plain_name(name: str) -> str:
    """A stored name without what is put around a model."""
    return strip_wrappers(name).removeprefix("hyena.")


def rename(name: str) -> str | None:
    """Our name for a stored tensor; None for what is of a training run alone, such as the counters of torchmetrics."""
    if is_leftover(name := plain_name(name)):
        return None
    name = CHECKPOINTED.sub(r".\1.", name)
    return SHARED_FREQ.sub(".implicit_filter.1.freq", name)  # one parameter, which some files store three times


def check_heads(found: Iterable[str], own: tuple[str, ...], ours: str) -> None:
    """Refuse a head that is none of ours.  found: our names; own: ours; ours: what they are, in words."""
    if research := sorted(name for name in found if RESEARCH_HEAD.match(name)):
        raise ValueError(
            f"the checkpoint has the head of HyenaDNA's research code, {listed(research)}, which reads the mean over "
            f"all positions unless its training said otherwise, and a classifier here reads the last one alone, so "
            f"its scores would be others; take these tensors out of the file to load the model without a head"
        )
    refuse_other_heads(found, ("backbone.", *own), "Hyena", ours)


def filters(n_layer: int) -> list[str]:
    """Names of the modules that hold a filter."""
    return [f"backbone.layers.{i}.mixer.filter_fn" for i in range(n_layer)]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the choices of the operator, which the raw dialect keeps under `layer`, beside the others."""
    layer = config.get("layer")
    return {**config, **(layer if isinstance(layer, Mapping) else {})}


def sizes_of(found: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a HyenaConfig is made of, as far as tensors tell it; a config that says otherwise is refused.

    found: our names -> tensor.  config: `flat`.
    """
    rows, d_model = shape_of(found, EMBEDDING, 2)
    _, _, short = shape_of(found, "backbone.layers.0.mixer.short_filter.weight", 3)
    d_inner, _ = shape_of(found, "backbone.layers.0.mlp.fc1.weight", 2)
    order, emb_dim = shape_of(found, f"{FILTER}.implicit_filter.0.weight", 2)
    hidden = [name for name in found if re.fullmatch(rf"{re.escape(FILTER)}\.implicit_filter\.\d+\.bias", name)]
    layers = {match[1] for name in found if (match := LAYER.match(name))}
    sizes = {
        "d_model": d_model,
        "d_inner": d_inner,
        "n_layer": len(layers),
        "max_seq_len": filter_length(found, config),
        "emb_dim": emb_dim,
        "filter_order": order,
        "num_inner_mlps": len(hidden) - 1,
        "short_filter_order": short,
    }
    truth = {name: (size, TOLD_BY[name]) for name, size in sizes.items()}
    agree(config, {**truth, "l_max": truth["max_seq_len"], **ONLY})
    return {**sizes, "vocab_rows": rows, "layer_norm_epsilon": number(config, "layer_norm_epsilon", 1e-5)}


def filter_length(found: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """K, from the stored positions, or from the config where they are left out."""
    for name in (f"{FILTER}.pos_emb.z", f"{FILTER}.pos_emb.t"):
        if name in found:
            return shape_of(found, name, 3)[1]
    length = whole(config, "max_seq_len", whole(config, "l_max", 0))
    if not length:
        raise ValueError(
            "neither pos_emb.z is stored nor max_seq_len in config.json, so the filters' length is unknown"
        )
    return length


def check_vocabulary(config: Mapping[str, Any], rows: int, tokens: int, model: str, text: str) -> None:
    """Refuse an embedding that is not that of `tokens` tokens, padded.  model: whose they are; text: what of."""
    size, multiple = whole(config, "vocab_size", tokens), whole(config, "pad_vocab_size_multiple", MULTIPLE)
    if size != tokens:
        raise ValueError(f"config.json says vocab_size {size}, {model}'s is {tokens}; not a model of {text}")
    if rows != (padded := padded_rows(tokens, multiple)):
        raise ValueError(
            f"the embedding has {rows} rows, a vocabulary of {tokens} tokens padded to a multiple of {multiple} "
            f"has {padded}; the checkpoint has another vocabulary, and only HyenaDNA's and GPT-2's are supported"
        )


def padded_rows(tokens: int, multiple: int) -> int:
    """Rows of an embedding of so many tokens."""
    return math.ceil(tokens / max(1, multiple)) * max(1, multiple)
