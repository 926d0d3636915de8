"""The verbs.  A verb is a function; what it finds is one dictionary, printed as tables or with `--json` as it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .cpu import keep_freed_memory
from .install_check import check_name_collision

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that --help is quick
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals import Logits
    from sparsify.evals.data import Windows
    from sparsify.evals.throughput import Timing

    from .plan import Plan
    from .sites import ConvSite

EXPECTED = (LookupError, ValueError, OSError, RuntimeError)  # one sentence for people; anything else is a bug
DEFAULT_WINDOWS = 500
DEFAULT_ENERGY = 0.999
TOKENS_A_BATCH = 1 << 14


class Verbs(click.Group):
    """Turns expected failures into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, KeyError, IndexError):
            raise  # told by click already, or a bug of ours
        except EXPECTED as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparsify")
def main() -> None:
    """Make pretrained long-convolution models faster, and measure what that costs.

    SRC and MODEL are a folder or a hub id (ORG/NAME) everywhere alike.
    """
    check_name_collision()
    keep_freed_memory()


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
DATA = options(
    click.option("--context", type=click.IntRange(2), help="Tokens in a window.  [default: the model's context]"),
    click.option("--stride", type=click.IntRange(1), help="Tokens from window to window.  [default: context]"),
    click.option(
        "--limit", type=click.IntRange(0), default=DEFAULT_WINDOWS, show_default=True,
        help="Windows, evenly spaced; 0 takes all.",
    ),
    click.option("--upper", is_flag=True, help="Read lower-case (soft-masked) bases as upper case."),
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


def variant(p: Pretrained, plan: Plan, cut: bool = False) -> Logits:
    """The model under a plan, as a function."""
    from . import swap

    return swap.variant(p.model, p.sites, swap.operators(p.filters, plan, cut))


def dense_variant(p: Pretrained) -> Logits:
    """The model with everything kept, whatever its plan."""
    from .plan import Plan

    return variant(p, Plan.dense(p.filters))


def some_tokens(p: Pretrained, batch: int, length: int) -> Tensor:
    """Token ids to time a model on: (batch, length)."""
    import torch

    first, stop = p.tokenizer.id_range
    return torch.randint(first, stop, (batch, length))


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)


def as_text(result: dict[str, Any]) -> str:
    """JSON that every reader takes: NaN is an error, not a number."""
    return json.dumps(result, indent=2, allow_nan=False)


def emit(result: dict[str, Any], as_json: bool, table: str) -> None:
    """`result` on stdout, as JSON or through the function of that name in show.py."""
    if as_json:
        click.echo(as_text(result))
        return
    from rich.console import Console

    from . import show

    getattr(show, table)(Console(highlight=False, width=None if sys.stdout.isatty() else 140), result)


# --- looking -------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("src")
@click.option(
    "--length", type=click.IntRange(1), help="Tokens of the timed forward pass.  [default: context, up to 8192]"
)
@SOURCE
@AS_JSON
def inspect(src: str, length: int | None, as_json: bool, **where: Any) -> None:
    """Show the family, the long convolutions and where the time of a forward pass goes."""
    p = open_checkpoint(src, **where)
    length = length or min(p.context, 8192)
    sites = [
        {
            "name": s.name,
            "channels": s.channels,
            "taps": s.length,
            "causal": s.causal,
            "plan": str(p.plan.filters[s.name]),
        }
        for s in p.sites
    ]
    result = {
        **described(p),
        "parameters": sum(w.numel() for w in p.model.parameters()),
        "context": p.context,
        "sites": sites,
        "timed_tokens": length,
        "time": timed_parts(p, length),
    }
    emit(result, as_json, "inspected")


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


def timed_parts(p: Pretrained, length: int) -> list[dict[str, Any]]:
    """Where the time of one forward pass goes, by part."""
    from sparsify.evals.breakdown import Stopwatch, breakdown

    from . import swap

    watch, ids = Stopwatch(), some_tokens(p, 1, length)
    convs = {name: watch.wrap(conv) for name, conv in swap.operators(p.filters, p.plan).items()}
    run = swap.variant(p.model, p.sites, convs)
    return [asdict(part) for part in breakdown(p.model, lambda: run(ids), watch)]


@main.command()
@click.argument("src")
@click.option(
    "--length", type=click.IntRange(2), help="Tokens the spectra are taken for.  [default: the model's context]"
)
@SOURCE
@AS_JSON
def analyze(src: str, length: int | None, as_json: bool, **where: Any) -> None:
    """Show how few taps, and how few frequencies, hold 90, 99 and 99.9 % of every filter's energy."""
    from . import policies, show, spectra
    from .split import split

    p = open_checkpoint(src, **where)
    length = length or p.context
    if length > p.context:
        raise ValueError(f"--length {length} is longer than the model's {p.context} tokens; choose at most that")
    n = policies.fft_size(length)
    sites = []
    for name, k in p.filters.items():
        s = spectra.analyze(k[:, :length], n)
        tail = spectra.analyze(split(k[:, :length], policies.HEAD)[1], n)
        site = {
            "name": name,
            "taps": s.taps,
            "bins": s.bins,
            "bandwidth": s.bandwidth,
            "tail_bandwidth": tail.bandwidth,
        }
        lines = {"taps": s.by_tap, "bins": s.by_bin, "tail": tail.by_bin}
        sites.append(site | {f"{key}_line": show.sparkline(energy) for key, energy in lines.items()})
    result = {
        **described(p),
        "length": length,
        "fft_size": n,
        "bins_in_all": n // 2 + 1,
        "shares": spectra.SHARES,
        "head": policies.HEAD,
        "sites": sites,
    }
    emit(result, as_json, "analyzed")


# --- converting ----------------------------------------------------------------------------------------------------


class HeadAndBand(click.ParamType[tuple[int, float]]):
    """TAPS:SHARE, e.g. 64:0.125."""

    name = "taps:share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        try:
            head, band = value.split(":")
            return int(head), float(band)
        except ValueError:
            self.fail(f"{value!r} is not TAPS:SHARE, e.g. 64:0.125", param, ctx)


@main.command()
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--taps", type=click.IntRange(1), help="Keep the first TAPS taps of every filter.")
@click.option("--energy", type=float, help="Keep this share of every filter's energy.  [default: 0.999]")
@click.option("--split", type=HeadAndBand(), help="Keep TAPS taps and the lowest SHARE of the tail's spectrum.")
@click.option("--low-pass", type=float, help="Keep the lowest share of every spectrum; a causal model then leaks.")
@click.option("--plan", type=click.Path(path_type=Path, dir_okay=False), help="Use the plan in this file.")
@click.option("--allow-leak", is_flag=True, help="Accept a plan under which a causal model reads the future.")
@click.option("--data", type=click.Path(path_type=Path), help="Measure before and after on this text or FASTA file.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@DATA
@SOURCE
@AS_JSON
def convert(
    src: str, out: Path, data: Path | None, force: bool, allow_leak: bool, context: int | None, stride: int | None,
    limit: int, upper: bool, as_json: bool, taps: int | None, energy: float | None, split: tuple[int, float] | None,
    low_pass: float | None, plan: Path | None, **where: Any,
) -> None:  # fmt: skip
    """Choose what to keep of every convolution of SRC and write the sparsified checkpoint to the folder OUT."""
    from sparsify.converters import check_out, write_folder

    from . import report
    from .card import card

    check_out(out, force)
    p = open_checkpoint(src, **where)
    chosen = chosen_plan(p, {"taps": taps, "energy": energy, "split": split, "low_pass": low_pass, "plan": plan})
    filters = filter_report(p, chosen)
    if not allow_leak:
        refuse_leaks(p, filters)
    windows = windows_of(p, data, context, stride, limit, upper) if data else None
    result = {
        **described(p),
        "out": str(out),
        "plan": chosen.policy,
        "plan_sha256": chosen.sha256,
        "filters": filters,
        "evaluation": measured(p, chosen, windows, speed=True) if windows else None,
        "next": f"{program()} eval ppl {quoted(out)} --data {quoted(data or 'FILE')}"
        + typed(context, stride, limit, upper),
    }
    texts = {
        "plan.json": chosen.to_json(),
        "report.json": as_text(result) + "\n",
        "report.html": report.page(result),
        "README.md": card(result),
    }
    write_folder(out, p, chosen, texts, force=force)
    emit(result, as_json, "converted")


def typed(context: int | None, stride: int | None, limit: int, upper: bool) -> str:
    """The options of `DATA` that differ from their defaults, as one would type them."""
    options = {"context": context, "stride": stride, "limit": None if limit == DEFAULT_WINDOWS else limit}
    named = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return named + (" --upper" if upper else "")


def quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def program() -> str:
    """How to call this program again from the same shell."""
    if shutil.which("sparsify"):
        return "sparsify"
    return "python -m sparsify" if sys.argv[0].endswith("__main__.py") else quoted(sys.argv[0])


def chosen_plan(p: Pretrained, policy: Mapping[str, Any]) -> Plan:
    """The plan that one of the options asks for."""
    from . import policies
    from .plan import Plan

    given = {name: value for name, value in policy.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"got {' and '.join('--' + n.replace('_', '-') for n in given)}; give one of them")
    asked: tuple[str, Any] = next(iter(given.items()), ("energy", DEFAULT_ENERGY))
    name, value = asked
    if name == "plan":
        plan = Plan.read(Path(value))
        plan.check(list(p.filters))
        if plan.source.get("sha256") not in (None, p.sha256):
            raise ValueError(
                f"{value} was made for the weights of {plan.source.get('name')}, which are not these; "
                f"make a plan from this checkpoint, or take the sha256 out of the file"
            )
        return plan
    arguments = value if isinstance(value, tuple) else (value,)
    source = {"name": p.source.label, "revision": p.source.revision, "sha256": p.sha256}
    return policies.make_plan(p.sites, p.filters, policies.POLICIES[name](*arguments), source)


def refuse_leaks(p: Pretrained, filters: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a plan under which too much of a causal filter lies ahead.  filters: rows of `filter_report`."""
    from .policies import AHEAD_LIMIT

    causal = {site.name for site in p.sites if site.causal}
    leak, worst = max(((row["leak"], row["name"]) for row in filters if row["name"] in causal), default=(0.0, ""))
    if leak > AHEAD_LIMIT:
        raise ValueError(
            f"under this plan a causal model reads the future: {leak:.0%} of the filter of {worst} lies ahead, "
            f"and {AHEAD_LIMIT:.0%} may; use --split with more taps or a wider band, or say --allow-leak"
        )


def filter_report(p: Pretrained, plan: Plan) -> list[dict[str, Any]]:
    """What is kept of every filter, how much of it lies ahead, and where its energy lies."""
    from . import policies, report

    rows = []
    for name, k in p.filters.items():
        kept = plan.filters[name]
        figures = {"density": kept.density(k.shape[-1]), "leak": kept.apply(k).leak()}
        drawn = {"curves": report.curves(k, kept, policies.fft_size(p.context))}
        rows.append({"name": name, "kind": kept.kind, "plan": str(kept), **figures, **drawn})
    return rows


# --- measuring -----------------------------------------------------------------------------------------------------


@main.group("eval")
def evaluate() -> None:
    """Measure quality."""


@evaluate.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Text or FASTA file, gzipped or not.")
@click.option("--baseline", help="Dense checkpoint to compare with.  [default: MODEL itself, dense]")
@DATA
@SOURCE
@AS_JSON
def ppl(
    model: str, data: Path, baseline: str | None, context: int | None, stride: int | None, limit: int, upper: bool,
    as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Perplexity of MODEL, paired with the dense model on the same tokens; leak and cut perplexity if it has a plan."""
    p = open_checkpoint(model, **where)
    base = open_baseline(baseline, p, where) if baseline else None
    windows = windows_of(p, data, context, stride, limit, upper)
    emit(measured(p, p.plan, windows, base), as_json, "quality")


def windows_of(p: Pretrained, data: Path, context: int | None, stride: int | None, limit: int, upper: bool) -> Windows:
    """What to score: windows of DATA in this model's tokens."""
    from sparsify.evals.data import Document, read_documents, windows

    if p.head != "lm":
        raise ValueError(f"{p.source.name} has a {p.head}'s head, and perplexity takes a language model's")
    if context is not None and context > p.context:
        raise ValueError(f"--context {context} is longer than the model's {p.context} tokens; choose at most that")
    documents = [Document(d.name, p.tokenizer.normalize(d.text, upper)) for d in read_documents(data)]
    return windows(documents, p.tokenizer.encode, context or p.context, stride, p.tokenizer.alphabet, limit or None)


def measured(
    p: Pretrained, plan: Plan, windows: Windows, base: Pretrained | None = None, speed: bool = False
) -> dict[str, Any]:
    """Quality, and speed if asked for, of a checkpoint under a plan, against the dense model on the same tokens."""
    from tqdm import tqdm

    from sparsify.evals import causality, quality, results, throughput

    own, causal = base or p, any(site.causal for site in p.sites)
    variants = {"dense": dense_variant(own)}
    if base or not plan.is_dense:
        variants["sparse"] = variant(p, plan)
    shown, cuts = list(variants), {}
    if plan.leaks and causal:
        variants["cut"], cuts = variant(p, plan, cut=True), {"sparse": "cut"}
    with tqdm(total=len(windows), desc="perplexity", unit="window", file=sys.stderr, disable=None) as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        comparison = quality.compare(variants, windows, max(1, TOKENS_A_BATCH // windows.context), progress)
    leaks = {name: causality.leak(variants[name], windows) for name in shown} if causal else {}
    timings: dict[str, Timing] = {}
    if speed:
        say("timing")
        timings = throughput.paired({name: partial(variants[name], windows.ids[:1]) for name in shown})
    report = results.report(comparison, results.conditions(p.device), cuts, leaks, timings, windows.context)
    rows = {row["variant"]: row for row in report.pop("results")}
    dense, row = rows["dense"], rows[shown[-1]]
    verdict = []
    if row is not dense and causal:
        verdict = causality.verdict(dense["perplexity"], row["perplexity"], row["leak"], row["perplexity_cut"])
    compared = {"plan": plan.policy, "dense": None if row is dense else dense, "dense_source": own.source.label}
    return {**described(p), **report, **row, **compared, "verdict": verdict}


@main.command()
@click.argument("model")
@click.option("--baseline", help="Dense checkpoint to compare with.  [default: MODEL itself, dense]")
@click.option("--length", type=click.IntRange(1), help="Tokens in a sequence.  [default: context, up to 32768]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=11, show_default=True)
@SOURCE
@AS_JSON
def bench(
    model: str, baseline: str | None, length: int | None, batch: int, rounds: int, as_json: bool, **where: Any
) -> None:  # fmt: skip
    """Time MODEL against the dense model in the same rounds: every convolution, and end to end."""
    from sparsify.evals import results, throughput

    from . import swap

    p = open_checkpoint(model, **where)
    base = open_baseline(baseline, p, where) if baseline else p
    length = length or min(p.context, 1 << 15)
    ids = some_tokens(p, batch, length)
    upstream = swap.variant(base.model, base.sites, dict.fromkeys(base.filters))
    runs = {"dense": dense_variant(base), "sparse": variant(p, p.plan), "upstream": upstream}
    say("timing the whole model")
    whole = throughput.paired({name: partial(run, ids) for name, run in runs.items()}, rounds)
    result = {
        **described(p),
        **timing_row("whole model", whole, p.plan.policy),
        "length": length,
        "batch": batch,
        "tokens_per_second": throughput.tokens_per_second(whole["sparse"], batch * length),
        "sites": [timed_site(p, site, batch, length, rounds) for site in p.sites],
        "conditions": asdict(results.conditions(p.device)),
    }
    emit(result, as_json, "benched")


def timed_site(p: Pretrained, site: ConvSite, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """One convolution alone: as upstream (spectrum anew), dense, and under the plan; correctness first."""
    import torch

    from sparsify.evals import throughput

    from .fftconv import LongConv, fftconv, fftconv_ref

    say(f"timing {site.name}")
    k = p.filters[site.name]
    kept = p.plan.filters[site.name].apply(k)
    u, k = torch.randn(batch, site.channels, length, device=p.device), k.to(p.device)
    dense, sparse = LongConv(k), LongConv(kept.k, kept.ahead)
    check_close(sparse(u[:1]), fftconv_ref(u[:1], kept.k.to(p.device), kept.ahead), site.name)
    runs = {"dense": partial(dense, u), "sparse": partial(sparse, u), "upstream": partial(fftconv, u, k[:, :length])}
    with torch.no_grad():
        timings = throughput.paired(runs, rounds)
    return timing_row(site.name, timings, str(p.plan.filters[site.name]))


def check_close(y: Tensor, y_ref: Tensor, name: str) -> None:
    from sparsify.evals.causality import relative

    error = relative(y.double(), y_ref)
    if not error < 1e-5:
        raise RuntimeError(f"{name}: the convolution is off by {error:.1e} of its norm, so timing it means nothing")


def timing_row(name: str, timings: Mapping[str, Timing], plan: str) -> dict[str, Any]:
    sparse = timings["sparse"]
    return {
        "name": name,
        "plan": plan,
        "seconds": sparse.seconds,
        "dense_seconds": timings["dense"].seconds,
        "upstream_seconds": timings["upstream"].seconds,
        "speedup": sparse.speedup,
        "speedup_quartiles": [sparse.speedup_low, sparse.speedup_high],
    }


# --- the machine ---------------------------------------------------------------------------------------------------


def installed(name: str) -> tuple[str, bool, str]:
    """A check of the doctor's: name, whether it is there, its version."""
    try:
        return name, True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, False, f"missing: pip install {name}"


@main.command()
@AS_JSON
def doctor(as_json: bool) -> None:
    """Check this installation: versions, backends, and that the convolution is right."""
    import torch

    from sparsify.evals.causality import relative

    from .fftconv import fftconv, fftconv_ref

    u, k = torch.randn(2, 3, 1000), torch.randn(3, 1000)
    error = relative(fftconv(u, k).double(), fftconv_ref(u, k))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    bindings = bool(importlib.util.find_spec("cuda")) and bool(importlib.util.find_spec("cuda.bindings"))
    checks = [
        ("python", sys.version_info >= (3, 11), platform.python_version()),
        (
            "torch",
            True,
            f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        ),
        *(installed(name) for name in ("transformers", "huggingface_hub", "safetensors")),
        ("convolution", error < 1e-6, f"relative L2 error {error:.1e} against float64"),
        ("gpu", gpu is not None, gpu or "none: the CPU backend is used"),
        ("cuda.bindings", bindings, "found" if bindings else "not found: needed for kernels on a GPU only"),
    ]
    optional = {"gpu", "cuda.bindings"}
    result = {
        "version": __version__,
        "ok": all(ok for name, ok, _ in checks if name not in optional),
        "checks": [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in checks],
    }
    emit(result, as_json, "checked")
    if not result["ok"]:
        sys.exit(1)
