"""A GPU as measuring sees it: a clock, graphs of calls, what it reaches, and poisoned memory."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sparsify.gpu import backend as gpu
from sparsify.gpu import jit
from sparsify.gpu.devices import Card

from .throughput import Clock, Work, in_rounds


@dataclass(frozen=True)
class Machine:
    """A device as measuring sees it; tests have one of their own.

    clock: seconds, once all work queued before is done.  capture: calls recorded to be replayed as one; None where
    that cannot be.  launch: what starts a kernel, None for the device's own way.
    """

    device: torch.device
    card: Card
    arch: str  # that kernels are compiled for
    clock: Clock
    capture: Callable[[Sequence[Work]], Work] | None = None
    launch: gpu.Launch | None = None
    rest: Work = lambda: None  # waits, and raises where the device failed


class EventClock:
    """Seconds on the device's own clock, between events."""

    def __init__(self) -> None:
        self.total, self.last = 0.0, self.mark()

    @staticmethod
    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event

    def __call__(self) -> float:
        now = self.mark()
        self.total += self.last.elapsed_time(now) / 1e3  # added up: since the start, float32 would lose microseconds
        self.last = now
        return self.total


def captured(calls: Sequence[Work]) -> Work:
    """A CUDA graph of these calls, whose results it keeps; each was called before, so nothing is compiled in it."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def machine(device: str | torch.device = "cuda") -> Machine:
    """The GPU at hand, or a RuntimeError that says why our kernels do not run on it."""
    index = jit.ordinal(torch.device(device)) if torch.cuda.is_available() else 0
    if reason := jit.why_not(index):
        raise RuntimeError(f"no GPU to time kernels on: {reason}")
    place = torch.device("cuda", index)
    torch.cuda.set_device(place)
    arch = jit.architecture(index)
    return Machine(place, Card.of(place), arch, EventClock(), captured, None, torch.cuda.synchronize)


@contextmanager
def high_precision() -> Iterator[None]:
    """float32 signals through the kernels, too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory reads as NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def ceilings(on: Machine, size: int = 1 << 32, side: int = 8192) -> dict[str, float]:
    """What this card reaches: bytes a second of a copy, read and written, and flop/s of a bfloat16 matrix product."""
    source = torch.randn(size // 8, device=on.device)  # half of `size` is read, half written
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=on.device, dtype=torch.bfloat16) for _ in range(2))
    taken = in_rounds({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}, 5, clock=on.clock)
    seconds = {name: statistics.median(times) for name, times in taken.seconds.items()}
    return {
        "bytes_per_second": 2 * 4 * source.numel() / seconds["copy"],
        "flop_per_second": 2 * side**3 / seconds["matmul"],
    }
