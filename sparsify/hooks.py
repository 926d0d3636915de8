"""Ask whether somebody watches a module, so that a fast path does not go past it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module


def are(modules: Iterable[Any], kind: type[nn.Module]) -> bool:
    """Whether all of these are of this very class, and not of one that is derived from it."""
    return all([type(module) is kind for module in modules])


def is_hooked(*modules: Any) -> bool:
    """Whether a hook is registered on one of these modules or on all modules, or one has a forward of its own.

    The latter is how accelerate moves weights in and out around a call.
    """
    if torch_module._has_any_global_hook():
        return True
    for module in modules:
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return True
        if "forward" in own:
            return True
    return False
