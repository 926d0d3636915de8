"""The verb that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsify.pipeline import finetune as training

from .options import AS_JSON, PAD_TO, SOURCE, emit, examples_in


@click.command()
@click.argument("model")
@click.option("--task", required=True, help="A task of GLUE.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the classifier.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=19, show_default=True,
              help="Seed of the fresh head and of the order of the examples.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Examples to train on, evenly spaced.  [default: all]")
@click.option("--lr", type=float, help="Learning rate at its peak.  [default: of M2-BERT's recipe for the task]")
@click.option("--weight-decay", type=float, help="Weight decay of the optimiser.  [default: the recipe's]")
@click.option("--epochs", type=int, help="Passes over the examples.  [default: the recipe's]")
@click.option("--batch", type=int, help="Examples a step.  [default: the recipe's]")
@click.option("--patience", type=int, help="Evaluations without a better one before it stops.  [default: 3]")
@examples_in("Folder")
@PAD_TO
@SOURCE
@AS_JSON
def finetune(model: str, task: str, data: str, out: Path, as_json: bool, **options: Any) -> None:
    """Fine-tune MODEL on a task of GLUE and write the classifier to OUT.

    If MODEL was sparsified its convolutions stay as planned, and all else learns.  Interrupted, the same command goes
    on where it was.
    """
    emit(training.finetune(model, task, data, out, **options), as_json, "fine_tuned")
