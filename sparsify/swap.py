"""Put planned convolutions into a model, and take them out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .fftconv import LongConv
from .plan import Plan
from .sites import Conv, ConvSite


def materialize(sites: Sequence[ConvSite]) -> dict[str, Tensor]:
    """The filter of every site: name -> k (H, K) float32."""
    return {site.name: site.materialize() for site in sites}


def operators(filters: Mapping[str, Tensor], plan: Plan, cut: bool = False) -> dict[str, Conv]:
    """The convolution of every site under `plan`; `cut` sets taps at negative lags to zero."""
    plan.check(list(filters))
    kept = {name: plan.filters[name].apply(k) for name, k in filters.items()}
    return {name: LongConv(f.k, f.ahead) for name, f in ((n, f.cut() if cut else f) for n, f in kept.items())}


def install(sites: Sequence[ConvSite], convs: Mapping[str, Conv | None]) -> None:
    """Put an operator into each site; None brings back the model's own."""
    for site in sites:
        site.install(convs[site.name])


def apply_(sites: Sequence[ConvSite], plan: Plan) -> Callable[[], None]:
    """Swap in the planned convolutions, in place; returns the function that undoes it.  Weights stay untouched."""
    install(sites, operators(materialize(sites), plan))
    return lambda: install(sites, dict.fromkeys((site.name for site in sites), None))


def variant(model: nn.Module, sites: Sequence[ConvSite], convs: Mapping[str, Conv | None]) -> Conv:
    """`model` with these operators in place, as a function of ids on any device; other variants may run in between."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def run(input_ids: Tensor) -> Tensor:
        install(sites, convs)
        return model(input_ids.to(device))

    return run
