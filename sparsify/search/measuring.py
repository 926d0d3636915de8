"""What a search asks to be measured, of whoever measures: the search itself knows no model and no data.

`sparsify.evals.runs.Runs` is one who does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from sparsify.filters.filter import AnyFilter
from sparsify.plan import FilterPlan
from sparsify.sites import ConvSite

from .sensitivity import Moments

Run: TypeAlias = Callable[..., Tensor]
"""A model under some plan: what windows give as inputs -> logits."""
Say: TypeAlias = Callable[[str], None]
Bar: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], Any]]]
"""bar(what, windows) shows how far that has come; what it yields is told of every few windows more."""
Picks: TypeAlias = Mapping[str, FilterPlan]
"""Site -> what is kept; sites that are not named are dense."""
Linears: TypeAlias = Mapping[str, str]
"""Linear layer -> what it multiplies in; layers that are not named do so in float32."""
ALL_FLOAT32: Linears = MappingProxyType({})


TOKENS_A_BATCH = 1 << 14  # that a model is given at once


def nothing(line: str | int) -> None:
    """Progress that nobody watches."""


def no_bar(what: str, windows: int) -> AbstractContextManager[Callable[[int], Any]]:
    return nullcontext(nothing)


class Text(Protocol):
    """Windows of tokens that a model is measured on."""

    def __len__(self) -> int:
        """How many windows there are."""

    @property
    def context(self) -> int:
        """Tokens of a window."""

    @property
    def stride(self) -> int:
        """Tokens from window to window."""

    @property
    def n_tokens(self) -> int:
        """Predicted tokens in all."""

    @property
    def figure(self) -> str:
        """What is measured on them: "perplexity", or what stands for it."""

    def part(self, windows: slice) -> Any:
        """Some of these windows, a `Text` again."""

    def spread(self, count: int) -> Any:
        """So many of these windows, evenly spaced."""


class Versus(Protocol):
    """A choice against the dense model, paired token by token."""

    @property
    def perplexity_ratio(self) -> float:
        """The choice's perplexity over that of the dense model."""

    @property
    def perplexity_ratio_stderr(self) -> float | None:
        """Its standard error; None where there is one independent sample only."""

    @property
    def kl(self) -> float:
        """Mean KL(dense || choice), nats a token."""


class Leak(Protocol):
    """How far logits move when the future changes."""

    @property
    def worst(self) -> float:
        """The most that was found, relative to the logits' norm."""


class Measurements(Protocol):
    """A model under plans for some of its convolutions, and what is measured of it.

    windows: how many were read so far.  moments: of what arrives at every site, once `read` has seen to it.
    """

    windows: int
    moments: dict[str, Moments]

    @property
    def sites(self) -> Sequence[ConvSite]:
        """Where the model convolves."""

    @property
    def filters(self) -> Mapping[str, AnyFilter]:
        """The filter of every site."""

    @property
    def say(self) -> Say:
        """Where a line of progress goes."""

    def working(self) -> AbstractContextManager[None]:
        """While it lasts, convolutions of the model come and go; afterwards it has those from before."""

    def stage(self, what: str, windows: int) -> AbstractContextManager[None]:
        """While it lasts, a bar shows how many of about so many windows were read."""

    def read(self, windows: Any) -> None:
        """Find the moments: one pass of the dense model over these windows."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Linear layer -> multiplications a token, of those that another precision makes quicker here."""

    def under(self, picks: Picks, cut: bool = True, linears: Linears = ALL_FLOAT32) -> Run:
        """The model with these sites and layers changed, with negative lags of causal ones cut unless told."""

    def versus(self, dense: Run, picks: Picks, windows: Any, linears: Linears = ALL_FLOAT32) -> Versus:
        """A choice against the dense model, with negative lags of causal sites cut."""

    def leak(self, picks: Picks, windows: Any) -> Leak:
        """How far a choice reads the future; with linear layers in float32, since rounding is no reading."""

    def remembered(self, logits: Run) -> Run:
        """The same, computed once for every batch as long as that fits in memory."""


def share_kept(runs: Measurements, name: str, plan: FilterPlan) -> float:
    """What a site keeps under a plan, as a share of its filter."""
    k = runs.filters[name]
    return plan.density(k.taps, k.lookahead)
