"""Put planned convolutions into a model, and take them out again."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .cpu import memory
from .fftconv import LongConv, Source
from .filters.filter import AnyFilter, BlockedFilter, Filter, in_memory, is_large
from .freshness import COARSE, signature
from .plan import FilterPlan, Plan
from .sites import Conv, ConvSite

KEPT_BYTES = 1 << 28  # of taps that `Filters` holds at a time; others are made again when somebody asks


class Filters(Mapping[str, AnyFilter]):
    """The filter of every site by name, made one site at a time, when it is asked for.

    It is made again where the weights have changed since, or where it is too large to be kept.
    """

    def __init__(self, sites: Sequence[ConvSite]) -> None:
        self.sites = {site.name: site for site in sites}
        self.kept: dict[str, tuple[object, AnyFilter]] = {}  # name -> signature of the weights, filter

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> AnyFilter:
        site = self.sites[name]
        made_of = None if site.weights is None else signature(site.weights())
        before, found = self.kept.get(name, (None, None))
        if found is None or before != made_of:
            self.kept.pop(name, None)
            found = materialize(site)
            while self.kept and found.nbytes + sum(one.nbytes for _, one in self.kept.values()) > KEPT_BYTES:
                del self.kept[next(iter(self.kept))]
            if isinstance(found, Filter) and found.nbytes <= KEPT_BYTES:
                self.kept[name] = made_of, found
        return found


class Tensors(Mapping[str, Tensor]):
    """The taps of filters by name, and other tensors besides, for what looks at tensors one at a time."""

    def __init__(self, filters: Mapping[str, AnyFilter], besides: Mapping[str, Tensor] | None = None) -> None:
        self.filters, self.besides = filters, besides or {}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.filters, *self.besides)))

    def __len__(self) -> int:
        return len(set(self.filters) | set(self.besides))

    def __getitem__(self, name: str) -> Tensor:
        return in_memory(self.filters[name]).k if name in self.filters else self.besides[name]


def materialize(site: ConvSite) -> AnyFilter:
    """The whole filter of a site; refuses one with taps that are no numbers."""

    def checked(k: Filter) -> Filter:
        if not k.k.is_meta and not k.k.isfinite().all():
            raise ValueError(
                f"the filter of {site.name} has infinite or undefined taps; the weights behind it are damaged"
            )
        return k

    def checked_later(k: BlockedFilter) -> BlockedFilter:
        shorter = k.shorter
        return replace(
            k,
            make=lambda rows: checked(k.make(rows)),
            shorter=None if shorter is None else lambda seqlen: checked_later(shorter(seqlen)),
        )

    found = site.materialize()
    return checked(found) if isinstance(found, Filter) else checked_later(found)


@dataclass(frozen=True)
class Remade:
    """The filter of a planned convolution, from that of its source: a `fftconv.Remake`."""

    plan: FilterPlan
    cut: bool  # leave out the taps at negative lags

    def __call__(self, k: AnyFilter) -> AnyFilter:
        kept = self.plan.apply(k)
        kept = kept.past() if self.cut else kept
        return kept if is_large(kept.channels, kept.taps) else in_memory(kept)


def operators(filters: Mapping[str, AnyFilter], plan: Plan, cut: bool = False) -> dict[str, Conv]:
    """The convolution of every site under `plan`.

    cut: leave out the taps at negative lags where the filter itself has none.
    """
    plan.check(list(filters))
    convs: dict[str, Conv] = {}
    each = memory.budget() // max(1, len(filters))
    for name in filters:
        k = filters[name]
        remade = Remade(plan.filters[name], cut and not k.lookahead)
        try:
            kept = remade(k)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        convs[name] = LongConv(kept, spectra_bytes=each, remake=remade)
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


LOOKED_THROUGH = 1 << 28  # bytes of a filter's weights, which are small beside what is computed with them


def signed(source: Source) -> object:
    """What tells the weights of a source from others; see `freshness.signature`."""
    return signature(source.weights(), LOOKED_THROUGH)


def is_settled(source: Source) -> bool:
    """Whether the filter of a source depends on its weights alone, not on hooks or on layers that others put in."""
    settled = getattr(source, "settled", None)
    return settled is None or bool(settled())


@dataclass
class Planned:
    """A plan's filter that follows the weights it is made of: a `fftconv.Following`."""

    plan: FilterPlan
    signature: object  # of the weights that the filter was made of
    changes: Changes

    def traced(self, source: Source, seqlen: int) -> Filter:
        return source.trace(seqlen) if self.plan.kind == "dense" else self.plan.apply(source.trace())

    def refresh(self, conv: LongConv, source: Source) -> None:
        settled = is_settled(source)
        if settled and signed(source) == self.signature:
            return
        with _refreshing:
            now = signed(source)
            if (settled and now == self.signature) or now is None:
                return
            if not getattr(source, "exact", False) and any(w.dtype in COARSE for w in source.weights()):
                return  # weights that were cast to half precision tell less than the filter that was made before
            remade = Remade(self.plan, False)
            kept, before = remade(source.materialize()), conv.filter
            apart = distance(kept, before)
            if apart or (isinstance(kept, Filter) and isinstance(before, Filter) and kept.k.dtype != before.k.dtype):
                conv.set_filter(kept, remade)
            self.signature = now
        if self.plan.kind != "dense" and apart > ROUNDING:
            self.changes.tell()


ROUNDING = 1e-5  # of a filter's norm: what another device, dtype or order of sums may move it by


def distance(k: AnyFilter, other: AnyFilter) -> float:
    """How far apart the taps of two filters are, relative to their norm; 0 for the same.

    It is infinite for other sizes, and for a filter that is not kept, of which nobody knows.
    """
    if isinstance(k, BlockedFilter) or isinstance(other, BlockedFilter) or k.k.shape != other.k.shape:
        return math.inf
    if other.k.is_meta:
        return math.inf
    ours, theirs = k.k.to(other.k), other.k
    if torch.equal(ours, theirs):
        return 0.0
    return float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(theirs.dtype).tiny))


def follow(sites: Sequence[ConvSite], convs: Mapping[str, Conv | None], plan: Plan) -> None:
    """Have the convolutions that `plan` gave follow the weights of these sites from now on, however those change."""
    changes = Changes()
    for site in sites:
        conv = convs[site.name]
        if site.weights is not None and isinstance(conv, LongConv):
            conv.following = Planned(plan.filters[site.name], signature(site.weights(), LOOKED_THROUGH), changes)


def planned(sites: Sequence[ConvSite], plan: Plan, filters: Mapping[str, AnyFilter] | None = None) -> dict[str, Conv]:
    """The convolution of every site under `plan`, which follows the site's weights.

    filters: the filter of every site where they are made already.
    """
    convs = operators(Filters(sites) if filters is None else filters, plan)
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
