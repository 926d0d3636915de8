"""Put a plan into a loaded model, see what it changes, and take it out again.

python examples/apply_a_plan.py [MODEL]
"""

import sys
from time import perf_counter

import torch

import sparsify
from sparsify import swap
from sparsify.plan import policies

MODEL = sys.argv[1] if sys.argv[1:] else "demo/hyenadna-chr20-8k"
LENGTH, ROUNDS = 4096, 5

p = sparsify.load(MODEL)
ids = torch.randint(*p.tokenizer.id_range, (1, min(LENGTH, p.context)))


def seconds() -> float:
    """The quickest of some forward passes; `sparsify bench` times with more care."""
    took = []
    for _ in range(ROUNDS):
        began = perf_counter()
        p.model(ids)
        took.append(perf_counter() - began)
    return min(took)


dense = p.model(ids)
print(f"dense: {1e3 * seconds():.1f} ms")
for policy in (policies.taps(128), policies.split(64, 1 / 8)):
    plan = policies.make_plan(p.sites, p.filters, policy)
    undo = swap.apply_(p.sites, plan)  # the same weights, sparse convolutions
    moved = (p.model(ids) - dense).norm() / dense.norm()
    print(f"{policy.name}: {1e3 * seconds():.1f} ms, logits moved by {moved:.1e} of their norm")
    undo()
assert torch.equal(p.model(ids), dense)
