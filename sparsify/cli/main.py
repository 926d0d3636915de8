"""The verbs.  A verb is a function; what it finds is one dictionary, printed as tables or with `--json` as it is."""

from __future__ import annotations

import importlib.metadata
import platform
import signal
import sys
from pathlib import Path
from typing import IO, Any

import click

from sparsify import __version__, process
from sparsify.cpu.backend import keep_freed_memory
from sparsify.install_check import check_name_collision
from sparsify.storage import files
from sparsify.storage.reading import label

from .convert import convert
from .glue import finetune
from .measure import bench, evaluate, timed_parts
from .options import AS_JSON, JOURNAL, SOURCE, UPPER, as_text, described, emit, note, open_checkpoint, say, tell
from .push import push

EXPECTED = (LookupError, ValueError, OSError, RuntimeError)  # one sentence for people; anything else is a bug


class Refusal(click.ClickException):
    """One sentence and exit code 1."""

    def tables(self, file: IO[Any] | None = None) -> None:
        say(f"Error: {self.format_message()}")


class Verbs(click.Group):
    """Turns expected failures into one line and exit code 1, and signals into one and the exit code that shells have:
    130 for Ctrl-C, 143 for SIGTERM.  A reader that has seen enough, as `head`, ends it in silence.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        process.open_streams()
        process.spell_out()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with process.stoppable():
                result = super().invoke(ctx)
                sys.stdout.flush()  # here, where it can still be said that it could not be written
            return result
        except (click.ClickException, click.exceptions.Exit, KeyError, IndexError):
            raise  # told by click already, or a bug of ours
        except KeyboardInterrupt as stopped:
            number = getattr(stopped, "number", signal.SIGINT)
            say(f"\n{process.WORDS[number]}" + goes_on("; the same command goes on from here", ctx))
            ctx.exit(128 + number)
        except BrokenPipeError as error:
            if error.filename is not None:  # not stdout, but a pipe that was to be written
                raise Refusal(in_a_sentence(error, ctx)) from error
            process.let_go(sys.stdout)
            ctx.exit(process.NO_READER)
        except EXPECTED as error:
            raise Refusal(in_a_sentence(error, ctx)) from error


def in_a_sentence(error: Exception, ctx: click.Context) -> str:
    """What an expected failure says; the system's own, with its file first and what to do about a full disk."""
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split())
    if error.errno not in files.FULL:
        return f"{error.filename} cannot be used ({error.strerror})" if error.filename else str(error)
    if error.filename is None:
        process.let_go(sys.stdout)  # all else that is written names its file
    return (
        f"{error.filename or 'the output'} could not be written ({error.strerror}); free some space, or write to "
        f"another disk" + goes_on("; the same command then goes on from here", ctx)
    )


def goes_on(words: str, ctx: click.Context) -> str:
    """`words`, and what was kept so far, if anything was."""
    kept = ctx.meta.get(JOURNAL)
    return f"{words} ({kept})" if kept else ""


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparsify")
def main() -> None:
    """Make pretrained long-convolution models faster, and measure what that costs.

    SRC and MODEL are a folder or a hub id (ORG/NAME) everywhere alike.
    """
    check_name_collision()
    keep_freed_memory()


for verb in (convert, push, evaluate, bench, finetune):
    main.add_command(verb)


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
    from sparsify.cpu.backend import crop
    from sparsify.filters import spectra
    from sparsify.filters.split import split
    from sparsify.plan import policies

    from . import tables

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
        sites.append(site | {f"{key}_line": tables.sparkline(energy) for key, energy in lines.items()})
    result = {
        **described(p),
        "length": length,
        "bins_in_all": n,
        "shares": spectra.SHARES,
        "head": policies.HEAD,
        "sites": sites,
    }
    emit(result, as_json, "analyzed")


# --- generating ----------------------------------------------------------------------------------------------------


@main.command()
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
def generate(
    model: str, prompt: str | None, prompt_file: Path | None, count: int, temperature: float, top_k: int | None,
    seed: int | None, upper: bool, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Print what MODEL writes after a prompt; convolutions are as planned, without the lags that read the future."""
    import torch

    from sparsify.evals.speed.throughput import wall_clock

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
        for piece in ids[:, :-1].split(stream.piece, dim=1):  # nobody wants their logits, all together least
            stream.feed(piece)
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
        documents = read_documents(path, note)
        if len(documents) != 1:
            raise ValueError(f"{label(path)} holds {len(documents)} sequences; cut it to the one to go on from")
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
    from sparsify.gpu import devices, planner

    if seqlen is None:
        raise ValueError("--arch is of --tiling; add the length that a kernel is sought for")
    found = planner.facts(devices.card(arch), seqlen, rows_total=64 * 768, batch=64)
    tell(as_text(found) if as_json else planner.as_text(found))


@main.command()
@click.option("--tiling", "seqlen", type=click.IntRange(1), help="Instead: which GPU kernels fit this length, and why.")
@click.option("--arch", help="Of the card that --tiling is about, as sm_90.  [default: the card at hand, or sm_90]")
@AS_JSON
def doctor(seqlen: int | None, arch: str | None, as_json: bool) -> None:
    """Check this installation: versions, backends, and that the convolution is right."""
    if seqlen is not None or arch is not None:
        return kernels_that_fit(seqlen, arch, as_json)
    import torch

    from sparsify.cpu.native import library
    from sparsify.evals.causality import relative
    from sparsify.fftconv import fftconv, fftconv_ref
    from sparsify.gpu import jit

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
        *(on_gpu := jit.describe()),
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
