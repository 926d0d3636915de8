"""HyenaDNA: implicit long filters on single nucleotides (Nguyen et al. 2023, arXiv 2306.15794).

Both dialects of its checkpoints, hub (`-hf`) and raw (Lightning), with a head for language modelling (tied to the
embedding where none is stored) or sequence classification.  Order-2 operators only, as in every released checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.stream import PIECE, Stream

from .family import Shapes, number_option
from .models.hyena import Hyena, HyenaConfig
from .models.hyena import sites as sites  # which every family has
from .models.hyena_keys import (
    EMBEDDING,
    HEAD,
    LM_ROWS,
    check_heads,
    check_vocabulary,
    embedding_rows,
    filters,
    flat,
    sizes_of,
)
from .models.hyena_keys import rename as rename  # as of every family
from .models.implicit_filter import complete
from .state_dict import assign, number, rename_all, shape_of, whole
from .tokenizers.dna import PAD, VOCABULARY, DnaTokenizer

SCORE = "score.weight"  # of a classifier
OPTIONS: Mapping[str, str] = {"shift": "floor of the decay window: 0 as trained, 0.05 as in the hub's own code"}
BUFFERS = ("pos_emb.z", "pos_emb.t", "modulation.deltas")  # never trained


@dataclass(frozen=True)
class HyenaDNAConfig(HyenaConfig):
    """Sizes and choices of one model, its head among them."""

    num_labels: int | None = None  # width of a classification head; None is a language model
    pad_token_id: int = PAD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels is not None and self.num_labels < 1:
            raise ValueError(f"a classifier has at least 1 label, got {self.num_labels}")
        if not 0 <= self.pad_token_id < self.vocab_rows:
            raise ValueError(f"pad_token_id must be one of the {self.vocab_rows} tokens, got {self.pad_token_id}")

    @property
    def context(self) -> int:
        """Nucleotides that fit beside the two special tokens."""
        return self.max_seq_len - 2


class HyenaDNA(Hyena):
    """input_ids (B, L) -> logits (B, L, vocab_rows), or scores (B, num_labels)."""

    config: HyenaDNAConfig

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__(config, lm_head=config.num_labels is None)
        if config.num_labels is not None:
            self.score = nn.Linear(config.d_model, config.num_labels, bias=False)

    @property
    def head(self) -> str:
        return "lm" if self.config.num_labels is None else "classifier"

    @property
    def letters(self) -> range:
        return range(*DnaTokenizer.id_range)

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.config.num_labels is None:
            return super().forward(input_ids)
        return self.score(pool(self.hidden(input_ids), input_ids == self.config.pad_token_id))

    def stream(self, batch: int = 1, piece: int = PIECE) -> Stream:
        """As every Hyena's; a classifier has none."""
        if self.config.num_labels is not None:
            raise ValueError("a classifier scores whole sequences; only a language model can be fed in pieces")
        return super().stream(batch, piece)


def pool(x: Tensor, is_padding: Tensor | None) -> Tensor:
    """State before the first padding token; the last one where padding leads or is missing: x (B, L, D) -> (B, D).

    is_padding: (B, L) bool; None where nobody knows.
    """
    first_pad = torch.zeros(len(x), dtype=torch.int64) if is_padding is None else is_padding.int().argmax(-1)
    return x[torch.arange(len(x), device=x.device), first_pad.to(x.device) - 1]


def matches(shapes: Shapes) -> bool:
    """True if the names are HyenaDNA's, in either dialect.  shapes: stored name -> shape."""
    return embedding_rows(shapes) not in (None, LM_ROWS)


def build(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    options: Mapping[str, Any] = MappingProxyType({}),
    dtype: torch.dtype = torch.float32,
) -> tuple[HyenaDNA, tuple[str, ...]]:
    """The model these tensors make, and what was decided on the way, a sentence each: see `family.Family.build`."""
    found, config = rename_all(tensors, rename), flat(config)
    check_heads(found, (HEAD, SCORE), f"a language model's head, {HEAD}, or a classifier's, {SCORE}")
    shift = number_option(options, "shift")
    sizes = configure(found, config, shift)
    notes = []
    if shift is None and "shift" not in config:
        notes.append("decay window without floor (shift 0.0), as in training; the hub's modelling code adds 0.05")
    if sizes.num_labels is None and HEAD not in found:
        found[HEAD] = found[EMBEDDING]
        notes.append("no lm_head is stored: tied to the embedding")
    made = (sizes.emb_dim, sizes.max_seq_len, sizes.d_model)
    notes += complete(found, filters(sizes.n_layer), BUFFERS, made)
    with torch.device("meta"):
        model = HyenaDNA(sizes)
    assign(model, found, dtype)
    return model, tuple(notes)


def configure(found: Mapping[str, Tensor], config: Mapping[str, Any], shift: float | None) -> HyenaDNAConfig:
    """Sizes as the tensors have them; a config that says otherwise is refused.  found: our names -> tensor."""
    sizes = HyenaDNAConfig(
        **sizes_of(found, config),
        num_labels=shape_of(found, SCORE, 2)[0] if SCORE in found else None,
        shift=number(config, "shift", 0.0) if shift is None else shift,
        modulate=config.get("modulate") is not False,
        pad_token_id=whole(config, "pad_token_id", PAD),
    )
    check_vocabulary(config, sizes.vocab_rows, len(VOCABULARY), "HyenaDNA", "DNA")
    return sizes


def tokenizer(model: HyenaDNA, folder: Path) -> DnaTokenizer:
    """The vocabulary is the same in every checkpoint; nothing is read to know it."""
    return DnaTokenizer(model.config.max_seq_len)


def config_overrides(sizes: HyenaDNAConfig) -> dict[str, Any]:
    """What the shapes do not tell and config.json must keep."""
    return {"shift": sizes.shift}
