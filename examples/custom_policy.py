"""Decide by a rule of your own what to keep of every filter, and convert a model by it.

python examples/custom_policy.py [MODEL]
"""

import sys
from pathlib import Path

import sparsify
from sparsify.plan import FilterPlan, policies

MODEL = sys.argv[1] if sys.argv[1:] else "demo/hyenadna-chr20-8k"


def until_quiet(share: float) -> policies.Policy:
    """Keep the taps up to the last one whose channels reach `share` of the filter's peak."""

    def choose(k: sparsify.Filter, site: sparsify.ConvSite) -> FilterPlan:
        loud = (k.k.abs().amax(0) > share * k.k.abs().max()).nonzero()
        return FilterPlan("partial", int(loud.max()) + 1)

    return policies.Policy(f"until quiet {share:g}", choose)


p = sparsify.load(MODEL)
plan = policies.make_plan(p.sites, p.filters, until_quiet(0.1))
for name, kept in plan.filters.items():
    print(f"{name}: {kept}, density {kept.density(p.filters[name].taps):.3f}")

Path("out").mkdir(exist_ok=True)
Path("out/custom-plan.json").write_text(plan.to_json())
result = sparsify.convert(MODEL, "out/custom", plan="out/custom-plan.json", force=True)
print(f"wrote {result['out']}; measure it: {result['next']}")
