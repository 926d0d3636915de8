"""Put planned convolutions into a model, and take them out again."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fftconv import LongConv, Source
from .freshness import COARSE, signature
from .plan import FilterPlan, Plan
from .sites import Conv, ConvSite

SPECTRA_BYTES = 1 << 28  # of a model's filters together; more are made in every call rather than kept
ONE_SIDED: Mapping[str, int] = {}


def materialize(sites: Sequence[ConvSite]) -> dict[str, Tensor]:
    """The filter of every site: name -> k (H, K) float32."""
    filters = {site.name: site.materialize() for site in sites}
    if broken := [name for name, k in filters.items() if not k.isfinite().all()]:
        raise ValueError(f"the filter of {broken[0]} has infinite or undefined taps; the weights behind it are damaged")
    return filters


def ahead_of(sites: Sequence[ConvSite]) -> dict[str, int]:
    """Taps at negative lags of every filter that has some: name -> ahead."""
    return {site.name: site.ahead for site in sites if site.ahead}


def operators(
    filters: Mapping[str, Tensor], plan: Plan, cut: bool = False, ahead: Mapping[str, int] = ONE_SIDED
) -> dict[str, Conv]:
    """The convolution of every site under `plan`.

    cut: set taps at negative lags to zero where the filter itself has none.  ahead: as of `ahead_of`.
    """
    plan.check(list(filters))
    convs: dict[str, Conv] = {}
    room = SPECTRA_BYTES // max(1, len(filters))
    for name, k in filters.items():
        own = ahead.get(name, 0)
        try:
            kept = plan.filters[name].apply(k, own)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        kept = kept.cut() if cut and not own else kept
        convs[name] = LongConv(
            kept.k, kept.ahead, mask=kept.mask, head=kept.head, head_ahead=kept.head_ahead, spectra_bytes=room
        )
    return convs


_refreshing = threading.Lock()  # threads that share a model put its filters right one after the other


@dataclass
class Changes:
    """What the convolutions of one model share: whether somebody was told that its weights changed under a plan."""

    told: bool = False

    def tell(self) -> None:
        if not self.told:
            self.told = True
            warnings.warn(
                "the weights behind a planned convolution have changed; its filter follows them, but what was "
                "measured with the plan may not hold any more, so measure again",
                UserWarning,
                stacklevel=2,
            )


@dataclass
class Planned:
    """A plan's filter that follows the weights it is made of: a `fftconv.Following`."""

    plan: FilterPlan
    length: int  # taps of the whole filter, of which
    ahead: int  # so many are at negative lags
    signature: object  # of the weights that the filter was made of
    changes: Changes

    def traced(self, source: Source, seqlen: int) -> tuple[Tensor, int]:
        if self.plan.kind == "dense":
            return source.trace(seqlen), seqlen if self.ahead else 0
        kept = self.plan.apply(source.trace(self.length - self.ahead), self.ahead)
        return kept.k, kept.ahead

    def refresh(self, conv: LongConv, source: Source) -> None:
        if signature(source.weights()) == self.signature:
            return
        with _refreshing:
            weights = source.weights()
            now = signature(weights)
            if now == self.signature or now is None or any(w.dtype in COARSE for w in weights):
                return  # weights in half precision tell less than the filter that was made before
            kept = self.plan.apply(source.materialize(), self.ahead)
            moved_only = kept.k.shape == conv.k.shape and torch.equal(kept.k.to(conv.k), conv.k)  # or in another dtype
            if not moved_only:
                conv.set_filter(kept.k, kept.ahead, mask=kept.mask, head=kept.head, head_ahead=kept.head_ahead)
            self.signature = now
        if self.plan.kind != "dense" and not moved_only:
            self.changes.tell()


def follow(sites: Sequence[ConvSite], convs: Mapping[str, Conv | None], plan: Plan) -> None:
    """Have the convolutions that `plan` gave follow the weights of these sites from now on, however those change."""
    changes = Changes()
    for site in sites:
        conv = convs[site.name]
        if site.weights is not None and isinstance(conv, LongConv):
            now = signature(site.weights())
            conv.following = Planned(plan.filters[site.name], site.length, site.ahead, now, changes)


def planned(sites: Sequence[ConvSite], plan: Plan, filters: Mapping[str, Tensor] | None = None) -> dict[str, Conv]:
    """The convolution of every site under `plan`, which follows the site's weights.

    filters: the filter of every site where they are made already.
    """
    convs = operators(materialize(sites) if filters is None else filters, plan, ahead=ahead_of(sites))
    follow(sites, convs, plan)
    return convs


def install(sites: Sequence[ConvSite], convs: Mapping[str, Conv | None]) -> dict[str, Conv | None]:
    """Put an operator into each site, None for the model's own; returns those that were there."""
    return {site.name: site.install(convs[site.name]) for site in sites}


@contextmanager
def installed(sites: Sequence[ConvSite], convs: Mapping[str, Conv | None]) -> Iterator[None]:
    """While it lasts, every site has its operator, None for the model's own; those from before are back afterwards."""
    before = install(sites, convs)
    try:
        yield
    finally:
        install(sites, before)


def apply_(sites: Sequence[ConvSite], plan: Plan) -> Callable[[], None]:
    """Swap in the planned convolutions, in place; returns the function that undoes it.  Weights stay untouched.

    Convolutions follow the weights behind them: when these change, the next forward pass prepares the filters anew,
    and where gradients of them are wanted it computes the filters with their gradients.
    """
    before = install(sites, planned(sites, plan))

    def undo() -> None:
        install(sites, before)

    return undo


def variant(
    model: nn.Module,
    sites: Sequence[ConvSite],
    convs: Mapping[str, Conv | None],
    call: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """`model` with these operators in place, as a function of tensors on any device; other variants may run in between.

    call: what of the model to run, such as its `embed`; None runs the model itself.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def run(*inputs: Tensor) -> Tensor:
        install(sites, convs)
        return (call or model)(*(x.to(device) for x in inputs))

    return run
