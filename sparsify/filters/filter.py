"""The filter of one convolution: its taps, the lags they stand at, and what is known of them besides."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    mask: BlockMask
    head: Filter | None = None

    def rows(self, rows: slice) -> Structure:
        """The structure of some channels."""
        return Structure(self.mask, None if self.head is None else self.head.rows(rows))


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
        if not 0 <= self.lookahead < self.taps:
            raise ValueError(f"lookahead must lie in [0, {self.taps}), got {self.lookahead}")

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
        """How many lags |d| = 0, 1, ... the filter has a tap at, on its longer side."""
        return max(self.taps - self.lookahead, self.lookahead + 1)

    @property
    def lags(self) -> Tensor:
        """The lag of every tap: (K,) int64."""
        return torch.arange(-self.lookahead, self.taps - self.lookahead, device=self.k.device)

    def rows(self, rows: slice | list[int]) -> Filter:
        """The filter of some channels, with what is known of it."""
        known = self.structure.rows(rows) if self.structure is not None and isinstance(rows, slice) else None
        return Filter(self.k[rows], self.lookahead, known)

    def felt(self, seqlen: int) -> Filter:
        """The taps that a signal of `seqlen` samples feels: the lags -(seqlen - 1) .. seqlen - 1."""
        first = max(0, self.lookahead - (seqlen - 1))
        return Filter(self.k[:, first : self.lookahead + seqlen], self.lookahead - first)

    def past(self) -> Filter:
        """The filter without its negative lags: what a causal model computes when it really generates."""
        return Filter(self.k[:, self.lookahead :])

    def reversed(self) -> Filter:
        """The filter reversed in time.  Its spectrum is the conjugate one, so a mask stays what it is."""
        known = self.structure
        if known is not None and known.head is not None:
            known = Structure(known.mask, known.head.reversed())
        return Filter(self.k.flip(-1), self.taps - 1 - self.lookahead, known)

    def to(self, *args: Any, **kwargs: Any) -> Filter:
        """The filter on another device or in another dtype, as `Tensor.to`; a structure goes along."""
        known = self.structure
        if known is not None and known.head is not None:
            known = Structure(known.mask, known.head.to(*args, **kwargs))
        return Filter(self.k.to(*args, **kwargs), self.lookahead, known)

    def leaks(self) -> Tensor:
        """Norm of the taps that read the future over the norm of all taps, by channel: (H,) float64."""
        norm = self.k.double().norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        return self.k[:, : self.lookahead].double().norm(dim=-1) / norm

    def leak(self) -> float:
        """The largest of `leaks`."""
        return self.leaks().max().item()


Taps: TypeAlias = Tensor | Filter
"""A filter, or the taps (H, K) of a causal one."""


def as_filter(k: Taps) -> Filter:
    """The filter itself, or the causal filter with these taps."""
    return k if isinstance(k, Filter) else Filter(k)
