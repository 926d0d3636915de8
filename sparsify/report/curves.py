"""What is drawn of one filter, as plain numbers that stand in report.json: its energy, and what is kept of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsify.filters.filter import Taps, as_filter
from sparsify.filters.spectra import energy_by_bin, energy_by_tap, rising
from sparsify.filters.split import tail_of
from sparsify.plan import FilterPlan

from .schema import Cells, Curves

FLOOR_DB = -80.0  # quieter entries are drawn here
POINTS = 160  # of a curve
CELLS = 64  # of a row of the map
MOST_BANDS = 64  # that are listed one by one
BARS = "▁▂▃▄▅▆▇█"
LOWEST_DB = -60.0  # what a sparkline shows as its lowest bar


def curves(k: Taps, kept: FilterPlan, n: int) -> Curves:
    """Energy by tap and by bin, and what is kept of both.

    n: points of the spectrum where the plan has no mask.
    """
    n = kept.mask.n if kept.mask else n
    by_tap, by_bin = energy_by_tap(k), energy_by_bin(k, n)
    tail = energy_by_bin(tail_of(as_filter(k), kept.taps, kept.mask), n) if kept.taps and kept.mask else None
    mask = kept.mask.bins()[rising(n)] if kept.mask else None
    in_time = None if mask is not None and not kept.taps else torch.arange(len(by_tap)) < (kept.taps or len(by_tap))
    return Curves(
        taps=curve(by_tap),
        bins=curve(by_bin),
        tail=None if tail is None else curve(tail),
        kept_taps=kept.taps,
        kept_band=None if mask is None else bands(mask),
        kept_share=kept.mask.density if kept.mask else None,
        cells=Cells(
            None if in_time is None else cells(by_tap, in_time),
            None if mask is None else cells(by_bin if tail is None else tail, mask),
        ),
    )


def curve(energy: Tensor, points: int = POINTS) -> list[list[float]]:
    """Energy along a logarithmic axis, as [[x, dB], ...]: the loudest entry of each cell, 0 dB at the peak.

    energy: (T,).  x counts entries from 1 and is the last of its cell, so the last x is T; dB has a floor of -80.
    """
    edges = torch.logspace(0, math.log10(len(energy) + 1), points + 1, dtype=torch.float64).round().long().unique()
    loudest = torch.stack([cell.max() for cell in energy.double().split(edges.diff().tolist())])
    return [[x, dB] for x, dB in zip((edges[1:] - 1).tolist(), levels(loudest), strict=True)]


def cells(energy: Tensor, kept: Tensor, count: int = CELLS) -> list[list[float]]:
    """Equal parts of an even axis, as [[share of its entries that is kept, dB], ...], 0 dB at the loudest part.

    energy: (T,).  kept: (T,) bool.  No more parts than entries; dB is that of the mean energy, with a floor of -80.
    """
    count = min(count, len(energy))
    mean = torch.stack([part.mean() for part in energy.double().tensor_split(count)])
    shares = [round(part.double().mean().item(), 3) for part in kept.tensor_split(count)]
    return [[held, dB] for held, dB in zip(shares, levels(mean), strict=True)]


def levels(energy: Tensor) -> list[float]:
    """dB below the largest, not below the floor.  energy: (T,) float64."""
    peak = energy.max().clamp_min(torch.finfo(torch.float64).tiny)
    return [round(dB, 1) for dB in (10 * (energy / peak).log10()).clamp_min(FLOOR_DB).tolist()]


def bands(bins: Tensor) -> list[list[float]]:
    """Runs of kept bins as [start, stop] shares of the band.  bins: (n,) bool, lowest frequency first.

    Of a comb with more than MOST_BANDS teeth, the parts of the band that it stands in.
    """
    edges = torch.diff(torch.nn.functional.pad(bins.int(), (1, 1)))
    starts, stops = ((edges == sign).nonzero().flatten() for sign in (1, -1))
    if len(starts) > MOST_BANDS:
        return bands(torch.stack([part.any() for part in bins.tensor_split(MOST_BANDS)]))
    return [[start / len(bins), stop / len(bins)] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def sparkline(energy: Tensor, width: int = 24) -> str:
    """Energy along a logarithmic axis, loudest entry of each cell, from -60 dB to 0 dB.  energy: (T,) -> text."""
    edges = torch.logspace(0, torch.log10(torch.tensor(len(energy) + 1.0)), width + 1).long() - 1
    peak = energy.max().clamp_min(torch.finfo(energy.dtype).tiny)
    cells = []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        loudest = (energy[start : max(stop, start + 1)].max() / peak).clamp_min(1e-30)
        level = 1 - 10 * float(loudest.log10()) / LOWEST_DB
        cells.append(BARS[max(0, min(len(BARS) - 1, int(level * len(BARS))))])
    return "".join(cells)
