"""Which plan a conversion takes: one of the policies, one from a file, or the fastest within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.report.schema import FilterKept

from .checkpoints import FLOAT32, priced
from .progress import bar, goes_on_from, say
from .texts import remembered

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from sparsify.converters import Pretrained
    from sparsify.evals.texts import Text
    from sparsify.plan import Plan
    from sparsify.search.journal import Journal
    from sparsify.search.planner import Planned

DEFAULT_ENERGY = 0.999


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
    from sparsify.search.planner import parse_budget

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
    allow_leak: bool, refit: bool, linears: str | None,
) -> tuple[Planned, Text, Journal]:  # fmt: skip
    """The plan that a budget asks for, the windows that prove it, and the journal of the search.

    Measurements are kept in that journal, beside `out`, until the plan is written.
    """
    from sparsify.evals.runs import Runs
    from sparsify.search import planner
    from sparsify.search.journal import Journal

    if held_out is None:
        calibration, held_out = planner.divide(calibration)
    out = out.expanduser().resolve()
    journal = Journal(out.with_name(f".{out.name}.planning"))
    goes_on_from(journal)
    runs = Runs(p.model, p.sites, p.filters, journal, say, bar)
    price = priced(target or p.device.type)
    try:
        planned = planner.plan_within(
            runs,
            calibration,
            held_out,
            planner.parse_budget(budget),
            price,
            allow_leak,
            refit,
            made_for(p),
            all_linears(p, linears),
        )
    except RuntimeError:
        say(f"for another budget or target there are {journal}")
        raise
    return planned, held_out, journal


def made_for(p: Pretrained) -> dict[str, str | None]:
    """What a plan says of the checkpoint that it is for, and of its filters, which another head may share."""
    from sparsify.storage.tensors import fingerprint
    from sparsify.swap import Tensors

    named = {"name": p.source.label, "revision": p.source.revision, "sha256": p.sha256}
    return {**named, "filters": fingerprint(Tensors(p.filters))}


def chosen_plan(p: Pretrained, asked: Mapping[str, Any]) -> Plan:
    """The plan that one of the options asks for.  asked: its name and value, or nothing for the default."""
    from sparsify.cpu.linear import check_named
    from sparsify.plan import Plan, policies

    found: tuple[str, Any] = next(iter(asked.items()), ("energy", DEFAULT_ENERGY))
    name, value = found
    if name == "plan":
        plan = Plan.read(Path(value))
        plan.check(list(p.filters))
        check_named(p.model, plan.linears)
        if note := strangeness(plan, p, str(value)):
            say(f"note: {note}")
        return plan
    arguments = value if isinstance(value, tuple) else (value,)
    return policies.make_plan(p.sites, p.filters, policies.POLICIES[name](*arguments), made_for(p))


def with_linears(p: Pretrained, plan: Plan, linears: str | None) -> Plan:
    """The plan with all linear layers of the model in this precision; None leaves it as it is."""
    if (named := all_linears(p, linears)) is None:
        return plan
    return replace(plan, policy=f"{plan.policy}, {linears} linears" if named else plan.policy, linears=named)


def all_linears(p: Pretrained, linears: str | None) -> dict[str, str] | None:
    """All linear layers of the model with this precision, none for float32; None where it was left open."""
    from sparsify.cpu.linear import layers_of

    if linears is None:
        return None
    return {} if linears == FLOAT32 else dict.fromkeys(layers_of(p.model), linears)


def strangeness(plan: Plan, p: Pretrained, path: str) -> str:
    """What there is to say of a plan that was made for another model with these filters; "" for one of this model.

    Raises ValueError where the filters are another model's.
    """
    from sparsify.storage.tensors import fingerprint
    from sparsify.swap import Tensors

    source, name = plan.source, plan.source.get("name") or "another checkpoint"
    if source.get("sha256") in (None, p.sha256):
        return ""
    if source.get("filters") == fingerprint(Tensors(p.filters)):
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


def refuse_leaks(p: Pretrained, filters: Sequence[FilterKept]) -> None:
    """Refuse a plan under which too much of a causal filter lies ahead.  filters: rows of `filter_report`."""
    from sparsify.plan.policies import AHEAD_LIMIT

    causal = {site.name for site in p.sites if site.causal}
    leak, worst = max(((row.leak, row.name) for row in filters if row.name in causal), default=(0.0, ""))
    if leak > AHEAD_LIMIT:
        raise ValueError(
            f"under this plan a causal model reads the future: {leak:.0%} of the filter of {worst} lies ahead, "
            f"and {AHEAD_LIMIT:.0%} may; use --split with more taps or a wider band, or say --allow-leak"
        )


def filter_report(p: Pretrained, plan: Plan) -> tuple[FilterKept, ...]:
    """What is kept of every filter, how much of it lies ahead, and where its energy lies."""
    from sparsify.plan import policies
    from sparsify.report.curves import curves

    rows = []
    for site in p.sites:
        k, kept = p.filters[site.name], plan.filters[site.name]
        row = FilterKept(
            name=site.name,
            kind=kept.kind,
            plan=str(kept),
            density=kept.density(k.taps, k.lookahead),
            leak=kept.apply(k).leak() if site.causal else 0.0,
            curves=curves(k, kept, policies.points(site.context)),
        )
        rows.append(row)
    return tuple(rows)
