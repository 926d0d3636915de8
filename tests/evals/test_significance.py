"""Paired tests: against exact sums, against their own promise, and where there is nothing to tell apart."""

import math

import numpy as np
import pytest

from sparsify.evals.glue.metrics import METRICS, accuracy, spearman
from sparsify.evals.glue.significance import bootstrap, mcnemar, mean_difference


def split(both: int, first: int, second: int, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are right: both models', the first's alone, the second's alone, none."""
    rows = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    a, b = np.array(rows).T
    return a, b


@pytest.mark.parametrize(("first", "second"), [(0, 5), (5, 0), (3, 9), (9, 3), (40, 41), (1, 700), (6, 6)])
def test_mcnemar_as_scipy_has_the_binomial(first, second):
    stats = pytest.importorskip("scipy.stats")
    found = mcnemar(*split(10, first, second, 3))
    assert (found.only_first, found.only_second) == (first, second)
    assert found.p_value == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(*split(4, 0, 5)).p_value == 2 / 2**5
    assert mcnemar(*split(4, 1, 3)).p_value == pytest.approx(2 * (1 + 4) / 2**4)
    assert mcnemar(*split(4, 0, 0)).p_value == 1


def test_mcnemar_of_many_disagreements():
    """Counts beyond any float: 3,000 against 3,200 lie 2.6 standard deviations apart."""
    p = mcnemar(*split(1, 3000, 3200)).p_value
    assert p == pytest.approx(math.erfc(200 / math.sqrt(6200) / math.sqrt(2)), rel=0.05)


@pytest.mark.parametrize(("first", "second"), [(0, 5), (5, 0), (0, 6), (3, 9), (40, 41), (1, 700), (6, 6), (0, 0)])
def test_the_exact_interval_as_scipy_has_it(first, second):
    stats = pytest.importorskip("scipy.stats")
    found, n = mcnemar(*split(10, first, second, 3)), first + second
    p = stats.binomtest(second, n).proportion_ci(0.95, "exact") if n else (0, 1)
    expected = [n / (n + 13) * (2 * bound - 1) for bound in p]
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-9)


def test_p_values_and_intervals_tell_the_same():
    """An interval leaves 0 out exactly where its p-value is below 0.05, for counts and draws around that."""
    seen = set()
    for b in range(0, 30):
        for c in range(b, 60):
            found = mcnemar(*split(1, b, c))
            assert (found.low > 0) == (found.p_value < 0.05), (b, c)
            assert found.low <= (c - b) / (1 + b + c) <= found.high
    for samples in (7, 39, 40, 41, 99, 100, 1000):
        for seed in range(40):
            rng = np.random.default_rng(seed)
            labels = rng.integers(2, size=60)
            first, second = (np.where(rng.random(60) < p, labels, 1 - labels) for p in (0.7, 0.88))
            for name in ("accuracy", "f1", "matthews"):
                found = bootstrap(METRICS[name], first, second, labels, samples, seed)
                significant = found.p_value < 0.05
                assert significant == (found.low > 0 or found.high < 0), (samples, seed, name)
                seen.add((significant, samples >= 40))
    assert seen == {(True, True), (False, True), (False, False)}


def two_models(seed: int, n: int, flips: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers of a model, answers of one that got `flips` of them wrong, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    first = np.where(rng.random(n) < 0.85, labels, 1 - labels)
    return first, np.where(rng.random(n) < flips, 1 - first, first), labels


def test_bootstrap_finds_a_difference_and_its_interval():
    first, second, labels = two_models(0, 800, flips=0.15)
    found = bootstrap(accuracy, first, second, labels)
    assert found.difference == accuracy(second, labels) - accuracy(first, labels) < -0.05
    assert found.low < found.difference < found.high < 0 and found.p_value < 0.01
    gap = np.array(second == labels, float) - np.array(first == labels, float)
    half = 1.96 * gap.std() / math.sqrt(len(gap))  # what the central limit promises
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap(accuracy, first, second, labels) == found != bootstrap(accuracy, first, second, labels, seed=1)


def test_bootstrap_is_paired():
    """Unpaired, two models with 800 answers differ by chance far more than these two do."""
    first, _, labels = two_models(0, 800, flips=0)
    second = first.copy()
    second[:4] = 1 - second[:4]
    found = bootstrap(accuracy, first, second, labels)
    assert found.high - found.low < 0.02 < 2 * 1.96 * math.sqrt(2 * 0.85 * 0.15 / 800)


@pytest.mark.parametrize("name", METRICS)
def test_the_same_answers_differ_by_nothing(name):
    first, _, labels = two_models(0, 50, flips=0)
    found = bootstrap(METRICS[name], first, first, labels, samples=50)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_p_values_are_small_as_often_as_they_say():
    """Two models with the same chance to err: about one in twenty p-values lies below 0.05."""
    low = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        labels = rng.integers(2, size=150)
        first, second = (np.where(rng.random(150) < 0.8, labels, 1 - labels) for _ in range(2))
        low += bootstrap(accuracy, first, second, labels, samples=150).p_value < 0.05
    assert 1 <= low <= 15


def test_bootstrap_of_a_rank_correlation():
    rng = np.random.default_rng(0)
    labels = rng.random(200)
    first, second = labels + 0.1 * rng.standard_normal(200), labels + rng.standard_normal(200)
    assert bootstrap(spearman, first, second, labels, samples=200).high < 0


def test_mean_difference():
    mean, stderr = mean_difference(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert mean == 1 and stderr == pytest.approx(1 / math.sqrt(3))
    assert mean_difference(np.zeros(1), np.ones(1)) == (1, None)


def test_refusals():
    first, second, labels = two_models(0, 20, flips=0.1)
    with pytest.raises(ValueError, match="expected one of each example"):
        bootstrap(accuracy, first, second[1:], labels)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bootstrap(accuracy, first, second, labels, samples=0)
