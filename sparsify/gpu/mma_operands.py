"""What the GPU kernels read besides signals: DFT matrices, twiddles, masks, spectra, in the order of their threads.

A warp multiplies A (16, 16) by B (16, 8); lane 4 g + t holds of A the rows g, g + 8 at columns 2t, 2t + 1, 2t + 8,
2t + 9, and of B the column g at those rows (PTX ISA, mma.m16n8k16).  Complex matrices become real ones: a complex
column is two, real part first; a tile of 8 complex rows is 16, the real parts first.  `cuda/stages.cuh` has who reads
what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.filters.monarch import roots

from . import tiling
from .tiling import DTYPES, Source, tile_sides

TYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in DTYPES)
LANES, TILE = 32, 8


def planes(dtype: torch.dtype) -> int:
    """16-bit numbers that a number of this type is computed with: float32 is the sum of two bfloat16."""
    return tiling.kind(dtype).planes


def words(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 (entries, 32 lanes, 4 words, 2) -> int32 (entries, planes, 32 lanes, 4 words)."""
    parts = [x.to(torch.float16 if dtype == torch.float16 else torch.bfloat16)]
    if planes(dtype) == 2:
        parts.append((x - parts[0].double()).to(torch.bfloat16))
    return torch.stack(parts, 1).contiguous().view(torch.int32).squeeze(-1)


def left_operand(matrix: Tensor) -> Tensor:
    """(16 R, 16 C) float64 -> (R * C, 32 lanes, 4 words, 2): the tiles of a row of tiles one after another."""
    rows, columns = matrix.shape[0] // 16, matrix.shape[1] // 16
    cut = matrix.view(rows, 2, 8, columns, 2, 4, 2)  # tile, upper or lower half, g, step, left or right half, t, pair
    return cut.permute(0, 3, 2, 5, 4, 1, 6).reshape(-1, LANES, 4, 2)


def real_rows(matrix: Tensor) -> Tensor:
    """(F, C) complex -> (2 F, C) real: of every 8 rows the real parts, then the imaginary ones."""
    return torch.stack([matrix.real, matrix.imag]).unflatten(1, (-1, TILE)).transpose(0, 1).reshape(-1, matrix.shape[1])


def real_columns(matrix: Tensor) -> Tensor:
    """(F, C) complex -> (F, 2 C) complex, to be multiplied with columns of real and imaginary parts in turn."""
    return torch.stack([matrix, 1j * matrix], -1).flatten(-2)


def right_operand(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Complex (inputs, outputs) as pairs of right operands: (entries, 32 lanes, 4 words, 2).

    rows: (entries, 2, 4), the input at rows 2t (+ 1 for its imaginary part), of the upper and the lower half.
    columns: (entries, 2, 4), of both operands, the output at columns 2j (real) and 2j + 1 (imaginary part).
    """
    picked = matrix[rows[:, :, :, None, None], columns[:, None, None]]  # (entries, half, t, operand, j)
    parts = torch.stack([picked, 1j * picked], -1)  # what a real and an imaginary input adds
    real = torch.stack([parts.real, parts.imag], -2)  # (entries, half, t, operand, j, part of the output, of the input)
    return real.permute(0, 4, 5, 2, 3, 1, 6).reshape(-1, LANES, 4, 2)


@dataclass(frozen=True)
class Stages:
    """The transform as the kernel is told of it.

    factors: (N1, .., Np).  orders: on each axis the digits of the frequency in the order of their slots.
    source: what stage 1 reads; "complex" is the inner part of a two-level transform, without the quarter shift.
    """

    factors: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]
    source: Source = "real"

    @classmethod
    def natural(cls, factors: Sequence[int], source: Source = "real") -> Stages:
        return cls(tuple(factors), tuple(tuple(range(size)) for size in factors), source)

    @property
    def points(self) -> int:
        return math.prod(self.factors)

    def behind(self, axis: int) -> int:
        """S, the numbers that lie behind one digit of the axis."""
        return math.prod(self.factors[axis + 1 :])

    def quarters(self, axis: int) -> Tensor:
        """Digits of the frequency, slot by slot, in quarters of a bin."""
        shift = int(axis == 0 and self.source != "complex")
        return 4 * torch.tensor(self.orders[axis]) + shift

    def dft(self, axis: int) -> Tensor:
        """(slots, N) complex128, unitary: a forward and an inverse stage each divide by the root of N."""
        size = self.factors[axis]
        return roots(4 * size, self.quarters(axis)[:, None] * torch.arange(size)) / math.sqrt(size)

    def twiddle(self, axis: int, columns: Tensor) -> Tensor:
        """(slots, columns) complex128."""
        return roots(4 * self.factors[axis] * self.behind(axis), self.quarters(axis)[:, None] * columns)

    def core(self, dtype: torch.dtype) -> bool:
        """Whether the last two stages run as one, in registers: `core` of cuda/spectrum.cuh."""
        return tiling.core(self.factors, dtype)

    def frequencies(self) -> Tensor:
        """Natural frequency of every slot, (N1, .., Np) int64."""
        f, unit = torch.zeros(self.factors, dtype=torch.int64), 1
        for axis, order in enumerate(self.orders):
            f += unit * torch.tensor(order).view([-1 if i == axis else 1 for i in range(len(self.factors))])
            unit *= self.factors[axis]
        return f

    def forward(self, axis: int, dtype: torch.dtype) -> Tensor:
        """Operands of a stage, int32."""
        matrix, last = self.dft(axis), axis == len(self.factors) - 1
        if last:
            step, tile = grid(self.factors[axis] // TILE, self.factors[axis] // TILE)
            half, t = grid(2, 4)
            rows = (4 * (t + 4 * (step[:, None, None] // 2)) + 2 * (step[:, None, None] % 2)) + half
            return words(right_operand(matrix.T, rows.reshape(-1, 2, 4), slots_of(tile)), dtype)
        real_input = axis == 0 and self.source == "real"
        return words(left_operand(real_rows(matrix if real_input else real_columns(matrix))), dtype)

    def inverse(self, axis: int, dtype: torch.dtype) -> Tensor:
        matrix, last = self.dft(axis).conj(), axis == len(self.factors) - 1  # (slots, N)
        if self.core(dtype) and last:
            rows = torch.stack([4 * (torch.arange(8) // 2) + 2 * i + torch.arange(8) % 2 for i in range(2)]).flatten()
            return words(left_operand(real_rows(real_columns(matrix.T[rows]))), dtype)
        if self.core(dtype) and axis == len(self.factors) - 2:
            in_turn = real_columns(matrix.T).unflatten(1, (-1, TILE, 2))
            columns = in_turn.transpose(2, 3).flatten(1)  # 8 real ones, then their imaginary ones
            return words(left_operand(real_rows(columns)), dtype)
        if last:
            tile, load, half = grid(self.factors[axis] // TILE, self.factors[axis] // 16, 2)
            operand, j = grid(2, 4)
            columns = 4 * (j + 4 * load[:, None, None]) + 2 * half[:, None, None] + operand
            return words(right_operand(matrix, slots_of(tile), columns.reshape(-1, 2, 4)), dtype)
        columns = real_columns(matrix.T)
        real_output = axis == 0 and self.source != "complex"
        return words(left_operand(columns.real.contiguous() if real_output else real_rows(columns)), dtype)

    def turns(self, axis: int) -> Tensor:
        """Twiddles of every 4th column, where columns are many of every 8th: (slots, columns, 2) float32."""
        every = 4 if axis == len(self.factors) - 2 or self.behind(axis) <= 256 else 8
        return torch.view_as_real(self.twiddle(axis, torch.arange(0, self.behind(axis), every))).float()

    def steps(self, axis: int) -> Tensor:
        """Twiddles from one column to the next: (slots, 2) float32."""
        return torch.view_as_real(self.twiddle(axis, torch.ones(1, dtype=torch.int64))[:, 0]).float()

    def spectra(self, k_f: Tensor, dtype: torch.dtype) -> Tensor:
        """k_f: (filters, M) complex128, natural order, at most 1 in magnitude -> int32, in the order of `inner`."""
        size = self.factors[-1]
        own = k_f[:, self.frequencies().flatten()].view(k_f.shape[0], -1, 2, 8, size // TILE, 2, 4)
        parts = torch.view_as_real(own.permute(0, 1, 4, 3, 6, 5, 2))  # filter, unit, tile, g, t, half of the tile, row
        if dtype == torch.float32:  # a lane's four numbers are two pieces of 16 bytes, each beside those of other lanes
            pieces = parts.float().reshape(-1, LANES, 2, 4).transpose(1, 2)
            return pieces.contiguous().view(torch.int32)
        return parts.to(torch.float16).contiguous().view(torch.int32)

    def live(self, kept: Tensor) -> list[Tensor]:
        """Bit sets of a mask, a tensor of int32 words for each stage.  kept: (.., N1, .., Np) bool in slot order.

        Slots are skipped in blocks, `tile_sides`.
        """
        axes, sides = len(self.factors), tile_sides(self.factors)
        cut = [part for size, side in zip(self.factors, sides, strict=True) for part in (size // side, side)]
        blocks = kept.reshape(-1, *cut)
        every = range(2, 2 * axes + 1, 2)
        blocks = blocks.any(dim=tuple(every), keepdim=True).expand(-1, *cut).reshape(-1, *self.factors)
        tables = []
        for axis, size in enumerate(self.factors):
            reached = blocks.reshape(len(blocks), -1, size, self.behind(axis)).any(-1)  # (outer, prefixes, digits)
            every_prefix = 16 if axis == axes - 1 else TILE if axis else 1
            tiles = reached[:, ::every_prefix, ::TILE]
            tables.append((tiles.long() << torch.arange(size // TILE)).sum(-1).to(torch.int32).flatten())
        return tables


def grid(*sizes: int) -> list[Tensor]:
    """Indices of a nested loop, the last the fastest, each flattened."""
    return [part.flatten() for part in torch.meshgrid(*[torch.arange(size) for size in sizes], indexing="ij")]


def slots_of(tile: Tensor) -> Tensor:
    """(entries,) -> (entries, 2, 4): a tile's slots as two operands, or two halves of one, hold them."""
    return (8 * tile[:, None] + torch.arange(8)).view(-1, 2, 4)


def row_operands(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Right operands for rows of samples: (.., entries, planes, 32 lanes, 4) int32.  matrix: (.., 32 r, 32) float64.

    A row's 32 r samples times the matrix are 32 outputs; what a lane has of a row are 8 neighbours of them.
    """
    step, half, two = grid(matrix.shape[-2] // 32, 2, 2)
    g, t, operand, low, pair = grid(8, 4, 2, 2, 2)
    sample = 32 * step[:, None] + 4 * half[:, None] + 8 * t + 2 * low + pair
    flat = matrix[..., sample, 4 * g + 2 * two[:, None] + operand].reshape(-1, LANES, 4, 2)
    return words(flat, dtype).view(*matrix.shape[:-2], -1, planes(dtype), LANES, 4)


def picked(values: Tensor, index: Tensor) -> Tensor:
    """values[.., index], zero where the index lies outside."""
    inside = (index >= 0) & (index < values.shape[-1])
    return values[..., index.clamp(0, values.shape[-1] - 1)] * inside.to(values.device)


def toeplitz(head: Tensor, dtype: torch.dtype) -> Tensor:
    """Operands that convolve with a head of T = 32 r taps; T + 32 samples make 32 outputs.  head: (H, T) float64."""
    taps = head.shape[-1]
    sample, output = torch.arange(taps + 32)[:, None], torch.arange(32)
    return row_operands(picked(head, taps + output - sample), dtype)


def decimation(window: Tensor, rate: int, dtype: torch.dtype) -> Tensor:
    """Operands that take every `rate`th sample of what a window sees.  window: (8 rate,) float64."""
    sample = torch.arange(-(-(31 * rate + len(window)) // 32) * 32)[:, None]
    return row_operands(picked(window, sample - rate * torch.arange(32)), dtype)


def interpolation(window: Tensor, rate: int, dtype: torch.dtype) -> Tensor:
    """Operands that put 16 decimated samples back through a window, for 32 of the 8 rate outputs after another."""
    sample, part = torch.arange(32)[:, None], torch.arange(rate // 4)[:, None, None]
    return row_operands(picked(window, 32 * part + torch.arange(32) - rate * sample + len(window)), dtype)
