"""Hyena LM: Hyena on English, in the tokens of GPT-2 (Poli et al. 2023, arXiv 2302.10866).

As published its file is a pickle of tensors alone, without a config.json, so all sizes follow from shapes.  Against
HyenaDNA the positions that filters are made of are trained, so they are read and never recomputed, and filters have no
decay window; tables of one are in the file all the same.  No token is put before or after a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.stream import Stream

from .family import Shapes
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
from .state_dict import agree, assign, equal, rename_all
from .tokenizers.bpe import BpeTokenizer

TOKENS = 50257  # of the vocabulary; what the embedding has beyond is padding
PIECE = 1 << 11  # tokens of a stream that are worked through at once: each has 50,264 logits, 400 MB together
OPTIONS: Mapping[str, str] = {}
BUFFERS = ("pos_emb.t", "modulation.deltas")  # never trained


@dataclass(frozen=True)
class HyenaLMConfig(HyenaConfig):
    """Sizes and choices of one model."""

    emb_dim: int = 33
    modulate: bool = False  # as it was evaluated by its authors

    trained_positions: ClassVar[bool] = True


class HyenaLM(Hyena):
    """input_ids (B, L) -> logits (B, L, vocab_rows); no token is meant by the columns from TOKENS on."""

    config: HyenaLMConfig

    @property
    def letters(self) -> range:
        return range(TOKENS)

    def stream(self, batch: int = 1, piece: int = PIECE) -> Stream:
        """As every Hyena's, in shorter pieces."""
        return super().stream(batch, piece)

    def tie(self) -> None:
        """One parameter for the words read and the words predicted."""
        words = self.backbone.embeddings["word_embeddings"]
        assert isinstance(words, torch.nn.Embedding)
        self.lm_head.weight = words.weight


def matches(shapes: Shapes) -> bool:
    """True if the names are those of a Hyena model and the embedding is GPT-2's.  shapes: stored name -> shape."""
    return embedding_rows(shapes) == LM_ROWS


def build(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    options: Mapping[str, Any] = MappingProxyType({}),
    dtype: torch.dtype = torch.float32,
) -> tuple[HyenaLM, tuple[str, ...]]:
    """The model these tensors make, and what was decided on the way, a sentence each: see `family.Family.build`."""
    found, config = rename_all(tensors, rename), flat(config)
    check_heads(found, (HEAD,), f"a language model's head, {HEAD}")
    sizes = configure(found, config)
    notes = []
    if config.get("modulate") is None:
        notes.append('no decay window, as its authors evaluate it; "modulate": true in config.json puts one in')
    tied = equal(found.setdefault(HEAD, found[EMBEDDING]), found[EMBEDDING])
    if not tied:
        notes.append("the lm_head is stored with values of its own, so it is not tied to the embedding")
    places, made = filters(sizes.n_layer), (sizes.emb_dim, sizes.max_seq_len, sizes.d_model)
    notes += complete(found, places, BUFFERS, made)
    with torch.device("meta"):
        model = HyenaLM(sizes)
    assign(model, found, dtype)
    if tied:
        model.tie()
    return model, tuple(notes)


def configure(found: Mapping[str, Tensor], config: Mapping[str, Any]) -> HyenaLMConfig:
    """Sizes as the tensors have them; a config that says otherwise is refused.  found: our names -> tensor."""
    agree(config, {"shift": (0.0, "the decay window of Hyena LM has no floor")})
    modulate = config.get("modulate")
    if modulate is not None and not isinstance(modulate, bool):
        raise ValueError(f"config.json says modulate {modulate!r:.60}, expected true or false")
    sizes = HyenaLMConfig(**sizes_of(found, config), modulate=bool(modulate))
    check_vocabulary(config, sizes.vocab_rows, TOKENS, "Hyena LM", "GPT-2's tokens")
    return sizes


def tokenizer(model: HyenaLM, folder: Path) -> BpeTokenizer:
    """The vocabulary beside the weights, or GPT-2's; nothing is read before it is needed."""
    return BpeTokenizer(folder, model.config.vocab_rows, TOKENS, model.config.max_seq_len)


def config_overrides(sizes: HyenaLMConfig) -> dict[str, Any]:
    """What the shapes do not tell and config.json must keep."""
    return {"modulate": sizes.modulate}
