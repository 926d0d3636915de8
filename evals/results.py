"""Numbers with the conditions they were taken under, as plain JSON types."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sparsify import __version__
from sparsify.cpu.cost_model import processor
from sparsify.cpu.native import library

from .causality import Leak
from .quality import Comparison, Quality
from .speed.throughput import Timing, tokens_per_second

SCHEMA = 1


@dataclass(frozen=True)
class Conditions:
    """Where and when numbers were taken."""

    device: str  # "cpu", "cuda:0"
    hardware: str  # name of the processor or of the card
    threads: int
    kernels: str  # instruction set and threads of the compiled kernels, or why there are none
    torch: str
    python: str
    sparsify: str
    commit: str | None  # of the checkout, "-dirty" after local changes; None when installed
    date: str  # ISO 8601, UTC


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


@dataclass(frozen=True)
class EvalResult:
    """All that was measured of one variant; None stands for what was not."""

    quality: Quality
    quality_cut: Quality | None = None  # the same variant with its negative lags cut
    leak: Leak | None = None
    timing: Timing | None = None
    tokens_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plainly named numbers, JSON types only.  Differences, ratios, kl and agreement are against `baseline`."""
        quality, cut, leak, timing = self.quality, self.quality_cut, self.leak, self.timing
        versus = quality.versus
        return {
            "variant": quality.name,
            "baseline": versus and versus.baseline,
            "perplexity": quality.perplexity,
            "perplexity_stderr": quality.perplexity_stderr,
            "perplexity_ratio": versus and versus.perplexity_ratio,
            "perplexity_ratio_stderr": versus and versus.perplexity_ratio_stderr,
            "nll_per_token": quality.nll_per_token,
            "nll_stderr": quality.nll_stderr,
            "nll_difference": versus and versus.nll_difference,
            "nll_difference_stderr": versus and versus.nll_difference_stderr,
            "bits_per_token": quality.bits_per_token,
            "kl": versus and versus.kl,
            "top1_agreement": versus and versus.top1_agreement,
            "perplexity_cut": cut and cut.perplexity,
            "perplexity_cut_stderr": cut and cut.perplexity_stderr,
            "perplexity_cut_ratio": cut and cut.versus and cut.versus.perplexity_ratio,
            "perplexity_cut_ratio_stderr": cut and cut.versus and cut.versus.perplexity_ratio_stderr,
            "leak": leak and leak.worst,
            "leak_detail": leak and asdict(leak),
            "speedup": timing and timing.speedup,
            "speedup_quartiles": timing and [timing.speedup_low, timing.speedup_high],
            "seconds": timing and timing.seconds,
            "tokens_per_second": self.tokens_per_second,
            "perplexity_by_position": [asdict(bucket) for bucket in quality.by_position],
        }


def report(
    comparison: Comparison,
    taken_under: Conditions,
    cuts: Mapping[str, str] | None = None,
    leaks: Mapping[str, Leak] | None = None,
    timings: Mapping[str, Timing] | None = None,
    tokens: int | None = None,
) -> dict[str, Any]:
    """Everything measured in one run as JSON types, a row a variant.

    cuts: variant -> the variant that is the same with negative lags cut; a cut variant gets no row of its own.
    tokens: how many tokens one timed call works through.
    """
    cuts, leaks, timings = cuts or {}, leaks or {}, timings or {}
    strangers = sorted((cuts.keys() | set(cuts.values()) | leaks.keys() | timings.keys()) - comparison.variants.keys())
    if strangers:
        raise LookupError(f"no variant {strangers[0]!r} was compared; there are {', '.join(comparison.variants)}")
    rows = []
    for name, quality in comparison.variants.items():
        if name in cuts.values():
            continue
        timing = timings.get(name)
        result = EvalResult(
            quality=quality,
            quality_cut=comparison[cuts[name]] if name in cuts else None,
            leak=leaks.get(name),
            timing=timing,
            tokens_per_second=tokens_per_second(timing, tokens) if timing and tokens else None,
        )
        rows.append(result.to_dict())
    return {
        "schema": SCHEMA,
        "figure": comparison.figure,
        "convention": comparison.convention,
        "n_tokens": comparison.n_tokens,
        "count": comparison.count,
        "samples": comparison.samples,
        "conditions": asdict(taken_under),
        "results": rows,
    }
