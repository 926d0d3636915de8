"""Paired timings: every candidate in every round, so that clocks, heat and neighbours touch all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

AT_LEAST = 0.02  # seconds that one timing lasts: calls are repeated until the clock's grain no longer matters

Work = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """How long one call takes, and how much faster than a baseline it is."""

    name: str
    baseline: str
    seconds: float  # a call, median over rounds
    speedup: float  # median over rounds of baseline seconds / own seconds in the same round
    speedup_low: float  # quartiles of the same ratios
    speedup_high: float
    rounds: int
    calls: int  # calls behind one timing


@dataclass(frozen=True)
class Rounds:
    """What every candidate took in every round."""

    seconds: Mapping[str, Sequence[float]]  # name -> seconds of one call, round by round
    calls: Mapping[str, int]  # calls behind one of these

    def against(self, baseline: str) -> dict[str, Timing]:
        """Medians and quartiles, and how much faster than `baseline` every candidate is: name -> Timing."""
        return {name: timing(name, baseline, self.seconds, calls) for name, calls in self.calls.items()}


def wall_clock() -> float:
    """Seconds; waits first for work queued on a CUDA device, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def paired(
    candidates: Mapping[str, Work],
    rounds: int = 11,
    warmup: int = 2,
    at_least: float = AT_LEAST,
    clock: Clock = wall_clock,
) -> dict[str, Timing]:
    """Timings of all candidates, name -> Timing; the first one is the baseline.  See `in_rounds`."""
    return in_rounds(candidates, rounds, warmup, at_least, clock).against(next(iter(candidates), ""))


def in_rounds(
    candidates: Mapping[str, Work],
    rounds: int = 11,
    warmup: int = 2,
    at_least: float = AT_LEAST,
    clock: Clock = wall_clock,
) -> Rounds:
    """Seconds of all candidates in the same rounds.

    Calls each `warmup` times (at least once) untimed, finds how many calls last `at_least` seconds, then times all
    of them in every round, in an order that changes from round to round, without garbage collection.
    """
    if not candidates:
        raise ValueError("no candidates were given; pass at least one function to time")
    if rounds < 3:
        raise ValueError(f"rounds must be at least 3 to have a median and quartiles, got {rounds}")
    names = list(candidates)
    for work in candidates.values():
        for _ in range(max(1, warmup)):
            work()
    with no_garbage_collection():
        calls = {name: calibrate(work, at_least, clock) for name, work in candidates.items()}
        taken: dict[str, list[float]] = {name: [] for name in names}
        for r in range(rounds):
            for name in order(names, r):
                taken[name].append(seconds_a_call(candidates[name], calls[name], clock))
    return Rounds(taken, calls)


def order(names: list[str], r: int) -> list[str]:
    """Order of round r: starts with another name each round, and runs backwards in every other cycle."""
    n = len(names)
    turned = names[r % n :] + names[: r % n]
    return turned[::-1] if n > 2 and r // n % 2 else turned  # two names already alternate


def calibrate(work: Work, at_least: float, clock: Clock) -> int:
    """Calls that together last `at_least` seconds."""
    calls = 1
    while (taken := seconds_a_call(work, calls, clock) * calls) < at_least:
        calls = max(2 * calls, min(10 * calls, round(1.2 * calls * at_least / max(taken, 1e-9))))
    return calls


def seconds_a_call(work: Work, calls: int, clock: Clock) -> float:
    """Mean seconds of one call over `calls` calls in a row."""
    start = clock()
    for _ in range(calls):
        work()
    return (clock() - start) / calls


def timing(name: str, baseline: str, taken: Mapping[str, Sequence[float]], calls: int) -> Timing:
    """Medians and quartiles of one candidate's rounds."""
    ratios = [base / own for base, own in zip(taken[baseline], taken[name], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Timing(name, baseline, statistics.median(taken[name]), middle, low, high, len(ratios), calls)


def tokens_per_second(timing: Timing, tokens: int) -> float:
    """Throughput when one call works through `tokens` tokens (batch times length)."""
    return tokens / timing.seconds


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Garbage collection off inside, and as it was before afterwards."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
