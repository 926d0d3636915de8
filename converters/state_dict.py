"""From the names a checkpoint uses to the names of our modules, with every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = re.compile(r"^(?:(?:module|model|base_model|_forward_module)\.)+")  # DDP, Lightning, PEFT, Fabric
INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # anywhere in a name
LEFTOVERS = re.compile(
    r"torchmetrics|^(?:criterion|loss|loss_fn|(?:train|val|valid|test)_(?:metrics?|acc\w*))\.|^n_averaged$"
)
SHOWN = 6  # names listed in a refusal before it says how many more there are


def strip_wrappers(name: str) -> str:
    """A name without what DataParallel, FSDP, Lightning, PEFT and torch.compile put around it."""
    return WRAPPERS.sub("", INNER.sub("", name))


def is_leftover(name: str) -> bool:
    """Whether a tensor is of a training run, not of its model: a loss's weights, counters of a metric or a mean.

    name: as `strip_wrappers` gives it.
    """
    return LEFTOVERS.search(name) is not None


def refuse_other_heads(found: Iterable[str], own: tuple[str, ...], family: str, ours: str) -> None:
    """Refuse tensors beside the trunk that no head of ours has: what is computed with them is not in the file.

    found: our names.  own: how those of the family begin.  ours: its heads, in words.
    """
    if strange := sorted(name for name in found if not name.startswith(own)):
        raise ValueError(
            f"the checkpoint has a head of its own, {listed(strange)}, and the file does not tell what is computed "
            f"with it; {family} is read here with {ours}; take these tensors out of the file to load the model "
            f"without that head"
        )


def rename_all(tensors: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Tensors under the names `rename` gives; None drops one.  Names that meet must hold equal values."""
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for stored, tensor in tensors.items():
        name = rename(stored)
        if name is None:
            continue
        if name in renamed and not equal(renamed[name], tensor):
            raise ValueError(f"{origin[name]} and {stored} are one parameter of this model, but their values differ")
        renamed[name], origin[name] = tensor, stored
    return renamed


def equal(a: Tensor, b: Tensor) -> bool:
    """Same values; on the meta device, which has none, same shapes."""
    return a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))


def assign(model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Make `tensors` the parameters and buffers of `model`; all names and shapes must agree.

    A model built on the meta device costs no memory until here, and tensors of a mapped file are read one by one.
    dtype: what they are held in; modules that are `exact` have float32 in any case.
    """
    wanted = model.state_dict()
    odd = [
        f"{name} is {tuple(tensor.shape)} {tensor.dtype}, expected {tuple(wanted[name].shape)} floats"
        for name, tensor in tensors.items()
        if name in wanted and (tensor.shape != wanted[name].shape or not tensor.is_floating_point())
    ]
    complaints = (
        ("missing", sorted(wanted.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - wanted.keys())),
        ("of another shape or type", sorted(odd)),
    )
    if any(names for _, names in complaints):
        message = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in complaints if names)
        raise ValueError(f"the checkpoint does not fit its family: {message}")
    exact = tuple(f"{name}." for name, module in model.named_modules() if getattr(module, "exact", False))
    # copied, because safetensors maps its file into memory, and who overwrites the file would change the model
    copies = {
        name: tensor.to(torch.float32 if name.startswith(exact) else dtype, copy=True)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(copies, strict=True, assign=True)


def translate(state_dict: dict[str, Any], prefix: str, own: Iterable[str], rename: Callable[[str], str | None]) -> None:
    """Give the tensors of a state dict, in place, the names that a model has for them.

    prefix: what stands before the names of this model's tensors; other tensors are left alone.  own: the names in the
    model.  rename: a name in another dialect -> one in the model, None for what no model needs.
    Raises ValueError where the state dict is this model's alone and still none of its tensors is.
    """
    own = {prefix + name for name in own}
    given = [name for name in state_dict if name.startswith(prefix)]
    for name in given:
        new = name if name in own else rename(name[len(prefix) :])
        if new is not None and prefix + new in own and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(name)
    if given and not prefix and own.isdisjoint(state_dict):
        raise ValueError(
            f"none of the {len(given)} tensors ({listed(sorted(given))}) is one of this model's {len(own)} "
            f"({listed(sorted(own))}); nothing would have been restored, so pass a state dict of this model"
        )


def fill_tied(state_dict: dict[str, Any], head: str, embedding: str) -> None:
    """Let a state dict without a head that is the embedding have it, for files know no shared memory."""
    if head not in state_dict and embedding in state_dict:
        state_dict[head] = state_dict[embedding]


def without_tied(state: Mapping[str, Tensor], head: str, embedding: str) -> dict[str, Tensor]:
    """Tensors without a head that is the embedding, for files know no shared memory; a missing one is read as that."""
    tied = head in state and state[head].data_ptr() == state[embedding].data_ptr()
    return {name: tensor for name, tensor in state.items() if not (tied and name == head)}


def empty_embedding(rows: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    """An embedding without values, for a model that gets its weights from elsewhere.

    torch would draw them, and on the meta device it imports its whole compiler for that.
    """
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False, padding_idx=padding_idx)


def shape_of(found: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor that sizes are read from."""
    if name not in found:
        raise ValueError(f"the checkpoint lacks {name}, from which the model's sizes are read")
    if found[name].dim() != dims:
        raise ValueError(f"{name} has shape {tuple(found[name].shape)}, expected {dims} dimensions")
    return tuple(found[name].shape)


def number(config: Mapping[str, Any], name: str, default: float) -> float:
    """A number in the config; `default` where it says nothing."""
    value = default if config.get(name) is None else config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:  # nor NaN
        raise ValueError(f"config.json says {name} {value!r:.60}, expected a number")
    return value


def whole(config: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number in the config, not negative; `default` where it says nothing."""
    value = number(config, name, default)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"config.json says {name} {value!r:.60}, expected a whole number")
    return value


def agree(config: Mapping[str, Any], truth: Mapping[str, tuple[Any, str]]) -> None:
    """Refuse a config.json that contradicts the weights.  truth: name -> what it must say, if anything, and why."""
    for name, (value, what) in truth.items():
        if config.get(name) not in (None, value):
            raise ValueError(
                f"config.json says {name} {config[name]!r:.60}, the weights need {value} ({what}); "
                f"take config.json and weights from the same checkpoint"
            )


def listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
