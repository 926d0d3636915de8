"""The way to a checkpoint, a model under a plan, and what is said of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsify.storage.reading import STDIN, is_stream, readable

from .progress import say

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from torch import Tensor, nn

    from sparsify.converters import Pretrained
    from sparsify.evals.texts import Run
    from sparsify.plan import Plan
    from sparsify.search.task import Price
    from sparsify.sites import Conv

FLOAT32, BFLOAT16 = "float32", "bfloat16"  # names of `linear.PRECISIONS`
Linears: TypeAlias = str | Mapping[str, str]
"""What linear layers multiply in: all of them, or those that are named, the others in float32."""
DENSE, SPARSE = "dense", "sparse"  # what results call a model without its plan, and under it
BASELINE, MODEL = "baseline", "model"  # and two dense models


def at_least(least: float, **given: float | None) -> None:
    """Refuse a number below `least`.  given: name of the option -> number, None for what was not given."""
    for name, value in given.items():
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least:g} or more, got {value}")


def refuse_overlap(out: Path, **others: str | Path | None) -> None:
    """Refuse an OUT that would lie in what is read, or around it, before any work.

    others: name of what is read -> where it lies; None, a pipe and what is not on this disk overlap nothing.
    """
    own = out.expanduser().resolve()
    for name, src in others.items():
        if src is None or str(src) == STDIN or not (there := Path(src).expanduser()).exists() or is_stream(there):
            continue
        there = there.resolve()
        if own == there or own in there.parents or (there.is_dir() and there in own.parents):
            raise ValueError(
                f"{readable(out)} and the {name} in {readable(src)} lie one inside the other, so writing would change "
                f"what is read; choose another folder"
            )


def refuse_overwriting(model: str | None, written: Mapping[str, str | Path | None], **read: str | Path | None) -> None:
    """Refuse to write a file over one that is read, over another that is written, or over one of the model's.

    written: option -> file, None for nothing.  read: name of the option -> file, the same way.
    """
    taken = {
        Path(path).expanduser().resolve(): f"--{name}"
        for name, path in read.items()
        if path is not None and not is_stream(path)
    }
    for option, path in written.items():
        if path is None or is_stream(path):
            continue
        place = Path(path).expanduser().resolve()
        if (other := taken.setdefault(place, option)) != option:
            raise ValueError(f"{option} would write over {other}, {readable(path)}; name another file")
        if model is not None and place.is_file() and Path(model).expanduser().resolve() == place.parent:
            raise ValueError(f"{option} would write over {readable(path)}, a file of the model; name another file")


def longest(p: Pretrained) -> str:
    """What a model takes at most, in words."""
    framed = f" of text, {p.context + 2} with [CLS] and [SEP]" if hasattr(p.tokenizer, "batch") else ""
    return f"{p.context} tokens{framed}"


def check_length(p: Pretrained, length: int | None) -> None:
    """Refuse a number of tokens that a model does not take."""
    if length is not None and length > p.context:
        raise ValueError(f"--length {length} is longer than the model's {longest(p)}; choose at most {p.context}")


def open_checkpoint(
    src: str, revision: str | None, options: Mapping[str, Any] | None, device: str | None
) -> Pretrained:
    """SRC, loaded, with the plan it was saved with or the dense one."""
    import torch

    from sparsify.converters import load

    say(f"loading {src}")
    p = load(src, revision, device or ("cuda" if torch.cuda.is_available() else "cpu"), options=options)
    for note in p.notes:
        say(f"note: {note}")
    return p


def open_baseline(src: str, p: Pretrained, where: Mapping[str, Any]) -> Pretrained:
    """The dense checkpoint that `p` is compared with, from its main branch, with the same options unless told."""
    base = open_checkpoint(src, **{**where, "revision": None, "options": where["options"] or p.options})
    if not base.plan.is_dense:
        raise ValueError(f"the baseline {src} is under the plan {base.plan.policy} itself; pass a dense checkpoint")
    return base


def pair_of(
    model: str, baseline: str | None, where: Mapping[str, Any], linears: str | None = None
) -> tuple[Pretrained, Pretrained]:
    """A checkpoint, and the dense one to compare it with.  linears: what its linear layers will multiply in."""
    p = open_checkpoint(model, **where)
    if baseline is None and p.plan.is_dense and linears in (None, FLOAT32):
        tell_no_plan(p)
    return p, p if baseline is None else open_baseline(baseline, p, where)


def described(p: Pretrained) -> dict[str, Any]:
    """Which checkpoint this is: the fields of `schema.Checkpoint`."""
    return {
        "source": p.source.label,
        "revision": p.source.revision,
        "sha256": p.sha256,
        "family": p.family,
        "options": p.options,
        "plan": p.plan.policy,
    }


def operators(p: Pretrained, plan: Plan | None = None, cut: bool = False) -> dict[str, Conv]:
    """The convolutions of a checkpoint under a plan, None for the one that keeps everything."""
    from sparsify import swap
    from sparsify.plan import Plan

    return swap.operators(p.filters, plan or Plan.dense(p.filters), cut)


def running(
    p: Pretrained, convs: Mapping[str, Conv | None], linears: Linears = FLOAT32,
    call: Callable[[nn.Module], Callable[..., Tensor]] | None = None,
) -> Run:  # fmt: skip
    """The model with these convolutions and linear layers as a function; other variants may run in between.

    call: model -> what of it to run; None runs what predicts tokens.
    """
    from sparsify import swap
    from sparsify.cpu.linear import use_precision
    from sparsify.evals.texts import saying

    run = swap.variant(p.model, p.sites, convs, (call or saying)(p.model))

    def forward(*inputs: Tensor) -> Tensor:
        use_precision(p.model, linears)
        return run(*inputs)

    return forward


def compared(
    p: Pretrained, base: Pretrained, call: Callable[[nn.Module], Callable[..., Tensor]] | None = None
) -> dict[str, tuple[Pretrained, Callable[..., Tensor]]]:
    """The dense model, and the one under its plan if it has one or weights of its own: name -> checkpoint, function.

    Two dense models are called what they were given as.  call: model -> what of it to run; None runs it itself.
    """
    from sparsify.plan import Plan

    first, second = names_of(p.plan, base if base is not p else None)
    plans = {first: (base, Plan.dense(base.filters))}
    if second is not None:
        plans[second] = (p, p.plan)
    whole = call or (lambda model: model)
    return {name: (q, running(q, operators(q, plan), plan.linears, whole)) for name, (q, plan) in plans.items()}


def names_of(plan: Plan, base: Pretrained | None) -> tuple[str, str | None]:
    """What results call the dense model, and the one under `plan`; None if that is the same.

    base: another checkpoint that is the dense model, if there is one.
    """
    if not plan.is_dense:
        return DENSE, SPARSE
    return (DENSE, None) if base is None else (BASELINE, MODEL)


def tell_no_plan(p: Pretrained) -> None:
    """Say that a model keeps everything, where one under a plan would be compared with that."""
    say(
        f"note: {p.source.name} is under no plan, so there is nothing to compare; `sparsify convert` makes one, and "
        f"--baseline names another model"
    )


def in_words(linears: Linears, layers: int) -> str:
    """What linear layers multiply in.  layers: how many there are."""
    if isinstance(linears, str):
        return linears
    if not linears:
        return FLOAT32
    return BFLOAT16 if len(linears) == layers else f"{BFLOAT16} in {len(linears)} of {layers} layers"


def check_linears(p: Pretrained, linears: str | None, length: int) -> None:
    """Refuse a precision that would not be used.  length: tokens of the shortest pass."""
    from sparsify.cpu.linear import PAYS_AT, PRECISIONS, Linear

    if linears is None or linears == FLOAT32:
        return
    if linears not in PRECISIONS:
        raise ValueError(f"got linears in {linears!r}; choose one of {', '.join(PRECISIONS)}")
    if p.device.type != "cpu" or not any(isinstance(module, Linear) for module in p.model.modules()):
        raise ValueError(f"--linears {linears} is for Hyena models on a CPU so far; add --device cpu, or leave it out")
    if length < PAYS_AT:
        raise ValueError(
            f"--linears {linears} begins to pay at {PAYS_AT} tokens and is not used below, got {length}; leave it out"
        )


def priced(target: str | None) -> Price:
    """What a plan is to be cheap on."""
    from sparsify.search import latency
    from sparsify.search.task import Kept

    return Kept() if target == "kept" else latency.target(target)


def some_tokens(p: Pretrained, batch: int, length: int) -> Tensor:
    """Token ids to time a model on: (batch, length)."""
    import torch

    first, stop = p.tokenizer.id_range
    return torch.randint(first, stop, (batch, length))
