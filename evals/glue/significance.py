"""Is the sparse model worse, or is it chance?  Tests on the same examples, one answer of each model to each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import Metric, Values, check

Answers = NDArray[np.bool_]  # which of them are right
SAMPLES = 2000  # of a bootstrap
LEVEL = 0.05  # p-values below this speak of a difference; intervals hold the true one in all but this share of cases
TINY = 1e-12  # differences of metrics below this are sums in another order


@dataclass(frozen=True)
class McNemar:
    """How often just one of two models is right, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p_value: float  # exact binomial, two-sided
    low: float  # the interval of the difference of the two accuracies, by the same binomial
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of the second model less that of the first, on the same examples.

    The interval and the p-value are of one test: the interval leaves 0 out exactly where the p-value is below 0.05.
    """

    difference: float
    low: float  # the interval
    high: float
    p_value: float  # two-sided
    samples: int  # of a bootstrap; 0 for an exact test


def mcnemar(first_right: Answers, second_right: Answers) -> McNemar:
    """McNemar's test that two models err equally often.  first_right, second_right: (N,) bool, which answers are right.

    Where just one of them is right, each is as likely to be the one: a binomial of 1/2, summed exactly.  The interval
    is Clopper and Pearson's of how likely the second is the one, so that it and the p-value tell the same.
    """
    check(first_right, second_right)
    b = int(np.sum(first_right & ~second_right))
    c = int(np.sum(~first_right & second_right))
    n, term, tail = b + c, 1, 0
    for k in range(min(b, c) + 1):  # term = n over k
        tail += term
        term = term * (n - k) // (k + 1)
    apart = n / len(first_right)  # share of examples on which just one is right
    low, high = (apart * (2 * p - 1) + 0.0 for p in clopper_pearson(c, n))  # + 0.0: no interval from -0.0
    return McNemar(b, c, min(1.0, 2 * tail / 2**n), low, high)


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a probability, after `hits` of n; 0 to 1 where n is 0.

    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial (1934).
    """
    tail = LEVEL / 2
    low = 0.0 if hits == 0 else root(lambda p: at_most(n - hits, n, 1 - p) - tail)
    high = 1.0 if hits == n else root(lambda p: tail - at_most(hits, n, p))
    return low, high


def at_most(hits: int, n: int, p: float) -> float:
    """The chance of at most `hits` of n, each of probability p in (0, 1)."""
    k = np.arange(hits + 1)
    choices = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k])
    return float(np.exp(choices + k * math.log(p) + (n - k) * math.log1p(-p)).sum())


def root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a probability is 0, to the last bits."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def bootstrap(
    metric: Metric, first: Values, second: Values, labels: Values, samples: int = SAMPLES, seed: int = 0
) -> Difference:
    """Difference of any metric between two models, its 95 % percentile interval and the p-value of that.

    first, second: (N,) what the models said; labels: (N,).  Examples are drawn anew with replacement, the same for
    both models.  p-value: twice the share of draws on the other side of 0, the draw that was seen included.  Fewer
    than 40 draws have no 95 % interval: theirs spans all of them and 0.
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
    drawn = np.sort(np.where(np.abs(drawn) < TINY, 0.0, drawn))
    beyond = min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    p_values = np.minimum(1.0, 2 * (1 + np.arange(samples + 1)) / (1 + samples))  # by how many lie beyond 0
    spare = int(np.sum(p_values < LEVEL)) - 1  # so many may
    low, high = (drawn[spare], drawn[-1 - spare]) if spare >= 0 else (min(drawn[0], 0.0), max(drawn[-1], 0.0))
    return Difference(found, float(low), float(high), float(p_values[beyond]), samples)


def mean_difference(first: Values, second: Values) -> tuple[float, float | None]:
    """Mean of second - first over independent samples, and its standard error; None for a single sample."""
    check(first, second)
    x = second.astype(np.float64) - first.astype(np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None
