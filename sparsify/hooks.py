"""Ask whether somebody watches a module or a tensor, so that a fast path does not go past it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

PLAIN = (Tensor, nn.Parameter)


def is_plain(t: Tensor) -> bool:
    """Whether a tensor is its values in memory and nothing more.

    It is not where a class derived from Tensor stands for values elsewhere, nor under transforms of torch.func, nor
    with a tangent of forward-mode differentiation: there kernels would read what is not there, or lose what is.
    """
    if type(t) not in PLAIN or is_functorch_wrapped_tensor(t):
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(t).tangent is None


def are(modules: Iterable[Any], kind: type[nn.Module]) -> bool:
    """Whether all of these are of this very class, and not of one that is derived from it."""
    return all([type(module) is kind for module in modules])


_watching = threading.local()  # for whom hooks look on without a need to see every call


@contextmanager
def onlooking() -> Iterator[None]:
    """Hooks are only looking on: while it lasts, fast paths of this thread stay as fast as they are without hooks."""
    _watching.only = True
    try:
        yield
    finally:
        _watching.only = False


def is_hooked(*modules: Any) -> bool:
    """Whether a hook is registered on one of these modules or on all modules, or one has a forward of its own.

    The latter is how accelerate moves weights in and out around a call.
    """
    if getattr(_watching, "only", False):
        return False
    if torch_module._has_any_global_hook():
        return True
    for module in modules:
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return True
        if "forward" in own:
            return True
    return False
