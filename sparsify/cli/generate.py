"""The verb that writes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsify.pipeline import generate as writing

from .options import AS_JSON, SOURCE, UPPER, emit


@click.command()
@click.argument("model")
@click.option("--prompt", help="The sequence to go on from.")
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="Text or FASTA file with the sequence to go on from; - is standard input.",
)
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True,
              help="0 takes the likeliest token each time, 1 draws as the model predicts.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1), help="Draw among so many of the likeliest tokens.  [default: all]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Draw the same tokens again.")
@UPPER
@SOURCE
@AS_JSON
def generate(model: str, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Print what MODEL writes after a prompt; convolutions are as planned, without the lags that read the future."""
    emit(writing.generate(model, prompt, **options), as_json, "generated")
