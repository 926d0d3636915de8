"""Do sentence embeddings find the same texts?  A small retrieval set out of any text, and two models on it.

A paragraph is cut in two near its middle; the first half asks, and the second halves of all paragraphs are searched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.report.schema import Retrieved
from sparsify.storage.reading import lines as lines_of

from .data import Document, evenly
from .glue.metrics import spearman
from .glue.significance import mean_difference

Embed = Callable[[Sequence[str]], Tensor]  # texts -> embeddings (B, D), any float dtype

LEAST_WORDS = 20  # of a half
TOP = 10
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Halves:
    """Paragraphs in two parts."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]  # in the same order
    available: int  # paragraphs there were before a limit

    def __len__(self) -> int:
        return len(self.queries)

    def convention(self) -> str:
        """What was searched for what, in words that travel with the numbers."""
        return (
            f"first halves of {len(self)} of {self.available} paragraphs as queries, their second halves as passages; "
            f"cosine similarity, MRR = mean of 1 / rank of the own second half"
        )


def halves(documents: Sequence[Document], limit: int = 0) -> Halves:
    """The paragraphs of a text in two parts each, at the end of a sentence.  limit: at most so many, evenly spaced.

    Paragraphs end with a line that is blank; a line of two halves' words is one by itself.  Shorter ones, and those
    without a sentence's end that leaves LEAST_WORDS on both sides, are left out.
    """
    found = [cut for document in documents for text in paragraphs(document.text) if (cut := cut_in_two(text))]
    if len(found) < 2:
        raise ValueError(f"the text has {len(found)} paragraphs of two halves; pass a longer one, paragraphs apart")
    kept = [found[i] for i in evenly(len(found), limit or len(found))]
    queries, passages = zip(*kept, strict=True)
    return Halves(queries, passages, len(found))


def paragraphs(text: str) -> list[str]:
    """Pieces of a text between blank lines; long lines are pieces of their own."""
    pieces: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in lines_of(block)]
        long = any(len(line.split()) >= 2 * LEAST_WORDS for line in lines)
        pieces += lines if long else [" ".join(lines)]
    return pieces


def cut_in_two(text: str) -> tuple[str, str] | None:
    """A paragraph at the sentence's end nearest its middle; None where that leaves too little."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    if not ends:
        return None
    middle = min(ends, key=lambda end: abs(end - len(text) / 2))
    first, second = text[:middle].strip(), text[middle:].strip()
    enough = min(len(first.split()), len(second.split())) >= LEAST_WORDS
    return (first, second) if enough else None


def compare(
    variants: Mapping[str, Embed],
    pairs: Halves,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Retrieved]:
    """Every variant on the same set, and how far it strays from the first, the baseline: name -> Retrieved.

    progress(done, total) is called in texts.
    """
    if not variants:
        raise ValueError("no variants were given; pass at least the dense model")
    texts = (*pairs.queries, *pairs.passages)
    parts: dict[str, list[Tensor]] = {name: [] for name in variants}
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        for name, embed in variants.items():
            with torch.no_grad():
                parts[name].append(directions(embed(batch), len(batch), name))
        if progress is not None:
            progress(min(start + batch_size, len(texts)), len(texts))
    embedded = {name: torch.cat(part) for name, part in parts.items()}
    first, *_ = variants
    return {name: found(name, own, None if name == first else embedded[first]) for name, own in embedded.items()}


def directions(embeddings: Tensor, count: int, name: str) -> Tensor:
    """Embeddings of length 1: (B, D) float64 on the CPU."""
    if embeddings.dim() != 2 or len(embeddings) != count:
        raise ValueError(f"variant {name!r} gave {tuple(embeddings.shape)} for {count} texts, expected one vector each")
    wide = embeddings.double().cpu()
    size = wide.norm(dim=1, keepdim=True)
    if not (size.isfinite() & (size > 0)).all():
        raise ValueError(f"variant {name!r} gave an embedding of no length, or an infinite or undefined one")
    return wide / size


def found(name: str, own: Tensor, baseline: Tensor | None) -> Retrieved:
    """The figures of one variant.  own, baseline: (2 N, D) float64 directions, queries first."""
    similarity, ranks = searched(own)
    reciprocal = (1 / ranks).numpy()
    if baseline is None:
        return Retrieved(name, float(reciprocal.mean()), None, None, None, None, None, None)
    theirs, their_ranks = searched(baseline)
    cosine = (own * baseline).sum(1)
    alike = [spearman(a.numpy(), b.numpy()) for a, b in zip(similarity, theirs, strict=True)]
    return Retrieved(
        name,
        float(reciprocal.mean()),
        *mean_difference((1 / their_ranks).numpy(), reciprocal),
        cosine=float(cosine.mean()),
        cosine_worst=float(cosine.min()),
        rank_agreement=float(np.mean(alike)),
        top_overlap=overlap(similarity, theirs),
    )


def searched(embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity of queries and passages (N, N), and the rank of every query's own passage (N,), both float64.

    Passages as similar as the own one count as half before it, so that embeddings all alike find nothing.
    """
    queries, passages = embedded.chunk(2)
    similarity = queries @ passages.T
    own = similarity.diagonal()[:, None]
    ties = (similarity == own).sum(1).double() - 1
    return similarity, 1 + (similarity > own).sum(1) + ties / 2


def overlap(similarity: Tensor, baseline: Tensor) -> float:
    """Mean share of the most similar passages, TOP of them, that both have."""
    top = min(TOP, similarity.shape[1])
    mine, theirs = (s.topk(top, dim=1).indices for s in (similarity, baseline))
    return float((mine[:, :, None] == theirs[:, None, :]).any(2).double().mean())
