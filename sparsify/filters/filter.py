"""The filter of one convolution: its taps, the lags they stand at, and what is known of them besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .monarch import BlockMask


@dataclass(frozen=True, eq=False)
class Structure:
    """What is known of a filter besides its taps: it is a head plus a rest whose spectrum is zero off the mask.

    It holds for the lags -n .. n - 1 of a mask of n points, and opens quicker ways to the same numbers.

    Args:
        mask: The bins that the rest keeps.
        head: The few taps that are kept one by one; None where the rest is all.
        bins: The spectrum of the rest at these bins, (H, count) complex, in the mask's order; None where the taps tell.
        reversed: The filter is reversed in time: what is known holds for its lags -(n - 1) .. n.
    """

    mask: BlockMask
    head: Filter | None = None
    bins: Tensor | None = None
    reversed: bool = False

    def rows(self, rows: slice | list[int]) -> Structure:
        """The structure of some channels."""
        bins = None if self.bins is None else self.bins[rows]
        return replace(self.map_head(lambda head: head.rows(rows)), bins=bins)

    def to(self, *args: Any, **kwargs: Any) -> Structure:
        """The structure on another device, as `Tensor.to`, its head in another dtype, too."""
        moved = self.map_head(lambda head: head.to(*args, **kwargs))
        return (
            moved
            if self.bins is None
            else replace(moved, bins=self.bins.to(self.bins.real[:0].to(*args, **kwargs).device))
        )

    def map_head(self, change: Callable[[Filter], Filter]) -> Structure:
        """The same with the head that `change` makes of this one, if there is one."""
        return self if self.head is None else replace(self, head=change(self.head))


@dataclass(frozen=True, eq=False)
class Filter:
    """A filter as it is applied: y[t] = sum over j of k[j] u[t - j + lookahead].

    Args:
        k: Taps (H, K), float32 or float64; tap j stands at lag j - lookahead.
        lookahead: How many taps stand at negative lags, which read the future; 0 for a causal filter.
        structure: What is known of the taps besides.

    Raises:
        ValueError: If `k` is no matrix, or `lookahead` leaves no tap at lag 0.
    """

    k: Tensor
    lookahead: int = 0
    structure: Structure | None = None

    def __post_init__(self) -> None:
        if self.k.dim() != 2:
            raise ValueError(f"filter k has shape {tuple(self.k.shape)}, expected (channels, taps)")
        if not self.taps:
            raise ValueError("filter k has no taps, expected one at lag 0 at least")
        if not 0 <= self.lookahead < self.taps:
            raise ValueError(f"lookahead must lie in [0, {self.taps}), got {self.lookahead}")

    def detached(self) -> Filter:
        """The filter without a way for gradients to where it came from, its taps in one piece."""
        known = None if self.structure is None else self.structure.map_head(Filter.detached)
        return Filter(self.k.detach().contiguous(), self.lookahead, known)

    @property
    def channels(self) -> int:
        return self.k.shape[0]

    @property
    def taps(self) -> int:
        return self.k.shape[-1]

    @property
    def mask(self) -> BlockMask | None:
        """The mask of the structure, if there is one."""
        return None if self.structure is None else self.structure.mask

    @property
    def head(self) -> Filter | None:
        """The head of the structure, if there is one."""
        return None if self.structure is None else self.structure.head

    @property
    def reach(self) -> int:
        """How many lags 0, 1, ... to one side the filter has a tap at, on its longer side."""
        return max(self.taps - self.lookahead, self.lookahead + 1)

    @property
    def lags(self) -> Tensor:
        """The lag of every tap: (K,) int64."""
        return torch.arange(-self.lookahead, self.taps - self.lookahead, device=self.k.device)

    def rows(self, rows: slice | list[int]) -> Filter:
        """The filter of some channels, with what is known of it."""
        return Filter(self.k[rows], self.lookahead, None if self.structure is None else self.structure.rows(rows))

    def felt(self, seqlen: int) -> Filter:
        """The taps that a signal of `seqlen` samples feels: the lags -(seqlen - 1) .. seqlen - 1."""
        first = max(0, self.lookahead - (seqlen - 1))
        return Filter(self.k[:, first : self.lookahead + seqlen], self.lookahead - first)

    def past(self) -> Filter:
        """The filter without its negative lags: what a causal model computes when it really generates."""
        return Filter(self.k[:, self.lookahead :])

    def reversed(self) -> Filter:
        """The filter reversed in time.  Its spectrum is the conjugate one, so the mask keeps the same bins."""
        known = self.structure
        if known is not None:
            bins = None if known.bins is None else known.bins.conj()
            known = replace(known.map_head(Filter.reversed), bins=bins, reversed=not known.reversed)
        return Filter(self.k.flip(-1), self.taps - 1 - self.lookahead, known)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes

    def to(self, *args: Any, **kwargs: Any) -> Filter:
        """The filter on another device or in another dtype, as `Tensor.to`; a structure goes along."""
        known = None if self.structure is None else self.structure.to(*args, **kwargs)
        return Filter(self.k.to(*args, **kwargs), self.lookahead, known)

    def leaks(self) -> Tensor:
        """Norm of the taps that read the future over the norm of all taps, by channel: (H,) float64."""
        norm = self.k.norm(dim=-1, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
        return self.k[:, : self.lookahead].norm(dim=-1, dtype=torch.float64) / norm

    def leak(self) -> float:
        """The largest of `leaks`."""
        return self.leaks().max().item()


@dataclass(frozen=True, eq=False)
class BlockedFilter:
    """A filter that is made a few channels at a time, when somebody asks for them, and never held as a whole.

    Args:
        outline: The same in tensors without values (on the meta device): sizes, lookahead, structure.
        make: Channels -> the filter of these, with values.
        shorter: Samples -> the filter as these feel it, where that is made for less than by cutting it.
        pieces: Channels -> the structure of these with the bins of the rest, where there are any: what quicker ways
            need of a masked filter, for less than its taps.
    """

    outline: Filter
    make: Callable[[slice], Filter]
    shorter: Callable[[int], BlockedFilter] | None = None
    pieces: Callable[[slice], Structure] | None = None

    @property
    def channels(self) -> int:
        return self.outline.channels

    @property
    def taps(self) -> int:
        return self.outline.taps

    @property
    def lookahead(self) -> int:
        return self.outline.lookahead

    @property
    def reach(self) -> int:
        return self.outline.reach

    @property
    def structure(self) -> Structure | None:
        """What is known of the taps besides, without values."""
        return self.outline.structure

    @property
    def nbytes(self) -> int:
        """What all its taps would take, in float32."""
        return 4 * self.channels * self.taps

    def rows(self, rows: slice | list[int]) -> Filter:
        """The filter of some channels."""
        if isinstance(rows, slice):
            return self.make(rows)
        return joined([self.make(slice(h, h + 1)) for h in rows])

    def map(self, change: Callable[[Filter], Filter]) -> BlockedFilter:
        """The filter that `change` makes of every channel, again made when asked for."""
        return BlockedFilter(change(self.outline), lambda rows: change(self.make(rows)))

    def felt(self, seqlen: int) -> BlockedFilter:
        return self.map(lambda k: k.felt(seqlen)) if self.shorter is None else self.shorter(seqlen)

    def past(self) -> BlockedFilter:
        return self.map(Filter.past)

    def reversed(self) -> BlockedFilter:
        return self.map(Filter.reversed)

    def to(self, *args: Any, **kwargs: Any) -> BlockedFilter:
        """As `Filter.to`, of what is made."""
        shorter, pieces = self.shorter, self.pieces
        return BlockedFilter(
            self.outline,
            lambda rows: self.make(rows).to(*args, **kwargs),
            None if shorter is None else lambda seqlen: shorter(seqlen).to(*args, **kwargs),
            None if pieces is None else lambda rows: pieces(rows).to(*args, **kwargs),
        )

    def leak(self) -> float:
        """As `Filter.leak`."""
        return max(part.leak() for part in blocks(self))


AnyFilter: TypeAlias = Filter | BlockedFilter


KEPT_BYTES = 1 << 26  # of a filter's taps, beyond which they are made some channels at a time
BLOCK_BYTES = 1 << 23  # of taps that are worked on together, in float32


def is_large(channels: int, taps: int) -> bool:
    """Whether a filter of these sizes is made some channels at a time."""
    return 4 * channels * taps > KEPT_BYTES


def blocks(k: AnyFilter, bytes_at_once: int = BLOCK_BYTES) -> Iterator[Filter]:
    """A filter some channels at a time, the first ones first."""
    return (k.rows(rows) for rows in row_blocks(k, bytes_at_once))


def row_blocks(k: AnyFilter, bytes_at_once: int = BLOCK_BYTES) -> Iterator[slice]:
    """The channels that are worked on together."""
    step = max(1, bytes_at_once // (4 * k.taps))
    return (slice(h, min(h + step, k.channels)) for h in range(0, k.channels, step))


def in_memory(k: AnyFilter) -> Filter:
    """The filter with all its taps in memory."""
    return k if isinstance(k, Filter) else joined(list(blocks(k)))


def joined(parts: Sequence[Filter]) -> Filter:
    """The filter of all these channels, which are of one filter."""
    known = parts[0].structure
    if known is not None:
        heads = [part.head.k for part in parts if part.head is not None]
        bins = [part.structure.bins for part in parts if part.structure is not None and part.structure.bins is not None]
        known = replace(
            known.map_head(lambda head: Filter(torch.cat(heads), head.lookahead)),
            bins=torch.cat(bins) if bins else None,
        )
    return Filter(torch.cat([part.k for part in parts]), parts[0].lookahead, known)


Taps: TypeAlias = Tensor | Filter | BlockedFilter
"""A filter, or the taps (H, K) of a causal one."""


def as_filter(k: Taps) -> AnyFilter:
    """The filter itself, or the causal filter with these taps."""
    return Filter(k) if isinstance(k, Tensor) else k
