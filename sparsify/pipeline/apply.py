"""Planned convolutions for a model that is loaded already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.plan import Plan
    from sparsify.plan.policies import Policy
    from sparsify.sites import ConvSite


def sparsify_(model: Any, plan: Plan | Policy | str | Path) -> Callable[[], None]:
    """Swap planned convolutions into a loaded model, in place; its weights stay as they are.

    The convolutions follow the weights behind them: when these change, the next forward pass prepares the filters anew.
    Nothing is measured here; `sparsify.evaluate` does that.

    Args:
        model: What `sparsify.load` returned, the module in it, or one of these models from transformers' AutoModel.
        plan: A plan, a policy that makes one, such as `policies.split(64, 1 / 8)`, or the path of a plan.json.

    Returns:
        A function that puts the convolutions and the precision of the linear layers from before back.

    Raises:
        ValueError: If nothing in the model convolves in a way that is known here, or the plan is for another model.
        FileNotFoundError: If there is no such plan.json.
    """
    from torch import nn

    from sparsify import swap
    from sparsify.cpu.linear import check_named, precisions_of, use_precision
    from sparsify.plan import Plan
    from sparsify.plan.policies import Policy, make_plan

    sites = sites_of(model)
    if isinstance(plan, Policy):
        plan = make_plan(sites, swap.Filters(sites), plan)
    elif not isinstance(plan, Plan):
        plan = Plan.read(Path(plan))
    module = model if isinstance(model, nn.Module) else model.model
    check_named(module, plan.linears)
    undo_filters, undo_linears = swap.apply_(sites, plan), precisions_of(module)
    use_precision(module, plan.linears)

    def undo() -> None:
        undo_filters()
        undo_linears()

    return undo


def sites_of(model: Any) -> Sequence[ConvSite]:
    """The long convolutions of a loaded model."""
    from torch import nn

    from sparsify.converters import registry

    found: Sequence[ConvSite] | None = getattr(model, "sites", None)
    if found is None and isinstance(model, nn.Module):
        try:
            _, family = registry.find({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        except LookupError:
            found = ()
        else:
            found = family.sites(model)
    if not found:
        raise ValueError(
            f"nothing in this {type(model).__name__} is a long convolution that is known here; load the checkpoint "
            f"with sparsify.load, or AutoModel after `import sparsify` and without trust_remote_code"
        )
    return found
