"""The arithmetic of timing, under a clock that the candidates turn themselves."""

import gc
import statistics
import time
from functools import partial

import pytest

from sparsify.evals.speed.throughput import in_rounds, order, paired, tokens_per_second, wall_clock


class Bench:
    """A clock, and candidates that move it by known amounts and note their turn."""

    def __init__(self):
        self.now, self.turns = 0.0, []

    def clock(self):
        return self.now

    def work(self, name, seconds):
        """seconds: per call, or a function of how much time has passed."""

        def run():
            self.turns.append(name)
            self.now += seconds(self.now) if callable(seconds) else seconds

        return run


def test_constant_candidates():
    bench = Bench()
    found = paired({"dense": bench.work("d", 0.5), "sparse": bench.work("s", 0.125)}, clock=bench.clock)
    assert list(found) == ["dense", "sparse"]
    assert found["dense"].seconds == 0.5 and found["dense"].speedup == 1
    sparse = found["sparse"]
    assert (sparse.baseline, sparse.seconds, sparse.rounds, sparse.calls) == ("dense", 0.125, 11, 1)
    assert sparse.speedup == sparse.speedup_low == sparse.speedup_high == 4
    assert tokens_per_second(sparse, 1000) == 8000


def test_a_slower_machine_does_not_change_the_ratio():
    """All slow down by 3 x over the run: times taken one candidate after the other would say so, pairs do not."""
    bench = Bench()
    drift = [lambda now, s=s: s * (1 + now / 100) for s in (0.9, 0.3)]
    found = paired({"dense": bench.work("d", drift[0]), "sparse": bench.work("s", drift[1])}, 91, clock=bench.clock)
    assert bench.now > 200
    assert found["sparse"].speedup == pytest.approx(3, rel=0.02)


def test_medians_and_quartiles_of_the_rounds():
    """Against sums by hand; each round's ratio is taken within the round."""
    bench = Bench()
    turns = {"dense": iter([9, 9, 1.0, 2.0, 3.0, 4.0, 5.0]), "sparse": iter([9, 9, 1.0, 0.5, 1.5, 8.0, 1.0])}
    work = {name: bench.work(name, lambda now, t=t: next(t)) for name, t in turns.items()}
    found = paired(work, rounds=5, warmup=1, clock=bench.clock)["sparse"]
    ratios = [1.0, 4.0, 2.0, 0.5, 5.0]
    assert found.seconds == 1.0 and found.speedup == statistics.median(ratios) == 2
    assert (found.speedup_low, found.speedup_high) == (1.0, 4.0)


def test_the_same_rounds_against_any_baseline():
    bench = Bench()
    taken = in_rounds(
        {name: bench.work(name, s) for name, s in (("a", 1.0), ("b", 0.5), ("c", 4.0))}, clock=bench.clock
    )
    assert {name: t.speedup for name, t in taken.against("a").items()} == {"a": 1, "b": 2, "c": 0.25}
    assert {name: t.speedup for name, t in taken.against("b").items()} == {"a": 0.5, "b": 1, "c": 0.125}
    assert taken.against("b")["c"].baseline == "b" and taken.against("b")["c"].seconds == 4.0


@pytest.mark.parametrize("seconds", [1e-5, 3e-4, 0.004, 0.019])
def test_short_work_is_repeated(seconds):
    bench = Bench()
    found = paired({"dense": bench.work("d", seconds)}, clock=bench.clock)["dense"]
    assert 0.02 <= found.calls * seconds < 0.2 and found.seconds == pytest.approx(seconds)


def test_candidates_take_turns():
    bench = Bench()
    paired({name: bench.work(name, 1.0) for name in "ds"}, rounds=4, warmup=0, clock=bench.clock)
    assert "".join(bench.turns[-8:]) == "dssddssd"


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_candidate_stands_in_every_place_equally_often(count):
    names = list("abcd"[:count])
    rounds = [order(names, r) for r in range(2 * count)]
    for place in range(count):
        assert sorted(row[place] for row in rounds) == sorted(2 * names)
    assert all(sorted(row) == names for row in rounds)


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_collection_is_off_while_timing_and_back_after(was_on):
    """Also when a candidate fails."""
    seen, calls = [], []

    def work():
        seen.append(gc.isenabled())

    def failing():
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory")

    try:
        gc.enable() if was_on else gc.disable()
        with pytest.raises(RuntimeError, match="out of memory"):
            paired({"work": work, "failing": failing}, warmup=1, at_least=0)
        assert gc.isenabled() == was_on and seen == [was_on, False]
    finally:
        gc.enable()


def test_real_clock():
    """Timed for real, where only a lower bound is sure: sleep never returns early, and may return late."""
    found = paired({"two": partial(time.sleep, 0.004), "one": partial(time.sleep, 0.002)}, rounds=3, at_least=0.001)
    assert found["two"].seconds >= 0.004 and found["one"].seconds >= 0.002
    assert wall_clock() < wall_clock()


def test_refusals():
    with pytest.raises(ValueError, match="no candidates were given"):
        paired({})
    with pytest.raises(ValueError, match="rounds must be at least 3"):
        paired({"dense": lambda: None}, rounds=2)
