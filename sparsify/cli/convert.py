"""The verb `convert`: what to keep is chosen or looked for, measured, and written with all that was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsify.storage.reading import is_stream, refuse_twice, short_name

from .glue import how_to_score, remembered
from .measure import measured, text_of
from .options import (
    AS_JSON,
    DATA,
    DEFAULT_WINDOWS,
    FLOAT32,
    JOURNAL,
    LINEARS,
    SOURCE,
    as_text,
    bar,
    described,
    emit,
    open_checkpoint,
    priced,
    program,
    quoted,
    say,
    tell,
)
from .push import check_push, in_words, pushed

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that --help is quick
    from sparsify.converters import Pretrained
    from sparsify.evals.planning.planner import Planned
    from sparsify.evals.texts import Text
    from sparsify.plan import Plan

DEFAULT_ENERGY = 0.999


class HeadAndBand(click.ParamType[tuple[int, float]]):
    """TAPS:SHARE, e.g. 64:0.125."""

    name = "taps:share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        try:
            head, band = value.split(":")
            return int(head), float(band)
        except ValueError:
            self.fail(f"{value!r} is not TAPS:SHARE, e.g. 64:0.125", param, ctx)


@click.command()
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--taps", type=click.IntRange(1), help="Keep the first TAPS taps of every filter.")
@click.option("--energy", type=float, help="Keep this share of every filter's energy.  [default: 0.999]")
@click.option("--split", type=HeadAndBand(), help="Keep TAPS taps and the lowest SHARE of the tail's spectrum.")
@click.option("--low-pass", type=float, help="Keep the lowest share of every spectrum; a causal model then leaks.")
@click.option("--plan", type=click.Path(path_type=Path, dir_okay=False), help="Use the plan in this file.")
@click.option("--max-ppl-increase", "budget", metavar="SHARE",
              help="Find the fastest plan that adds at most this to the perplexity, as 0.1% or 0.001; to the "
              "pseudo-perplexity of masked tokens, if SRC reads both ways.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), help="Text or FASTA file to find that plan on; without "
              "--data its last 3/10 are held out, and prove it.")  # fmt: skip
@click.option("--target", help="What that plan is to be fast on: cpu, cuda, sm_90, h100, ...; kept counts taps plus "
              "bins instead of time.  [default: the device]")  # fmt: skip
@click.option("--refit", is_flag=True, help="Look for better numbers in what that plan keeps; takes minutes.")
@click.option("--allow-leak", is_flag=True, help="Accept a plan under which a causal model reads the future.")
@click.option("--data", type=click.Path(path_type=Path), help="Measure before and after on this text or FASTA file; "
              "- is standard input.")  # fmt: skip
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
    from sparsify.converters.hub.download import read_card
    from sparsify.report.card_metadata import of_source, parse_benchmark

    check_out(out, force)
    asked = {"taps": taps, "energy": energy, "split": split, "low_pass": low_pass, "plan": plan}
    asked = only_one(asked | {"max_ppl_increase": budget})
    refuse_twice(calibration=calibration, data=data, plan=plan)
    check_search(budget, calibration, target, refit, data)
    measured_on = data or calibration
    if benchmark and measured_on is None:
        raise ValueError("--benchmark says where the data is from; add --data FILE, or leave --benchmark out")
    offered = parse_benchmark(benchmark)
    if repo:
        check_push(repo)
    p = open_checkpoint(src, **where)
    windows = text_of(p, data, context, stride, limit, upper) if data else None
    planned = None
    if calibration is not None:
        known = text_of(p, calibration, context, stride, limit, upper)
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
        "data": measured_on and short_name(measured_on),
        "benchmark": offered,
        "origin": of_source(read_card(p.source.folder)),
        "repo": repo,
    }
    options = typed(context, stride, limit, upper, linears)
    again = None if measured_on is None or is_stream(measured_on) else measured_on
    result["next"] = next_step(p, out, again, options)
    named = Path(out.resolve().name)  # what is published does not tell where folders lie here
    published = {**result, "out": str(named), "next": next_step(p, named, again and again.name, options)}
    write_folder(out, p, chosen, {"plan.json": chosen.to_json(), **pages(published)}, force=force)
    if (journal := click.get_current_context().meta.get(JOURNAL)) is not None:
        journal.remove()
    if repo:
        result["pushed"] = pushed(out, repo)
    emit(result, as_json, "converted")
    if repo and not as_json:
        tell(in_words(result["pushed"]))


def pages(result: dict[str, Any]) -> dict[str, str | bytes]:
    """File name -> content, for what tells people and machines what was found."""
    from sparsify.report import plots
    from sparsify.report.card_metadata import eval_results
    from sparsify.report.model_card import card
    from sparsify.report.page import page

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
    if p.head not in (verbs := {"lm": "ppl", "mlm": "mlm"}):
        return how_to_score(p, out)
    return f"{program()} eval {verbs[p.head]} {quoted(out)} --data {quoted(data or 'FILE')}{options}"


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
    from sparsify.evals.planning.planner import parse_budget

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
    p: Pretrained, out: Path, budget: str, calibration: Text, held_out: Text | None, target: str | None,
    allow_leak: bool, refit: bool,
) -> tuple[Planned, Text]:  # fmt: skip
    """The plan that a budget asks for, and the windows that prove it.  Measurements are kept beside `out` till then."""
    from sparsify.evals.planning import planner
    from sparsify.evals.planning.journal import Journal

    if held_out is None:
        calibration, held_out = planner.divide(calibration)
    out = out.expanduser().resolve()
    journal = click.get_current_context().meta[JOURNAL] = Journal(out.with_name(f".{out.name}.planning"))
    try:
        planned = planner.plan_within(
            p.model, p.sites, p.filters, calibration, held_out, planner.parse_budget(budget),
            priced(target or p.device.type), allow_leak, refit, made_for(p), say, bar, journal,
        )  # fmt: skip
    except RuntimeError:
        say(f"for another budget or target there are {journal}")
        raise
    return planned, held_out


def made_for(p: Pretrained) -> dict[str, str | None]:
    """What a plan says of the checkpoint that it is for, and of its filters, which another head may share."""
    from sparsify.storage.tensors import fingerprint

    named = {"name": p.source.label, "revision": p.source.revision, "sha256": p.sha256}
    return {**named, "filters": fingerprint(p.filters)}


def chosen_plan(p: Pretrained, asked: Mapping[str, Any]) -> Plan:
    """The plan that one of the options asks for.  asked: its name and value, or nothing for the default."""
    from sparsify.plan import Plan, policies

    found: tuple[str, Any] = next(iter(asked.items()), ("energy", DEFAULT_ENERGY))
    name, value = found
    if name == "plan":
        plan = Plan.read(Path(value))
        plan.check(list(p.filters))
        if note := strangeness(plan, p, str(value)):
            say(f"note: {note}")
        return plan
    arguments = value if isinstance(value, tuple) else (value,)
    return policies.make_plan(p.sites, p.filters, policies.POLICIES[name](*arguments), made_for(p))


def strangeness(plan: Plan, p: Pretrained, path: str) -> str:
    """What there is to say of a plan that was made for another model with these filters; "" for one of this model.

    Raises ValueError where the filters are another model's.
    """
    from sparsify.storage.tensors import fingerprint

    source, name = plan.source, plan.source.get("name") or "another checkpoint"
    if source.get("sha256") in (None, p.sha256):
        return ""
    if source.get("filters") == fingerprint(p.filters):
        return (
            f"{path} was made for {name}, whose filters are these; what was measured there does not hold for this head"
        )
    if remembered(p, "from") == source["sha256"] and not plan.stored():
        return (
            f"{path} was made for {name}, which this model was fine-tuned from, and the fine-tune moved the filters; "
            f"what was measured there does not hold here"
        )
    raise ValueError(
        f"{path} was made for the weights and filters of {name}, which are not these; "
        f"make a plan from this checkpoint, or take the sha256 out of the file"
    )


def refuse_leaks(p: Pretrained, filters: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a plan under which too much of a causal filter lies ahead.  filters: rows of `filter_report`."""
    from sparsify.plan.policies import AHEAD_LIMIT

    causal = {site.name for site in p.sites if site.causal}
    leak, worst = max(((row["leak"], row["name"]) for row in filters if row["name"] in causal), default=(0.0, ""))
    if leak > AHEAD_LIMIT:
        raise ValueError(
            f"under this plan a causal model reads the future: {leak:.0%} of the filter of {worst} lies ahead, "
            f"and {AHEAD_LIMIT:.0%} may; use --split with more taps or a wider band, or say --allow-leak"
        )


def filter_report(p: Pretrained, plan: Plan) -> list[dict[str, Any]]:
    """What is kept of every filter, how much of it lies ahead, and where its energy lies."""
    from sparsify.plan import policies
    from sparsify.report.curves import curves

    rows = []
    for site in p.sites:
        k, kept = p.filters[site.name], plan.filters[site.name]
        leak = kept.apply(k).leak() if site.causal else 0.0
        figures = {"density": kept.density(k.shape[-1], site.ahead), "leak": leak}
        drawn = {"curves": curves(k, kept, policies.points(site.context), site.ahead)}
        rows.append({"name": site.name, "kind": kept.kind, "plan": str(kept), **figures, **drawn})
    return rows
