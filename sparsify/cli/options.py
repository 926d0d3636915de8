"""What the verbs share on the command line: options, and how a result is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sparsify.pipeline.checkpoints import BFLOAT16, FLOAT32
from sparsify.pipeline.texts import DEFAULT_WINDOWS
from sparsify.storage.files import own_descriptor
from sparsify.storage.records import Result

from .terminal import refuse_closed, tell


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def decorate(verb: Any) -> Any:
        for decorator in reversed(decorators):
            verb = decorator(verb)
        return verb

    return decorate


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
SOURCE = options(  # which checkpoint, and where it runs
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=lambda context, param, given: pairs(given),
        help="What the model's family leaves open, such as shift=0.05 for a HyenaDNA: the floor of its decay window, "
        "0 as trained, 0.05 as in the hub's own code.",
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
    "--linears", type=click.Choice([FLOAT32, BFLOAT16]),
    help="What the linear layers multiply in, on a CPU; bfloat16 is quicker, and its loss is measured.  [default: as "
    "the plan says; in `convert` a budget for the CPU decides]",
)  # fmt: skip
BASELINE = click.option("--baseline", help="Dense checkpoint to compare with.  [default: MODEL itself, dense]")
TEXT = click.option("--data", type=click.Path(path_type=Path), required=True, help="Text file, gzipped or not; - is "
                    "standard input.")  # fmt: skip
PAD_TO = click.option(
    "--pad-to", type=click.IntRange(0), help="Tokens that every text is padded to, which changes its numbers; 0 runs "
    "each at its own length.  [default: for GLUE as `finetune` did, else 128; the longest input for retrieval]",
)  # fmt: skip


def examples_in(where: str) -> Callable[[Any], Any]:
    """--data with labelled examples.  where: what holds them."""
    return click.option(
        "--data", required=True, help=f"{where} with examples (JSONL, TSV, parquet), or a data set on the hub, such as "
        "nyu-mll/glue.",
    )  # fmt: skip


def pairs(given: Sequence[str]) -> dict[str, str] | None:
    """The options of a family by name; None where none was given."""
    if wrong := [one for one in given if not one.partition("=")[0] or "=" not in one]:
        raise click.BadParameter(f"got {wrong[0]!r}, expected NAME=VALUE, such as shift=0.05")
    return dict(one.split("=", 1) for one in given) or None


def emit(result: Result, as_json: bool, table: str, saved: Path | None = None) -> None:
    """`result` on stdout, as JSON or through the function of that name in tables.py.

    saved: where the JSON was written already; it is not printed again if that is stdout.
    """
    if as_json and saved is not None and own_descriptor(saved) == 1:
        return None
    refuse_closed()
    if as_json:
        return tell(result.to_json())
    from rich.console import Console

    from . import tables

    class Paper(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that it is called for, as everywhere; else rich ends the program

    getattr(tables, table)(Paper(highlight=False, width=None if sys.stdout.isatty() else 140), result)
