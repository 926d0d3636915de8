"""Planned convolutions in modelling code that is not ours, such as the hub's under trust_remote_code.

Assumed of it, and checked: tensors under the names of the checkpoint, and for HyenaDNA at every site a module
`filter_fn` whose `filter(L)` makes the taps and whose forward(x, L, k, bias) convolves x (B, H, L) with them and adds
bias * x.  The code itself is loaded and run by transformers, on its user's word, never by us.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import swap
from sparsify.converters.folder import copy_beside
from sparsify.converters.load import build
from sparsify.fftconv import LongConv
from sparsify.plan import Plan

FILTER = "filter_fn"
ARGUMENTS = ["x", "L", "k", "bias"]


class PlannedFilter(nn.Module):
    """Mixed into the class of a filter module: its parameters stay, its convolution is the planned one."""

    conv: LongConv

    def filter(self, L: int, *args: Any, **kwargs: Any) -> Tensor:
        """Taps that nobody reads, at no cost: (1, L, H), as its forward takes them."""
        return torch.zeros((), device=next(self.parameters()).device).expand(1, L, len(self.conv.k))

    def forward(self, x: Tensor, L: int, k: Any = None, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        skip = torch.as_tensor(self.bias if bias is None else bias)
        return self.conv(x.contiguous(), skip=skip.to(x.dtype).reshape(-1))


def keep_filters_exact(model: Any) -> None:
    """Have the filters' weights loaded in float32 whatever the model's dtype: half precision cannot tell taps apart."""
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    model._keep_in_fp32_modules_strict = {*kept, FILTER}


def install(model: Any, plan: Plan, folder: Path | None = None) -> None:
    """Put the planned convolutions into `model`, whose filters are those that the same weights make in our code.

    folder: what lies there beside the weights goes along when the model is saved.
    """
    _, family, twin, _ = build(model.state_dict(), model.config.to_dict())
    sites = family.sites(twin)
    operators = swap.operators(swap.materialize(sites), plan, ahead=swap.ahead_of(sites))
    modules = dict(model.named_modules())
    for name, conv in operators.items():
        found = [path for path in modules if f".{path}".endswith(f".{name}.{FILTER}")]
        if len(found) != 1 or not takes(modules[found[0]]):
            raise ValueError(
                f"{type(model).__name__} has no module {name}.{FILTER} with forward({', '.join(ARGUMENTS)}) and "
                f"filter(L), so its convolution cannot be replaced; use sparsify.load instead"
            )
        module = modules[found[0]]
        module.conv = conv
        module.__class__ = type(f"Planned{type(module).__name__}", (PlannedFilter, type(module)), {})
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
