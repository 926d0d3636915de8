"""Which way a filter is computed on a GPU: the quickest by prediction, or by the clock where it was timed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import gpu, multirate, tiling, tuned
from .cpu import Prepared, Structure, crop
from .monarch import BlockMask
from .tuned import DIRECT_TAPS
from .ways import SlowWay, Way, slow_length


def prepare(
    k: Tensor,
    ahead: int,
    seqlen: int,
    dtype: torch.dtype,
    batch: int = 1,
    structure: Structure | None = None,
    card: tiling.Card | None = None,
) -> Prepared:
    """The way that is predicted to be the quickest for signals of up to `seqlen` samples, and its tables on k's device.

    k: (H, K), tap j at lag j - ahead.  batch: what to expect; any other works, too.
    """
    card = card or tiling.Card.of(k.device)
    felt, felt_ahead = crop(k, ahead, seqlen)
    shape = dtype, seqlen, batch, k.shape[0]
    if structure is None or seqlen > structure.mask.n:
        return gpu.make(plain_way(card, *shape, felt.shape[-1], felt_ahead)[1], felt, felt_ahead, k.device)
    ways = structured_ways(card, *shape, structure)
    ways["plain"] = plain = plain_way(card, *shape, felt.shape[-1], felt_ahead)
    chosen = tuned.choice(card, tuned.Case.masked(name_of(dtype), seqlen, batch, k.shape[0], structure), structure)
    how = chosen.how if chosen and chosen.how in ways else min(ways, key=lambda how: ways[how][0])
    if how == "plain":
        return gpu.make(plain[1], felt, felt_ahead, k.device)
    return gpu.make_apart(ways[how][1], k, ahead, structure)


def structured_ways(
    card: tiling.Card, dtype: torch.dtype, seqlen: int, batch: int, channels: int, structure: Structure
) -> dict[str, tuple[float, Way | SlowWay]]:
    """The ways that a structure opens, by name, each with its seconds."""
    shape = dtype, seqlen, batch, channels, structure
    found = {"masked": masked_way(card, *shape), "slow": slow_way(card, *shape)}
    return {how: way for how, way in found.items() if way is not None}


def plain_way(
    card: tiling.Card, dtype: torch.dtype, seqlen: int, batch: int, channels: int, taps: int, ahead: int
) -> tuple[float, Way]:
    """The quickest way for a filter of which nothing is known but its taps, and its seconds."""
    rows = batch * channels
    found = tiling.best(card, seqlen, name_of(dtype), rows, taps=taps if taps < seqlen else None, batch=batch)
    ways = [(found.seconds, way_of(found, dtype, seqlen, ahead))]
    if taps <= DIRECT_TAPS:
        ways.append((direct_seconds(card, seqlen, taps, dtype, rows), direct_way(dtype, seqlen, taps, ahead)))
    seconds, way = min(ways, key=lambda pair: pair[0])
    chosen = tuned.choice(card, tuned.Case.plain(name_of(dtype), seqlen, batch, channels, taps))
    return seconds, tuned_way(chosen, dtype, seqlen, taps, ahead) if chosen else way


def tuned_way(chosen: tuned.Choice, dtype: torch.dtype, seqlen: int, taps: int, ahead: int) -> Way:
    """A way that was timed, for a filter of these taps."""
    if chosen.tiling is None:
        return direct_way(dtype, seqlen, taps, ahead)
    return way_of(chosen, dtype, seqlen, ahead)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def way_of(found: tiling.Candidate | tuned.Choice, dtype: torch.dtype, seqlen: int, ahead: int) -> Way:
    inner = found.inner
    radix = found.tiling.radix if isinstance(found.tiling, tiling.TwoLevel) else 1
    own_ahead = ahead if inner.source == "history" else 0  # else the spectrum has it
    shape = inner.factors, inner.rows, inner.warps, False, 0, own_ahead, radix, radix, found.occupancy
    return Way(inner.source, dtype, seqlen, *shape)


def direct_way(dtype: torch.dtype, seqlen: int, taps: int, ahead: int) -> Way:
    return Way("direct", dtype, seqlen, head=-(-taps // 32) * 32, ahead=ahead)


def direct_seconds(card: tiling.Card, seqlen: int, taps: int, dtype: torch.dtype, rows: int) -> float:
    """What a Toeplitz product takes: 8 products of 16 x 8 x 16 a step of 32 taps, for 512 samples."""
    kind = tiling.kind(name_of(dtype))
    products = 8 * (-(-taps // 32) + 1) * -(-seqlen // 512) * rows * kind.products
    moved = 2 * kind.bytes * seqlen * rows
    return max(moved / card.bandwidth, products * tiling.MMA_FLOPS / card.matrix_rate) + tiling.LAUNCH


def masked_way(
    card: tiling.Card, dtype: torch.dtype, seqlen: int, batch: int, channels: int, structure: Structure
) -> tuple[float, Way] | None:
    """The quickest way that skips what a mask drops, on the mask's own points, and its seconds; None if none fits."""
    found = masked_candidates(card, dtype, seqlen, batch, channels, structure)
    if not found:
        return None
    taps = head_taps(structure.head)
    extra = direct_seconds(card, seqlen, taps, dtype, batch * channels) if taps else 0.0
    chosen = tuned.choice(card, tuned.Case.masked(name_of(dtype), seqlen, batch, channels, structure), structure)
    best = chosen if chosen and chosen.how == "masked" else found[0]
    return found[0].seconds + extra, replace(way_of(best, dtype, seqlen, 0), masked=True, head=taps)


def masked_candidates(
    card: tiling.Card, dtype: torch.dtype, seqlen: int, batch: int, channels: int, structure: Structure
) -> list[tiling.Candidate]:
    """Kernels that skip what a mask drops, on the mask's own points, the quickest first."""
    mask = structure.mask
    problem = tiling.Problem(card, mask.n, name_of(dtype), batch * channels, batch=batch)
    own = tiling.Domain(tuple(f for f in tiling.DOMAIN.factors if math.prod(f) == mask.n))
    found = tiling.search(problem, 32, own, lambda factors: left_by(mask, factors)[1]).candidates
    if not found:
        rest: dict[str, Any] = {"dtype": name_of(dtype), "rows_total": batch * channels, "batch": batch, "count": 32}
        levels = tiling.two_level(card, mask.n, **rest, live=lambda factors: left_by(mask, factors, levels=2))
        found = [candidate for candidate in levels if candidate.tiling.points == mask.n]
    if structure.head is not None:
        found = [c for c in found if isinstance(c.tiling, tiling.TwoLevel) or c.tiling.behind[0] % 32 == 0]
    return found


@lru_cache(maxsize=4)
def bins_of(mask: BlockMask) -> Tensor:
    """`mask.bins()`, which is asked for under many factors in a row."""
    return mask.bins()


@lru_cache(maxsize=1024)
def left_by(mask: BlockMask, factors: tuple[int, ...], levels: int = 1) -> tuple[int, tiling.Live]:
    """What a mask leaves under these factors: digits of the outer stage, if there is one, and tiles of a row inside.

    Rows inside count as that which keeps any tile that one of them keeps.  Other points than the mask's: everything.
    """
    radix, inside = (factors[0], factors[1:]) if levels == 2 else (1, factors)
    if math.prod(factors) != mask.n:
        return radix, tiling.Live.dense(inside)
    kept = gpu.slots(bins_of(mask), factors)[1]
    if levels == 1:
        return 1, tiling.Live.of(kept.numpy())
    return gpu.outer_digits(kept), tiling.Live.of(kept.any(0).numpy())


def slow_way(
    card: tiling.Card, dtype: torch.dtype, seqlen: int, batch: int, channels: int, structure: Structure
) -> tuple[float, SlowWay] | None:
    """The way through a lower rate, where the mask leaves a narrow band, and its seconds."""
    rate, taps, rows = multirate.rate(structure.mask), head_taps(structure.head), batch * channels
    if rate < 4:
        return None
    low, kind = slow_length(seqlen, rate), tiling.kind(name_of(dtype))
    seconds, inner = plain_way(card, dtype, low, batch, channels, 2 * low - 1, low - 1)
    moved = kind.bytes * rows * ((3 if taps else 2) * seqlen + 2 * low)  # u twice where there is a head, y, v, z
    products = 8 * kind.products * rows * seqlen // 512 * (2 + (taps // 32 + 1 if taps else 0))
    apart = max(moved / card.bandwidth, products * tiling.MMA_FLOPS / card.matrix_rate) + 2 * tiling.LAUNCH
    return seconds + apart, SlowWay(rate, taps, inner)


def head_taps(head: Tensor | None) -> int:
    """Taps of a head as the kernels count them, in whole steps of 32."""
    return 0 if head is None else -(-head.shape[-1] // 32) * 32
