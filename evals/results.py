"""Numbers with the conditions they were taken under, as they are reported."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sparsify import __version__
from sparsify.cpu.cost_model import processor
from sparsify.cpu.native import library
from sparsify.report.schema import Conditions, Leak, Variant

from .quality import Comparison, Quality, Versus

SCHEMA = 2


def conditions(device: str | torch.device = "cpu") -> Conditions:
    """The conditions of this process, now."""
    device = torch.device(device)
    return Conditions(
        device=str(device),
        hardware=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        threads=torch.get_num_threads(),
        kernels=library.describe()[1],
        torch=torch.__version__,
        python=platform.python_version(),
        sparsify=__version__,
        commit=commit(Path(__file__).resolve().parent.parent),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def commit(root: Path) -> str | None:
    """Commit of the git checkout at `root`, "-dirty" appended after local changes; None without a checkout."""
    if not (root / ".git").exists():
        return None  # installed somewhere inside another project's checkout, whose commit says nothing about us
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def variant(
    quality: Quality,
    cut: Quality | None = None,
    leak: Leak | None = None,
) -> Variant:
    """All that was measured of one variant.  cut: the same with its negative lags cut."""
    versus, honest = quality.versus, cut.versus if cut else None
    paired: dict[str, Any] = vars(versus) if versus else dict.fromkeys(field.name for field in fields(Versus))
    return Variant(
        variant=quality.name,
        perplexity=quality.perplexity,
        perplexity_stderr=quality.perplexity_stderr,
        nll_per_token=quality.nll_per_token,
        nll_stderr=quality.nll_stderr,
        bits_per_token=quality.bits_per_token,
        perplexity_by_position=quality.by_position,
        **paired,
        perplexity_cut=cut.perplexity if cut else None,
        perplexity_cut_stderr=cut.perplexity_stderr if cut else None,
        perplexity_cut_ratio=honest.perplexity_ratio if honest else None,
        perplexity_cut_ratio_stderr=honest.perplexity_ratio_stderr if honest else None,
        leak=leak.worst if leak else None,
        leak_detail=leak,
    )


def variants(
    comparison: Comparison,
    cuts: Mapping[str, str] | None = None,
    leaks: Mapping[str, Leak] | None = None,
) -> dict[str, Variant]:
    """Everything measured in one run: name -> variant.

    cuts: variant -> the variant that is the same with negative lags cut; a cut variant gets no row of its own.
    """
    cuts, leaks = cuts or {}, leaks or {}
    strangers = sorted((cuts.keys() | set(cuts.values()) | leaks.keys()) - comparison.variants.keys())
    if strangers:
        raise LookupError(f"no variant {strangers[0]!r} was compared; there are {', '.join(comparison.variants)}")
    kept = [name for name in comparison.variants if name not in cuts.values()]
    cut = {name: comparison[other] for name, other in cuts.items()}
    found = comparison.variants
    return {name: variant(found[name], cut.get(name), leaks.get(name)) for name in kept}


def setting(comparison: Comparison, taken_under: Conditions) -> dict[str, Any]:
    """What variants were compared on: the fields of `schema.Comparison`."""
    shared = ("figure", "convention", "n_tokens", "count", "samples")
    return {"schema": SCHEMA, **{name: getattr(comparison, name) for name in shared}, "conditions": taken_under}
