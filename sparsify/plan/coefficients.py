"""The kept coefficients of one filter where they are not the filter's own, and how they are stored beside a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsify.storage.tensors import fingerprint

PARTS = {"taps": torch.float32, "bins": torch.complex64}


@dataclass(frozen=True, eq=False, repr=False)
class Coefficients:
    """What to keep of a filter in place of its own taps and bins; valid once made, equal where all numbers are.

    taps: (H, taps) float32, the filter's, or the head's of a split one.  bins: (H, count) complex64, the spectrum of
    the rest at the kept bins, in the order of `BlockMask.frequencies`.
    """

    taps: Tensor | None = None
    bins: Tensor | None = None

    def __post_init__(self) -> None:
        given = dict(self)
        wrong = [name for name, part in given.items() if part.dim() != 2 or part.dtype != PARTS[name]]
        if not given or wrong or len({len(part) for part in given.values()}) > 1:
            shapes = ", ".join(f"{name} {part.dtype} {tuple(part.shape)}" for name, part in given.items())
            raise ValueError(
                f"coefficients are taps (channels, taps) float32, bins (channels, bins) complex64, or both for the "
                f"same channels; got {shapes or 'neither'}"
            )
        if not all(part.isfinite().all() for part in given.values()):
            raise ValueError("the coefficients hold infinite or undefined numbers")

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of each part that is there."""
        return ((name, part) for name in PARTS if (part := getattr(self, name)) is not None)

    @property
    def sizes(self) -> tuple[int, int | None, int | None]:
        """Channels, taps and bins."""
        channels = next(len(part) for _, part in self)
        widths = [None if part is None else part.shape[-1] for part in (self.taps, self.bins)]
        return channels, widths[0], widths[1]

    @cached_property
    def digest(self) -> str:
        """sha256 of all numbers as stored."""
        return fingerprint(self.stored())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coefficients) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Coefficients({self.digest[:12]})"

    def of(self, rows: slice) -> Coefficients:
        """Those of some channels."""
        return Coefficients(**{name: part[rows] for name, part in self})

    def stored(self) -> dict[str, Tensor]:
        """Tensors as a file has them: name -> real and contiguous; bins are (H, count, 2), real and imaginary part."""
        return {name: (torch.view_as_real(part) if part.is_complex() else part).contiguous() for name, part in self}

    @classmethod
    def from_stored(cls, tensors: Mapping[str, Tensor]) -> Coefficients:
        """Those that `stored` gave."""
        parts = dict(tensors)
        bins = parts.get("bins")
        if bins is not None and bins.dim() == 3 and bins.shape[-1] == 2 and bins.dtype == torch.float32:
            parts["bins"] = torch.view_as_complex(bins.contiguous())
        return cls(**parts)
