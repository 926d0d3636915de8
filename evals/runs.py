"""A model under plans for some of its convolutions: what it reads is counted, shown, and kept in a journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import swap
from sparsify.cpu import linear
from sparsify.filters.filter import AnyFilter
from sparsify.plan import Plan
from sparsify.report.schema import Leak
from sparsify.search import sensitivity
from sparsify.search.journal import Journal, about
from sparsify.search.measuring import ALL_FLOAT32, TOKENS_A_BATCH, Bar, Linears, Picks, Say, no_bar, nothing
from sparsify.search.sensitivity import Moments
from sparsify.sites import Conv, ConvSite
from sparsify.storage.tensors import fingerprint

from . import causality
from .data import Windows
from .quality import Versus
from .texts import Run, Text, compare, saying

LEAK_WINDOWS = 4
CLEARLY = 1.2  # times as quick a precision must be to be offered


def batches(windows: Text) -> int:
    """Windows in a batch."""
    return max(1, TOKENS_A_BATCH // windows.context)


@dataclass
class Runs:
    """A model under plans, dense where they say nothing: the `Measurements` that a search asks for.

    windows: how many were read, by this process or by one before it whose measurement the journal has.
    moments: of what arrives at every site of the dense model, once `read` has seen to it.
    """

    model: nn.Module
    sites: Sequence[ConvSite]
    filters: Mapping[str, AnyFilter]
    journal: Journal | None = None
    say: Say = nothing
    bar: Bar = no_bar
    windows: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense_convs: dict[str, Conv] = swap.operators(self.filters, Plan.dense(self.filters))
        self.device = next(self.model.parameters()).device
        self.advance: Callable[[int], Any] = nothing
        self.names: dict[Text, str] = {}
        if self.journal is not None:
            self.journal.open(about(swap.Tensors(self.filters, self.model.state_dict()), self.device))
            if self.journal:
                self.say(f"going on from {self.journal}")
            elif self.journal.others:
                self.say(f"{self.journal.folder} holds measurements of other weights or versions; they are left alone")

    def count(self, windows: int) -> None:
        self.windows += windows
        self.advance(windows)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While it lasts, the model's own convolutions are out; afterwards all is as it was."""
        restore = linear.precisions_of(self.model)
        try:
            with swap.installed(self.sites, dict.fromkeys(self.filters)):
                yield
        finally:
            restore()

    @contextmanager
    def stage(self, what: str, windows: int) -> Iterator[None]:
        """While it lasts, a bar shows how many of about so many windows were read."""
        with self.bar(what, windows) as self.advance:
            yield
        self.advance = nothing

    @property
    def layers(self) -> Mapping[str, int]:
        """Linear layer -> multiplications a token, where bfloat16 is clearly quicker here; none on a GPU."""
        if self.device.type != "cpu" or linear.gain(linear.BFLOAT16, torch.get_num_threads()) < CLEARLY:
            return {}
        return {name: layer.weight.numel() for name, layer in linear.layers_of(self.model).items()}

    def under(self, picks: Picks, cut: bool = True, linears: Linears = ALL_FLOAT32) -> Run:
        """Logits with these sites and layers changed; with negative lags of causal ones cut unless told.

        Other variants may run in between.
        """
        changed = {name: plan for name, plan in picks.items() if plan.kind != "dense"}
        own = {name: self.filters[name] for name in changed}
        convs = self.dense_convs | (swap.operators(own, Plan(changed, "some"), cut) if own else {})
        run = swap.variant(self.model, self.sites, convs, saying(self.model))

        def logits(*inputs: Tensor) -> Tensor:
            linear.use_precision(self.model, linears)
            found = run(*inputs)
            self.count(len(inputs[0]))
            return found

        return logits

    def remembered(self, logits: Run) -> Run:
        """The same, computed once for every batch as long as that fits in memory."""
        return Remembered(logits)

    def versus(self, dense: Run, picks: Picks, windows: Text, linears: Linears = ALL_FLOAT32) -> Versus:
        """A choice against the dense model, with negative lags of causal sites cut."""

        def measure() -> dict[str, Any]:
            variants = {"dense": dense, "sparse": self.under(picks, linears=linears)}
            found = compare(variants, windows, batches(windows))["sparse"].versus
            assert found is not None  # only the baseline has none
            return asdict(found)

        return Versus(**self.recall("versus", picks, linears, windows, measure))

    def leak(self, picks: Picks, windows: Text) -> Leak:
        """How far a choice reads the future, of a model of next tokens."""
        assert isinstance(windows, Windows)

        def measure() -> dict[str, Any]:
            return asdict(causality.leak(self.under(picks, cut=False), windows, LEAK_WINDOWS))

        return Leak(**self.recall("leak", picks, ALL_FLOAT32, windows, measure))

    def recall(
        self, kind: str, picks: Picks, linears: Linears, windows: Text, measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What `measure` finds, or found when it was first asked for; either way the windows it read are counted."""
        if self.journal is None:
            return measure()
        changed = {name: plan for name, plan in sorted(picks.items()) if plan.kind != "dense"}
        key = {"kind": kind, "windows": self.name(windows), "plan": Plan(changed, "", linears=linears).sha256}
        before = self.windows
        found = self.journal.recall(key, lambda: {"found": measure(), "windows": self.windows - before})
        self.count(before + found["windows"] - self.windows)  # none, where they were read just now
        return dict(found["found"])

    def name(self, windows: Text) -> str:
        """What tells these windows from others."""
        if windows not in self.names:
            self.names[windows] = fingerprint(windows.tensors)
        return self.names[windows]

    def read(self, windows: Text) -> None:
        """Find the moments: one pass of the dense model over these windows, or the rest of one."""
        key = "" if self.journal is None else self.name(windows)
        before = {} if self.journal is None else self.journal.moments(key)
        done = min((one.windows for one in before.values()), default=0)
        run, step = saying(self.model), batches(windows)
        with torch.no_grad(), sensitivity.recording(self.sites, self.filters, before) as so_far:
            self.count(done)
            for start in range(done, len(windows), step):
                some = windows.inputs(slice(start, start + step))
                run(*(x.to(self.device) for x in some))
                self.count(len(some[0]))
                if self.journal is not None:
                    self.journal.keep(key, so_far(), last=start + step >= len(windows))
            self.moments = so_far()


class Remembered:
    """Logits of one model that are computed once for every batch, as long as they fit in memory."""

    BYTES = 1 << 29

    def __init__(self, logits: Run) -> None:
        self.logits, self.known, self.bytes = logits, dict[bytes, Tensor](), 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = b"".join(x.numpy().tobytes() for x in inputs)
        if key in self.known:
            return self.known[key]
        found = self.logits(*inputs)
        if self.bytes + found.nbytes <= self.BYTES:
            self.known[key] = found
            self.bytes += found.nbytes
        return found
