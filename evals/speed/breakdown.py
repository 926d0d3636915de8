"""Where the time of a forward pass goes, by part, whichever way through its layers the model takes.

Three nets catch the parts: hooks on modules, a mode that every torch function passes through, and wrappers around the
compiled kernels and the installed convolutions.  What runs inside a part that is being timed belongs to that part, so
nothing counts twice: the linear layers of a filter's network are not the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsify.cpu import native
from sparsify.cpu.linear import BlockDiagonal
from sparsify.hooks import onlooking
from sparsify.report.schema import Part
from sparsify.sites import ConvSite

from .throughput import wall_clock

LINEAR = "linear layers, activations"  # together: quick ways apply the one before the product of the other is stored
CONVOLUTIONS = "long convolutions"
FILTERS = "filters made anew"
SHORT = "short convolutions, gates"  # the last gate too, unless the long convolution applies it on its way
NORMS, EMBEDDING, REST = "norms", "embedding", "sums, copies, and the rest"

MODULES: Mapping[type[nn.Module], str] = {
    nn.Linear: LINEAR,
    BlockDiagonal: LINEAR,
    nn.LayerNorm: NORMS,
    nn.Embedding: EMBEDDING,
    nn.Conv1d: SHORT,
}
FUNCTIONS: Mapping[str, str] = {  # by their names, for torch has several functions of each
    "gelu": LINEAR,
    "_reorder_linear_weight": LINEAR,  # what oneDNN's layers are prepared by
    "conv1d": SHORT,
    "addcmul": SHORT,
    "fft_rfft": CONVOLUTIONS,
    "fft_irfft": CONVOLUTIONS,
}
KERNELS: Mapping[str, str] = {"short_gate": SHORT, "gelu_gate": LINEAR}  # functions of sparsify.cpu.native


class Stopwatch:
    """Seconds spent inside what it wraps, by name; of things inside each other the outermost counts."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._began = 0.0
        self._depth = 0

    def start(self) -> None:
        if self._depth == 0:
            self._began = wall_clock()
        self._depth += 1

    def stop(self, name: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.spent[name] = self.spent.get(name, 0.0) + wall_clock() - self._began

    def wrap(self, function: Callable[..., Any], name: str = CONVOLUTIONS) -> Callable[..., Any]:
        """`function`, timed; a convolution unless told otherwise."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(name)

        return timed


class Functions(TorchFunctionMode):
    """Times torch functions that are a part by themselves."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = part_of(getattr(func, "__name__", ""), args)
        call = func if name is None else self.watch.wrap(func, name)
        return call(*args, **(kwargs or {}))


def part_of(function: str, args: Sequence[Any]) -> str | None:
    """The part that a torch function is; None for none."""
    if function == "mul":  # of two spectra, or of two signals
        complex_ = any(isinstance(arg, Tensor) and arg.is_complex() for arg in args)
        return CONVOLUTIONS if complex_ else SHORT
    return FUNCTIONS.get(function)


def breakdown(
    model: nn.Module,
    runs: Mapping[str, Callable[[], object]],
    watch: Stopwatch,
    sites: Sequence[ConvSite] = (),
    rounds: int = 5,
) -> dict[str, list[Part]]:
    """Parts of every run, all of them in every round: name -> parts, the largest first.

    runs: forward passes of `model`, whose installed convolutions `watch` already wraps.  sites: where it convolves, so
    that filters which are made anew are told from the other layers.
    """
    names = {module: name for module in model.modules() if (name := name_of(module))}
    names |= dict.fromkeys(makers(sites), FILTERS)
    seen: dict[str, list[dict[str, float]]] = {run: [] for run in runs}
    with ExitStack() as nets:
        for module, name in names.items():
            before = module.register_forward_pre_hook(lambda *_: watch.start())
            after = module.register_forward_hook(lambda *_, name=name: watch.stop(name))
            nets.callback(before.remove)
            nets.callback(after.remove)
        for kernel, name in KERNELS.items():
            nets.callback(setattr, native, kernel, getattr(native, kernel))
            setattr(native, kernel, watch.wrap(getattr(native, kernel), name))
        nets.enter_context(Functions(watch))
        nets.enter_context(onlooking())
        for _ in range(rounds + 1):
            for run, forward in runs.items():
                watch.spent.clear()
                began = wall_clock()
                forward()
                total = wall_clock() - began
                seen[run].append(watch.spent | {REST: total - sum(watch.spent.values())})
    return {run: parts(spent[1:]) for run, spent in seen.items()}  # the first round warms up


def name_of(module: nn.Module) -> str | None:
    """The part that a module is; None for none."""
    return next((name for kind, name in MODULES.items() if isinstance(module, kind)), None)


def makers(sites: Sequence[ConvSite]) -> list[nn.Module]:
    """The modules that make the filters of these sites: those that `materialize` is a method of."""
    owners = [getattr(site.materialize, "__self__", None) for site in sites]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def parts(rounds: Sequence[Mapping[str, float]]) -> list[Part]:
    """Medians over rounds of the seconds by name."""
    seconds = {name: median(spent[name] for spent in rounds) for name in rounds[-1]}
    total = sum(seconds.values())
    found = [Part(name, spent, spent / total) for name, spent in seconds.items()]
    return sorted(found, key=lambda part: -part.seconds)
