"""The English Hyena LM as it is published, at any size, with random weights; and a vocabulary as long as GPT-2's.

Its tensors have the names and shapes of HyenaDNA's (`layouts`); what differs is written down here.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import torch
from layouts import Dialect, Sizes, Tensors

TOKENS, ROWS = 50257, 50264  # of GPT-2's vocabulary, and of an embedding of it
SMALL_150B = Sizes(18, 864, 1728, 2048, emb_dim=33, rows=ROWS)  # Zymrael/hyena-small-150b-tok
TINY = Sizes(2, 12, 20, 64, emb_dim=9, order=8, rows=ROWS)
FILE = "hyena_small_150b_tok.ckpt"  # a name of its own
Z = "mixer.filter_fn.pos_emb.z"

PUBLISHED = Dialect(freqs=(1, 3, 5))
DIALECTS = {
    "published": PUBLISHED,
    "wrapped": replace(PUBLISHED, prefix="module.model.", head_prefix="module.model.", wrapped=True),
    "without a head": replace(PUBLISHED, head=None),
    "hub's names": Dialect(prefix="hyena."),
}


def shapes(s: Sizes = TINY) -> dict[str, tuple[int, ...]]:
    """Every tensor: plain name -> shape."""
    return {name: shape for name, shape in layouts.shapes(s).items() if not name.startswith("score")}


def weights(s: Sizes = TINY, seed: int = 0) -> Tensors:
    """Random float32 tensors under plain names; positions have been trained, so they are others in each layer."""
    draw = torch.Generator().manual_seed(seed + 1)
    plain = {name: tensor for name, tensor in layouts.weights(s, seed).items() if name in shapes(s)}
    for name in (name for name in plain if name.endswith(Z)):
        plain[name] = plain[name] + 0.2 * torch.randn(plain[name].shape, generator=draw)
    return plain


def untied(s: Sizes = TINY) -> Tensors:
    """Weights whose head is not the embedding, as after fine-tuning."""
    return {**weights(s), "lm_head.weight": weights(s, seed=1)["lm_head.weight"]}


def dress(plain: Mapping[str, Any], dialect: str = "published") -> dict[str, Any]:
    """The same tensors (or shapes) under the names of a dialect."""
    return layouts.dress(plain, DIALECTS[dialect])


def write(folder: Path, dialect: str = "published", plain: Tensors | None = None, **config: Any) -> Path:
    """A checkpoint folder, one pickle of tensors alone; returns it.  config: of a config.json, none without."""
    folder.mkdir(parents=True)
    torch.save(OrderedDict(dress(weights() if plain is None else plain, dialect)), folder / FILE)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- a vocabulary ----------------------------------------------------------------------------------------------------

MERGES = ("t h", "th e", "Ġ the", "i n", "Ġ a", "Ã ©")
END = "<|endoftext|>"


def byte_letters() -> list[str]:
    """A letter for each of the 256 bytes, in GPT-2's order: those that show first, then the others from U+0100 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]


def vocabulary(tokens: int = TOKENS) -> dict[str, int]:
    """Token -> id: bytes, what MERGES make, tokens that nothing makes, and the end of a text."""
    made = [*byte_letters(), *("".join(merge.split()) for merge in MERGES)]
    made += [f"unused {i}" for i in range(tokens - len(made) - 1)]
    return {token: i for i, token in enumerate([*made, END])}


def write_vocabulary(folder: Path, tokens: int = TOKENS) -> Path:
    """vocab.json and merges.txt in a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(tokens)))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return folder
