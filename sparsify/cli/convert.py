"""The verb `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsify.pipeline import convert as converting

from .options import AS_JSON, DATA, LINEARS, SOURCE, emit
from .push import in_words
from .terminal import tell


class HeadAndBand(click.ParamType[tuple[int, float]]):
    """TAPS:SHARE, e.g. 64:0.125."""

    name = "taps:share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        try:
            head, band = value.split(":")
            return int(head), float(band)
        except ValueError:
            self.fail(f"{value!r} is not TAPS:SHARE, e.g. 64:0.125", param, ctx)


@click.command()
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--taps", type=click.IntRange(1), help="Keep the first TAPS taps of every filter.")
@click.option("--energy", type=float, help="Keep this share of every filter's energy.  [default: 0.999]")
@click.option("--split", type=HeadAndBand(), help="Keep TAPS taps and the lowest SHARE of the tail's spectrum.")
@click.option("--low-pass", type=float, help="Keep the lowest share of every spectrum; a causal model then leaks.")
@click.option("--plan", type=click.Path(path_type=Path, dir_okay=False), help="Use the plan in this file.")
@click.option("--max-ppl-increase", metavar="SHARE",
              help="Find the fastest plan that adds at most this to the perplexity, as 0.1% or 0.001; to the "
              "pseudo-perplexity of masked tokens, if SRC reads both ways.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), help="Text or FASTA file to find that plan on; without "
              "--data its last 3/10 are held out, and prove it.")  # fmt: skip
@click.option("--target", help="What that plan is to be fast on: cpu, cuda, sm_90, h100, ...; kept counts taps plus "
              "bins instead of time.  [default: the device]")  # fmt: skip
@click.option("--refit", is_flag=True, help="Look for better numbers in what that plan keeps; takes minutes.")
@click.option("--allow-leak", is_flag=True, help="Accept a plan under which a causal model reads the future.")
@click.option("--data", type=click.Path(path_type=Path), help="Measure before and after on this text or FASTA file; "
              "- is standard input.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.option("--benchmark", metavar="ORG/DATASET:TASK",
              help="The hub's data set that DATA is from; the figure goes into .eval_results, too.")  # fmt: skip
@click.option("--push", metavar="USER/REPO", help="Push OUT to the hub, too; see `push` for more ways.")
@DATA
@LINEARS
@SOURCE
@AS_JSON
def convert(src: str, out: Path, as_json: bool, **options: Any) -> None:
    """Choose what to keep of every convolution of SRC and write the sparsified checkpoint to the folder OUT."""
    result = converting.convert(src, out, **options)
    emit(result, as_json, "converted")
    if result.pushed and not as_json:
        tell(in_words(result.pushed))
