"""Quality: perplexity, masked tokens, retrieval, and plans against masks, each paired with the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.report.schema import Evaluation, MaskedTokens, ParetoComparison, Retrieval
from sparsify.search.measuring import TOKENS_A_BATCH
from sparsify.storage.files import write_whole
from sparsify.storage.reading import refuse_twice
from sparsify.storage.records import Result

from .checkpoints import (
    FLOAT32,
    Linears,
    at_least,
    check_linears,
    compared,
    described,
    in_words,
    names_of,
    open_checkpoint,
    operators,
    pair_of,
    priced,
    refuse_overwriting,
    running,
)
from .glue import evaluate_glue
from .progress import Progress, bar, counting, note, noted, say, session
from .texts import (
    DEFAULT_WINDOWS,
    batch_of,
    check_head,
    convention,
    masked_of,
    on_texts,
    padded,
    refuse_same,
    text_of,
    too_long,
    windows_of,
)
from .timing import columns_of_time, timed_parts

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals.texts import Text
    from sparsify.plan import Plan

PARTS_TOKENS = 1 << 13  # that a forward pass taken apart has at most, where it is a by-product
QUICK_ROUNDS = 3  # and how often it runs


def evaluate(
    model: str, data: str | Path | None = None, *, kind: str = "ppl", progress: Progress | None = None, **options: Any
) -> Result:
    """Measure how well a model does, paired with the dense one.

    Args:
        model: A folder or a hub id, ORG/NAME.
        data: What to measure on: a text or FASTA file, or the folder of a task.
        kind: "ppl", "front", "glue", "mlm" or "retrieval", as `sparsify eval` has them.
        progress: Called with every `progress.Event` while this works.
        options: Those of `evaluate_perplexity`, `evaluate_front`, `evaluate_glue`, `evaluate_mlm` or
            `evaluate_retrieval`.

    Returns:
        A mapping with what `--json` prints, as that function returns it.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
        TypeError: An option is none of this kind, or one is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no evaluation {kind!r}; choose one of {', '.join(KINDS)}")
    given = {} if data is None else {"data": data}
    return KINDS[kind](model, progress=progress, **given, **options)


# --- perplexity ----------------------------------------------------------------------------------------------------


def evaluate_perplexity(
    model: str, data: str | Path, *, baseline: str | None = None, context: int | None = None,
    stride: int | None = None, limit: int = DEFAULT_WINDOWS, upper: bool = False, linears: str | None = None,
    revision: str | None = None, options: Mapping[str, Any] | None = None, device: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:  # fmt: skip
    """Measure perplexity, paired with the dense model on the same tokens.

    If the model has a plan, its leak and its perplexity with negative lags cut are measured, too.

    Args:
        model: A folder or a hub id, ORG/NAME.
        data: Text or FASTA file, gzipped or not; "-" is standard input.
        baseline: Dense checkpoint to compare with; None takes the model itself, dense.
        context: Tokens in a window; None takes the model's context.
        stride: Tokens from window to window; None takes `context`.
        limit: Windows, evenly spaced; 0 takes all.
        upper: Read lower-case (soft-masked) bases as upper case.
        linears: What the linear layers multiply in, on a CPU: "float32" or "bfloat16"; None as the plan says.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it `perplexity` with its standard error over windows;
        `perplexity_ratio` to the dense model, paired by window; `perplexity_cut`, with negative lags cut; `leak`, how
        far logits move when the future changes, relative to their norm; `kl` in nats a token; `dense`, the same of the
        dense model; the `verdict` in sentences; `convention` and `conditions`.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    at_least(2, context=context)
    at_least(1, stride=stride)
    at_least(0, limit=limit)
    where: dict[str, Any] = {"revision": revision, "options": options, "device": device}
    with session(progress):
        p, own = pair_of(model, baseline, where, linears)
        base = None if own is p else own
        windows = windows_of(p, Path(data), context, stride, limit, upper)
        return measured(p, p.plan, windows, base, linears, speed=True)


def measured(
    p: Pretrained,
    plan: Plan,
    windows: Text,
    base: Pretrained | None = None,
    linears: str | None = None,
    speed: bool = False,
) -> Evaluation:
    """Quality, and speed if asked for, of a checkpoint under a plan, against the dense model on the same tokens.

    linears: what the variant multiplies in, None as the plan says; the dense model has float32 always.
    """
    from sparsify.cpu.linear import layers_of
    from sparsify.evals import causality, results, texts
    from sparsify.evals.data import Windows

    check_linears(p, linears, windows.context)
    own, causal = base or p, any(site.causal for site in p.sites)
    asked: Linears = plan.linears if linears is None else linears
    first, second = names_of(plan, base)
    variants = {first: running(own, operators(own))}
    name = second or first
    if linears is not None and (linears != FLOAT32 or plan.linears):
        name = f"{name}, {linears} linears"
    if name != first:
        variants[name] = running(p, operators(p, plan), asked)
    shown, cuts = list(variants), {}
    if plan.leaks and causal:
        variants["cut"], cuts = running(p, operators(p, plan, cut=True), asked), {name: "cut"}
    with counting(windows.figure, len(windows), "window") as progress:
        comparison = texts.compare(variants, windows, max(1, TOKENS_A_BATCH // windows.context), progress)
    leaks = {}
    if causal and isinstance(windows, Windows):
        leaks = {name: causality.leak(variants[name], windows) for name in shown}
    rows = results.variants(comparison, cuts, leaks)
    dense, row = rows[first], rows[name]
    verdict = []
    if row is not dense and causal and row.leak is not None:
        verdict = causality.verdict(dense.perplexity, row.perplexity, row.leak, row.perplexity_cut, first)
    return Evaluation(
        **described(p) | {"plan": plan.policy},
        **results.setting(comparison, results.conditions(p.device)),
        **vars(row),
        linears=in_words(asked, len(layers_of(p.model))),
        dense=None if row is dense else dense,
        dense_source=own.source.label,
        speed=columns_of_time(p, plan, windows.inputs(slice(1)), asked) if speed else None,
        parts=timed_parts(p, plan, 1, min(windows.context, PARTS_TOKENS), asked, QUICK_ROUNDS) if speed else None,
        verdict=verdict,
        data_notes=noted(),
    )


# --- one mask for all, or a plan -----------------------------------------------------------------------------------


def evaluate_front(
    src: str, calibration: str | Path, *, data: str | Path | None = None, target: str | None = None,
    picture: str | Path | None = None, save: str | Path | None = None, context: int | None = None,
    stride: int | None = None, limit: int = DEFAULT_WINDOWS, upper: bool = False, revision: str | None = None,
    options: Mapping[str, Any] | None = None, device: str | None = None, progress: Progress | None = None,
) -> ParetoComparison:  # fmt: skip
    """Compare one mask for every convolution of a model with plans by sensitivity that cost the same.

    Args:
        src: A folder or a hub id, ORG/NAME.
        calibration: Text or FASTA file to choose plans on; without `data` its last 3/10 are held out, and measured on.
        data: Text or FASTA file to measure on.
        target: What costs are predicted for, as for `convert`; None takes the device.
        picture: Draw speed against loss here, as PNG.
        save: Write the JSON to this file, too.
        context: Tokens in a window; None takes the model's context.
        stride: Tokens from window to window; None takes `context`.
        limit: Windows, evenly spaced; 0 takes all.
        upper: Read lower-case (soft-masked) bases as upper case.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it `pairs` of a choice that is the same everywhere (`uniform`) and
        the one by sensitivity that costs no more (`chosen`), each with the `increase` of the perplexity (relative), its
        standard error, `kl` in nats a token, `leak` and `cost`.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    from sparsify.evals import results
    from sparsify.evals.runs import Runs
    from sparsify.report import plots
    from sparsify.search import pareto, planner

    at_least(2, context=context)
    at_least(1, stride=stride)
    at_least(0, limit=limit)
    refuse_twice(calibration=calibration, data=data)
    refuse_overwriting(src, {"--save": save, "--picture": picture}, calibration=calibration, data=data)
    if picture and find_spec("matplotlib") is None:
        raise ValueError(f"--picture needs matplotlib: {plots.TO_GET}")
    price = priced(target or device)
    with session(progress):
        p = open_checkpoint(src, revision, options, device)
        known = text_of(p, Path(calibration), context, stride, limit, upper)
        held_out = text_of(p, Path(data), context, stride, limit, upper) if data else None
        if held_out is not None:
            refuse_same(known, held_out, calibration, data)
        else:
            known, held_out = planner.divide(known)
        found = pareto.compared(Runs(p.model, p.sites, p.filters, None, say, bar), known, held_out, price)
        taken_under = results.conditions(p.device)
        result = ParetoComparison(**described(p), **vars(found), data_notes=noted(), conditions=taken_under)
        if save:
            write_whole(Path(save), result.to_json() + "\n")
        if picture:
            write_whole(Path(picture), drawn(result))
        return result


def drawn(result: ParetoComparison) -> bytes:
    """Speed against loss as a PNG."""
    from sparsify.report import pareto
    from sparsify.report.charts import png
    from sparsify.report.figures import gain_unit

    chart = pareto.chart(pareto.series_of_fronts(result), None, gain_unit(result.target), result.figure)
    return png.drawn([[("", chart)]], 4.5)


# --- masked tokens and retrieval -----------------------------------------------------------------------------------


def evaluate_mlm(
    model: str, data: str | Path, *, context: int | None = None, limit: int = DEFAULT_WINDOWS, share: float = 0.15,
    seed: int = 0, baseline: str | None = None, revision: str | None = None, options: Mapping[str, Any] | None = None,
    device: str | None = None, progress: Progress | None = None,
) -> MaskedTokens:  # fmt: skip
    """Measure pseudo-perplexity on masked tokens of a text, paired with the dense model under the same masks.

    Args:
        model: A folder or a hub id, ORG/NAME.
        data: Text file, gzipped or not; "-" is standard input.
        context: Tokens of text in a window; None takes the model's context.
        limit: Windows, evenly spaced; 0 takes all.
        share: Share of the tokens that is masked.
        seed: Seed of the masks.
        baseline: Dense checkpoint to compare with; None takes the model itself, dense.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it, for each of the `variants`, (dense, and sparse if there is a
        plan) the pseudo-perplexity, exp of the mean loss of the masked tokens, and its paired difference from dense.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    from sparsify.evals import mlm as filling
    from sparsify.evals import results
    from sparsify.evals.texts import saying

    at_least(2, context=context)
    at_least(0, limit=limit, seed=seed)
    with session(progress):
        p, base = pair_of(model, baseline, {"revision": revision, "options": options, "device": device})
        check_head(p, "mlm", "pass the masked language model that it was made from")
        masked = masked_of(p, Path(data), context, limit, share=share, seed=seed)
        variants = {name: run for name, (_, run) in compared(p, base, saying).items()}
        with counting("masked tokens", len(masked), "window") as advance:
            found = filling.compare(variants, masked, batch_of(p, masked.context), advance)
        return MaskedTokens(
            **described(p),
            variants=tuple(row.report() for row in found.values()),
            convention=masked.convention(),
            data_notes=noted(),
            conditions=results.conditions(p.device),
        )


def evaluate_retrieval(
    model: str, data: str | Path, *, limit: int = 200, pad_to: int | None = None, baseline: str | None = None,
    revision: str | None = None, options: Mapping[str, Any] | None = None, device: str | None = None,
    progress: Progress | None = None,
) -> Retrieval:  # fmt: skip
    """Measure whether sentence embeddings find the other halves of a text's paragraphs as the dense model's do.

    Args:
        model: A folder or a hub id, ORG/NAME.
        data: Text file, gzipped or not; "-" is standard input.
        limit: Paragraphs, evenly spaced.
        pad_to: Tokens that every text is padded to, which changes its numbers; 0 runs each at its own length, None pads
            to the longest input that the model takes.
        baseline: Dense checkpoint to compare with; None takes the model itself, dense.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it, for each of the `variants`, the mean reciprocal rank of the right
        half, and how its embeddings agree with the dense model's (cosine, rank correlation, overlap of what is found
        first).

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    from sparsify.evals import results
    from sparsify.evals import retrieval as searching
    from sparsify.evals.data import read_documents

    at_least(2, limit=limit)
    at_least(0, pad_to=pad_to)
    with session(progress):
        p, base = pair_of(model, baseline, {"revision": revision, "options": options, "device": device})
        if not callable(getattr(p.model, "embed", None)):
            raise ValueError(f"models of the family {p.family} have no sentence embeddings; pass an M2-BERT")
        pairs = searching.halves(read_documents(Path(data), note), limit)
        length = padded(p, pad_to, p.context + 2)
        embedding = compared(p, base, embed_with)
        variants = {name: on_texts(q, run, length) for name, (q, run) in embedding.items()}
        with counting("embeddings", 2 * len(pairs), "text") as advance:
            found = searching.compare(variants, pairs, batch_of(p, length), advance)
        cut = too_long(p, (*pairs.queries, *pairs.passages), None, length)
        return Retrieval(
            **described(p),
            variants=tuple(found.values()),
            cut=cut,
            convention=f"{pairs.convention()}; {convention(p, length)}, as {cut:,} of {2 * len(pairs):,} were",
            data_notes=noted(),
            conditions=results.conditions(p.device),
        )


def embed_with(model: Any) -> Callable[..., Tensor]:
    return model.embed


KINDS: Mapping[str, Callable[..., Result]] = {
    "ppl": evaluate_perplexity,
    "front": evaluate_front,
    "glue": evaluate_glue,
    "mlm": evaluate_mlm,
    "retrieval": evaluate_retrieval,
}
