"""What `sparsify convert` reports: of a tiny model, and made up for models of any number of sites."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from layouts import write_tiny
from torch import Tensor

from sparsify.cli.main import main
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan
from sparsify.report import model_card
from sparsify.report import page as written
from sparsify.report.curves import curves
from sparsify.report.schema import Conversion

PLANS = {
    "split": FilterPlan("split", 8, BlockMask.low_pass(64, 0.25)),
    "partial": FilterPlan("partial", 8),
    "frequency-sparse": FilterPlan("frequency-sparse", None, BlockMask.low_pass(64, 0.25)),
    "comb": FilterPlan("frequency-sparse", None, BlockMask.comb(64, 0.25, (8, 8))),
    "dense": FilterPlan("dense"),
}


def converted(folder: Path) -> dict[str, Any]:
    """The report on a tiny model under a split plan."""
    letters = torch.randint(4, (1000,), generator=torch.Generator().manual_seed(0))
    (folder / "dna.txt").write_text("".join("ACGT"[i] for i in letters))
    asked = ["--split", "8:0.25", "--data", folder / "dna.txt", "--json"]
    done = CliRunner().invoke(main, [str(a) for a in ["convert", write_tiny(folder / "tiny"), folder / "out", *asked]])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def page(found: dict[str, Any]) -> str:
    """The page of a report as JSON has it."""
    return written.page(Conversion.from_dict(found))


def card(found: dict[str, Any], picture: str | None = None) -> str:
    """And the model card."""
    return model_card.card(Conversion.from_dict(found), picture)


def decaying(seed: int = 0) -> Tensor:
    """A filter of 64 taps, (3, 64)."""
    noise = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    return noise * torch.exp(-torch.arange(64) / 9)


def row(name: str, plan: FilterPlan, seed: int = 0) -> dict[str, Any]:
    """A filter's row in a report."""
    k = decaying(seed)
    figures = {"density": plan.density(64), "leak": plan.apply(k).leak(), "curves": curves(k, plan, 64).to_dict()}
    return {"name": name, "kind": plan.kind, "plan": str(plan), **figures}


def rows(count: int) -> list[dict[str, Any]]:
    """Filters under plans of every kind."""
    plans = list(PLANS.values())
    return [row(f"backbone.layers.{i}.mixer.filter", plans[i % len(plans)], i) for i in range(count)]


def planned(filters: Sequence[dict[str, Any]], **other: Any) -> dict[str, Any]:
    """A search for a plan within 0.1 %: a crowd near the budget, a loss below zero, a front up to any loss."""
    measured = [  # gain, increase, stderr, leak, fits
        (3.0, -2e-5, 1e-5, 0.0, True),
        (9.2, 2.1e-3, 6e-4, 0.0, False),
        (5.5, 4e-4, 3e-4, 4e-4, True),
        (5.7, 1e-4, 1e-4, 2e-3, False),
        (6.05, 8e-4, 4e-4, 0.0, False),
        (5.9, 6e-4, 3.5e-4, 5e-4, True),
    ]
    steps = [
        {"limit": 1e-3, "predicted": 5e-4, "increase": increase, "stderr": stderr, "kl": 1e-3, "leak": leak,
         "cost": 10 / gain, "gain": gain, "density": 0.2, "fits": fits}
        for gain, increase, stderr, leak, fits in measured
    ]  # fmt: skip
    sites = [{"name": f["name"], "plan": f["plan"], "error": 1e-3, "ahead": 0.0, "loss": 2e-5 * (i + 1), "probed": True,
              "cost": 0.5, "dense_cost": 1.7 + i, "candidates": 30} for i, f in enumerate(filters)]  # fmt: skip
    return {
        "plan": "max-ppl-increase 0.1%", "budget": 1e-3, "target": "H100", "chosen": steps[-1], "dense_cost": 10.0,
        "bound": 1.6, "most": 6.25, "steps": steps, "sites": sites, "calibration_windows": 56, "held_out_windows": 24,
        "points": [[1 + 0.35 * i, 1e-7 * math.expm1(0.55 * i)] for i in range(40)], "passes": 12.5, **other,
    }  # fmt: skip
