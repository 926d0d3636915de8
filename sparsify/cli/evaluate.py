"""The verbs of `eval`, which measure quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsify.pipeline import evaluate as measuring
from sparsify.pipeline import progress
from sparsify.pipeline.glue import evaluate_glue

from .options import AS_JSON, BASELINE, DATA, LINEARS, PAD_TO, SOURCE, TEXT, emit, examples_in
from .terminal import say


@click.group("eval")
def evaluate() -> None:
    """Measure quality."""


@evaluate.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Text or FASTA file, gzipped or not; - is "
              "standard input.")  # fmt: skip
@click.option("--baseline", help="Dense checkpoint to compare with.  [default: MODEL itself, dense]")
@DATA
@LINEARS
@SOURCE
@AS_JSON
def ppl(model: str, data: Path, as_json: bool, **options: Any) -> None:
    """Measure the perplexity of MODEL, paired with the dense model on the same tokens.

    If MODEL has a plan, its leak and its perplexity with negative lags cut are measured, too.
    """
    emit(measuring.evaluate_perplexity(model, data, **options), as_json, "quality")


@evaluate.command()
@click.argument("src")
@click.option("--calibration", type=click.Path(path_type=Path), required=True, help="Text or FASTA file to choose "
              "plans on; without --data its last 3/10 are held out, and measured on.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="Text or FASTA file to measure on.")
@click.option("--target", help="What costs are predicted for, as for `convert`.  [default: the device]")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw speed against loss here, as PNG."
)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to this file, too.")
@DATA
@SOURCE
@AS_JSON
def front(src: str, calibration: Path, as_json: bool, **options: Any) -> None:
    """Compare one mask for every convolution of SRC with plans by sensitivity that cost the same."""
    emit(measuring.evaluate_front(src, calibration, **options), as_json, "fronts", options["save"])


@evaluate.command()
@click.argument("model")
@click.option("--task", required=True, help="Tasks with commas between them, or all; {task} in MODEL becomes "
              "each in turn.")  # fmt: skip
@click.option("--split", help="Score another split than the dev set, if its labels are known.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Examples of a split, evenly spaced.  [default: all]")
@click.option("--skip-missing", is_flag=True, help="Leave out the tasks that {task} names no model for.")
@click.option("--other-task", is_flag=True, help="Score a model that was fine-tuned for another task, too.")
@examples_in("Folder or file")
@PAD_TO
@BASELINE
@SOURCE
@AS_JSON
def glue(model: str, data: str, task: str, as_json: bool, **options: Any) -> None:
    """Score MODEL, fine-tuned on a task of GLUE, paired with the dense model on the same examples."""
    with progress.session() as current:
        try:
            result = evaluate_glue(model, data, task, **options)
        except BaseException:
            if current.unfinished is not None:
                say("what was scored before this is printed all the same")
                emit(current.unfinished, as_json, "glue")
            raise
    emit(result, as_json, "glue")


@evaluate.command()
@click.argument("model")
@TEXT
@click.option("--context", type=click.IntRange(2), help="Tokens of text in a window.  [default: the model's context]")
@click.option("--limit", type=click.IntRange(0), default=500, show_default=True, help="Windows, evenly spaced; 0: all.")
@click.option("--share", type=float, default=0.15, show_default=True, help="Share of the tokens that is masked.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the masks.")
@BASELINE
@SOURCE
@AS_JSON
def mlm(model: str, data: Path, as_json: bool, **options: Any) -> None:
    """Measure the pseudo-perplexity of MODEL on masked tokens, paired with the dense model under the same masks."""
    emit(measuring.evaluate_mlm(model, data, **options), as_json, "filled_in")


@evaluate.command()
@click.argument("model")
@TEXT
@click.option("--limit", type=click.IntRange(2), default=200, show_default=True, help="Paragraphs, evenly spaced.")
@PAD_TO
@BASELINE
@SOURCE
@AS_JSON
def retrieval(model: str, data: Path, as_json: bool, **options: Any) -> None:
    """Measure whether MODEL's embeddings find the other halves of a text's paragraphs as the dense model's do."""
    emit(measuring.evaluate_retrieval(model, data, **options), as_json, "retrieved")
