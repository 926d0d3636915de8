"""Converting: what to keep is chosen or looked for, measured, and written with all that was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.report.schema import Conversion
from sparsify.storage.reading import given, is_stream, refuse_twice, short_name

from .checkpoints import at_least, check_linears, described, in_words, open_checkpoint, refuse_overlap
from .commands import next_step, typed
from .evaluate import measured
from .plans import check_search, chosen_plan, filter_report, only_one, planned_within, refuse_leaks, with_linears
from .progress import Progress, goes_on_from, say, session
from .push import check_push, pushed
from .texts import DEFAULT_WINDOWS, refuse_same, text_of

if TYPE_CHECKING:
    from sparsify.search.journal import Journal
    from sparsify.search.planner import Planned


def convert(
    src: str, out: str | Path, *, taps: int | None = None, energy: float | None = None,
    split: tuple[int, float] | None = None, low_pass: float | None = None, plan: str | Path | None = None,
    max_ppl_increase: str | float | None = None, calibration: str | Path | None = None, target: str | None = None,
    refit: bool = False, allow_leak: bool = False, data: str | Path | None = None, force: bool = False,
    benchmark: str | None = None, push: str | None = None, context: int | None = None, stride: int | None = None,
    limit: int = DEFAULT_WINDOWS, upper: bool = False, linears: str | None = None, revision: str | None = None,
    options: Mapping[str, Any] | None = None, device: str | None = None, progress: Progress | None = None,
) -> Conversion:  # fmt: skip
    """Choose what to keep of every convolution of a model and write the sparsified checkpoint to a folder.

    One of the first six options says what to keep; without any, `energy` is 0.999.  A search that was interrupted goes
    on when the same is called again.

    Args:
        src: A folder or a hub id, ORG/NAME.
        out: The folder to write; it is written whole or not at all.
        taps: Keep the first taps of every filter.
        energy: Keep this share of every filter's energy.
        split: Keep (taps, share): so many taps, and the lowest share of the tail's spectrum.
        low_pass: Keep the lowest share of every spectrum; a causal model then leaks.
        plan: Use the plan in this file.
        max_ppl_increase: Find the fastest plan that adds at most this to the perplexity, as "0.1%" or 0.001; to the
            pseudo-perplexity of masked tokens, if the model reads both ways.
        calibration: Text or FASTA file to find that plan on; without `data` its last 3/10 are held out, and prove it.
        target: What that plan is to be fast on: "cpu", "cuda", "sm_90", "h100", ...; "kept" counts taps plus bins
            instead of time.  None takes the device.
        refit: Look for better numbers in what that plan keeps; takes minutes.
        allow_leak: Accept a plan under which a causal model reads the future.
        data: Measure before and after on this text or FASTA file; "-" is standard input.
        force: Replace `out` if it is there.
        benchmark: The hub's data set that the data is from, ORG/DATASET:TASK; the figure goes into .eval_results, too.
        push: Push `out` to this repository of the hub, USER/REPO, too.
        context: Tokens in a window; None takes the model's context.
        stride: Tokens from window to window; None takes `context`.
        limit: Windows, evenly spaced; 0 takes all.
        upper: Read lower-case (soft-masked) bases as upper case.
        linears: What the linear layers multiply in, on a CPU: "float32" or "bfloat16"; the plan keeps it.  None lets a
            budget for the CPU decide, layer by layer, and is float32 otherwise.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints and report.json holds.  `plan` is the plan's name.  `filters` has a row for
        each site: what is kept, its `density` (kept / all) and its `leak` (share of the norm at negative lags).
        `planned` has the search, with the steps and the one `chosen`; None without a budget.  `evaluation` is as from
        `evaluate_perplexity`, with speed; None without data.  `next` is the command that measures the result.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here, as when no plan fits the budget.
    """
    from sparsify.converters import check_out, write_folder
    from sparsify.converters.hub.download import read_card
    from sparsify.cpu.linear import layers_of
    from sparsify.report.card_metadata import of_source, parse_benchmark

    at_least(1, taps=taps, stride=stride)
    at_least(2, context=context)
    at_least(0, limit=limit)
    out, data, calibration, plan = Path(out), as_path(data), as_path(calibration), as_path(plan)
    budget = None if max_ppl_increase is None else str(max_ppl_increase)
    with session(progress):
        check_out(out, force)
        if Path(src).expanduser().resolve() != out.expanduser().resolve():  # which check_out and --force have a say in
            refuse_overlap(out, checkpoint=given(src, "a folder, or ORG/NAME"))
        texts = {"data": data, "calibration": calibration}
        refuse_overlap(out, **{name: path for name, path in texts.items() if path and not path.is_dir()})
        asked = {"taps": taps, "energy": energy, "split": split, "low_pass": low_pass, "plan": plan}
        asked = only_one(asked | {"max_ppl_increase": budget})
        refuse_twice(calibration=calibration, data=data, plan=plan)
        check_search(budget, calibration, target, refit, data)
        measured_on = data or calibration
        if benchmark and measured_on is None:
            raise ValueError("--benchmark says where the data is from; add --data FILE, or leave --benchmark out")
        offered = parse_benchmark(benchmark)
        if push is not None:
            check_push(push)
        p = open_checkpoint(src, revision, options, device)
        check_linears(p, linears, context or p.context)
        windows = text_of(p, data, context, stride, limit, upper) if data else None
        planned: Planned | None = None
        journal: Journal | None = None
        if calibration is not None:
            known = text_of(p, calibration, context, stride, limit, upper)
            if windows is not None:
                refuse_same(known, windows, calibration, data)
            planned, windows, journal = planned_within(
                p, out, str(budget), known, windows, target, allow_leak, refit, linears
            )
        chosen = planned.plan if planned else with_linears(p, chosen_plan(p, asked), linears)
        filters = filter_report(p, chosen)
        if not allow_leak:
            refuse_leaks(p, filters)
        repeated = typed(context, stride, limit, upper, None)
        again = None if measured_on is None or is_stream(measured_on) else measured_on
        result = Conversion(
            **described(p) | {"plan": chosen.policy},
            out=str(out),
            plan_sha256=chosen.sha256,
            filters=filters,
            linears=in_words(chosen.linears, len(layers_of(p.model))),
            planned=planned.search if planned else None,
            evaluation=measured(p, chosen, windows, speed=True) if windows else None,
            causal=any(site.causal for site in p.sites),
            data=short_name(measured_on) if measured_on else None,
            benchmark=offered,
            origin=of_source(read_card(p.source.folder)),
            repo=push,
            next=next_step(p, out, again, repeated),
        )
        named = Path(out.resolve().name)  # what is published does not tell where folders lie here
        published = replace(result, out=str(named), next=next_step(p, named, again and again.name, repeated))
        write_folder(out, p, chosen, {"plan.json": chosen.to_json(), **pages(published)}, force=force)
        if journal is not None:
            journal.remove()
            goes_on_from(None)
        return replace(result, pushed=pushed(out, push)) if push else result


def as_path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def pages(result: Conversion) -> dict[str, str | bytes]:
    """File name -> content, for what tells people and machines what was found."""
    from sparsify.report import plots
    from sparsify.report.card_metadata import eval_results
    from sparsify.report.model_card import card
    from sparsify.report.page import page

    if (picture := plots.picture(result)) is None:
        say(plots.HOW_TO_GET)
    return {
        "report.json": result.to_json() + "\n",
        "report.html": page(result),
        "README.md": card(result, plots.NAME if picture else None),
        **({plots.NAME: picture} if picture else {}),
        **eval_results(result),
    }
