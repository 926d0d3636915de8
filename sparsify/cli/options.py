"""What the verbs share: options, the way to a checkpoint, a model under a plan, and what is printed."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that --help is quick
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals.planning.candidates import Price
    from sparsify.evals.texts import Run
    from sparsify.plan import Plan
    from sparsify.sites import Conv

DEFAULT_WINDOWS = 500
SECONDS_A_LINE = 30.0  # of progress, where there is no terminal for a bar
NOTES = f"{__package__}.notes"  # in a click context: what was left out of the data
JOURNAL = f"{__package__}.journal"  # in a click context: the measurements that this command keeps until it is done
FLOAT32, BFLOAT16 = "float32", "bfloat16"  # names of `linear.PRECISIONS`


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def decorate(verb: Any) -> Any:
        for decorator in reversed(decorators):
            verb = decorator(verb)
        return verb

    return decorate


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
SOURCE = options(  # what `open_checkpoint` takes
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option(
        "--shift", type=float, help="Floor of HyenaDNA's decay window: 0 as trained, 0.05 as in the hub's own code."
    ),
    click.option("--device", help="Where to run: cpu, cuda, cuda:1.  [default: cuda if there is one]"),
)
UPPER = click.option("--upper", is_flag=True, help="Read lower-case (soft-masked) bases as upper case.")
DATA = options(
    click.option("--context", type=click.IntRange(2), help="Tokens in a window.  [default: the model's context]"),
    click.option("--stride", type=click.IntRange(1), help="Tokens from window to window.  [default: context]"),
    click.option(
        "--limit", type=click.IntRange(0), default=DEFAULT_WINDOWS, show_default=True,
        help="Windows, evenly spaced; 0 takes all.",
    ),
    UPPER,
)  # fmt: skip
LINEARS = click.option(
    "--linears", type=click.Choice([FLOAT32, BFLOAT16]), default=FLOAT32, show_default=True,
    help="What the linear layers multiply in, on a CPU; bfloat16 is quicker, and its loss is measured.",
)  # fmt: skip


def open_checkpoint(src: str, revision: str | None, shift: float | None, device: str | None) -> Pretrained:
    """SRC, loaded, with the plan it was saved with or the dense one."""
    import torch

    from sparsify.converters import load

    say(f"loading {src}")
    p = load(src, revision, shift, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for note in p.notes:
        say(f"note: {note}")
    return p


def open_baseline(src: str, p: Pretrained, where: Mapping[str, Any]) -> Pretrained:
    """The dense checkpoint that `p` is compared with, from its main branch, under the same shift unless told."""
    shift = p.shift if where["shift"] is None else where["shift"]
    base = open_checkpoint(src, **{**where, "revision": None, "shift": shift})
    if not base.plan.is_dense:
        raise ValueError(f"the baseline {src} is under the plan {base.plan.policy} itself; pass a dense checkpoint")
    return base


def described(p: Pretrained) -> dict[str, Any]:
    """Which checkpoint this is."""
    return {
        "source": p.source.label,
        "revision": p.source.revision,
        "sha256": p.sha256,
        "family": p.family,
        "shift": p.shift,
        "plan": p.plan.policy,
    }


def operators(p: Pretrained, plan: Plan | None = None, cut: bool = False) -> dict[str, Conv]:
    """The convolutions of a checkpoint under a plan, None for the one that keeps everything."""
    from sparsify import swap
    from sparsify.plan import Plan

    return swap.operators(p.filters, plan or Plan.dense(p.filters), cut, swap.ahead_of(p.sites))


def running(p: Pretrained, convs: Mapping[str, Conv | None], linears: str = FLOAT32) -> Run:
    """The model with these convolutions and linear layers as a function; other variants may run in between."""
    from sparsify import swap
    from sparsify.cpu.linear import use_precision
    from sparsify.evals.texts import saying

    run = swap.variant(p.model, p.sites, convs, saying(p.model))

    def forward(*inputs: Tensor) -> Tensor:
        use_precision(p.model, linears)
        return run(*inputs)

    return forward


def check_linears(p: Pretrained, linears: str, length: int) -> None:
    """Refuse a precision that would not be used.  length: tokens of the shortest pass."""
    from sparsify.cpu.linear import PAYS_AT, Linear

    if linears == FLOAT32:
        return
    if p.device.type != "cpu" or not any(isinstance(module, Linear) for module in p.model.modules()):
        raise ValueError(f"--linears {linears} is for Hyena models on a CPU so far; add --device cpu, or leave it out")
    if length < PAYS_AT:
        raise ValueError(
            f"--linears {linears} begins to pay at {PAYS_AT} tokens and is not used below, got {length}; leave it out"
        )


def priced(target: str | None) -> Price:
    """What a plan is to be cheap on."""
    from sparsify.evals.planning.candidates import Kept
    from sparsify.search import latency

    return Kept() if target == "kept" else latency.target(target)


def some_tokens(p: Pretrained, batch: int, length: int) -> Tensor:
    """Token ids to time a model on: (batch, length)."""
    import torch

    first, stop = p.tokenizer.id_range
    return torch.randint(first, stop, (batch, length))


@dataclass(frozen=True)
class KeptRun:
    """A file that a command goes on from, as a context keeps it under `JOURNAL`; false while it is not there."""

    path: Path

    def __bool__(self) -> bool:
        return self.path.is_file()

    def __str__(self) -> str:
        return f"the run kept in {self.path}"


def say(line: str) -> None:
    """Progress, on stderr; where that cannot be written to, the work goes on without."""
    with suppress(OSError):
        click.echo(line, file=sys.stderr)  # named, because click takes ASCII for a mistake and writes UTF-8


def tell(text: str) -> None:
    """A result, on stdout."""
    click.echo(text, file=sys.stdout)


def note(sentence: str) -> None:
    """Tell something about the data that its figures depend on, and keep it for `noted`."""
    say(f"note: {sentence}")
    if (context := click.get_current_context(silent=True)) is not None:
        told = context.meta.setdefault(NOTES, [])
        told += [] if sentence in told else [sentence]


def noted() -> list[str]:
    """What this command has told about its data, which travels with the figures."""
    context = click.get_current_context(silent=True)
    return [] if context is None else list(context.meta.get(NOTES, []))


@contextmanager
def bar(what: str, total: int, unit: str = "window") -> Iterator[Callable[..., None]]:
    """How far long work has come, on stderr: a bar on a terminal, else a line every now and then.

    Yields the function that is told of every few units more, and if there is some, a word on how it goes.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit, file=sys.stderr, leave=False) as shown:

            def update(more: int, how: str = "") -> None:
                shown.set_postfix_str(how, refresh=False)
                shown.update(more)

            yield update
        return
    done, told = 0, monotonic()

    def advance(more: int, how: str = "") -> None:
        nonlocal done, told
        done += more
        if monotonic() - told >= SECONDS_A_LINE:
            told = monotonic()
            say(f"{what}: {done:,} of {total:,} {unit}s" + (f", {how}" if how else ""))

    yield advance


def quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def program() -> str:
    """How to call this program again from the same shell."""
    if shutil.which("sparsify"):
        return "sparsify"
    return "python -m sparsify" if sys.argv[0].endswith("__main__.py") else quoted(sys.argv[0])


@contextmanager
def counting(what: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A bar for work that tells how much of it is done: progress(done, total)."""
    seen = 0
    with bar(what, total, unit) as advance:

        def progress(done: int, _: int, how: str = "") -> None:
            nonlocal seen
            advance(done - seen, how)
            seen = done

        yield progress


def as_text(result: dict[str, Any]) -> str:
    """JSON that every reader takes: NaN is an error, not a number."""
    return json.dumps(result, indent=2, allow_nan=False)


def emit(result: dict[str, Any], as_json: bool, table: str) -> None:
    """`result` on stdout, as JSON or through the function of that name in show.py."""
    if as_json:
        return tell(as_text(result))
    from rich.console import Console

    from . import tables

    class Paper(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that it is called for, as everywhere; else rich ends the program

    getattr(tables, table)(Paper(highlight=False, width=None if sys.stdout.isatty() else 140), result)
