"""The verbs.  A verb is a function; what it finds is one dictionary, printed as tables or with `--json` as it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from . import __version__
from .install_check import check_name_collision

EXPECTED = (LookupError, ValueError, OSError, RuntimeError)  # one sentence for people; anything else is a bug
DEFAULT_WINDOWS = 500
TOKENS_A_BATCH = 1 << 14


class Verbs(click.Group):
    """Turns expected failures into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            if isinstance(error, click.ClickException | click.exceptions.Exit):
                raise
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparsify")
def main() -> None:
    """Make pretrained long-convolution models faster, and measure what that costs.

    SRC and MODEL are a folder or a hub id (ORG/NAME) everywhere alike.
    """
    check_name_collision()


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def decorate(verb: Any) -> Any:
        for decorator in reversed(decorators):
            verb = decorator(verb)
        return verb

    return decorate


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
SOURCE = options(
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option(
        "--shift", type=float, help="Floor of HyenaDNA's decay window: 0 as trained, 0.05 as in the hub's own code."
    ),
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


@dataclass(frozen=True)
class Opened:
    """A checkpoint with its filters at hand and its plan, dense where it has none."""

    pretrained: Any  # converters.Pretrained
    filters: Mapping[str, Any]
    plan: Any  # plan.Plan

    def variant(self, plan: Any = None, cut: bool = False) -> Callable[[Any], Any]:
        from . import swap

        sites = self.pretrained.sites
        convs = swap.operators(self.filters, plan or self.plan, cut)
        return swap.variant(self.pretrained.model, sites, convs)

    @property
    def dense_plan(self) -> Any:
        from . import policies

        return policies.make_plan(self.pretrained.sites, self.filters, policies.dense())


def open_checkpoint(src: str, revision: str | None, shift: float | None) -> Opened:
    """Load SRC, materialise its filters and read its plan."""
    from sparsify.converters import load

    from . import swap
    from .plan import Plan

    say(f"loading {src}")
    pretrained = load(src, revision=revision, shift=shift)
    opened = Opened(pretrained, swap.materialize(pretrained.sites), None)
    saved = pretrained.quantization
    return replace(opened, plan=Plan.from_dict(saved["plan"]) if saved else opened.dense_plan)


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)


def emit(result: dict[str, Any], as_json: bool, table: str) -> None:
    """`result` on stdout, as JSON or through the function of that name in show.py."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
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
def inspect(src: str, length: int | None, revision: str | None, shift: float | None, as_json: bool) -> None:
    """Show the family, the long convolutions and where the time of a forward pass goes."""
    opened = open_checkpoint(src, revision, shift)
    pretrained = opened.pretrained
    length = length or min(pretrained.context, 8192)
    result = {
        **described(opened),
        "parameters": sum(p.numel() for p in pretrained.model.parameters()),
        "context": pretrained.context,
        "sites": [
            {"name": s.name, "channels": s.channels, "taps": s.length, "causal": s.causal,
             "plan": str(opened.plan.filters[s.name])}
            for s in pretrained.sites
        ],
        "timed_tokens": length,
        "time": timed_parts(opened, length),
    }  # fmt: skip
    emit(result, as_json, "inspected")


def described(opened: Opened) -> dict[str, Any]:
    """Which checkpoint this is."""
    p = opened.pretrained
    return {
        "source": p.source.name,
        "revision": p.source.revision,
        "sha256": p.sha256,
        "family": p.family,
        "shift": p.shift,
        "plan": opened.plan.policy,
    }


def timed_parts(opened: Opened, length: int) -> list[dict[str, Any]]:
    """Where the time of one forward pass goes, by part."""
    import torch

    from sparsify.evals.breakdown import Stopwatch, breakdown

    from . import swap

    watch, pretrained = Stopwatch(), opened.pretrained
    convs = {name: watch.wrap(conv) for name, conv in swap.operators(opened.filters, opened.plan).items()}
    run = swap.variant(pretrained.model, pretrained.sites, convs)
    ids = torch.randint(*pretrained.tokenizer.id_range, (1, length))
    return [asdict(part) for part in breakdown(pretrained.model, lambda: run(ids), watch)]


@main.command()
@click.argument("src")
@click.option(
    "--length", type=click.IntRange(2), help="Tokens the spectra are taken for.  [default: the model's context]"
)
@SOURCE
@AS_JSON
def analyze(src: str, length: int | None, revision: str | None, shift: float | None, as_json: bool) -> None:
    """Show how few taps, bins and band hold 90, 99 and 99.9 % of every filter's energy."""
    from . import policies, show, spectra

    opened = open_checkpoint(src, revision, shift)
    length = min(length or opened.pretrained.context, opened.pretrained.context)
    n = policies.fft_size(length)
    sites = []
    for name, k in opened.filters.items():
        s = spectra.analyze(k[:, :length], n)
        sites.append({
            "name": name, "taps": s.taps, "bins": s.bins, "bandwidth": s.bandwidth,
            "taps_line": show.sparkline(s.by_tap), "bins_line": show.sparkline(s.by_bin),
        })  # fmt: skip
    result = {
        **described(opened),
        "length": length,
        "fft_size": n,
        "bins_in_all": n // 2 + 1,
        "shares": spectra.SHARES,
        "sites": sites,
    }
    emit(result, as_json, "analyzed")


# --- converting ----------------------------------------------------------------------------------------------------


class HeadAndBand(click.ParamType):
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
    limit: int, upper: bool, revision: str | None, shift: float | None, as_json: bool, **policy: Any,
) -> None:  # fmt: skip
    """Choose what to keep of every convolution of SRC and write the sparsified checkpoint to the folder OUT."""
    from sparsify.converters import check_out, write_folder

    check_out(out, force)
    opened = open_checkpoint(src, revision, shift)
    plan = chosen_plan(opened, policy)
    refuse_leaks(opened, plan, allow_leak)
    sparse = replace(opened, plan=plan)
    windows = windows_of(opened, data, context, stride, limit, upper) if data else None
    evaluation = measured(sparse, windows, speed=True) if windows else None
    result = {
        **described(sparse),
        "out": str(out),
        "policy": plan.policy,
        "plan_sha256": plan.sha256,
        "filters": filter_report(sparse),
        "evaluation": evaluation,
        "next": f"sparsify eval ppl {shlex.quote(str(out))} --data "
        f"{shlex.quote(str(data or 'FILE'))} --baseline {shlex.quote(src)}",
    }
    files = {"plan.json": plan.to_json(), "report.json": json.dumps(result, indent=2) + "\n"}
    files["README.md"] = card(result)
    quantization = {"quant_method": "sparsify", "format_version": 1, "shift": opened.pretrained.shift,
                    "plan": plan.to_dict()}  # fmt: skip
    write_folder(out, opened.pretrained, quantization, files, force=force)
    emit(result, as_json, "converted")


def chosen_plan(opened: Opened, policy: Mapping[str, Any]) -> Any:
    """The plan that one of the options asks for."""
    from . import policies
    from .plan import Plan

    given = {name: value for name, value in policy.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"got {' and '.join('--' + n.replace('_', '-') for n in given)}; give one of them")
    name, value = next(iter(given.items()), ("energy", 0.999))
    source = {"name": opened.pretrained.source.name, "revision": opened.pretrained.source.revision,
              "sha256": opened.pretrained.sha256}  # fmt: skip
    if name == "plan":
        plan = Plan.read(value)
        plan.check(list(opened.filters))
        if plan.source.get("sha256") not in (None, source["sha256"]):
            raise ValueError(f"{value} was made for {plan.source.get('name')} with other weights than these; "
                             f"make a plan from this checkpoint, or take the sha256 out of the file")  # fmt: skip
        return plan
    arguments = value if isinstance(value, tuple) else (value,)
    return policies.make_plan(opened.pretrained.sites, opened.filters, policies.POLICIES[name](*arguments), source)


def refuse_leaks(opened: Opened, plan: Any, allow: bool) -> None:
    causal = [s.name for s in opened.pretrained.sites if s.causal and plan.filters[s.name].kind == "frequency-sparse"]
    if causal and not allow:
        raise ValueError(
            f"under this plan a causal model reads the future at {len(causal)} of its convolutions: "
            f"use --split, which bounds that, or say --allow-leak"
        )


def filter_report(opened: Opened) -> list[dict[str, Any]]:
    """What is kept of every filter, and how much of it lies ahead."""
    rows = []
    for name, k in opened.filters.items():
        kept = opened.plan.filters[name]
        rows.append({"name": name, "plan": str(kept), "kind": kept.kind, "density": kept.density(k.shape[-1]),
                     "leak": kept.apply(k).leak()})  # fmt: skip
    return rows


def card(result: Mapping[str, Any]) -> str:
    """README.md of a converted folder."""
    lines = [
        "---", "library_name: sparsify", "tags: [sparsify, long-convolution]", "---",
        f"# {Path(result['out']).name}", "",
        f"{result['source']} with its long convolutions under the plan *{result['policy']}*, by sparsify {__version__}.",
        "The weights are those of the source, unchanged: without sparsify this folder loads as the dense model.", "",
        "```python", "import sparsify.converters", f'model = sparsify.converters.load("{Path(result["out"]).name}").model',
        "```", "",
    ]  # fmt: skip
    if evaluation := result["evaluation"]:
        dense = evaluation["dense"]
        lines += ["| | dense | sparse |", "|---|---|---|"]
        for label, key in (("perplexity", "perplexity"), ("perplexity, negative lags cut", "perplexity_cut"),
                           ("leak", "leak"), ("speedup", "speedup")):  # fmt: skip
            cells = [f"{row[key]:.4g}" if row[key] is not None else "" for row in (dense, evaluation)]
            lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
        lines += ["", *evaluation["verdict"], "", evaluation["convention"] + "."]
    return "\n".join(lines) + "\n"


# --- measuring -----------------------------------------------------------------------------------------------------


@main.group("eval")
def evaluate() -> None:
    """Measure quality."""


@evaluate.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Text or FASTA file, gzipped or not.")
@click.option("--baseline", help="Checkpoint to compare with.  [default: MODEL itself, dense]")
@DATA
@SOURCE
@AS_JSON
def ppl(
    model: str, data: Path, baseline: str | None, context: int | None, stride: int | None, limit: int, upper: bool,
    revision: str | None, shift: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Perplexity of MODEL, paired with the dense model on the same tokens; leak and cut perplexity if it has a plan."""
    opened = open_checkpoint(model, revision, shift)
    base = open_checkpoint(baseline, None, shift) if baseline else None
    windows = windows_of(opened, data, context, stride, limit, upper)
    emit(measured(opened, windows, base), as_json, "quality")


def windows_of(opened: Opened, data: Path, context: int | None, stride: int | None, limit: int, upper: bool) -> Any:
    """What to score: windows of DATA in this model's tokens."""
    from sparsify.evals.data import Document, read_documents, windows

    tokenizer, own = opened.pretrained.tokenizer, opened.pretrained.context
    if context is not None and context > own:
        raise ValueError(f"--context {context} is longer than the model's {own} tokens; choose at most {own}")
    documents = [Document(d.name, tokenizer.normalize(d.text, upper)) for d in read_documents(data)]
    return windows(documents, tokenizer.encode, context or own, stride, tokenizer.alphabet, limit or None)


def measured(opened: Opened, windows: Any, base: Opened | None = None, speed: bool = False) -> dict[str, Any]:
    """Quality of a checkpoint under its plan, against the dense model on the same tokens."""
    from tqdm import tqdm

    from sparsify.evals import causality, quality, results, throughput

    sparse = base is not None or opened.plan.filters != opened.dense_plan.filters
    variants = {"dense": (base or opened).variant((base or opened).dense_plan)}
    if sparse:
        variants["sparse"] = opened.variant()
        if opened.plan.leaks:
            variants["cut"] = opened.variant(cut=True)
    with tqdm(total=len(windows), desc="perplexity", unit="window", file=sys.stderr, disable=None) as bar:
        batch = max(1, TOKENS_A_BATCH // windows.context)
        comparison = quality.compare(variants, windows, batch, lambda done, total: bar.update(done - bar.n))
    causal = any(site.causal for site in opened.pretrained.sites)
    leaks = {
        name: causality.leak(variants[name], windows) for name in ("dense", "sparse") if name in variants and causal
    }
    timings: dict[str, Any] = {}
    if speed:
        say("timing")
        ids = windows.ids[:1]
        timings = throughput.paired({n: lambda run=variants[n]: run(ids) for n in ("dense", "sparse") if n in variants})
    cuts = {"sparse": "cut"} if "cut" in variants else {}
    report = results.report(comparison, results.conditions(), cuts, leaks, timings, windows.context)
    rows = {row["variant"]: row for row in report.pop("results")}
    row = rows["sparse"] if sparse else rows["dense"]
    verdict = []
    if sparse and causal:
        verdict = causality.verdict(rows["dense"]["perplexity"], row["perplexity"], row["leak"], row["perplexity_cut"])
    return {**described(opened), **report, **row, "dense": rows["dense"] if sparse else None, "verdict": verdict}


@main.command()
@click.argument("model")
@click.option("--baseline", help="Checkpoint to compare with.  [default: MODEL itself, dense]")
@click.option("--length", type=click.IntRange(1), help="Tokens in a sequence.  [default: context, up to 32768]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=11, show_default=True)
@SOURCE
@AS_JSON
def bench(
    model: str, baseline: str | None, length: int | None, batch: int, rounds: int, revision: str | None,
    shift: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Time MODEL against the dense model in the same rounds: every convolution, and end to end."""
    import torch

    from sparsify.evals import results, throughput

    from . import swap

    opened = open_checkpoint(model, revision, shift)
    base = open_checkpoint(baseline, None, shift) if baseline else opened
    length = length or min(opened.pretrained.context, 1 << 15)
    ids = torch.randint(*opened.pretrained.tokenizer.id_range, (batch, length))
    own = swap.variant(base.pretrained.model, base.pretrained.sites, dict.fromkeys(base.filters, None))
    runs = {"dense": base.variant(base.dense_plan), "sparse": opened.variant(), "upstream": own}
    say("timing the whole model")
    whole = throughput.paired({name: lambda run=run: run(ids) for name, run in runs.items()}, rounds)
    result = {
        **described(opened),
        **timing_row("whole model", whole, opened.plan.policy),
        "length": length,
        "batch": batch,
        "tokens_per_second": throughput.tokens_per_second(whole["sparse"], batch * length),
        "sites": [timed_site(opened, site, batch, length, rounds) for site in opened.pretrained.sites],
        "conditions": asdict(results.conditions()),
    }
    emit(result, as_json, "benched")


def timed_site(opened: Opened, site: Any, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """One convolution alone: as upstream (spectrum anew), dense, and under the plan; correctness first."""
    import torch

    from sparsify.evals import throughput

    from .fftconv import LongConv, fftconv, fftconv_ref

    say(f"timing {site.name}")
    k = opened.filters[site.name]
    kept = opened.plan.filters[site.name].apply(k)
    u = torch.randn(batch, site.channels, length)
    dense, sparse = LongConv(k), LongConv(kept.k, kept.ahead)
    check_close(sparse(u[:1]), fftconv_ref(u[:1], kept.k, kept.ahead), site.name)
    with torch.inference_mode():
        runs = {"dense": lambda: dense(u), "sparse": lambda: sparse(u), "upstream": lambda: fftconv(u, k[:, :length])}
        timings = throughput.paired(runs, rounds)
    return timing_row(site.name, timings, str(opened.plan.filters[site.name]))


def check_close(y: Any, y_ref: Any, name: str) -> None:
    error = float((y.double() - y_ref).norm() / y_ref.norm())
    if not error < 1e-5:
        raise RuntimeError(f"{name}: the convolution is off by {error:.1e} of its norm, so timing it means nothing")


def timing_row(name: str, timings: Mapping[str, Any], plan: str) -> dict[str, Any]:
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


@main.command()
@AS_JSON
def doctor(as_json: bool) -> None:
    """Check this installation: versions, backends, and that the convolution is right."""
    import torch

    from .fftconv import fftconv, fftconv_ref

    u, k = torch.randn(2, 3, 1000), torch.randn(3, 1000)
    error = float((fftconv(u, k).double() - fftconv_ref(u, k)).norm() / fftconv_ref(u, k).norm())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    bindings = bool(importlib.util.find_spec("cuda")) and bool(importlib.util.find_spec("cuda.bindings"))
    checks = [
        ("python", sys.version_info >= (3, 11), platform.python_version()),
        (
            "torch",
            True,
            f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        ),
        *(
            (name, True, importlib.metadata.version(name))
            for name in ("transformers", "huggingface_hub", "safetensors")
        ),
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
