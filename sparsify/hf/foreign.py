"""Planned convolutions in modelling code that is not ours, such as the hub's under trust_remote_code.

Assumed of it, and checked: tensors under the names of the checkpoint, and for HyenaDNA at every site a module
`filter_fn` whose `filter(L)` makes the taps and whose forward(x, L, k, bias) convolves x (B, H, L) with them and adds
bias * x.  The code itself is loaded and run by transformers, on its user's word, never by us.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import swap
from sparsify.converters.load import build
from sparsify.converters.save import copy_beside
from sparsify.fftconv import LongConv
from sparsify.filters.filter import AnyFilter, Filter
from sparsify.freshness import weights_of
from sparsify.plan import Plan
from sparsify.sites import ConvSite

FILTER = "filter_fn"
ARGUMENTS = ["x", "L", "k", "bias"]


class PlannedFilter(nn.Module):
    """Mixed into the class of a filter module: its parameters stay, its convolution is the planned one."""

    conv: LongConv
    site: str  # its name in plans
    home: list[Any]  # the model around it; in a list, since an attribute would make it a part of this module

    def filter(self, L: int, *args: Any, **kwargs: Any) -> Tensor:
        """Taps that nobody reads, at no cost: (1, L, H), as its forward takes them."""
        return torch.zeros((), device=next(self.parameters()).device).expand(1, L, self.conv.filter.channels)

    def forward(self, x: Tensor, L: int, k: Any = None, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        skip = torch.as_tensor(self.bias if bias is None else bias)
        return self.conv(x.contiguous(), skip=skip.to(x.dtype).reshape(-1), source=self)

    def weights(self) -> list[Tensor]:
        """What the taps are made of; the skip coefficients are none of it."""
        return [weight for weight in weights_of(self) if weight is not self.bias]

    def materialize(self, seqlen: int | None = None) -> AnyFilter:
        """The filter that the weights make in our code now."""
        return next(site for site in sites_of(self.home[0]) if site.name == self.site).materialize(seqlen)

    def trace(self, seqlen: int | None = None) -> Filter:
        """Refused: this code was not made to learn around a planned filter."""
        raise ValueError(
            f"a weight of the planned filter {self.site} requires a gradient, which modelling code of others does not "
            f"get here; freeze it with requires_grad_(False), or load without trust_remote_code"
        )


def sites_of(model: Any) -> tuple[ConvSite, ...]:
    """The convolutions that the weights of a model make in our code."""
    _, family, twin, _ = build(model.state_dict(), model.config.to_dict())
    return family.sites(twin)


def keep_filters_exact(model: Any) -> None:
    """Have the filters' weights loaded in float32 whatever the model's dtype: half precision cannot tell taps apart."""
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    model._keep_in_fp32_modules_strict = {*kept, FILTER}


def install(model: Any, plan: Plan, folder: Path | None = None) -> None:
    """Put the planned convolutions into `model`, whose filters are those that the same weights make in our code.

    folder: what lies there beside the weights goes along when the model is saved.
    """
    sites = sites_of(model)
    operators = swap.operators(swap.Filters(sites), plan)
    modules, known, followed = dict(model.named_modules()), {site.name: site for site in sites}, []
    for name, conv in operators.items():
        found = [path for path in modules if f".{path}".endswith(f".{name}.{FILTER}")]
        if len(found) != 1 or not takes(modules[found[0]]):
            raise ValueError(
                f"{type(model).__name__} has no module {name}.{FILTER} with forward({', '.join(ARGUMENTS)}) and "
                f"filter(L), so its convolution cannot be replaced; use sparsify.load instead"
            )
        module = modules[found[0]]
        module.conv, module.site, module.home = conv, name, [model]
        module.__class__ = type(f"Planned{type(module).__name__}", (PlannedFilter, type(module)), {})
        followed.append(replace(known[name], weights=module.weights))
        for weight in module.weights():
            weight.requires_grad_(False)
    swap.follow(followed, operators, plan)
    if folder is not None:
        model.folder = folder
        model.save_pretrained = MethodType(save_pretrained, model)


def save_pretrained(model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
    """The model's own; the plan's coefficients, the report and the card go along."""
    copy_beside(model.folder, Path(save_directory))
    type(model).save_pretrained(model, save_directory, *args, **kwargs)


def takes(module: nn.Module) -> bool:
    """Whether a module is called as we expect."""
    names = list(inspect.signature(module.forward).parameters)
    return names[: len(ARGUMENTS)] == ARGUMENTS and callable(getattr(module, "filter", None))
