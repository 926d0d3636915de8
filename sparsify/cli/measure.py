"""The verbs that measure: `eval` for quality, `bench` for speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sparsify.storage.files import write_whole
from sparsify.storage.reading import refuse_twice

from .options import (
    AS_JSON,
    DATA,
    FLOAT32,
    LINEARS,
    SOURCE,
    as_text,
    bar,
    check_linears,
    counting,
    described,
    emit,
    note,
    noted,
    open_baseline,
    open_checkpoint,
    operators,
    priced,
    running,
    say,
    some_tokens,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals.data import Document, Windows
    from sparsify.evals.mlm import Masked
    from sparsify.evals.speed.throughput import Timing
    from sparsify.evals.texts import Text
    from sparsify.plan import Plan
    from sparsify.sites import Conv, ConvSite

TOKENS_A_BATCH = 1 << 14
PARTS_TOKENS = 1 << 13  # that a forward pass taken apart has at most, where it is a by-product
QUICK_ROUNDS = 3  # and how often it runs
BASELINES = ("dense", "torch", "upstream")  # prepared once by us; by torch.fft; anew in every call, as upstream does
SITE_BAR = 1e-5  # relative error that a model's convolution may have: a trained filter may cancel most of its input


# --- quality -------------------------------------------------------------------------------------------------------


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
def ppl(
    model: str, data: Path, baseline: str | None, context: int | None, stride: int | None, limit: int, upper: bool,
    linears: str, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Perplexity of MODEL, paired with the dense model on the same tokens; leak and cut perplexity if it has a plan."""
    p = open_checkpoint(model, **where)
    base = open_baseline(baseline, p, where) if baseline else None
    windows = windows_of(p, data, context, stride, limit, upper)
    emit(measured(p, p.plan, windows, base, linears), as_json, "quality")


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
def front(
    src: str, calibration: Path, data: Path | None, target: str | None, picture: Path | None, save: Path | None,
    context: int | None, stride: int | None, limit: int, upper: bool, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Compare one mask for every convolution of SRC with plans by sensitivity that cost the same."""
    from sparsify.evals import results
    from sparsify.evals.planning import pareto as fronts
    from sparsify.evals.planning import planner
    from sparsify.report import plots

    if picture and find_spec("matplotlib") is None:
        raise ValueError(f"--picture needs matplotlib: {plots.TO_GET}")
    refuse_twice(calibration=calibration, data=data)
    price = priced(target or where["device"])
    p = open_checkpoint(src, **where)
    known = text_of(p, calibration, context, stride, limit, upper)
    held_out = text_of(p, data, context, stride, limit, upper) if data else None
    if held_out is None:
        known, held_out = planner.divide(known)
    found = fronts.compared(p.model, p.sites, p.filters, known, held_out, price, say, bar)
    told = {"data_notes": noted(), "conditions": asdict(results.conditions(p.device))}
    result = {**described(p), **found.to_dict(), **told}
    if save:
        keep(save, as_text(result) + "\n")
    if picture:
        keep(picture, drawn(result))
    emit(result, as_json, "fronts")


def drawn(result: dict[str, Any]) -> bytes:
    """Speed against loss as a PNG."""
    from sparsify.report import pareto, plots
    from sparsify.report.figures import figure, gain_unit

    series = pareto.series_of_fronts(result)
    return plots.speed_against_loss(series, None, gain_unit(result["target"]), figure(result))


def keep(path: Path, content: str | bytes) -> None:
    """Write a file that was asked for, and its folder if need be."""
    write_whole(path, content)


def text_of(p: Pretrained, data: Path, context: int | None, stride: int | None, limit: int, upper: bool) -> Text:
    """What to score: windows of DATA in this model's tokens, with some of them masked for a model that fills those in.

    Raises ValueError for a model that does neither.
    """
    if p.head not in ("lm", "mlm"):
        trains = callable(getattr(p.model, "with_head", None))
        raise ValueError(
            f"{p.source.name} has the head {p.head!r}, which predicts no tokens and so has no perplexity; find a plan "
            f"for the language model that it was made from, {'`finetune` that or ' if trains else ''}pass its "
            f"plan.json with --plan, and score the outcome on its task: a perplexity says little of that"
        )
    if p.head == "lm":
        return windows_of(p, data, context, stride, limit, upper)
    if stride is not None:
        raise ValueError("windows with masked tokens lie side by side, so --stride says nothing to them; leave it out")
    return masked_of(p, data, context, limit, upper)


def windows_of(p: Pretrained, data: Path, context: int | None, stride: int | None, limit: int, upper: bool) -> Windows:
    """Windows of DATA in this model's tokens."""
    from sparsify.evals.data import windows

    if p.head != "lm":
        raise ValueError(f"{p.source.name} has the head {p.head!r}, and perplexity takes a language model's, 'lm'")
    documents = documents_of(p, data, context, upper)
    return windows(documents, p.tokenizer.encode, context or p.context, stride, p.tokenizer.alphabet, limit or None)


def masked_of(
    p: Pretrained, data: Path, context: int | None, limit: int, upper: bool = False, share: float | None = None,
    seed: int = 0,
) -> Masked:  # fmt: skip
    """Windows of DATA, each between [CLS] and [SEP], with some tokens masked.  context: tokens of text in a window."""
    import torch.nn.functional as F

    from sparsify.evals import mlm
    from sparsify.evals.data import windows

    tokenizer: Any = p.tokenizer
    documents = documents_of(p, data, context, upper)
    cut = windows(documents, lambda text: tokenizer.pieces([text])[0], context or p.context, limit=limit or None)
    ids = F.pad(F.pad(cut.ids, (1, 0), value=tokenizer.cls_id), (0, 1), value=tokenizer.sep_id)
    share = mlm.SHARE if share is None else share
    found = mlm.mask(ids, sorted(tokenizer.special_ids), tokenizer.mask_id, share, seed, cut.document, cut.available)
    return replace(found, how=f"{found.how}, [CLS] before and [SEP] behind every window")


def documents_of(p: Pretrained, data: Path, context: int | None, upper: bool) -> list[Document]:
    """The documents of DATA as this model's tokenizer takes them.  context: refused if the model cannot."""
    from sparsify.evals.data import Document, read_documents

    if context is not None and context > p.context:
        raise ValueError(f"--context {context} is longer than the model's {p.context} tokens; choose at most that")
    return [Document(d.name, p.tokenizer.normalize(d.text, upper)) for d in read_documents(data, note)]


def measured(
    p: Pretrained,
    plan: Plan,
    windows: Text,
    base: Pretrained | None = None,
    linears: str = FLOAT32,
    speed: bool = False,
) -> dict[str, Any]:
    """Quality, and speed if asked for, of a checkpoint under a plan, against the dense model on the same tokens.

    linears: what the variant multiplies in; the dense model has float32 always.
    """
    from sparsify.evals import causality, results, texts
    from sparsify.evals.data import Windows
    from sparsify.evals.speed import throughput

    check_linears(p, linears, windows.context)
    own, causal = base or p, any(site.causal for site in p.sites)
    variants = {"dense": running(own, operators(own))}
    name = "dense" if base is None and plan.is_dense else "sparse"
    name += "" if linears == FLOAT32 else f", {linears} linears"
    if name != "dense":
        variants[name] = running(p, operators(p, plan), linears)
    shown, cuts = list(variants), {}
    if plan.leaks and causal:
        variants["cut"], cuts = running(p, operators(p, plan, cut=True), linears), {name: "cut"}
    with counting(windows.figure, len(windows), "window") as progress:
        comparison = texts.compare(variants, windows, max(1, TOKENS_A_BATCH // windows.context), progress)
    leaks = {}
    if causal and isinstance(windows, Windows):
        leaks = {name: causality.leak(variants[name], windows) for name in shown}
    timings: dict[str, Timing] = {}
    if speed:
        say("timing")
        first = windows.inputs(slice(1))
        timings = throughput.paired({name: partial(variants[name], *first) for name in shown})
    report = results.report(comparison, results.conditions(p.device), cuts, leaks, timings, windows.context)
    rows = {row["variant"]: row for row in report.pop("results")}
    dense, row = rows["dense"], rows[name]
    verdict = []
    if row is not dense and causal:
        verdict = causality.verdict(dense["perplexity"], row["perplexity"], row["leak"], row["perplexity_cut"])
    compared = {
        "plan": plan.policy,
        "linears": linears,
        "dense": None if row is dense else dense,
        "dense_source": own.source.label,
        "parts": timed_parts(p, plan, 1, min(windows.context, PARTS_TOKENS), linears, QUICK_ROUNDS) if speed else None,
    }
    return {**described(p), **report, **row, **compared, "verdict": verdict, "data_notes": noted()}


def timed_parts(
    p: Pretrained, plan: Plan, batch: int, length: int, linears: str = FLOAT32, rounds: int = 5
) -> dict[str, Any]:
    """Where the time of one forward pass goes, by part: before, as upstream has it, and after, under the plan."""
    from sparsify.evals.speed.breakdown import Stopwatch, breakdown

    say("timing the parts of a forward pass")
    watch, ids = Stopwatch(), some_tokens(p, batch, length)
    convs = {name: watch.wrap(conv) for name, conv in operators(p, plan).items()}
    runs = {"before": running(p, dict.fromkeys(p.filters)), "after": running(p, convs, linears)}
    found = breakdown(p.model, {name: partial(run, ids) for name, run in runs.items()}, watch, p.sites, rounds)
    return {
        "batch": batch,
        "length": length,
        **{name: [asdict(part) for part in parts] for name, parts in found.items()},
    }


# --- speed ---------------------------------------------------------------------------------------------------------


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


OF_A_MODEL = {"baseline", "length", "batch", "linears", "revision", "shift"}
OF_A_CONVOLUTION = {"shapes", "quick", "both_ways"}


@click.command()
@click.argument("model", required=False)
@click.option("--baseline", help="Dense checkpoint to compare MODEL with.  [default: MODEL itself, dense]")
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
@click.option("--rounds", type=click.IntRange(3), default=11, show_default=True)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to this file, too.")
@LINEARS
@SOURCE
@AS_JSON
def bench(
    model: str | None, baseline: str | None, length: int | None, batch: int,
    shapes: Sequence[tuple[int, int, int]], quick: bool, both_ways: bool, calibrate: bool, rounds: int,
    save: Path | None, linears: str, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Time MODEL against the dense model in the same rounds: end to end, by part, and every convolution.

    Without MODEL: time the convolution alone against the code of the models, the best of torch.fft and, on a GPU, other
    libraries that are installed.
    """
    if model is None:
        refuse_given(OF_A_MODEL, "a model; name the MODEL")
    else:
        refuse_given(OF_A_CONVOLUTION, "the convolution alone; leave the MODEL out")
    gpu = model is None and on_gpu(where["device"])
    if both_ways and (gpu or calibrate):
        raise ValueError("--both-ways times the convolution on a CPU; add --device cpu, or leave it out")
    if calibrate:
        if model is not None or quick or (shapes and not gpu):
            raise ValueError("--calibrate times ways to convolve, nothing else; give it alone")
        result, table = (tuned_here(shapes, rounds, where["device"]), "tuned") if gpu else (calibrated(), "calibrated")
    elif gpu:
        result, table = gpu_convolutions(shapes, quick, rounds, save, where["device"]), "gpu_convolved"
    elif model is None:
        from sparsify.evals.speed.cpu_convolution import QUICK, SHAPES

        some = shapes or (QUICK if quick else SHAPES)
        result, table = convolutions(some, rounds, both_ways), "convolved"
    else:
        p = open_checkpoint(model, **where)
        if length is not None and length > p.context:
            raise ValueError(f"--length {length} is longer than the model's {p.context} tokens; choose at most that")
        base = open_baseline(baseline, p, where) if baseline else p
        result, table = timed_model(p, base, batch, length or min(p.context, 1 << 15), linears, rounds), "benched"
    if save:
        keep(save, as_text(result) + "\n")
    emit(result, as_json, table)


def on_gpu(device: str | None) -> bool:
    """Whether a convolution is to be timed on a GPU: as asked, else where there is one."""
    import torch

    kind = torch.device(device).type if device else "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {device} is neither cpu nor cuda; choose one of them")
    return kind == "cuda"


def gpu_convolutions(
    shapes: Sequence[tuple[int, int, int]], quick: bool, rounds: int, save: Path | None, device: str | None
) -> dict[str, Any]:
    """The convolution alone on a GPU; with `save`, the file has every case as soon as it is timed."""
    from sparsify.evals.speed import gpu_convolution, gpu_machine

    on = gpu_machine.machine(device or "cuda")
    some = gpu_convolution.cases(shapes) if shapes else gpu_convolution.QUICK if quick else gpu_convolution.cases()
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.unlink(missing_ok=True)  # what it has is not timed again, and this run is asked for
    return gpu_convolution.bench(on, some, rounds, save, progress=say)


def tuned_here(shapes: Sequence[tuple[int, int, int]], rounds: int, device: str | None) -> dict[str, Any]:
    """The quickest kernels of this card, kept, beside those that the planner thinks so."""
    from sparsify.evals import results
    from sparsify.evals.speed import autotune, gpu_machine

    on = gpu_machine.machine(device or "cuda")
    rows = list(autotune.tune_all(on, autotune.tuning_cases(shapes or None), rounds, say))
    if not rows:
        raise RuntimeError("nothing could be tuned; the notes above say why")
    return {"tuned": rows, "conditions": asdict(results.conditions(on.device))}


def refuse_given(names: set[str], about: str) -> None:
    """Refuse options that say nothing to what is asked for, rather than ignore them."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name in names:
            raise ValueError(f"{parameter.opts[0]} is about {about}, or leave {parameter.opts[0]} out")


def convolutions(shapes: Sequence[tuple[int, int, int]], rounds: int, both_ways: bool = False) -> dict[str, Any]:
    """The convolution alone, at each of these shapes, with filters that look back or `both_ways`."""
    from sparsify.evals import results
    from sparsify.evals.speed import cpu_convolution

    timed = []
    for shape in shapes:
        label = " x ".join(f"{size:,}" for size in shape)
        ways = cpu_convolution.compare(shape, rounds, partial(tell, label), both_ways)
        timed.append({"shape": list(shape), "ways": [asdict(way) for way in ways]})
    return {"shapes": timed, "both_ways": both_ways, "rounds": rounds, "conditions": asdict(results.conditions())}


def tell(what: str, step: str) -> None:
    say(f"{what}: {step}")


def calibrated() -> dict[str, Any]:
    """The constants of this machine, measured and kept, beside the defaults."""
    from sparsify.cpu import cost_model
    from sparsify.cpu.native import library

    there, found = library.describe()
    if not there:
        raise ValueError(f"--calibrate times the compiled kernels, and there are none here: {found}")
    costs = cost_model.calibrate(say)
    return {
        **cost_model.machine(),
        "path": str(cost_model.keep(costs)),
        "costs": asdict(costs),
        "defaults": asdict(cost_model.DEFAULT),
    }


def timed_model(p: Pretrained, base: Pretrained, batch: int, length: int, linears: str, rounds: int) -> dict[str, Any]:
    """A model under its plan against `BASELINES`: end to end, all convolutions, every one; and where the time goes."""
    from sparsify.evals import results

    check_linears(p, linears, batch * length)
    sparse, dense = operators(p, p.plan), operators(base)
    through_torch = torch_operators(base, batch, length)
    own, own_torch = (dense, through_torch) if base is p else (operators(p), torch_operators(p, batch, length))
    alone = {
        site.name: ways_alone(p, site, (sparse[site.name], own[site.name], own_torch[site.name]), batch, length)
        for site in p.sites
    }
    convs: dict[str, Mapping[str, Conv | None]] = {
        "dense": dense,
        "torch": through_torch,
        "upstream": dict.fromkeys(base.filters),
    }
    ids = some_tokens(p, batch, length)
    whole = {name: partial(running(base, some), ids) for name, some in convs.items()}
    row = timed("whole model", {**whole, "sparse": partial(running(p, sparse, linears), ids)}, p.plan.policy, rounds)
    together = {way: partial(run_all, [runs[way] for runs in alone.values()]) for way in ("sparse", *BASELINES)}
    return {
        **described(p),
        **row,
        "length": length,
        "batch": batch,
        "linears": linears,
        "tokens_per_second": batch * length / row["seconds"],
        "parts": timed_parts(p, p.plan, batch, length, linears),
        "convolutions": timed("all convolutions", together, p.plan.policy, rounds),
        "sites": [timed(name, runs, str(p.plan.filters[name]), rounds) for name, runs in alone.items()],
        "conditions": asdict(results.conditions(p.device)),
    }


def torch_operators(p: Pretrained, batch: int, length: int) -> dict[str, Conv]:
    """Every convolution, dense, by the best of torch.fft for signals of this size."""
    from sparsify.evals.speed import cpu_convolution

    say("finding the best torch.fft")
    filters = {name: k.to(p.device) for name, k in p.filters.items()}
    return {
        s.name: cpu_convolution.best_torch(some_signal(p, s, batch, length), filters[s.name], s.ahead) for s in p.sites
    }


def some_signal(p: Pretrained, site: ConvSite, batch: int, length: int) -> Tensor:
    """What a convolution is timed on alone: (batch, channels, length), the same for sites of as many channels."""
    import torch

    draw = torch.Generator(p.device).manual_seed(0)
    return torch.randn(batch, site.channels, length, generator=draw, device=p.device)


def ways_alone(
    p: Pretrained, site: ConvSite, convs: tuple[Conv, Conv, Conv], batch: int, length: int
) -> dict[str, Callable[[], Tensor]]:
    """One convolution as installed, correct before it is timed, and its baselines.  Upstream: but for the network.

    convs: under the plan, dense, and through torch.fft.
    """
    from sparsify.cpu.backend import crop
    from sparsify.evals.speed import cpu_convolution

    k, kept = p.filters[site.name], p.plan.filters[site.name]
    u = some_signal(p, site, batch, length)
    sparse, dense, through_torch = convs
    cpu_convolution.check(site.name, sparse(u[:1]), u[:1], kept.apply(k, site.ahead), SITE_BAR)
    felt, ahead = crop(k.to(p.device), site.ahead, length)
    return {
        "sparse": partial(sparse, u),
        "dense": partial(dense, u),
        "torch": partial(through_torch, u),
        "upstream": partial(cpu_convolution.reference, u, felt, ahead),
    }


def run_all(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()


def timed(name: str, runs: Mapping[str, Callable[[], object]], plan: str, rounds: int) -> dict[str, Any]:
    """What the verb says of one thing: seconds under the plan, those of each baseline, and paired ratios."""
    import torch

    from sparsify.evals.speed import throughput

    say(f"timing {name}")
    with torch.no_grad():
        taken = throughput.in_rounds(runs, rounds)
    row: dict[str, Any] = {"name": name, "plan": plan}
    for baseline in BASELINES:
        against = taken.against(baseline)
        row |= {"seconds": against["sparse"].seconds, f"{baseline}_seconds": against[baseline].seconds}
        row |= faster("speedup" if baseline == "dense" else f"{baseline}_speedup", against["sparse"])
    return row


def faster(key: str, timing: Timing) -> dict[str, Any]:
    return {key: timing.speedup, f"{key}_quartiles": [timing.speedup_low, timing.speedup_high]}
