"""Does the model read the future?  The leak, and what it means for a perplexity.

Zeroing bins of a causal filter's spectrum gives it taps at negative lags, so position t reads tokens after t, among
them the one it should predict.  Perplexity then looks better than it is.  The honest figure has the negative lags cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.report.schema import LEAK_LIMIT, Leak

from . import Logits
from .data import Windows
from .quality import predict

ROUND_OFF = 1e-5  # leak of a causal float32 model: its FFTs mix past and future to rounding error


def leak(logits: Logits, windows: Windows, n_windows: int = 4, n_positions: int = 4, seed: int = 0) -> Leak:
    """The leak of a model on at most `n_windows` windows, at up to `n_positions` positions t in each.

    Each token after t becomes another one drawn from the ids that occur in `windows`; the same seed draws the same.
    More trials find a larger worst, so compare leaks taken with the same settings.
    """
    if n_positions < 1:
        raise ValueError(f"n_positions must be at least 1, got {n_positions}")
    valid = windows.ids.unique()
    if len(valid) < 2:
        raise ValueError(f"every token of the data is {int(valid[0])}, so none can be changed; pass data that varies")
    positions = cut_positions(windows.context, min(n_positions, windows.context - 1))
    generator = torch.Generator().manual_seed(seed)
    past, edge = [], []
    for ids in windows.spread(n_windows).ids.split(1):  # one at a time, so that contexts may be long
        before = predict("the model", logits, ids)[0].double()
        for t in positions:
            changed = torch.cat([ids[:, : t + 1], others(ids[:, t + 1 :], valid, generator)], dim=1)
            after = predict("the model", logits, changed)[0, : t + 1].double()
            past.append(relative(after, before[: t + 1]))
            edge.append(relative(after[t], before[t]))
    return Leak(sum(past) / len(past), max(past), sum(edge) / len(edge), max(edge), len(past))


def cut_positions(context: int, count: int) -> list[int]:
    """`count` positions t, evenly spaced inside 0 .. context - 2."""
    return [(i + 1) * context // (count + 1) - 1 for i in range(count)]


def others(ids: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """For every id another one of `valid`, each as likely: shape and dtype of ids.  valid: (n,) ascending, n >= 2."""
    step = torch.randint(1, len(valid), ids.shape, generator=generator)
    return valid[(torch.searchsorted(valid, ids) + step) % len(valid)]


def relative(y: Tensor, y_ref: Tensor) -> float:
    """||y - y_ref|| / ||y_ref||; NaN counts as infinitely far."""
    moved = (y - y_ref).norm()
    if moved == 0:
        return 0.0
    return float((moved / y_ref.norm()).nan_to_num(nan=torch.inf, posinf=torch.inf))


def verdict(dense: float, sparse: float, leak: float, cut: float | None = None, name: str = "dense") -> list[str]:
    """What a causal model's perplexities are worth, in plain sentences.

    dense, sparse: perplexities as computed.  cut: that of the sparse model with its negative lags cut, if measured.
    leak: `Leak.worst` of the sparse model.  name: what results call the dense one.
    """
    honest = "" if cut is None else f"{cut:.4f}, {percent(cut, dense)} against {name} {dense:.4f}"
    if leak <= LEAK_LIMIT:
        reads = "the past only" if leak <= ROUND_OFF else "next to nothing of the future"
        sentences = [
            f"perplexity {sparse:.4f}, {percent(sparse, dense)} against {name} {dense:.4f}, can be trusted: "
            f"the model reads {reads} (worst leak found {leak:.1e})"
        ]
        return sentences if cut is None else [*sentences, f"with negative lags cut it is {honest}"]
    sentences = [
        f"perplexity {sparse:.4f} as computed cannot be trusted: the model reads the future "
        f"(leak {leak:.2g}, above {LEAK_LIMIT:g})"
    ]
    if sparse < dense:
        sentences.append(
            f"it looks better than {name} ({percent(sparse, dense)}) because it is told part of the answer"
        )
    if cut is None:
        return [*sentences, "the honest figure is not known: measure perplexity with negative lags cut"]
    return [*sentences, f"the honest figure is perplexity_cut: {honest}"]


def percent(value: float, base: float) -> str:
    """Relative change as +0.12 %."""
    rounded = round(100 * (value / base - 1), 2) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:+.2f} %"
