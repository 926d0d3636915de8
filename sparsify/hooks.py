"""Ask whether somebody watches a module, so that a fast path does not go past it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(*modules: nn.Module) -> bool:
    """Whether a hook is registered on one of these modules or on all modules, or one has a forward of its own.

    The latter is how accelerate moves weights in and out around a call.
    """
    if torch_module._has_any_global_hook():
        return True
    for module in modules:
        own = module.__dict__
        if "forward" in own or any(own[name] for name in HOOKS):
            return True
    return False
