"""The five figures that GLUE asks for: accuracy, F1, Matthews, Pearson and Spearman.

Every metric takes what a model said and what is right, both (N,), and gives one number.  Where a figure is undefined it
is 0, which each function states: predictions without any variation tell nothing apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.generic]
Metric = Callable[[Values, Values], float]


def accuracy(predicted: Values, labels: Values) -> float:
    """Share of examples whose predicted class is the right one."""
    check(predicted, labels)
    return float(np.mean(predicted == labels))


def f1(predicted: Values, labels: Values) -> float:
    """Harmonic mean of precision and recall of class 1 among classes 0 and 1; 0 where class 1 never occurs."""
    check(predicted, labels)
    if strange := sorted({*np.unique(predicted).tolist(), *np.unique(labels).tolist()} - {0, 1}):
        raise ValueError(f"F1 is of two classes, 0 and 1, got {strange[0]} besides; take the accuracy")
    hits = int(np.sum((predicted == 1) & (labels == 1)))
    named = int(np.sum(predicted == 1)) + int(np.sum(labels == 1))
    return 2 * hits / named if named else 0.0


def matthews(predicted: Values, labels: Values) -> float:
    """Matthews correlation of two or more classes; 0 where predictions or labels are all of one class.

    Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient (2004), in counts.
    """
    check(predicted, labels)
    classes, index = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
    predicted, right = index[: len(labels)], index[len(labels) :]
    p, t = (np.bincount(x, minlength=len(classes)).astype(object) for x in (predicted, right))  # integers of any size
    n, hits = len(labels), int(np.sum(predicted == right))
    spread_p, spread_t = n * n - int(p @ p), n * n - int(t @ t)
    if not spread_p or not spread_t:
        return 0.0
    return float((n * hits - int(p @ t)) / np.sqrt(float(spread_p * spread_t)))


def pearson(scores: Values, labels: Values) -> float:
    """Pearson correlation, float64; 0 where scores or labels are all the same."""
    check(scores, labels)
    if (scores == scores[0]).all() or (labels == labels[0]).all():
        return 0.0
    x, y = (unit(v.astype(np.float64)) for v in (scores, labels))
    return float(np.clip(x @ y, -1.0, 1.0))


def spearman(scores: Values, labels: Values) -> float:
    """Spearman correlation: Pearson's of the ranks; 0 where scores or labels are all the same."""
    check(scores, labels)
    return pearson(ranks(scores), ranks(labels))


def ranks(values: Values) -> NDArray[np.float64]:
    """Ranks from 1 on, (N,) float64; equal values share the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """x without its mean, of length 1.  Scaled first, so that squares neither overflow nor vanish."""
    x = x - x.mean()
    x = x / np.abs(x).max()
    return x / np.sqrt(x @ x)


def check(predicted: Values, labels: Values) -> None:
    """Refuse what no metric can be taken of."""
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise ValueError(f"got predictions {predicted.shape} for labels {labels.shape}, expected one of each example")
    if not len(labels):
        raise ValueError("there are no examples; pass at least one")
    if not np.isfinite(predicted.astype(np.float64)).all():
        raise ValueError("predictions hold NaN or infinity; look at the model that made them")


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
