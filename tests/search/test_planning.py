"""Plans that keep a promise: measured on windows apart, at a cost that is counted, or refused in a sentence."""

import contextlib
import dataclasses
import json
import math

import layouts_m2
import pytest
import torch
from layouts import tiny_model
from searches import Flat, data

from sparsify import swap
from sparsify.converters import load, m2_bert
from sparsify.cpu import linear
from sparsify.evals import causality, runs
from sparsify.evals.data import read_documents, windows
from sparsify.evals.runs import Runs
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan, Plan, policies
from sparsify.search import latency, planner, sensitivity
from sparsify.search import task as candidates
from sparsify.search.planner import divide, parse_budget, plan_within
from sparsify.search.sensitivity import Candidate, Errors
from sparsify.search.task import LEAK_GOAL, Kept, alike, options, quickest


@pytest.fixture(scope="module")
def tiny():
    model, sites = tiny_model()
    return model, sites, swap.Filters(sites)


@pytest.fixture(scope="module")
def planned(tiny):
    """Plans within three budgets, random weights."""
    calibration, held_out = divide(data())
    return [plan_within(Runs(*tiny), calibration, held_out, budget, Kept()) for budget in (1e-4, 3e-3, 3e-2)]


@pytest.fixture(scope="module")
def both_ways():
    model, sites = layouts_m2.tiny_model()
    return model, sites, swap.Filters(sites)


@pytest.fixture(scope="module")
def planned_both_ways(both_ways):
    halves = divide(layouts_m2.masked_windows(60))
    return [plan_within(Runs(*both_ways), *halves, budget, Kept()) for budget in (3e-3, 3e-2, 0.1)]


def test_windows_are_divided():
    w = data(40)
    first, last = divide(w)
    assert len(first) == 28 and len(last) == 12
    assert torch.equal(torch.cat([first.ids, last.ids]), w.ids)
    assert "28 windows" in first.convention() and "evenly spaced among 40" in first.convention()


def test_no_token_is_in_both():
    w = data(40, stride=16)
    first, last = divide(w)
    starts = 16 * torch.arange(40)
    assert starts[len(first) - 1] + 64 <= starts[40 - len(last)] < starts[len(first)] + 64


@pytest.mark.parametrize(("count", "stride", "says"), [(9, None, "at least 10 windows"), (12, 4, "overlap too much")])
def test_too_few_to_divide(count, stride, says):
    with pytest.raises(ValueError, match=says):
        divide(data(count, stride=stride))


def test_budgets_are_read():
    assert parse_budget("0.1%") == parse_budget("0.001") == parse_budget("0.1 %") == 0.001
    for text in ("0", "-0.1%", "100%", "1", "much", "", "%", "nan", "inf"):
        with pytest.raises(ValueError, match="between 0 and 100 %"):
            parse_budget(text)


def test_the_promise_is_kept(planned):
    for found in planned:
        search, chosen = found.search, found.search.chosen
        assert chosen.fits and chosen.increase + chosen.stderr <= search.budget
        assert chosen in search.steps and 1 <= len(search.steps) <= planner.STEPS
        assert chosen.leak <= LEAK_GOAL
        assert search.bound <= chosen.cost * (1 + 1e-9) < search.dense_cost
        assert found.plan.policy == f"max-ppl-increase {100 * search.budget:g}%"


def test_more_is_allowed_more_is_left_out(planned):
    costs = [found.search.chosen.cost for found in planned]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]


def test_it_costs_few_passes(planned):
    assert all(found.search.passes < 40 for found in planned)


def test_few_windows_and_many_sites_cost_no_more(tiny, monkeypatch):
    """The allowance bends before it breaks."""
    model, sites, filters = tiny
    calibration, held_out = divide(data(10))
    found = plan_within(Runs(model, sites, filters), calibration, held_out, 0.03, Kept())
    assert found.search.calibration_windows == 7 and found.search.passes < 40
    monkeypatch.setattr(candidates, "PROBE_PASSES", 1)
    again = plan_within(Runs(model, sites, filters), calibration, held_out, 0.03, Kept())
    assert again.search.passes < found.search.passes
    assert not all(row.probed for row in again.search.sites if row.plan != "dense")


def increase(tiny, plan, held_out, cut):
    """Relative increase of perplexity by one cross-entropy over all tokens."""
    model, sites, filters = tiny
    losses = []
    for some in (Plan.dense(filters), plan):
        logits = swap.variant(model, sites, swap.operators(filters, some, cut))(held_out.ids).double()
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), held_out.ids[:, 1:].flatten()))
    return math.exp(losses[1] - losses[0]) - 1


def test_what_was_measured_is_what_another_measures(planned, tiny):
    model, sites, filters = tiny
    _, held_out = divide(data())
    for found in planned:
        assert found.search.chosen.increase == pytest.approx(increase(tiny, found.plan, held_out, cut=True), abs=1e-7)
        leak = causality.leak(swap.variant(model, sites, swap.operators(filters, found.plan)), held_out).worst
        assert leak == pytest.approx(found.search.chosen.leak, abs=1e-6)


# --- models that look both ways ------------------------------------------------------------------------------------


def filled_in(both_ways, plan, masked):
    """Loss of every masked token under a plan, and KL to the dense model, of all logits of the plain model."""
    model, sites, filters = both_ways
    logits = [
        swap.variant(model, sites, swap.operators(filters, some))(masked.ids)[masked.hidden]
        for some in (Plan.dense(filters), plan)
    ]
    p, q = (one.double().log_softmax(-1) for one in logits)
    nll = [torch.nn.functional.nll_loss(one, masked.targets, reduction="none") for one in (p, q)]
    return nll[1] - nll[0], float((p.exp() * (p - q)).sum(-1).mean())


def test_the_promise_is_kept_of_masked_tokens(planned_both_ways, both_ways):
    """By the pseudo-perplexity and its paired standard error on the windows held out, computed once more here."""
    _, held_out = divide(layouts_m2.masked_windows(60))
    per_window = held_out.per_window.tolist()
    for found in planned_both_ways:
        step = found.search.chosen
        assert step.fits and step.increase + step.stderr <= found.search.budget and step.leak == 0
        assert found.search.bound <= step.cost * (1 + 1e-9) < found.search.dense_cost and found.search.passes < 40
        worse, kl = filled_in(both_ways, found.plan, held_out)
        assert step.increase == pytest.approx(math.expm1(worse.mean()), abs=1e-6)
        assert step.kl == pytest.approx(kl, rel=1e-3, abs=1e-9)
        by_window = torch.stack([part.mean() for part in worse.split(per_window)])
        spread = float(by_window.std()) / len(held_out) ** 0.5  # of a logarithm
        assert step.stderr == pytest.approx((1 + step.increase) * spread, rel=1e-3)
        told = json.loads(json.dumps(found.search.to_dict(), allow_nan=False))
        assert told["figure"] == "pseudo-perplexity" and told["held_out_windows"] == 18
    costs = [found.search.chosen.cost for found in planned_both_ways]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]


def test_nothing_chosen_by_hand_is_as_cheap(planned_both_ways, both_ways):
    """What is as near to the dense model costs more: low-passes and taps everywhere a lot, splits a little."""
    _, held_out = divide(layouts_m2.masked_windows(60))
    sites, filters = both_ways[1:]
    plain = [policies.low_pass(i / 16) for i in range(1, 16)] + [policies.taps(count) for count in range(1, 32)]
    parted = [policies.split(head, 2.0**-i) for head in (1, 2, 4, 8) for i in (1, 2, 3)]

    def by_cost(some):
        plans = [policies.make_plan(sites, filters, one) for one in some]
        return [(cost(plan), filled_in(both_ways, plan, held_out)[1]) for plan in plans]

    def cost(plan):
        return sum(kept.density(64, 32) for kept in plan.filters.values())

    by_hand, by_split = by_cost(plain), by_cost(parted)
    for found in planned_both_ways:
        near, parted_near = ([c for c, kl in some if kl <= found.search.chosen.kl] for some in (by_hand, by_split))
        assert cost(found.plan) < 0.8 * min(near) and cost(found.plan) <= min(parted_near, default=math.inf)


def test_masks_alone_are_offered(both_ways):
    runs = candidates.prepared(Runs(*both_ways), task := candidates.Task(
        *divide(layouts_m2.masked_windows(20)), Kept()))  # fmt: skip
    offered = {one.plan for some in candidates.candidates_of(runs, task).values() for one in some}
    assert {"frequency-sparse", "split", "partial", "dense"} == {plan.kind for plan in offered}
    assert not candidates.bounded(runs, task)


def test_masked_windows_are_few_tokens():
    """So that more of them are run than of windows in which every token is predicted."""
    assert len(candidates.probe_windows(layouts_m2.masked_windows(400), 1)) == 64  # of four tokens each
    assert len(candidates.probe_windows(data(40), 1)) == candidates.PROBE_WINDOWS


def test_a_refit_of_both_sides_is_nearer(both_ways):
    halves = divide(layouts_m2.masked_windows(60))
    plain, better = (plan_within(Runs(*both_ways), *halves, 0.03, Kept(), refit=refit) for refit in (False, True))
    assert better.search.chosen.kl < plain.search.chosen.kl and better.search.chosen.cost == plain.search.chosen.cost
    assert filled_in(both_ways, better.plan, halves[1])[1] == pytest.approx(better.search.chosen.kl, rel=1e-3)


def test_a_plan_fits_a_classifier_of_the_same_trunk(planned_both_ways, both_ways):
    """Sites have the same names, whatever the head; the model under it is not the dense one."""
    classifier = both_ways[0].with_head("classifier").eval()
    sites = m2_bert.sites(classifier)
    ids = layouts_m2.masked_windows(3).ids
    with torch.no_grad():
        dense = classifier(ids)
        undo = swap.apply_(sites, planned_both_ways[-1].plan)
        sparse = classifier(ids)
        undo()
        assert torch.equal(classifier(ids), dense)
    assert 1e-5 < (sparse - dense).norm() / dense.norm() < 0.5


# --- whichever way -------------------------------------------------------------------------------------------------


def test_model_is_left_as_it_was(tiny):
    model, sites, filters = tiny
    mine = {name: torch.nn.Identity() for name in filters}
    before = swap.install(sites, mine)
    try:
        plan_within(Runs(model, sites, filters), *divide(data()), 0.03, Kept())
        assert swap.install(sites, mine) == mine
    finally:
        swap.install(sites, before)


def test_report_is_json(planned):
    for found in planned:
        told = json.loads(json.dumps(found.search.to_dict(), allow_nan=False))
        assert told["plan"] == found.plan.policy and told["chosen"] in told["steps"]
        assert [row["name"] for row in told["sites"]] == list(found.plan.filters)
        gains = [gain for gain, _ in told["points"]]
        assert gains == sorted(gains) and gains[0] == 1


def test_progress_is_told(tiny):
    lines = []
    plan_within(Runs(*tiny, None, lines.append), *divide(data()), 0.03, Kept())
    assert lines[0] == "planning for kept taps plus bins: reading 28 windows of 64 tokens"
    assert sum(line.startswith("step ") for line in lines) >= 1 and any("candidates run on" in line for line in lines)


def test_what_cannot_be_met(tiny, monkeypatch):
    """Nothing cheaper; nothing that fits once measured; nothing that is predicted to."""
    halves = divide(data())
    with pytest.raises(RuntimeError, match="no plan is cheaper than the dense one on flat at 64 tokens"):
        plan_within(Runs(*tiny), *halves, 0.01, Flat())
    monkeypatch.setattr(sensitivity, "TAPS", (1, 2))
    monkeypatch.setattr(sensitivity, "HEADS", ())
    monkeypatch.setattr(sensitivity, "LARGEST_ERROR", math.inf)
    monkeypatch.setattr(sensitivity, "predicted", lambda some, kl: [0.0] + [1e-10] * (len(some) - 1))
    with pytest.raises(
        RuntimeError, match=r"no plan but the dense one fits a budget of 1e-07%: .* [0-9.]+% can be met"
    ):
        plan_within(Runs(*tiny), *halves, 1e-9, Kept())
    monkeypatch.setattr(sensitivity, "predicted", lambda some, kl: [0.0] + [math.log(1.25)] * (len(some) - 1))
    with pytest.raises(
        RuntimeError, match=r"a budget of 0\.1% is too small .* lose less than 25\.000%; allow about that"
    ):
        plan_within(Runs(*tiny), *halves, 1e-3, Kept())


def test_the_leakiest_are_blamed():
    mask = BlockMask.low_pass(64, 0.5)
    plans = [FilterPlan("split", taps, mask) for taps in (8, 16, 32)]
    some = {name: [Candidate(plan, Errors(1e-3, future), 1.0)]
            for name, plan, future in zip("abc", plans, (4e-6, 3e-6, 1e-8), strict=True)}  # fmt: skip
    picks = {name: few[0].plan for name, few in some.items()}
    found = planner.tightened(dict.fromkeys("abc", 3e-3), some, picks, leak=1.25e-3)
    assert found == pytest.approx({"a": 0.8 * 2e-3, "b": 0.8 * 3e-6**0.5, "c": 3e-3})
    kl = {name: {} for name in "abc"}
    assert [len(few) for few in options(some, kl, found).values()] == [0, 0, 1]


def test_leaks_are_bounded_unless_allowed(tiny, monkeypatch):
    monkeypatch.setattr(planner, "LEAK_GOAL", 1e-12)
    monkeypatch.setattr(candidates, "FIRST_AHEAD", 1e12)  # so that only the measurement stands in the way
    monkeypatch.setattr(sensitivity, "TAPS", ())
    halves = divide(data())
    with pytest.raises(RuntimeError, match="when the future changes"):
        plan_within(Runs(*tiny), *halves, 0.03, Kept())
    found = plan_within(Runs(*tiny), *halves, 0.03, Kept(), allow_leak=True)
    assert found.plan.leaks and found.search.chosen.leak == 0  # not measured
    honest, told = (increase(tiny, found.plan, halves[1], cut) for cut in (True, False))
    assert found.search.chosen.increase == pytest.approx(honest, abs=1e-7) and abs(told - honest) > 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 0.0}, "increase of perplexity between 0 and 1, got 0"),
        ({"budget": -0.1}, "got -0.1"),
        ({"held_out": data(4, context=32)}, "cut them alike"),
        ({"held_out": data(1)}, "pass at least 2"),
    ],
)
def test_refusals(tiny, change, says):
    first, last = divide(data())
    model, sites, filters = tiny
    with pytest.raises(ValueError, match=says):
        plan_within(Runs(model, sites, filters), **{"calibration": first, "held_out": last, "budget": 0.01} | change,
                    target=Kept())  # fmt: skip


@pytest.mark.parametrize(("fitting", "failing"), [(0.0, math.inf), (1e-3, math.inf), (0.0, 2e-3), (1e-3, 2e-3)])
@pytest.mark.parametrize("room", [-3.0, 0.1, 1.0, 4.0])
def test_the_next_limit_lies_on_the_right_side(fitting, failing, room):
    limit = fitting or min(failing, 2e-3)
    found = planner.next_limit(limit, fitting, failing, room)
    if math.isfinite(failing):
        assert fitting < found < failing
    else:
        assert found > limit


def test_no_further_than_the_predictions_may_move(tiny, monkeypatch):
    """A perplexity that never rises does not lead to plans that change everything."""
    halves = divide(data())
    measure = runs.Runs.versus

    def lucky(self, *asked):
        return dataclasses.replace(measure(self, *asked), perplexity_ratio=0.9)

    monkeypatch.setattr(runs.Runs, "versus", lucky)
    found = plan_within(Runs(*tiny), *halves, 3e-3, Kept())
    limits = [step.limit for step in found.search.steps]
    assert found.search.chosen.fits and max(limits) <= planner.KL_TIMES * math.log1p(3e-3)
    assert 3e-3 < found.search.chosen.predicted < 6.1e-3
    monkeypatch.setattr(planner, "KL_TIMES", 100.0)
    assert plan_within(Runs(*tiny), *halves, 3e-3, Kept()).search.chosen.predicted > 6.1e-3


def test_sites_that_make_up_for_each_other():
    """Alone each of two plans loses a lot, together next to nothing: no sum says so, a run of both does."""
    dense, few, fewer = FilterPlan("dense"), FilterPlan("partial", 8), FilterPlan("partial", 4)
    prices = {dense: 1.0, few: 0.5, fewer: 0.25}
    own = [Candidate(plan, Errors(0.0 if plan == dense else 0.1, 0.0), price) for plan, price in prices.items()]
    some, future = {"a": own, "b": own[:2]}, {"a": 0.0, "b": 0.0}
    alone = {"a": {few: 5.0, fewer: 6.0}, "b": {few: 1e-4}}
    assert [one.plan for one in alike(some)] == [dense, few]
    found = quickest(some, alone, future, 1e-3)
    assert found.seconds == 1.5 and found.picks["a"].plan == dense
    both = quickest(some, {**alone, candidates.ALL: {few: 1e-3}}, future, 1e-3)
    assert both.seconds == 1.0 and both.loss == pytest.approx(1e-3) and {o.plan for o in both.picks.values()} == {few}
    assert quickest(some, {**alone, candidates.ALL: {few: 2e-3}}, future, 1e-3) == found


def test_a_refit_is_taken_where_it_is_nearer(tiny, monkeypatch):
    halves = divide(data())
    plain = plan_within(Runs(*tiny), *halves, 0.03, Kept())
    better = plan_within(Runs(*tiny), *halves, 0.03, Kept(), refit=True)
    assert better.search.chosen.kl < plain.search.chosen.kl and better.search.chosen.cost == plain.search.chosen.cost
    assert any(plan.values is not None for plan in better.plan.filters.values())
    assert any("re-fitted" in site.plan for site in better.search.sites)
    monkeypatch.setattr(planner, "refitted", lambda plan, *rest, **options: plan)
    assert plan_within(Runs(*tiny), *halves, 0.03, Kept(), refit=True) == plain


@pytest.mark.parametrize("plan", [FilterPlan("dense"), FilterPlan("partial", 16)])
def test_kept_counts_samples(plan):
    assert Kept().seconds(plan, 3, 66, 64) == 3 * (16 if plan.taps else 64)


def test_published_weights_keep_a_fifth(test_data, monkeypatch):
    """HyenaDNA tiny-1k within 0.1 %, on a short ladder and few windows."""
    monkeypatch.setattr(sensitivity, "HEADS", (64, 96))
    monkeypatch.setattr(sensitivity, "SHARES", (1 / 8, 1 / 16))
    monkeypatch.setattr(sensitivity, "TAPS", (32, 128))
    p = load(str(test_data / "hyenadna-tiny-1k"))
    documents = read_documents(test_data / "dna" / "chr20_30-38Mb.txt.gz")
    first, last = divide(windows(documents, p.tokenizer.encode, 1024, alphabet="ACGT", limit=40))
    monkeypatch.setattr(candidates, "PROBE_WINDOWS", 2)
    found = plan_within(Runs(p.model, p.sites, p.filters), first, last, 1e-3, Kept())
    assert found.search.chosen.density <= 0.2 and found.search.chosen.leak < 1e-3
    assert found.search.chosen.increase + found.search.chosen.stderr <= 1e-3


# --- linear layers -------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared_always(monkeypatch):
    """Linear layers are prepared however few rows there are, and bfloat16 is offered whatever this CPU makes of it."""
    monkeypatch.setattr(linear, "PAYS_AT", 1)
    monkeypatch.setattr(planner, "PAYS_AT", 1)
    monkeypatch.setattr(linear, "gain", lambda *_: 2.0)


CPU = latency.target("cpu")


def test_linear_layers_share_the_budget(tiny, prepared_always):
    """All of them where that is cheap, and what is proved has them in it."""
    halves = divide(data())
    found = plan_within(Runs(*tiny), *halves, 0.1, CPU)
    assert found.plan.linears == dict.fromkeys(linear.layers_of(tiny[0]), "bfloat16")
    alone = runs.Runs(*tiny)
    with alone.working():
        again = alone.versus(alone.under({}), found.plan.filters, halves[1], found.plan.linears)
        without = alone.versus(alone.under({}), found.plan.filters, halves[1])
    assert found.search.chosen.increase == again.perplexity_ratio - 1 != without.perplexity_ratio - 1
    assert all(layer.precision == torch.float32 for layer in linear.layers_of(tiny[0]).values())  # as before


def test_layers_that_lose_least_for_their_work_come_first(tiny, prepared_always, monkeypatch):
    """Losses of single layers are measured; those that would take more than their share stay in float32."""
    names = list(linear.layers_of(tiny[0]))
    losses = {name: 10.0**-i for i, name in enumerate(names)}
    measure = runs.Runs.versus

    def versus(self, dense, picks, windows, linears=()):
        found = measure(self, dense, picks, windows, linears or {})
        return dataclasses.replace(found, kl=sum(losses[name] for name in linears)) if linears and not picks else found

    monkeypatch.setattr(runs.Runs, "versus", versus)
    monkeypatch.setattr(runs.Runs, "layers", property(lambda self: dict.fromkeys(names, 1)))
    task = planner.BudgetTask(*divide(data()), CPU, budget=0.023)
    found = planner.with_linears(Runs(*tiny), task, None)
    assert list(found.linears) == sorted(names[2:])
    assert found.lost == pytest.approx(sum(losses[name] for name in names[2:]))


@pytest.mark.parametrize("target", [Kept(), latency.target("h100")])
def test_linear_layers_are_for_this_cpu(tiny, prepared_always, target):
    task = planner.BudgetTask(*divide(data()), target, budget=0.1)
    assert planner.with_linears(Runs(*tiny), task, None) == task


def test_linear_layers_alone_are_a_plan(tiny, prepared_always, monkeypatch):
    """Where no mask is cheaper, or none fits."""
    monkeypatch.setattr(Runs, "working", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(planner, "candidates_of", lambda *_: (_ for _ in ()).throw(candidates.NothingFitsError("none")))
    found = plan_within(Runs(*tiny), *divide(data()), 0.1, CPU)
    assert found.plan.linears and not found.plan.cuts_filters and found.search.chosen.fits
    with pytest.raises(RuntimeError, match="none"):
        plan_within(Runs(*tiny), *divide(data()), 0.1, CPU, linears={})
    given = dict.fromkeys(list(found.plan.linears)[:1], "bfloat16")
    assert plan_within(Runs(*tiny), *divide(data()), 0.1, CPU, linears=given).plan.linears == given
