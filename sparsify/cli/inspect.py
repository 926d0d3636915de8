"""The verbs that look: `inspect`, `analyze` and `doctor`."""

from __future__ import annotations

import sys
from typing import Any

import click

from sparsify.pipeline import inspect as looking

from .options import AS_JSON, SOURCE, emit
from .terminal import tell


@click.command()
@click.argument("src")
@click.option(
    "--length", type=click.IntRange(1), help="Tokens of the timed forward pass.  [default: context, up to 8192]"
)
@SOURCE
@AS_JSON
def inspect(src: str, length: int | None, as_json: bool, **where: Any) -> None:
    """Show the family, the long convolutions and where the time of a forward pass goes."""
    emit(looking.inspect(src, length=length, **where), as_json, "inspected")


@click.command()
@click.argument("src")
@click.option(
    "--length", type=click.IntRange(2), help="Tokens the spectra are taken for.  [default: the model's context]"
)
@SOURCE
@AS_JSON
def analyze(src: str, length: int | None, as_json: bool, **where: Any) -> None:
    """Show how few taps, and how few frequencies, hold 90, 99 and 99.9 % of every filter's energy."""
    emit(looking.analyze(src, length=length, **where), as_json, "analyzed")


@click.command()
@click.option("--tiling", "seqlen", type=click.IntRange(1), help="Instead: which GPU kernels fit this length, and why.")
@click.option("--arch", help="Of the card that --tiling is about, as sm_90.  [default: the card at hand, or sm_90]")
@AS_JSON
def doctor(seqlen: int | None, arch: str | None, as_json: bool) -> None:
    """Check this installation: versions, backends, and that the convolution is right."""
    from sparsify.gpu import planner

    if seqlen is not None or arch is not None:
        found = looking.tilings(seqlen, arch)
        return tell(found.to_json() if as_json else planner.as_text(found))
    result = looking.doctor()
    emit(result, as_json, "checked")
    if not result.ok:
        sys.exit(1)
