"""The verbs.  A verb is a function; what it finds is one dictionary, printed as tables or with `--json` as it is."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .cli_common import (
    AS_JSON,
    DATA,
    DEFAULT_WINDOWS,
    FLOAT32,
    LINEARS,
    SOURCE,
    UPPER,
    as_text,
    bar,
    described,
    emit,
    open_checkpoint,
    priced,
    say,
)
from .cli_glue import finetune
from .cli_hub import check_push, in_words, push, pushed
from .cli_measure import bench, evaluate, measured, timed_parts, windows_of
from .cpu import keep_freed_memory
from .install_check import check_name_collision

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that --help is quick
    from sparsify.converters import Pretrained
    from sparsify.evals.data import Windows
    from sparsify.evals.planning import Planned

    from .plan import Plan

EXPECTED = (LookupError, ValueError, OSError, RuntimeError)  # one sentence for people; anything else is a bug
DEFAULT_ENERGY = 0.999
JOURNAL = f"{__package__}.journal"  # in a click context: the measurements that this command keeps until it is done


class Verbs(click.Group):
    """Turns expected failures into one line and exit code 1, and Ctrl-C into one and exit code 130, as shells do."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, KeyError, IndexError):
            raise  # told by click already, or a bug of ours
        except KeyboardInterrupt:
            journal = ctx.meta.get(JOURNAL)
            say("\ninterrupted" + (f"; the same command goes on from here ({journal})" if journal else ""))
            ctx.exit(130)
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


main.add_command(bench)
main.add_command(evaluate)
main.add_command(finetune)
main.add_command(push)


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
    time = timed_parts(p, p.plan, 1, length)
    result = {
        **described(p),
        "parameters": sum(w.numel() for w in p.model.parameters()),
        "context": p.context,
        "sites": sites,
        "timed_tokens": length,
        "time": time["after"],
        "upstream_time": time["before"],
    }
    emit(result, as_json, "inspected")


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
    from .cpu import crop
    from .split import split

    p = open_checkpoint(src, **where)
    length = length or p.context
    if length > p.context:
        raise ValueError(f"--length {length} is longer than the model's {p.context} tokens; choose at most that")
    n = policies.points(length)
    sites = []
    for place in p.sites:
        k, ahead = crop(p.filters[place.name], place.ahead, length)
        s = spectra.analyze(k, n, ahead)
        tail = spectra.analyze(split(k, policies.HEAD, ahead=ahead)[1], n, ahead)
        site = {
            "name": place.name,
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
        "bins_in_all": n,
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
@click.option("--max-ppl-increase", "budget", metavar="SHARE",
              help="Find the fastest plan that adds at most this to the perplexity, as 0.1% or 0.001.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), help="Text or FASTA file to find that plan on; without "
              "--data its last 3/10 are held out, and prove it.")  # fmt: skip
@click.option("--target", help="What that plan is to be fast on: cpu, cuda, sm_90, h100, ...; kept counts taps plus "
              "bins instead of time.  [default: the device]")  # fmt: skip
@click.option("--refit", is_flag=True, help="Look for better numbers in what that plan keeps; takes minutes.")
@click.option("--allow-leak", is_flag=True, help="Accept a plan under which a causal model reads the future.")
@click.option("--data", type=click.Path(path_type=Path), help="Measure before and after on this text or FASTA file.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.option("--benchmark", metavar="ORG/DATASET:TASK",
              help="The hub's data set that DATA is from; the figure goes into .eval_results, too.")  # fmt: skip
@click.option("--push", "repo", metavar="USER/REPO", help="Push OUT to the hub, too; see `push` for more ways.")
@DATA
@LINEARS
@SOURCE
@AS_JSON
def convert(
    src: str, out: Path, data: Path | None, force: bool, allow_leak: bool, context: int | None, stride: int | None,
    limit: int, upper: bool, linears: str, as_json: bool, taps: int | None, energy: float | None,
    split: tuple[int, float] | None, low_pass: float | None, plan: Path | None, budget: str | None,
    calibration: Path | None, target: str | None, refit: bool, benchmark: str | None, repo: str | None, **where: Any,
) -> None:  # fmt: skip
    """Choose what to keep of every convolution of SRC and write the sparsified checkpoint to the folder OUT."""
    from sparsify.converters import check_out, write_folder
    from sparsify.converters.source import read_card

    from .card_metadata import of_source, parse_benchmark

    check_out(out, force)
    asked = {"taps": taps, "energy": energy, "split": split, "low_pass": low_pass, "plan": plan}
    asked = only_one(asked | {"max_ppl_increase": budget})
    check_search(budget, calibration, target, refit, data)
    measured_on = data or calibration
    if benchmark and measured_on is None:
        raise ValueError("--benchmark says where the data is from; add --data FILE, or leave --benchmark out")
    offered = parse_benchmark(benchmark)
    if repo:
        check_push(repo)
    p = open_checkpoint(src, **where)
    windows = windows_of(p, data, context, stride, limit, upper) if data else None
    planned = None
    if calibration is not None:
        known = windows_of(p, calibration, context, stride, limit, upper)
        planned, windows = planned_within(p, out, str(budget), known, windows, target, allow_leak, refit)
    chosen = planned.plan if planned else chosen_plan(p, asked)
    filters = filter_report(p, chosen)
    if not allow_leak:
        refuse_leaks(p, filters)
    result = {
        **described(p),
        "out": str(out),
        "plan": chosen.policy,
        "plan_sha256": chosen.sha256,
        "filters": filters,
        "planned": planned.to_dict() if planned else None,
        "evaluation": measured(p, chosen, windows, linears=linears, speed=True) if windows else None,
        "causal": any(site.causal for site in p.sites),
        "data": measured_on and measured_on.name,
        "benchmark": offered,
        "origin": of_source(read_card(p.source.folder)),
        "repo": repo,
    }
    options = typed(context, stride, limit, upper, linears)
    result["next"] = next_step(p, out, measured_on, options)
    named = Path(out.resolve().name)  # what is published does not tell where folders lie here
    published = {**result, "out": str(named), "next": next_step(p, named, result["data"], options)}
    write_folder(out, p, chosen, {"plan.json": chosen.to_json(), **pages(published)}, force=force)
    if (journal := click.get_current_context().meta.get(JOURNAL)) is not None:
        journal.remove()
    if repo:
        result["pushed"] = pushed(out, repo)
    emit(result, as_json, "converted")
    if repo and not as_json:
        click.echo(in_words(result["pushed"]))


def pages(result: dict[str, Any]) -> dict[str, str | bytes]:
    """File name -> content, for what tells people and machines what was found."""
    from .card import card
    from .card_metadata import eval_results
    from .report import plots
    from .report.page import page

    if (picture := plots.picture(result)) is None:
        say(plots.HOW_TO_GET)
    return {
        "report.json": as_text(result) + "\n",
        "report.html": page(result),
        "README.md": card(result, plots.NAME if picture else None),
        **({plots.NAME: picture} if picture else {}),
        **eval_results(result),
    }


def next_step(p: Pretrained, out: Path, data: Path | str | None, options: str) -> str:
    """The command that measures what was written."""
    if p.head != "lm":
        return f"{program()} bench {quoted(out)}"
    return f"{program()} eval ppl {quoted(out)} --data {quoted(data or 'FILE')}{options}"


def typed(context: int | None, stride: int | None, limit: int, upper: bool, linears: str) -> str:
    """The options of `DATA` and `LINEARS` that differ from their defaults, as one would type them."""
    options = {
        "context": context,
        "stride": stride,
        "limit": None if limit == DEFAULT_WINDOWS else limit,
        "linears": None if linears == FLOAT32 else linears,
    }
    named = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return named + (" --upper" if upper else "")


def quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def program() -> str:
    """How to call this program again from the same shell."""
    if shutil.which("sparsify"):
        return "sparsify"
    return "python -m sparsify" if sys.argv[0].endswith("__main__.py") else quoted(sys.argv[0])


def only_one(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The option that was given, if any, of those that say what to keep."""
    given = {name: value for name, value in policy.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"got {' and '.join('--' + n.replace('_', '-') for n in given)}; give one of them")
    return given


def check_search(
    budget: str | None, calibration: Path | None, target: str | None, refit: bool, data: Path | None
) -> None:
    """Refuse what a search for a plan cannot work with, before anything is loaded."""
    from sparsify.evals.planning import parse_budget

    if budget is None:
        given = {"--calibration": calibration, "--target": target, "--refit": refit}
        if name := next((name for name, value in given.items() if value), None):
            raise ValueError(f"{name} is for a plan within a budget; add --max-ppl-increase, or leave {name} out")
        return
    parse_budget(budget)
    priced(target)
    if calibration is None:
        raise ValueError("a plan within a budget is found on data like what the model will see; add --calibration FILE")
    if data is not None and data.resolve() == calibration.resolve():
        raise ValueError(f"{data} cannot prove a plan that was found on it; leave --data out, and a part is held out")


def planned_within(
    p: Pretrained, out: Path, budget: str, calibration: Windows, held_out: Windows | None, target: str | None,
    allow_leak: bool, refit: bool,
) -> tuple[Planned, Windows]:  # fmt: skip
    """The plan that a budget asks for, and the windows that prove it.  Measurements are kept beside `out` till then."""
    from sparsify.evals import planning
    from sparsify.evals.journal import Journal

    if held_out is None:
        calibration, held_out = planning.divide(calibration)
    out = out.expanduser().resolve()
    journal = click.get_current_context().meta[JOURNAL] = Journal(out.with_name(f".{out.name}.planning"))
    try:
        planned = planning.plan_within(
            p.model, p.sites, p.filters, calibration, held_out, planning.parse_budget(budget),
            priced(target or p.device.type), allow_leak, refit, made_for(p), say, bar, journal,
        )  # fmt: skip
    except RuntimeError:
        say(f"for another budget or target there are {journal}")
        raise
    return planned, held_out


def made_for(p: Pretrained) -> dict[str, str | None]:
    """What a plan says of the checkpoint that it is for."""
    return {"name": p.source.label, "revision": p.source.revision, "sha256": p.sha256}


def chosen_plan(p: Pretrained, asked: Mapping[str, Any]) -> Plan:
    """The plan that one of the options asks for.  asked: its name and value, or nothing for the default."""
    from . import policies
    from .plan import Plan

    found: tuple[str, Any] = next(iter(asked.items()), ("energy", DEFAULT_ENERGY))
    name, value = found
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
    return policies.make_plan(p.sites, p.filters, policies.POLICIES[name](*arguments), made_for(p))


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
    from . import policies
    from .report.curves import curves

    rows = []
    for site in p.sites:
        k, kept = p.filters[site.name], plan.filters[site.name]
        leak = kept.apply(k).leak() if site.causal else 0.0
        figures = {"density": kept.density(k.shape[-1], site.ahead), "leak": leak}
        drawn = {"curves": curves(k, kept, policies.points(site.context), site.ahead)}
        rows.append({"name": site.name, "kind": kept.kind, "plan": str(kept), **figures, **drawn})
    return rows


# --- generating ----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("model")
@click.option("--prompt", help="The sequence to go on from.")
@click.option(
    "--prompt-file", type=click.Path(path_type=Path), help="Text or FASTA file with the sequence to go on from."
)
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True,
              help="0 takes the likeliest token each time, 1 draws as the model predicts.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1), help="Draw among so many of the likeliest tokens.  [default: all]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Draw the same tokens again.")
@UPPER
@SOURCE
@AS_JSON
def generate(
    model: str, prompt: str | None, prompt_file: Path | None, count: int, temperature: float, top_k: int | None,
    seed: int | None, upper: bool, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Print what MODEL writes after a prompt; convolutions are as planned, without the lags that read the future."""
    import torch

    from sparsify.evals.throughput import wall_clock

    text = prompt_text(prompt, prompt_file)
    p = open_checkpoint(model, **where)
    if not callable(start := getattr(p.model, "stream", None)):
        raise ValueError(f"models of the family {p.family} cannot be fed in pieces yet, so they cannot generate")
    text = p.tokenizer.normalize(text, upper)
    tokens = p.tokenizer.encode(text)
    if p.tokenizer.decode(tokens) != text:
        raise ValueError(f"the prompt holds other letters than {p.tokenizer.alphabet}, which this model does not know")
    ids = torch.tensor([tokens], device=p.device)
    stream, began = start(), wall_clock()
    if ids.shape[1] > 1:
        say(f"reading {ids.shape[1]:,} tokens")
        stream.feed(ids[:, :-1])
    read = wall_clock()
    grown = stream.generate(ids[:, -1:], count, temperature, top_k, seed)
    done = wall_clock()
    result = {
        **described(p),
        "prompt_tokens": ids.shape[1],
        "count": count,
        "temperature": temperature,
        "top_k": top_k,
        "seed": seed,
        "text": p.tokenizer.decode(grown[0, 1:].tolist()),
        "prompt_seconds": read - began,
        "seconds": done - read,
        "tokens_per_second": count / (done - read),
    }
    emit(result, as_json, "generated")


def prompt_text(prompt: str | None, path: Path | None) -> str:
    """The prompt, from the command line or a file with one sequence."""
    from sparsify.evals.data import read_documents

    if (prompt is None) == (path is None):
        raise ValueError("a prompt is needed to go on from; give --prompt or --prompt-file, one of them")
    if path is not None:
        documents = read_documents(path)
        if len(documents) != 1:
            raise ValueError(f"{path} holds {len(documents)} sequences; cut it to the one to go on from")
        prompt = documents[0].text
    if not prompt or not prompt.strip():
        raise ValueError("the prompt is empty; give at least one token")
    return prompt


# --- the machine ---------------------------------------------------------------------------------------------------


def installed(name: str) -> tuple[str, bool, str]:
    """A check of the doctor's: name, whether it is there, its version."""
    try:
        return name, True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, False, f"missing: pip install {name}"


def kernels_that_fit(seqlen: int | None, arch: str | None, as_json: bool) -> None:
    """The doctor's answer on tilings, for 64 sequences of 768 channels."""
    from . import cards, tiling

    if seqlen is None:
        raise ValueError("--arch is of --tiling; add the length that a kernel is sought for")
    found = tiling.facts(cards.card(arch), seqlen, rows_total=64 * 768, batch=64)
    click.echo(as_text(found) if as_json else tiling.as_text(found))


@main.command()
@click.option("--tiling", "seqlen", type=click.IntRange(1), help="Instead: which GPU kernels fit this length, and why.")
@click.option("--arch", help="Of the card that --tiling is about, as sm_90.  [default: the card at hand, or sm_90]")
@AS_JSON
def doctor(seqlen: int | None, arch: str | None, as_json: bool) -> None:
    """Check this installation: versions, backends, and that the convolution is right."""
    if seqlen is not None or arch is not None:
        return kernels_that_fit(seqlen, arch, as_json)
    import torch

    from sparsify.evals.causality import relative

    from . import nvrtc
    from .fftconv import fftconv, fftconv_ref
    from .native import library

    u, k = torch.randn(2, 3, 1000), torch.randn(3, 1000)
    try:
        error = relative(fftconv(u, k).double(), fftconv_ref(u, k))
        convolution = error < 1e-6, f"relative L2 error {error:.1e} against float64"
    except ValueError as refusal:  # an instruction set that cannot run here
        convolution = False, str(refusal)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    checks = [
        ("python", sys.version_info >= (3, 11), platform.python_version()),
        (
            "torch",
            True,
            f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        ),
        *(installed(name) for name in ("transformers", "huggingface_hub", "safetensors")),
        ("convolution", *convolution),
        ("kernels", *library.describe()),
        ("gpu", gpu is not None, gpu or "none: the CPU backend is used"),
        *(on_gpu := nvrtc.describe()),
    ]
    optional = {"kernels", "gpu", *(name for name, _, _ in on_gpu)}
    result = {
        "version": __version__,
        "ok": all(ok for name, ok, _ in checks if name not in optional),
        "checks": [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in checks],
    }
    emit(result, as_json, "checked")
    if not result["ok"]:
        sys.exit(1)
