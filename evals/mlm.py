"""How well a model fills in masked tokens: one pass, the same masks for every variant.

The figure is a pseudo-perplexity: exp of the mean loss of masked tokens given all the others.  It is no probability of
a text, and two figures compare only under the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.report import schema

from .data import Rows
from .quality import Comparison, Quality, Versus, exponential, refuse_not_finite, score, standard_error

FillIn = Callable[[Tensor, Tensor], Tensor]
"""ids (B, L) int64 and which were masked (B, L) bool -> logits (n, V) of the masked ones, row by row."""

SHARE = 0.15  # of a window's tokens


@dataclass(frozen=True, eq=False)
class Masked(Rows):
    """Windows with some of their tokens hidden."""

    words: Tensor  # (W, L) int64, what the text has
    hidden: Tensor  # (W, L) bool
    document: Tensor  # (W,) int64, windows of the same number are of one document
    mask_id: int
    how: str  # which tokens are hidden
    available: int = 0  # windows there were before a limit; 0 means these are all
    figure: ClassVar = "pseudo-perplexity"

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> Tensor:
        """(W, L) int64 as the model reads them, hidden tokens replaced."""
        return self.words.masked_fill(self.hidden, self.mask_id)

    @property
    def targets(self) -> Tensor:
        """What is hidden, row by row: (n,) int64."""
        return self.words[self.hidden]

    @property
    def per_window(self) -> Tensor:
        """Hidden tokens of every window: (W,) int64."""
        return self.hidden.sum(1)

    @property
    def context(self) -> int:
        return self.words.shape[1]

    @property
    def stride(self) -> int:
        """Tokens from one window's start to the next: they do not overlap."""
        return self.context

    @property
    def n_tokens(self) -> int:
        """Hidden tokens."""
        return int(self.hidden.sum())

    @property
    def sample(self) -> Tensor:
        """(W,) int64, windows of the same number are not independent of each other."""
        return self.document if self.n_documents > 1 else torch.arange(len(self))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"words": self.words, "hidden": self.hidden, "document": self.document}

    def inputs(self, rows: slice) -> tuple[Tensor, ...]:
        """What a model reads of some windows: `FillIn`."""
        return self.ids[rows], self.hidden[rows]

    def convention(self) -> str:
        """What was scored, in words that travel with the numbers."""
        few = f", evenly spaced among {self.available:,}" if self.available > len(self) else ""
        return (
            f"{self.figure} = exp(mean NLL over masked tokens), {self.how}; {self.n_tokens} tokens in {len(self)} "
            f"windows of {self.context}{few}, documents: {self.n_documents}; softmax over all logit columns in float64"
        )


@dataclass(frozen=True)
class FilledIn:
    """How well one variant fills in.  Standard errors are None where there is just one independent sample."""

    name: str
    nll_per_token: float  # nats
    nll_stderr: float | None
    pseudo_perplexity: float
    pseudo_perplexity_stderr: float | None
    accuracy: float  # share of hidden tokens that are the first guess
    versus: Versus | None  # None for the baseline

    @property
    def quality(self) -> Quality:
        """The same with the pseudo-perplexity for a perplexity."""
        own = self.nll_per_token, self.nll_stderr, self.pseudo_perplexity, self.pseudo_perplexity_stderr
        return Quality(self.name, *own, self.nll_per_token / math.log(2), (), self.versus)

    def report(self) -> schema.FilledIn:
        """The same, as it is reported: flat."""
        versus = {} if self.versus is None else asdict(self.versus)
        own = {name: value for name, value in asdict(self).items() if name != "versus"}
        renamed = {name.replace("perplexity", "pseudo_perplexity"): value for name, value in versus.items()}
        return schema.FilledIn(**own, **renamed)


def mask(
    ids: Tensor,
    special: Sequence[int],
    mask_id: int,
    share: float = SHARE,
    seed: int = 0,
    document: Tensor | None = None,
    available: int = 0,
) -> Masked:
    """The same windows with `share` of their ordinary tokens, at least one, replaced by `mask_id`.

    ids: (W, L) int64.  special: ids that are never hidden, such as [CLS] and padding.  document: (W,) int64, all of one
    unless given.  available: windows there were.  Which tokens are hidden follows from the seed, their number and the
    windows' order alone.  Every hidden token becomes the mask, none stays or becomes another one as in training.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share}; try {SHARE}")
    ordinary = ~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int64))
    counts = ordinary.sum(1)
    if not counts.all():
        raise ValueError(f"window {int((counts == 0).nonzero()[0])} holds special tokens alone; leave it out")
    wanted = (counts * share).round().clamp_min(1)
    draw = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = draw.masked_fill(~ordinary, torch.inf).argsort(1).argsort(1)  # of every token in the order of the draw
    how = f"{share:.0%} of the tokens of every window masked (seed {seed}), all replaced by the mask"
    document = torch.zeros(len(ids), dtype=torch.int64) if document is None else document
    return Masked(ids, place < wanted[:, None], document, mask_id, how, available)


def compare(
    variants: Mapping[str, FillIn],
    masked: Masked,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, FilledIn]:
    """Every variant on the same masks, and its distance from the first, the baseline: name -> FilledIn.

    progress(done, total) is called in windows.
    """
    if not variants:
        raise ValueError("no variants were given; pass at least the dense model")
    per_window, all_targets = masked.per_window, masked.targets
    sums = {name: torch.zeros(4, len(masked), dtype=torch.float64) for name in variants}  # nll, kl, agreement, hits
    seen = 0
    for start in range(0, len(masked), batch_size):
        rows = slice(start, start + batch_size)
        count = int(per_window[rows].sum())
        window = torch.arange(len(masked))[rows].repeat_interleave(per_window[rows])
        targets, seen = all_targets[seen : seen + count], seen + count
        baseline: Tensor | None = None
        for name, fill_in in variants.items():
            with torch.no_grad():
                logits = fill_in(*masked.inputs(rows))
            if logits.dim() != 2 or len(logits) != count:
                raise ValueError(
                    f"variant {name!r} gave {tuple(logits.shape)}, expected a row for each of {count} masks"
                )
            baseline = logits if baseline is None else baseline
            nll, kl, agree = score(logits, targets, baseline, name)
            hits = (logits.argmax(-1).cpu() == targets).double()
            sums[name].index_add_(1, window, torch.stack([nll, kl, agree, hits]))
            refuse_not_finite(name, sums[name][0, rows], start)
        if progress is not None:
            progress(min(start + batch_size, len(masked)), len(masked))
    return summarise(sums, per_window.double(), masked.sample)


def summarise(sums: Mapping[str, Tensor], tokens: Tensor, sample: Tensor) -> dict[str, FilledIn]:
    """Totals by window, (4, W) a variant, as means with standard errors."""
    first, *_ = sums

    def mean(x: Tensor) -> tuple[float, float | None]:
        return float(x.sum() / tokens.sum()), standard_error(x, tokens, sample)

    found = {}
    for name, (nll, kl, agree, hits) in sums.items():
        difference = mean(nll - sums[first][0])
        versus = Versus(first, *difference, *exponential(*difference), mean(kl)[0], mean(agree)[0])
        own = mean(nll)
        found[name] = FilledIn(name, *own, *exponential(*own), mean(hits)[0], None if name == first else versus)
    return found


def comparison(found: Mapping[str, FilledIn], masked: Masked) -> Comparison:
    """The same as `quality.compare` says it of next tokens."""
    by_document = masked.n_documents > 1
    count, samples = (masked.n_documents, "documents") if by_document else (len(masked), "windows")
    convention = f"{masked.convention()}; standard errors over {count} {samples}"
    variants = {name: row.quality for name, row in found.items()}
    return Comparison(variants, masked.n_tokens, count, samples, convention, masked.figure)
