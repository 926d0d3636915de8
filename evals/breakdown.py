"""Where the time of one forward pass goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from torch import Tensor, nn

from .throughput import wall_clock

KINDS: Mapping[type[nn.Module], str] = {
    nn.Linear: "linear layers",
    nn.LayerNorm: "norms",
    nn.Embedding: "embedding",
}
CONVOLUTIONS, REST = "long convolutions", "short convolutions, gates, activations"


@dataclass(frozen=True)
class Part:
    """Time spent in one part of a model in one forward pass, median over rounds."""

    name: str
    seconds: float
    share: float


class Stopwatch:
    """Seconds spent inside what it wraps, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._began = 0.0

    def start(self) -> None:
        self._began = wall_clock()

    def stop(self, name: str) -> None:
        self.spent[name] = self.spent.get(name, 0.0) + wall_clock() - self._began

    def wrap(self, conv: Callable[[Tensor], Tensor], name: str = CONVOLUTIONS) -> Callable[[Tensor], Tensor]:
        """`conv`, timed."""

        def timed(u: Tensor) -> Tensor:
            self.start()
            y = conv(u)
            self.stop(name)
            return y

        return timed


def breakdown(model: nn.Module, run: Callable[[], object], watch: Stopwatch, rounds: int = 5) -> list[Part]:
    """Parts of `run`, a forward pass of `model` whose convolutions `watch` already wraps; the largest first.

    Modules of the KINDS are timed by hooks; what no hook sees is the rest.
    """
    seen: list[dict[str, float]] = []
    with ExitStack() as hooks:
        for module in model.modules():
            if name := KINDS.get(type(module)):
                before = module.register_forward_pre_hook(lambda *_: watch.start())
                after = module.register_forward_hook(lambda *_, name=name: watch.stop(name))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        for _ in range(rounds + 1):
            watch.spent.clear()
            began = wall_clock()
            run()
            total = wall_clock() - began
            seen.append(watch.spent | {REST: total - sum(watch.spent.values())})
    seconds = {name: median(spent[name] for spent in seen[1:]) for name in seen[-1]}  # the first round warms up
    total = sum(seconds.values())
    parts = [Part(name, spent, spent / total) for name, spent in seconds.items()]
    return sorted(parts, key=lambda part: -part.seconds)
