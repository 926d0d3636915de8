"""Block masks on a spectrum, and the Monarch transform that computes only the blocks they keep.

An index into N = N1 * N2 * ... * Np points has a digit on each axis, outer to inner.  In time the outer digit is the
most significant, n = n1 * (N2 ... Np) + ... + np; in frequency the least, f = f1 + N1 * f2 + N1 * N2 * f3 + ...
Stage i turns ni into fi by a DFT of Ni points and a twiddle (Cooley and Tukey, decimation in frequency); M = N / N1:

    X[f1 + N1 f'] = sum_m  w(M)^(f' m)  *  w(N)^(f1 m)  *  sum_n1 w(N1)^(f1 n1) x[n1 M + m],     w(n) = exp(-2 pi i / n)

Blocks are cut along these digits.  Stage i has seen f1 .. fi only, so it skips what no kept block shares: dropping
values of f1 (a comb stays) shrinks every stage, dropping values of fp (bands stay) shrinks the last one alone.
Plain tensors that take the steps of a kernel, one path for any number of factors; speed is not the point.  Complex
throughout: how a kernel packs real signals leaves the blocks as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 16  # side of a tensor-core tile, and of a block unless told otherwise


def factor(n: int, largest: int = 64) -> tuple[int, ...]:
    """Fewest nearly equal powers of two, ascending, each at most `largest`, whose product is the FFT size n."""
    if n < 2 or n & (n - 1):
        raise ValueError(f"FFT size must be a power of two from 2 on, got {n}; round it up or pass its factors")
    if largest < 2:
        raise ValueError(f"largest factor must be at least 2, got {largest}")
    bits = n.bit_length() - 1
    stages = -(-bits // (largest.bit_length() - 1))
    return tuple(1 << (bits + i) // stages for i in range(stages))  # the larger last: there a band-limit saves


def roots(n: int, exponent: Tensor) -> Tensor:
    """exp(-2 pi i * exponent / n), complex128: the phase is reduced as an integer and rounded once.

    exponent: int64, any shape.
    """
    return torch.exp(-2j * torch.pi * ((exponent % n).double() / n))


def dft(n: int) -> Tensor:
    """DFT matrix, (n, n) complex128: row f, column t holds exp(-2 pi i * f * t / n)."""
    return roots(n, torch.arange(n)[:, None] * torch.arange(n))


def twiddles(rows: int, columns: int) -> Tensor:
    """Factors between a stage of `rows` points and the `columns` behind it, (rows, columns) complex128.

    Entry (f, m) is exp(-2 pi i * f * m / (rows * columns)).
    """
    return roots(rows * columns, torch.arange(rows)[:, None] * torch.arange(columns))


def digits(f: Tensor, factors: Sequence[int]) -> tuple[Tensor, ...]:
    """Digits (f1, f2, ...) of natural frequencies f = f1 + N1 * f2 + N1 * N2 * f3 + ..., int64, each shaped like f."""
    parts = []
    for size in factors:
        parts.append(f % size)
        f = f // size
    return tuple(parts)


def frequency(parts: Sequence[Tensor], factors: Sequence[int]) -> Tensor:
    """Natural frequencies of digits (f1, f2, ...), int64: the inverse of `digits`."""
    f = torch.zeros_like(parts[-1])
    for part, size in zip(reversed(parts), reversed(factors), strict=True):
        f = f * size + part
    return f


@dataclass(frozen=True)
class BlockMask:
    """The blocks of an N-point spectrum that are computed; all others are skipped and count as zero.

    factors: (N1, ..., Np), outer axis (least significant digit of the frequency) first.  block: side of a block on each
    axis, a divisor of the factor.  keep: kept blocks, ascending row-major indices into the grid (N1/b1, ..., Np/bp).
    A bin survives when its own block and that of its mirror -f are kept: the filtered signal stays real, and no work
    leaves the kept blocks.
    """

    factors: tuple[int, ...]
    block: tuple[int, ...]
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("factors", "block", "keep"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values or any(type(value) is not int for value in values):
                raise ValueError(f"{name} must be a non-empty tuple of integers, got {values!r:.60}")
        if min(self.factors) < 1:
            raise ValueError(f"factors must be positive, got {self.factors}")
        fits = all(side > 0 and size % side == 0 for size, side in zip(self.factors, self.block, strict=False))
        if len(self.block) != len(self.factors) or not fits:
            raise ValueError(f"block {self.block} does not tile factors {self.factors}; give one divisor of each")
        if any(a >= b for a, b in zip(self.keep, self.keep[1:], strict=False)):
            raise ValueError("kept blocks must be ascending and unique; pass tuple(sorted(set(keep)))")
        if self.keep[0] < 0 or self.keep[-1] >= math.prod(self.grid):
            raise ValueError(f"kept blocks {self.keep[0]}..{self.keep[-1]} leave the grid {self.grid}")

    @property
    def n(self) -> int:
        """FFT size N."""
        return math.prod(self.factors)

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(size // side for size, side in zip(self.factors, self.block, strict=True))

    @cached_property
    def density(self) -> float:
        """Share of the N bins that survive."""
        return self.bins().sum().item() / self.n

    def frequencies(self) -> Tensor:
        """Natural frequency of every kept bin in block order, (T, V) int64: T kept blocks of V = b1 * ... * bp bins."""
        parts = torch.meshgrid(*[torch.arange(size) for size in self.factors], indexing="ij")
        sides = [side for pair in zip(self.grid, self.block, strict=True) for side in pair]
        axes = range(len(sides))
        grid_first = frequency(parts, self.factors).view(sides).permute(*axes[::2], *axes[1::2])
        return grid_first.reshape(-1, math.prod(self.block))[list(self.keep)]

    def bins(self) -> Tensor:
        """Bins that survive, (N,) bool, natural frequency order."""
        kept = torch.zeros(self.n, dtype=torch.bool)
        kept[self.frequencies()] = True
        return kept & mirror(kept)

    def prefixes(self, axis: int) -> list[int]:
        """Blocks over the axes 0 .. `axis` that some kept block starts with: ascending row-major indices."""
        inner = math.prod(self.grid[axis + 1 :])
        return sorted({index // inner for index in self.keep})

    def rows(self, axis: int, prefix: int) -> slice:
        """Digits of `axis` that the block `prefix` of that stage covers."""
        start = prefix % self.grid[axis] * self.block[axis]
        return slice(start, start + self.block[axis])

    @classmethod
    def full(cls, n: int, factors: tuple[int, ...] | None = None, block: tuple[int, ...] | None = None) -> BlockMask:
        """Mask that keeps everything; the factors are `factor(n)` and the sides at most 16 unless given."""
        factors = factor(n) if factors is None else factors
        if math.prod(factors) != n:
            raise ValueError(f"factors {factors} make an FFT of {math.prod(factors)} points, expected {n}")
        if block is None:
            block = tuple(max(side for side in range(1, TILE + 1) if size % side == 0) for size in factors)
        first = cls(factors, block, (0,))  # checked before its grid is read
        return cls(factors, block, tuple(range(math.prod(first.grid))))

    @classmethod
    def from_bins(
        cls, bins: Tensor, factors: tuple[int, ...] | None = None, block: tuple[int, ...] | None = None
    ) -> BlockMask:
        """Smallest mask in which all of `bins` survive; each brings its mirror along.

        bins: (N,) bool, natural frequency order.
        """
        if bins.dim() != 1 or bins.dtype != torch.bool or not bins.any():
            raise ValueError(f"expected (N,) bool bins, at least one true; got {bins.dtype} {tuple(bins.shape)}")
        whole = cls.full(len(bins), factors, block)
        bins = bins.cpu()
        touched = (bins | mirror(bins))[whole.frequencies()].any(1)
        return cls(whole.factors, whole.block, tuple(touched.nonzero().flatten().tolist()))

    @classmethod
    def low_pass(cls, n: int, share: float, factors: tuple[int, ...] | None = None) -> BlockMask:
        """Mask of the band |f| < cut, both ends of the axis, whose density comes closest to `share`.

        The cut is a whole number c of columns, the N / Np bins that share a value of the innermost digit; for a band
        narrower than a column it counts values of the next digit out, and so on.  On that axis the block spans
        gcd(c, Ni), the coarsest side that hits the cut; it spans the axes further out, and has side 1 further in,
        where the band is one value wide at either end.
        """
        check_share(share)
        factors = cls.full(n, factors).factors
        half = (share * n + 1) / 2  # the band |f| < cut holds 2 * cut - 1 bins
        axis = len(factors) - 1
        while axis > 0 and math.prod(factors[:axis]) > half:
            axis -= 1
        column = math.prod(factors[:axis])
        columns = max(1, round(half / column))
        block = (*factors[:axis], math.gcd(columns, factors[axis]), *[1] * (len(factors) - axis - 1))
        f = torch.arange(n)
        return cls.from_bins(torch.minimum(f, n - f) < columns * column, factors, block)

    @classmethod
    def comb(cls, n: int, share: float, factors: tuple[int, ...] | None = None) -> BlockMask:
        """Mask of outer digits |f1| < c: 2c - 1 bins around every multiple of N1, about `share` of all.

        The block spans gcd(c, N1) outer digits and the other axes whole.
        """
        check_share(share)
        factors = cls.full(n, factors).factors
        outer = digits(torch.arange(n), factors)[0]
        c = max(1, round((share * factors[0] + 1) / 2))
        block = (math.gcd(c, factors[0]), *factors[1:])
        return cls.from_bins(torch.minimum(outer, factors[0] - outer) < c, factors, block)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: factors, block, and keep as half-open ranges [start, stop]."""
        cuts = [i for i in range(1, len(self.keep)) if self.keep[i] != self.keep[i - 1] + 1]
        starts, stops = [0, *cuts], [*cuts, len(self.keep)]
        ranges = [[self.keep[a], self.keep[b - 1] + 1] for a, b in zip(starts, stops, strict=True)]
        return {"factors": list(self.factors), "block": list(self.block), "keep": ranges}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BlockMask:
        """Mask that `to_dict` described."""
        if set(data) != {"factors", "block", "keep"}:
            raise ValueError(f"a block mask has the keys factors, block and keep, got {', '.join(sorted(data))}")
        if any(not isinstance(pair, list) or len(pair) != 2 for pair in data["keep"]):
            raise ValueError(f"keep lists ranges of blocks [start, stop], got {data['keep']!r:.60}")
        keep = tuple(index for start, stop in data["keep"] for index in range(start, stop))
        return cls(tuple(data["factors"]), tuple(data["block"]), keep)


def mirror(bins: Tensor) -> Tensor:
    """The same values at the frequencies -f mod N; bins: (N,), natural order."""
    return bins.flip(0).roll(1)


def check_share(share: float) -> None:
    """Refuse a share of a spectrum or an energy outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share:g}; 0.25 keeps a quarter")


def stage(mask: BlockMask, axis: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """DFT matrix (Ni, Ni) and twiddles (Ni, N(i+1) * ... * Np) of a stage, with the dtype and device of `like`."""
    size, rest = mask.factors[axis], math.prod(mask.factors[axis + 1 :])
    return dft(size).to(like), twiddles(size, rest).to(like)


def monarch_fft(x: Tensor, mask: BlockMask) -> Tensor:
    """Spectrum of `x`, zero-padded to N points, at the kept blocks only: (..., T, V) complex, block order.

    x: (..., L), L <= N, float32, float64 or complex.  Entry (t, v) is the bin `mask.frequencies()[t, v]`.
    A stage takes {block over the digits so far: (..., its bins, the time left)} to blocks over one digit more.  A block
    that leads to no kept one never exists, nor do the rows of time that hold nothing but padding.
    """
    if x.shape[-1] > mask.n:
        raise ValueError(f"signal of {x.shape[-1]} samples does not fit an FFT of {mask.n} points; use a larger mask")
    x = x.to(x.dtype.to_complex())
    blocks = {0: pad(x, (0, -x.shape[-1] % (mask.n // mask.factors[0]))).unsqueeze(-2)}
    for axis in range(len(mask.factors)):
        matrix, turn = stage(mask, axis, x)
        made = {}
        for prefix in mask.prefixes(axis):
            rows = mask.rows(axis, prefix)
            time = blocks[prefix // mask.grid[axis]].unflatten(-1, (-1, turn.shape[1]))
            made[prefix] = torch.einsum("fn,...nm->...fm", matrix[rows, : time.shape[-2]], time) * turn[rows]
        blocks = {prefix: block.flatten(-3, -2) for prefix, block in made.items()}
    return torch.stack([blocks[index] for index in mask.keep], dim=-3).squeeze(-1)


def monarch_ifft(y_f: Tensor, mask: BlockMask, seqlen: int) -> Tensor:
    """First `seqlen` samples of the N-point inverse of a spectrum that is zero outside the kept blocks: (..., seqlen).

    y_f: (..., T, V) complex, block order.  The stages of `monarch_fft` backwards; each sums over the kept rows only.
    """
    blocks = {index: y_f[..., t, :, None] for t, index in enumerate(mask.keep)}
    for axis in reversed(range(len(mask.factors))):
        matrix, turn = stage(mask, axis, y_f)
        reach = mask.factors[axis] if axis else -(-seqlen // turn.shape[1])  # rows of time that are asked for
        sums: dict[int, Tensor] = {}
        for prefix, block in blocks.items():
            rows = mask.rows(axis, prefix)
            turned = block.unflatten(-2, (-1, mask.block[axis])) * turn[rows].conj()
            part = torch.einsum("fn,...fm->...nm", matrix[rows, :reach].conj() / mask.factors[axis], turned).flatten(-2)
            parent = prefix // mask.grid[axis]
            sums[parent] = sums[parent] + part if parent in sums else part
        blocks = sums
    return blocks[0].squeeze(-2)[..., :seqlen]


def block_spectrum(k: Tensor, mask: BlockMask, ahead: int = 0) -> Tensor:
    """Spectrum of a filter in block order, zero where a bin does not survive: (H, T, V) complex128.

    k: (H, K), K <= N, tap j at lag j - ahead; negative lags wrap to the end of the N points.
    """
    circle = pad(k.double(), (0, mask.n - k.shape[-1])).roll(-ahead, -1)
    return monarch_fft(circle, mask) * mask.bins()[mask.frequencies()].to(k.device)


def monarch_conv(u: Tensor, k: Tensor, mask: BlockMask | None = None, ahead: int = 0) -> Tensor:
    """Convolution of `u` with the part of `k` that `mask` lets through: (..., H, L), dtype of u.

    u: (..., H, L) float32 or float64.  k: (H, K), tap j at lag j - ahead.  A circular convolution of N = mask.n points,
    samples 0 .. L-1 of irfft(survive * rfft(k) * rfft(u)): k has lag 0 at sample 0 and negative lags wrapped to the
    end, survive = mask.bins()[: N // 2 + 1].  N must leave room for k, so all blocks, or no mask, give the linear
    convolution; what a mask takes from k spreads over the whole circle, lags that look ahead included.
    """
    if k.dim() != 2 or u.dim() < 2 or u.shape[-2] != k.shape[0] or not 0 <= ahead < k.shape[-1]:
        raise ValueError(
            f"expected u (..., channels, seqlen), k (channels, taps) and ahead < taps, "
            f"got u {tuple(u.shape)}, k {tuple(k.shape)}, ahead {ahead}"
        )
    if u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"signal u is {u.dtype}, expected float32 or float64; pass u.float()")
    seqlen, taps = u.shape[-1], k.shape[-1]
    room = max(taps, seqlen + max(ahead, taps - 1 - ahead))  # fewer points, and the ends would meet inside the output
    if mask is None:
        factors = factor(1 << max(1, (room - 1).bit_length()))
        mask = BlockMask.full(math.prod(factors), factors, block=factors)
    if mask.n < room:
        raise ValueError(f"{seqlen} samples and {taps} taps need an FFT of {room} points, the mask has {mask.n}")
    u_f = monarch_fft(u, mask)
    return monarch_ifft(u_f * block_spectrum(k, mask, ahead).to(u_f), mask, seqlen).real


def work(mask: BlockMask, seqlen: int | None = None) -> tuple[int, ...]:
    """Complex multiply-accumulates of each stage of `monarch_fft` on one row; `monarch_ifft` does as many.

    seqlen: samples of the signal, N unless given; the first stage skips the padding, in whole rows of N / N1.  All
    blocks make N * Ni at stage i.  Where the sides are multiples of 16, division by 16**3 counts tensor-core tiles.
    """
    counts = []
    for axis, size in enumerate(mask.factors):
        rest = math.prod(mask.factors[axis + 1 :])
        inputs = size if axis or seqlen is None else -(-seqlen // rest)
        counts.append(len(mask.prefixes(axis)) * math.prod(mask.block[: axis + 1]) * inputs * rest)
    return tuple(counts)
