"""What a planned convolution takes on a device, here or elsewhere: the seconds that a choice among plans goes by.

The backends' own reckoning says it, of the very ways that they would take, with no table made:
`sparsify.cpu.cost_model` on the CPU, `sparsify.gpu.planner` on a GPU.  Good for an order and for ratios near it, not
for a promise.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from sparsify.cpu import backend as cpu
from sparsify.cpu import native
from sparsify.cpu.cost_model import processor
from sparsify.filters.filter import Filter
from sparsify.gpu import devices, dispatch, planner
from sparsify.gpu.devices import CARDS, Card
from sparsify.plan import FilterPlan

MOVED = 0.2  # nanoseconds of one core a sample, whatever the way: rows from memory and back, which warm ones spare
MAKING = 0.5  # of a transform: the spectrum of a row of taps, where it is made anew in every call
FFT_POINT = 0.28  # nanoseconds of one core a point and level of torch.fft, there and back; MKL on an AMD EPYC 9004

NAMES: Mapping[str, Card] = {  # what people call the cards
    "a100": CARDS["sm_80"],
    "a6000": CARDS["sm_86"],
    "l40s": CARDS["sm_89"],
    "h100": replace(
        CARDS["sm_90"], name="H100", bandwidth=3.0e12, provenance="bandwidth 90 % of nominal, the rest that of H200"
    ),
    "h200": CARDS["sm_90"],
    "b200": CARDS["sm_100"],
}


@dataclass(frozen=True)
class Target:
    """A device that plans are made for: a card, or without one this machine's CPU with so many threads."""

    name: str
    card: Card | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"a target computes on at least 1 thread, got {self.threads}")

    def seconds(
        self,
        plan: FilterPlan,
        channels: int,
        taps: int,
        seqlen: int,
        batch: int = 1,
        dtype: torch.dtype | None = None,
        spectra_bytes: int | None = None,
        lookahead: int = 0,
    ) -> float:
        """Predicted seconds of one convolution of (batch, channels, seqlen) with what `plan` leaves of the filters.

        taps, lookahead: of every filter before, and how many of them at negative lags.  dtype: of the signal, on a card
        float16 unless given; the CPU computes in float32 whatever it is.  spectra_bytes: as for `cpu.prepare`.  Gates
        and skips are not counted.
        Raises ValueError for sizes below 1, and where no kernel of the card takes such a signal or type.
        """
        if min(channels, taps, seqlen, batch) < 1:
            raise ValueError(f"sizes are at least 1, got {channels=}, {taps=}, {seqlen=}, {batch=}")
        if self.card is not None:
            layer = dispatch.Layer(self.card, dtype or torch.float16, seqlen, batch, channels)
            return on_card(layer, plan, taps, lookahead)
        felt = outline(plan, taps, seqlen, lookahead)
        ns, way = cpu_way(felt, seqlen)
        if way == "whole" and not cpu.keeps_spectra(native.good_size(seqlen), channels, spectra_bytes):
            ns *= 1 + MAKING / batch
        return 1e-9 * -(-batch * channels // self.threads) * ns


def outline(plan: FilterPlan, taps: int, seqlen: int, lookahead: int = 0) -> Filter:
    """What a signal of `seqlen` samples feels of a planned filter, in tensors of sizes, no values.

    taps, lookahead: of the filter before.  A structure is there if such a signal can make use of it.
    """
    planned = plan.outline(1, taps, lookahead)
    known = planned.structure if planned.mask is not None and seqlen <= planned.mask.n else None
    return replace(planned.felt(seqlen), structure=known)


def cpu_way(felt: Filter, seqlen: int) -> tuple[float, str]:
    """Nanoseconds of one core for a row, and the way that `cpu.prepare` takes.  felt: as of `outline`."""
    if native.available():
        ns, way = min(cpu.ways(seqlen, felt.taps, felt.structure))
        return ns + MOVED * seqlen, way
    n, hop = cpu.choose_size(seqlen, felt.taps, felt.lookahead)
    return FFT_POINT * -(-seqlen // hop) * n * n.bit_length(), "torch.fft"


@lru_cache(maxsize=4096)  # a search among kernels takes tens of milliseconds, and a model's layers are much alike
def on_card(layer: dispatch.Layer, plan: FilterPlan, taps: int, lookahead: int) -> float:
    """Seconds of the quickest way, as the planner of the kernels predicts."""
    felt = outline(plan, taps, layer.seqlen, lookahead)
    found = dispatch.ways(layer, felt.taps, felt.lookahead, felt.structure)
    if not found:
        sizes: dict[str, Any] = {"dtype": layer.dtype, "rows_total": layer.rows, "batch": layer.batch}
        advice = planner.facts(layer.card, layer.seqlen, **sizes)["advice"]
        raise ValueError(f"{layer.card.name} has no kernel for {layer.seqlen} samples: {advice}")
    return min(seconds for seconds, _ in found.values())


def target(name: str | None = None) -> Target:
    """The device of this name: "cpu" (the default), "cuda" (the card at hand), "sm_90", "h100" and others of `NAMES`.

    Raises ValueError for any other, and for "cuda" where there is no card.
    """
    key = "cpu" if name is None else name.strip().lower()
    if key == "cpu":
        return Target(f"cpu ({processor()})", threads=torch.get_num_threads())
    if key == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"there is no CUDA device here; name the card instead: {', '.join(NAMES)}")
        card = devices.card()
    elif key in CARDS or key in NAMES:
        card = CARDS.get(key) or NAMES[key]
    else:
        known = ["cpu", "cuda", *CARDS, *NAMES]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no device is called {name!r}{hint} Known: {', '.join(known)}")
    return Target(card.name, card)
