"""The verb `bench`, which measures speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sparsify.pipeline import bench as timing
from sparsify.storage.records import Result

from .options import AS_JSON, BASELINE, LINEARS, SOURCE, emit


class BatchChannelsLength(click.ParamType[tuple[int, int, int]]):
    """B,H,L, e.g. 1,256,32768."""

    name = "B,H,L"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        try:
            batch, channels, length = (int(size) for size in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not B,H,L, e.g. 1,256,32768", param, ctx)
        if min(batch, channels, length) < 1:
            self.fail(f"{value!r} holds a size below 1", param, ctx)
        return batch, channels, length


@click.command()
@click.argument("model", required=False)
@BASELINE
@click.option("--length", type=click.IntRange(1), help="Tokens in a sequence.  [default: context, up to 32768]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences at a time.")
@click.option("--shape", "shapes", type=BatchChannelsLength(), multiple=True, help="Time the convolution at this shape "
              "only; may be repeated.  [default: six on a CPU, nine on a GPU]")  # fmt: skip
@click.option("--quick", is_flag=True, help="Time the convolution at two or three shapes only.")
@click.option("--both-ways", is_flag=True, help="Time filters that look both ways, as M2-BERT's do; on a CPU.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Measure what ways to convolve cost here, and choose by that from now on; on a GPU at these shapes, if given.",
)
@click.option("--rounds", type=click.IntRange(timing.FEWEST_ROUNDS), default=11, show_default=True,
              help="How often everything is timed.")  # fmt: skip
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to this file, too.")
@LINEARS
@SOURCE
@AS_JSON
def bench(model: str | None, as_json: bool, **options: Any) -> None:
    """Time MODEL against the dense model in the same rounds: end to end, by part, and every convolution.

    Without MODEL: time the convolution alone against the code of the models, the best of torch.fft and, on a GPU, other
    libraries that are installed.
    """
    context = click.get_current_context()
    given = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    timing.refuse_given(model, given)  # also where they are given as they are by default
    result = timing.bench(model, **options)
    emit(result, as_json, table_of(result), options["save"])


def table_of(result: Result) -> str:
    """The function of tables.py for what was timed: a model, ways to convolve, or what they cost."""
    tables = {"tuned": "tuned", "costs": "calibrated", "cases": "gpu_convolved", "sites": "benched"}
    return next((table for key, table in tables.items() if key in result), "convolved")
