"""How well a model predicts the next token, and how far a variant of it strays: one pass over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.report.schema import PositionBucket

from . import Logits
from .data import Windows

FIRST_BUCKET = 64  # positions 0-63, then powers of two: 64-127, 128-255, ...
CHUNK_BYTES = 1 << 26  # float64 work on logits proceeds in pieces of about this size
FIRST_TOKENS = 1 << 12  # of the first batch, at most: it tells how large logits are
BATCH_BYTES = 1 << 29  # of logits in a batch that is more than a window


@dataclass(frozen=True)
class Versus:
    """A variant against the baseline, paired token by token."""

    baseline: str
    nll_difference: float  # nats per token, variant - baseline
    nll_difference_stderr: float | None
    perplexity_ratio: float  # variant / baseline
    perplexity_ratio_stderr: float | None
    kl: float  # mean KL(baseline || variant), nats per token
    top1_agreement: float  # share of tokens where both would guess the same next token


@dataclass(frozen=True)
class Quality:
    """How well one variant predicts.  Standard errors are None where there is just one independent sample."""

    name: str
    nll_per_token: float  # nats
    nll_stderr: float | None
    perplexity: float
    perplexity_stderr: float | None
    bits_per_token: float
    by_position: tuple[PositionBucket, ...]
    versus: Versus | None  # None for the baseline


@dataclass(frozen=True)
class Comparison:
    """Every variant on the same tokens, and the convention under which the numbers were taken."""

    variants: Mapping[str, Quality]  # baseline first
    n_tokens: int
    count: int  # independent samples behind the standard errors
    samples: str  # what they are: "documents" or "windows"
    convention: str
    figure: str = "perplexity"  # what "perplexity" stands for in the numbers

    def __getitem__(self, name: str) -> Quality:
        if name not in self.variants:
            raise LookupError(f"no variant {name!r} was compared; there are {', '.join(self.variants)}")
        return self.variants[name]


@dataclass(frozen=True)
class Sums:
    """Running float64 totals of one variant."""

    nll: Tensor  # (W,) per window
    kl: Tensor  # (W,)
    agree: Tensor  # (W,) tokens with the baseline's first guess
    bucket_nll: Tensor  # (buckets,)

    @classmethod
    def zeros(cls, windows: int, buckets: int) -> Sums:
        return cls(*(torch.zeros(n, dtype=torch.float64) for n in (windows, windows, windows, buckets)))


def compare(
    variants: Mapping[str, Logits],
    windows: Windows,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Perplexity of every variant and its distance from the first, the baseline, in one pass.

    variants: name -> logits function.  progress(done, total) is called in windows.  Logits of the baseline and of
    one variant are held at a time: 2 * batch_size * context * V values, in smaller batches where V is large.
    """
    if not variants:
        raise ValueError("no variants were given; pass at least the dense model")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 window, got {batch_size}")
    edges = bucket_edges(windows.context)
    sums = {name: Sums.zeros(len(windows), len(edges)) for name in variants}
    tokens_in = torch.zeros(len(edges), dtype=torch.float64)  # scored tokens a bucket
    dtypes: dict[str, None] = {}  # an ordered set
    start, size = 0, min(batch_size, max(1, FIRST_TOKENS // windows.context))
    while start < len(windows):
        rows = slice(start, start + size)
        ids = windows.ids[rows]
        scored = torch.arange(1, windows.context) >= windows.scored_from[rows, None]  # (B, L - 1)
        window, position = scored.nonzero().unbind(1)
        window, position = window + start, position + 1
        bucket = torch.bucketize(position, edges, right=True) - 1
        tokens_in += torch.bincount(bucket, minlength=len(edges))
        baseline: Tensor | None = None
        for name, logits in variants.items():
            rows_of_logits = predict(f"variant {name!r}", logits, ids)[:, :-1][scored]
            dtypes[str(rows_of_logits.dtype).removeprefix("torch.")] = None
            baseline = rows_of_logits if baseline is None else baseline
            nll, kl, agree = score(rows_of_logits, ids[:, 1:][scored], baseline, name)
            sums[name].nll.index_add_(0, window, nll)
            sums[name].kl.index_add_(0, window, kl)
            sums[name].agree.index_add_(0, window, agree)
            sums[name].bucket_nll.index_add_(0, bucket, nll)
            refuse_not_finite(name, sums[name].nll[rows], start)
        start += len(ids)
        if progress is not None:
            progress(start, len(windows))
        assert baseline is not None  # there is a variant
        size = min(batch_size, max(1, BATCH_BYTES * len(ids) // max(1, baseline.nbytes)))
    return summarise(sums, windows, edges, tokens_in, "/".join(dtypes))


def predict(who: str, logits: Logits, ids: Tensor) -> Tensor:
    """Logits (B, L, V) of one batch, with their shape checked."""
    with torch.no_grad():  # not inference_mode: spectra that a model caches here may meet autograd later
        out = logits(ids).detach()
    if out.dim() != 3 or out.shape[:2] != ids.shape or not out.is_floating_point():
        raise ValueError(
            f"{who} returned {out.dtype} {tuple(out.shape)} for ids {tuple(ids.shape)}, "
            f"expected floating point logits ({ids.shape[0]}, {ids.shape[1]}, vocabulary)"
        )
    return out


def score(logits: Tensor, targets: Tensor, baseline: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: NLL, KL(baseline || logits) in nats, and whether the first guesses agree; (n,) float64, on the CPU.

    logits, baseline: (n, V).  targets: (n,) int64.  The softmax runs over all columns, in float64.
    """
    if logits.shape != baseline.shape:
        raise ValueError(
            f"variant {name!r} has {logits.shape[1]} logit columns and the baseline {baseline.shape[1]}; "
            f"compare models with the same vocabulary"
        )
    if int(targets.max()) >= logits.shape[1]:
        raise ValueError(
            f"the data holds token id {int(targets.max())} but variant {name!r} has {logits.shape[1]} logit columns; "
            f"encode with the tokenizer of this model"
        )
    parts = []
    step = max(1, CHUNK_BYTES // (8 * logits.shape[1]))
    for i in range(0, len(logits), step):
        log_q = logits[i : i + step].double().log_softmax(-1)
        nll = -log_q.gather(-1, targets[i : i + step, None].to(log_q.device))[:, 0]
        if logits is baseline:
            parts.append(torch.stack([nll, torch.zeros_like(nll), torch.ones_like(nll)]).cpu())
            continue
        log_p = baseline[i : i + step].to(log_q.device).double().log_softmax(-1)
        p = log_p.exp()
        kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)  # a column at -inf in both counts for nothing
        agree = log_p.argmax(-1) == log_q.argmax(-1)
        parts.append(torch.stack([nll, kl, agree.double()]).cpu())
    nll, kl, agree = torch.cat(parts, dim=1).unbind(0)
    return nll, kl, agree


def refuse_not_finite(name: str, nll: Tensor, start: int) -> None:
    """A NaN would swallow every other window in silence."""
    bad = (~nll.isfinite()).nonzero()
    if len(bad):
        raise ValueError(
            f"variant {name!r} gave an infinite or undefined loss in window {start + int(bad[0])}; "
            f"its logits overflow or hold NaN: try float32, or look at what was swapped in"
        )


def bucket_edges(context: int) -> Tensor:
    """First position of each bucket: 0, 64, 128, 256, ... below `context`; (buckets,) int64."""
    edges = [0]
    while (edge := max(FIRST_BUCKET, 2 * edges[-1])) < context:
        edges.append(edge)
    return torch.tensor(edges)


def summarise(sums: Mapping[str, Sums], windows: Windows, edges: Tensor, tokens_in: Tensor, dtype: str) -> Comparison:
    """The totals of `compare` as means with standard errors."""
    by_document = windows.n_documents > 1
    sample = windows.document if by_document else torch.arange(len(windows))
    tokens = (windows.context - windows.scored_from).double()
    baseline, *_ = sums

    def mean(x: Tensor) -> tuple[float, float | None]:
        return float(x.sum() / tokens.sum()), standard_error(x, tokens, sample)

    variants = {}
    for name, own in sums.items():
        nll, nll_stderr = mean(own.nll)
        difference, difference_stderr = mean(own.nll - sums[baseline].nll)
        ratio, ratio_stderr = exponential(difference, difference_stderr)
        versus = Versus(
            baseline=baseline,
            nll_difference=difference,
            nll_difference_stderr=difference_stderr,
            perplexity_ratio=ratio,
            perplexity_ratio_stderr=ratio_stderr,
            kl=mean(own.kl)[0],
            top1_agreement=mean(own.agree)[0],
        )
        perplexity, perplexity_stderr = exponential(nll, nll_stderr)
        variants[name] = Quality(
            name=name,
            nll_per_token=nll,
            nll_stderr=nll_stderr,
            perplexity=perplexity,
            perplexity_stderr=perplexity_stderr,
            bits_per_token=nll / math.log(2),
            by_position=buckets(own.bucket_nll, tokens_in, edges, windows.context),
            versus=None if name == baseline else versus,
        )
    samples = "documents" if by_document else "windows"
    count = windows.n_documents if by_document else len(windows)
    convention = (
        f"perplexity = exp(mean NLL over scored tokens), softmax over all logit columns in float64 from {dtype} "
        f"logits; {windows.convention()}; standard errors over {count} {samples}"
    )
    return Comparison(variants, windows.n_tokens, count, samples, convention)


def standard_error(sums: Tensor, counts: Tensor, sample: Tensor) -> float | None:
    """Standard error of sums.sum() / counts.sum() when only what has different `sample` numbers is independent.

    sums, counts: (W,) float64.  sample: (W,) int64.  The linearised ratio estimator (Cochran, Sampling Techniques,
    6.4); with equal counts it is the sample standard deviation over sqrt(samples).  None for a single sample.
    """
    _, group = sample.unique(return_inverse=True)
    n = int(group.max()) + 1
    if n < 2:
        return None
    residuals = torch.zeros(n, dtype=torch.float64).index_add_(0, group, sums - sums.sum() / counts.sum() * counts)
    return float((residuals.square().sum() * n / (n - 1)).sqrt() / counts.sum())


def exponential(mean: float, stderr: float | None) -> tuple[float, float | None]:
    """exp(mean) and its standard error by the delta method."""
    value = math.exp(mean) if mean < 700 else math.inf
    return value, None if stderr is None else value * stderr


def buckets(nll: Tensor, tokens: Tensor, edges: Tensor, context: int) -> tuple[PositionBucket, ...]:
    """Perplexity of every bucket that has tokens."""
    stops = [*edges[1:].tolist(), context]
    rows = zip(edges.tolist(), stops, tokens.tolist(), nll.tolist(), strict=True)
    return tuple(PositionBucket(a, b, int(n), exponential(x / n, None)[0]) for a, b, n, x in rows if n)
