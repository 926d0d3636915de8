"""Put planned convolutions into a model, and take them out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .fftconv import LongConv
from .plan import Plan
from .sites import Conv, ConvSite

SPECTRA_BYTES = 1 << 28  # of a model's filters together; more are made in every call rather than kept


def materialize(sites: Sequence[ConvSite]) -> dict[str, Tensor]:
    """The filter of every site: name -> k (H, K) float32."""
    filters = {site.name: site.materialize() for site in sites}
    if broken := [name for name, k in filters.items() if not k.isfinite().all()]:
        raise ValueError(f"the filter of {broken[0]} has infinite or undefined taps; the weights behind it are damaged")
    return filters


def operators(filters: Mapping[str, Tensor], plan: Plan, cut: bool = False) -> dict[str, Conv]:
    """The convolution of every site under `plan`; `cut` sets taps at negative lags to zero."""
    plan.check(list(filters))
    convs: dict[str, Conv] = {}
    room = SPECTRA_BYTES // max(1, len(filters))
    for name, k in filters.items():
        try:
            kept = plan.filters[name].apply(k)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        kept = kept.cut() if cut else kept
        convs[name] = LongConv(kept.k, kept.ahead, mask=kept.mask, head=kept.head, spectra_bytes=room)
    return convs


def install(sites: Sequence[ConvSite], convs: Mapping[str, Conv | None]) -> dict[str, Conv | None]:
    """Put an operator into each site, None for the model's own; returns those that were there."""
    return {site.name: site.install(convs[site.name]) for site in sites}


def apply_(sites: Sequence[ConvSite], plan: Plan) -> Callable[[], None]:
    """Swap in the planned convolutions, in place; returns the function that undoes it.  Weights stay untouched.

    The operators hold the filters as they are now: changes of the weights behind them need another swap.
    """
    before = install(sites, operators(materialize(sites), plan))

    def undo() -> None:
        install(sites, before)

    return undo


def variant(model: nn.Module, sites: Sequence[ConvSite], convs: Mapping[str, Conv | None]) -> Conv:
    """`model` with these operators in place, as a function of ids on any device; other variants may run in between."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def run(input_ids: Tensor) -> Tensor:
        install(sites, convs)
        return model(input_ids.to(device))

    return run
