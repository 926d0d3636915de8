"""The metrics against scikit-learn and scipy, on random answers and at their edges."""

import warnings

import numpy as np
import pytest

from sparsify.evals.glue.metrics import METRICS, accuracy, f1, matthews, pearson, ranks, spearman

EXACT = 1e-12


def answers(seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are right more often than not, and the labels: (n,) int64."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    labels = rng.integers(classes, size=n)
    return np.where(rng.random(n) < 0.6, labels, rng.integers(classes, size=n)), labels


def scores(seed: int, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of sentences, rounded to whole numbers where tied, and what people said: (n,) float64."""
    rng = np.random.default_rng(seed)
    labels = rng.random(int(rng.integers(2, 400))) * 5
    said = labels + rng.standard_normal(len(labels))
    return (said.round(), labels.round()) if tied else (said, labels)


ONE_CLASS = [(np.full(7, a), np.full(7, b)) for a in (0, 1) for b in (0, 1)]
ONE_SIDED = [(np.array([0, 1, 1, 0]), np.zeros(4, int)), (np.ones(4, int), np.array([0, 1, 1, 0]))]


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
@pytest.mark.parametrize("case", range(24))
def test_classes_as_scikit_learn_has_them(name, case):
    judge = pytest.importorskip("sklearn.metrics")
    theirs = {
        "accuracy": judge.accuracy_score,
        "f1": lambda y, p: judge.f1_score(y, p, zero_division=0),
        "matthews": judge.matthews_corrcoef,
    }[name]
    special = ONE_CLASS + ONE_SIDED
    predicted, labels = special[case] if case < len(special) else answers(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of one class, and then gives what we give
        assert abs(METRICS[name](predicted, labels) - theirs(labels, predicted)) <= EXACT


@pytest.mark.parametrize("case", range(8))
def test_matthews_of_more_classes(case):
    judge = pytest.importorskip("sklearn.metrics")
    predicted, labels = answers(case, classes=3)
    assert abs(matthews(predicted, labels) - judge.matthews_corrcoef(labels, predicted)) <= EXACT


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", range(10))
def test_correlations_as_scipy_has_them(tied, case):
    stats = pytest.importorskip("scipy.stats")
    said, labels = scores(case, tied)
    if (said == said[0]).all() or (labels == labels[0]).all():
        pytest.fail("a draw without variation proves nothing; change the seed")
    assert abs(pearson(said, labels) - stats.pearsonr(said, labels).statistic) <= EXACT
    assert abs(spearman(said, labels) - stats.spearmanr(said, labels).statistic) <= EXACT
    assert np.array_equal(ranks(said), stats.rankdata(said))


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_constant_scores_correlate_with_nothing(metric):
    """scipy calls this NaN; here it is 0, as Matthews correlation of one class is."""
    assert metric(np.full(5, 0.3), np.arange(5.0)) == metric(np.arange(5.0), np.full(5, 0.3)) == 0


def test_matthews_of_two_classes_is_pearson():
    predicted, labels = answers(3)
    assert matthews(predicted, labels) == pytest.approx(pearson(predicted, labels), abs=EXACT)


def test_many_examples_do_not_overflow():
    """Products of counts pass 2**63 from some ten thousand examples on."""
    predicted, labels = answers(5)
    many = np.tile(predicted, 400), np.tile(labels, 400)
    assert matthews(*many) == pytest.approx(matthews(predicted, labels), abs=EXACT)


def test_order_and_ties_matter():
    """What a wrong answer looks like: reversed scores, broken ties, shifted answers."""
    said, labels = scores(1, tied=True)
    assert spearman(-said, labels) == pytest.approx(-spearman(said, labels), abs=EXACT)
    broken = said + np.linspace(0, 1e-3, len(said))
    assert abs(spearman(broken, labels) - spearman(said, labels)) > 1e-6
    predicted, labels = answers(3)
    assert abs(accuracy(np.roll(predicted, 1), labels) - accuracy(predicted, labels)) > 0.05


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_refusals(metric):
    for predicted, labels, sentence in (
        (np.zeros(3), np.zeros(4), "expected one of each example"),
        (np.zeros((3, 1)), np.zeros((3, 1)), "expected one of each example"),
        (np.zeros(0), np.zeros(0), "no examples"),
        (np.array([0.0, np.nan]), np.zeros(2), "NaN"),
    ):
        with pytest.raises(ValueError, match=sentence):
            metric(predicted, labels)


def test_f1_is_of_two_classes():
    with pytest.raises(ValueError, match="got 2 besides"):
        f1(np.array([0, 2]), np.array([0, 1]))
