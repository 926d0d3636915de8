"""Speed: of a model against the dense one, or of the convolution alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sparsify.report.schema import Calibration, ConvolutionBench, GpuBench, ShapeBench, TunedCase, Tuning
from sparsify.storage.files import write_whole
from sparsify.storage.records import Result

from .checkpoints import at_least, check_length, pair_of, refuse_overwriting
from .progress import Progress, say, session
from .timing import timed_model

OF_A_MODEL = ("baseline", "length", "batch", "linears", "revision", "options")
OF_A_CONVOLUTION = ("shapes", "quick", "both_ways")
FEWEST_ROUNDS = 3


def bench(
    model: str | None = None, *, baseline: str | None = None, length: int | None = None, batch: int = 1,
    shapes: Sequence[tuple[int, int, int]] = (), quick: bool = False, both_ways: bool = False, calibrate: bool = False,
    rounds: int = 11, save: str | Path | None = None, linears: str | None = None, revision: str | None = None,
    options: Mapping[str, Any] | None = None, device: str | None = None, progress: Progress | None = None,
) -> Result:  # fmt: skip
    """Time a model against the dense one in the same rounds: end to end, by part, and every convolution.

    Without a model: time the convolution alone against the code of the models, the best of torch.fft and, on a GPU,
    other libraries that are installed.

    Args:
        model: A folder or a hub id, ORG/NAME.
        baseline: Dense checkpoint to compare with; None takes the model itself, dense.
        length: Tokens in a sequence; None takes the model's context, up to 32768.
        batch: Sequences at a time.
        shapes: Time the convolution at these (batch, channels, length) only.
        quick: Time the convolution at two or three shapes only.
        both_ways: Time filters that look both ways, as M2-BERT's do; on a CPU.
        calibrate: Measure what ways to convolve cost here, and choose by that from now on; on a GPU at these shapes, if
            given.
        rounds: How often everything is timed.
        save: Write the JSON to this file, too.
        linears: What the linear layers multiply in, on a CPU: "float32" or "bfloat16"; None as the plan says.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints.  For a model it has `seconds` of a forward pass and the `speedup` over the
        dense model (median of paired ratios, with `speedup_quartiles`), over torch.fft and over the published code; the
        same for all `convolutions` together and for each of the `sites`; and the `parts` of a pass.  For the
        convolution alone it has one entry a shape.  `conditions` says on what.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    at_least(FEWEST_ROUNDS, rounds=rounds)
    at_least(1, length=length, batch=batch)
    for shape in shapes:
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"--shape takes (batch, channels, length), each 1 or more, got {shape}")
    own = {"baseline": baseline, "length": length, "linears": linears, "revision": revision, "options": options}
    plain = {"batch": 1}
    alone = {"shapes": shapes, "quick": quick, "both_ways": both_ways}
    given = {name for name, value in (own | {"batch": batch}).items() if value != plain.get(name)}
    refuse_given(model, given | {name for name, value in alone.items() if value})
    refuse_overwriting(model, {"--save": save})
    where: dict[str, Any] = {"revision": revision, "options": options, "device": device}
    kept = None if save is None else Path(save)
    found: Result
    with session(progress):
        if model is None:
            found = convolution_alone(shapes, quick, both_ways, calibrate, rounds, kept, device)
        elif calibrate:
            raise ValueError(ONLY_CALIBRATE)
        else:
            p, base = pair_of(model, baseline, where, linears)
            check_length(p, length)
            found = timed_model(p, base, batch, length or min(p.context, 1 << 15), linears, rounds)
        if kept:
            write_whole(kept, found.to_json() + "\n")
        return found


ONLY_CALIBRATE = "--calibrate times ways to convolve, nothing else; give it alone"


def convolution_alone(
    shapes: Sequence[tuple[int, int, int]], quick: bool, both_ways: bool, calibrate: bool, rounds: int,
    save: Path | None, device: str | None,
) -> Result:  # fmt: skip
    """What `bench` says without a model."""
    gpu = on_gpu(device)
    if both_ways and (gpu or calibrate):
        raise ValueError("--both-ways times the convolution on a CPU; add --device cpu, or leave it out")
    if calibrate and (quick or (shapes and not gpu)):
        raise ValueError(ONLY_CALIBRATE)
    if calibrate:
        return tuned_here(shapes, rounds, device) if gpu else calibrated()
    if gpu:
        return gpu_convolutions(shapes, quick, rounds, save, device)
    from sparsify.evals.speed.cpu_convolution import QUICK, SHAPES

    return convolutions(shapes or (QUICK if quick else SHAPES), rounds, both_ways)


def refuse_given(model: str | None, given: Iterable[str]) -> None:
    """Refuse options that say nothing to what is asked for, rather than ignore them.  given: their names."""
    idle, about = (
        (OF_A_MODEL, "a model; name the MODEL") if model is None
        else (OF_A_CONVOLUTION, "the convolution alone; leave the MODEL out")
    )  # fmt: skip
    given = set(given)
    for name in idle:
        if name in given:
            option = "--shape" if name == "shapes" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is about {about}, or leave {option} out")


def on_gpu(device: str | None) -> bool:
    """Whether a convolution is to be timed on a GPU: as asked, else where there is one."""
    import torch

    kind = torch.device(device).type if device else "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {device} is neither cpu nor cuda; choose one of them")
    return kind == "cuda"


def gpu_convolutions(
    shapes: Sequence[tuple[int, int, int]], quick: bool, rounds: int, save: Path | None, device: str | None
) -> GpuBench:
    """The convolution alone on a GPU; with `save`, the file has every case as soon as it is timed."""
    from sparsify.evals.speed import gpu_convolution, gpu_machine

    on = gpu_machine.machine(device or "cuda")
    some = gpu_convolution.cases(shapes) if shapes else gpu_convolution.QUICK if quick else gpu_convolution.cases()
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.unlink(missing_ok=True)  # what it has is not timed again, and this run is asked for
    return GpuBench.from_dict(gpu_convolution.bench(on, some, rounds, save, progress=say))


def tuned_here(shapes: Sequence[tuple[int, int, int]], rounds: int, device: str | None) -> Tuning:
    """The quickest kernels of this card, kept, beside those that the planner thinks so."""
    from sparsify.evals import results
    from sparsify.evals.speed import autotune, gpu_machine

    on = gpu_machine.machine(device or "cuda")
    tried = autotune.tune_all(on, autotune.tuning_cases(shapes or None), rounds, say)
    rows = tuple(TunedCase.from_dict(row) for row in tried)
    if not rows:
        raise RuntimeError("nothing could be tuned; the notes above say why")
    return Tuning(tuned=rows, conditions=results.conditions(on.device))


def convolutions(shapes: Sequence[tuple[int, int, int]], rounds: int, both_ways: bool = False) -> ConvolutionBench:
    """The convolution alone, at each of these shapes, with filters that look back or `both_ways`."""
    from sparsify.evals import results
    from sparsify.evals.speed import cpu_convolution

    timed = []
    for shape in shapes:
        label = " x ".join(f"{size:,}" for size in shape)
        ways = cpu_convolution.compare(shape, rounds, partial(say_of, label), both_ways)
        timed.append(ShapeBench(shape, tuple(ways)))
    return ConvolutionBench(shapes=tuple(timed), both_ways=both_ways, rounds=rounds, conditions=results.conditions())


def say_of(what: str, step: str) -> None:
    say(f"{what}: {step}")


def calibrated() -> Calibration:
    """The constants of this machine, measured and kept, beside the defaults."""
    from sparsify.cpu import cost_model
    from sparsify.cpu.native import library

    there, found = library.describe()
    if not there:
        raise ValueError(f"--calibrate times the compiled kernels, and there are none here: {found}")
    costs = cost_model.calibrate(say)
    here: dict[str, Any] = cost_model.machine()
    return Calibration(
        **here, path=str(cost_model.keep(costs)), costs=asdict(costs), defaults=asdict(cost_model.DEFAULT)
    )
