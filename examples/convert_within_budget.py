"""Find the plan of fewest taps and bins that may add 2 % to the perplexity, and write the model to out/budget.

python examples/convert_within_budget.py [MODEL TEXT]
"""

import sys

import sparsify
from sparsify.pipeline.progress import Event

MODEL, TEXT = sys.argv[1:3] or ("demo/hyenadna-chr20-8k", "demo/chr20-held-out.fa.gz")


def show(event: Event) -> None:
    """Print the steps, and leave the bars out."""
    if event.kind in ("say", "note"):
        print(event)


result = sparsify.convert(
    MODEL,
    "out/budget",
    max_ppl_increase="2%",
    calibration=TEXT,  # the last 3/10 of it are held out, and prove the plan
    target="kept",  # counts taps and bins; leave it out to have the fastest plan for the device at hand
    context=512,  # leave these two out to use the model's whole context and 500 windows
    limit=10,
    force=True,
    progress=show,
)
for site in result["filters"]:
    print(f"{site['name']}: {site['plan']}")
chosen = result["planned"]["chosen"]
print(f"perplexity {chosen['increase']:+.3%} ± {chosen['stderr']:.3%} on held-out windows, leak {chosen['leak']:.0e}")
print(f"{chosen['gain']:.1f} times fewer taps and bins; look at {result['out']}/report.html")
