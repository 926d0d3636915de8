"""Is the sparse model worse, or is it chance?  Tests on the same examples, one answer of each model to each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import Metric, Values, check

Answers = NDArray[np.bool_]  # which of them are right
SAMPLES = 2000  # of a bootstrap
COVERED = 0.95  # share of them that the interval holds


@dataclass(frozen=True)
class McNemar:
    """How often just one of two models is right, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p_value: float  # exact binomial, two-sided


@dataclass(frozen=True)
class Difference:
    """A metric of the second model less that of the first, on the same examples."""

    difference: float
    low: float  # the interval
    high: float
    p_value: float  # two-sided
    samples: int


def mcnemar(first_right: Answers, second_right: Answers) -> McNemar:
    """McNemar's test that two models err equally often.  first_right, second_right: (N,) bool, which answers are right.

    Where just one of them is right, each is as likely to be the one: a binomial of 1/2, summed exactly.
    """
    check(first_right, second_right)
    b = int(np.sum(first_right & ~second_right))
    c = int(np.sum(~first_right & second_right))
    n, term, tail = b + c, 1, 0
    for k in range(min(b, c) + 1):  # term = n over k
        tail += term
        term = term * (n - k) // (k + 1)
    return McNemar(b, c, min(1.0, 2 * tail / 2**n))


def bootstrap(
    metric: Metric, first: Values, second: Values, labels: Values, samples: int = SAMPLES, seed: int = 0
) -> Difference:
    """Difference of any metric between two models, its 95 % percentile interval and a p-value.

    first, second: (N,) what the models said; labels: (N,).  Examples are drawn anew with replacement, the same for
    both models.  p-value: how often a difference strays from the one found as far as that one lies from 0.
    """
    check(first, second)
    check(first, labels)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    found = metric(second, labels) - metric(first, labels)
    rng = np.random.default_rng(seed)
    drawn = np.empty(samples)
    for i in range(samples):
        rows = rng.integers(len(labels), size=len(labels))
        drawn[i] = metric(second[rows], labels[rows]) - metric(first[rows], labels[rows])
    tail = (1 - COVERED) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
    far = int(np.sum(np.abs(drawn - found) >= abs(found) - 1e-12))  # sums in another order differ in the last bits
    return Difference(found, low, high, (1 + far) / (1 + samples), samples)


def mean_difference(first: Values, second: Values) -> tuple[float, float | None]:
    """Mean of second - first over independent samples, and its standard error; None for a single sample."""
    check(first, second)
    x = second.astype(np.float64) - first.astype(np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None
