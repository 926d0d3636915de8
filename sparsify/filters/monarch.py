"""Block masks on a spectrum, and the Monarch transform that computes only the blocks they keep.

The spectrum is that of the right-angle convolution: M complex points, a quarter of a bin up from zero.

    X[f] = sum_n x[n] exp(-2 pi i (f + 1/4) n / M),     f = 0 .. M - 1,     so that x[n - M] counts as i x[n]

For real x the M bins are independent and say everything; none is another's mirror image.  A product of two spectra is
the linear convolution of signals of up to M samples: what would wrap around turns imaginary, and the inverse drops it.

An index into M = N1 * N2 * ... * Np points has a digit on each axis, outer to inner.  In time the outer digit is the
most significant, n = n1 * (N2 ... Np) + ... + np; in frequency the least, f = f1 + N1 * f2 + N1 * N2 * f3 + ...
Stage i turns ni into fi by a DFT of Ni points and a twiddle (Cooley and Tukey, decimation in frequency).  The quarter
of a bin is the first stage's affair; with S = M / N1 and w(n) = exp(-2 pi i / n),

    X[f1 + N1 f'] = sum_m  w(S)^(f' m)  *  w(M)^((f1 + 1/4) m)  *  sum_n1 w(N1)^((f1 + 1/4) n1) x[n1 S + m]

Blocks are cut along these digits.  Stage i has seen f1 .. fi only, so it skips what no kept block shares: dropping
values of f1 (a comb stays) shrinks every stage, dropping values of fp (bands stay) shrinks the last one alone.
Plain tensors that take the steps of a kernel, one path for any number of factors; speed is not the point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 16  # side of a tensor-core tile, and of a block unless told otherwise
MOST_BLOCKS = 1 << 22  # in a mask read from a file: as many as the longest model has bins


def factor(n: int, largest: int = 64) -> tuple[int, ...]:
    """Fewest nearly equal powers of two, ascending, each at most `largest`, whose product is n, a number of points."""
    if n < 2 or n & (n - 1):
        raise ValueError(f"points must be a power of two from 2 on, got {n}; round it up or pass the factors")
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


def dft(n: int, quarters: int = 0) -> Tensor:
    """DFT matrix, (n, n) complex128: row f, column t holds exp(-2 pi i * (f + quarters / 4) * t / n)."""
    return roots(4 * n, (4 * torch.arange(n) + quarters)[:, None] * torch.arange(n))


def twiddles(rows: int, columns: int, quarters: int = 0) -> Tensor:
    """Factors between a stage of `rows` points and the `columns` behind it, (rows, columns) complex128.

    Entry (f, m) is exp(-2 pi i * (f + quarters / 4) * m / (rows * columns)).
    """
    return roots(4 * rows * columns, (4 * torch.arange(rows) + quarters)[:, None] * torch.arange(columns))


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
    """The blocks of an M-point spectrum that are computed; all others are skipped and count as zero.

    factors: (N1, ..., Np), outer axis (least significant digit of the frequency) first.  block: side of a block on each
    axis, a divisor of the factor.  keep: kept blocks, ascending row-major indices into the grid (N1/b1, ..., Np/bp).
    Any set of blocks leaves a real signal real: bin f stands for both frequencies +-(f + 1/4) / M.
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
        """Points M."""
        return math.prod(self.factors)

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(size // side for size, side in zip(self.factors, self.block, strict=True))

    @property
    def density(self) -> float:
        """Share of the M bins that is kept."""
        return len(self.keep) * math.prod(self.block) / self.n

    def frequencies(self) -> Tensor:
        """Natural frequency of every kept bin in block order, (T, V) int64: T kept blocks of V = b1 * ... * bp bins."""
        parts = torch.meshgrid(*[torch.arange(size) for size in self.factors], indexing="ij")
        sides = [side for pair in zip(self.grid, self.block, strict=True) for side in pair]
        axes = range(len(sides))
        grid_first = frequency(parts, self.factors).view(sides).permute(*axes[::2], *axes[1::2])
        return grid_first.reshape(-1, math.prod(self.block))[list(self.keep)]

    def bins(self) -> Tensor:
        """Bins that are kept, (M,) bool, natural frequency order."""
        kept = torch.zeros(self.n, dtype=torch.bool)
        kept[self.frequencies()] = True
        return kept

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
            raise ValueError(f"factors {factors} make {math.prod(factors)} points, expected {n}")
        if block is None:
            block = tuple(max(side for side in range(1, TILE + 1) if size % side == 0) for size in factors)
        first = cls(factors, block, (0,))  # checked before its grid is read
        return cls(factors, block, tuple(range(math.prod(first.grid))))

    @classmethod
    def from_bins(
        cls, bins: Tensor, factors: tuple[int, ...] | None = None, block: tuple[int, ...] | None = None
    ) -> BlockMask:
        """Smallest mask that keeps all of `bins`: (M,) bool, natural frequency order."""
        if bins.dim() != 1 or bins.dtype != torch.bool or not bins.any():
            raise ValueError(f"expected (M,) bool bins, at least one true; got {bins.dtype} {tuple(bins.shape)}")
        whole = cls.full(len(bins), factors, block)
        touched = bins.cpu()[whole.frequencies()].any(1)
        return cls(whole.factors, whole.block, tuple(touched.nonzero().flatten().tolist()))

    @classmethod
    def low_pass(cls, n: int, share: float, factors: tuple[int, ...] | None = None) -> BlockMask:
        """Mask of the frequencies below a cut, the bins f < c and f >= M - c, whose density comes closest to `share`.

        c is a whole number of columns, the M / Np bins that share a value of the innermost digit; for a band narrower
        than two columns it counts values of the next digit out, and so on.  On that axis the block has the coarsest
        side that hits the cut; it spans the axes further out, and has side 1 further in, where the band is one value
        wide at either end.
        """
        check_share(share)
        factors = cls.full(n, factors).factors
        half = share * n / 2
        axis = len(factors) - 1
        while axis > 0 and math.prod(factors[:axis]) > half:
            axis -= 1
        column = math.prod(factors[:axis])
        columns = max(1, math.floor(half / column + 0.5))
        block = (*factors[:axis], math.gcd(columns, factors[axis]), *[1] * (len(factors) - axis - 1))
        f = torch.arange(n)
        return cls.from_bins((f < columns * column) | (f >= n - columns * column), factors, block)

    @classmethod
    def comb(cls, n: int, share: float, factors: tuple[int, ...] | None = None) -> BlockMask:
        """Mask of c outer digits around 0, half of them from below: c bins around every multiple of N1.

        c is about `share` of N1.  The block has the coarsest side that fits, and spans the other axes.
        """
        check_share(share)
        factors = cls.full(n, factors).factors
        c = max(1, round(share * factors[0]))
        above, below = c - c // 2, c // 2
        outer = digits(torch.arange(n), factors)[0]
        block = (math.gcd(above, below, factors[0]), *factors[1:])
        return cls.from_bins((outer < above) | (outer >= factors[0] - below), factors, block)

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
        if any(not isinstance(pair, list) or [type(end) for end in pair] != [int, int] for pair in data["keep"]):
            raise ValueError(f"keep lists ranges of blocks [start, stop], got {data['keep']!r:.60}")
        if (blocks := sum(max(0, stop - start) for start, stop in data["keep"])) > MOST_BLOCKS:
            raise ValueError(f"a mask has at most {MOST_BLOCKS} blocks, got {blocks!r:.60}")
        keep = tuple(index for start, stop in data["keep"] for index in range(start, stop))
        return cls(tuple(data["factors"]), tuple(data["block"]), keep)


def check_share(share: float) -> None:
    """Refuse a share of a spectrum or an energy outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share:g}; 0.25 keeps a quarter")


def wrap(k: Tensor, n: int, lookahead: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    """A filter on n points: lag d at sample d, where it is negative at sample n + d times i.  (H, n) complex.

    k: (H, K), tap j at lag j - lookahead.  Lags below -n or from n on have no place there and are left out.
    """
    past, now = k[:, max(0, lookahead - n) : lookahead], k[:, lookahead : lookahead + n]
    wrapped = torch.zeros(len(k), n, dtype=dtype, device=k.device)
    wrapped.real[:, : now.shape[-1]] = now
    if past.shape[-1]:
        wrapped.imag[:, n - past.shape[-1] :] = past
    return wrapped


def stage(mask: BlockMask, axis: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """DFT matrix (Ni, Ni) and twiddles (Ni, N(i+1) * ... * Np) of a stage: complex, precision and device of `like`."""
    size, rest, quarters = mask.factors[axis], math.prod(mask.factors[axis + 1 :]), int(axis == 0)
    device, dtype = like.device, like.dtype.to_complex()
    return dft(size, quarters).to(device, dtype), twiddles(size, rest, quarters).to(device, dtype)


def monarch_fft(x: Tensor, mask: BlockMask) -> Tensor:
    """Spectrum of `x`, zero-padded to M points, at the kept blocks only: (..., T, V) complex, block order.

    x: (..., L), L <= M, float32, float64 or complex.  Entry (t, v) is the bin `mask.frequencies()[t, v]`.
    A stage takes {block over the digits so far: (..., its bins, the time left)} to blocks over one digit more.  A block
    that leads to no kept one never exists, nor do the rows of time that hold nothing but padding, nor, in the first
    stage, products with the imaginary part of a real signal.
    """
    if x.shape[-1] > mask.n:
        raise ValueError(f"signal of {x.shape[-1]} samples does not fit {mask.n} points; use a larger mask")
    blocks = {0: pad(x, (0, -x.shape[-1] % (mask.n // mask.factors[0]))).unsqueeze(-2)}
    for axis in range(len(mask.factors)):
        matrix, turn = stage(mask, axis, x)
        made = {}
        for prefix in mask.prefixes(axis):
            rows = mask.rows(axis, prefix)
            time = blocks[prefix // mask.grid[axis]].unflatten(-1, (-1, turn.shape[1]))
            wave = matrix[rows, : time.shape[-2]]
            seen = wave @ time if time.is_complex() else torch.complex(wave.real @ time, wave.imag @ time)
            made[prefix] = seen * turn[rows]
        blocks = {prefix: block.flatten(-3, -2) for prefix, block in made.items()}
    return torch.stack([blocks[index] for index in mask.keep], dim=-3).squeeze(-1)


def monarch_ifft(y_f: Tensor, mask: BlockMask, seqlen: int) -> Tensor:
    """Real part of the M-point inverse of a spectrum that is zero outside the kept blocks: (..., seqlen), seqlen <= M.

    y_f: (..., T, V) complex, block order.  The stages of `monarch_fft` backwards; each sums over the kept rows only,
    the last into real parts only.
    """
    blocks = {index: y_f[..., t, :, None] for t, index in enumerate(mask.keep)}
    for axis in reversed(range(len(mask.factors))):
        matrix, turn = stage(mask, axis, y_f)
        reach = mask.factors[axis] if axis else -(-seqlen // turn.shape[1])  # rows of time that are asked for
        sums: dict[int, Tensor] = {}
        for prefix, block in blocks.items():
            rows = mask.rows(axis, prefix)
            turned = block.unflatten(-2, (-1, mask.block[axis])) * turn[rows].conj()
            wave = matrix[rows, :reach].mH / mask.factors[axis]
            part = (wave @ turned if axis else wave.real @ turned.real - wave.imag @ turned.imag).flatten(-2)
            parent = prefix // mask.grid[axis]
            sums[parent] = sums[parent] + part if parent in sums else part
        blocks = sums
    return blocks[0].squeeze(-2)[..., :seqlen]


def block_spectrum(k: Tensor, mask: BlockMask, lookahead: int = 0) -> Tensor:
    """Spectrum of a filter at the kept blocks, (H, T, V) complex128, block order.  k: (H, K), as `wrap` takes it."""
    return monarch_fft(wrap(k, mask.n, lookahead), mask)


def monarch_conv(u: Tensor, k: Tensor, mask: BlockMask | None = None, lookahead: int = 0) -> Tensor:
    """Convolution of `u` with the part of `k` that `mask` lets through: (..., H, L), dtype of u.

    u: (..., H, L) float32 or float64, L <= M.  k: (H, K), tap j at lag j - lookahead; the lags -M .. M - 1 count, more
    than the signal can feel.  It is convolved with what `split.band_limit` makes; all blocks, or no mask, leave k.
    """
    if k.dim() != 2 or u.dim() < 2 or u.shape[-2] != k.shape[0] or not 0 <= lookahead < k.shape[-1]:
        raise ValueError(
            f"expected u (..., channels, seqlen), k (channels, taps) and lookahead < taps, "
            f"got u {tuple(u.shape)}, k {tuple(k.shape)}, lookahead {lookahead}"
        )
    if u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"signal u is {u.dtype}, expected float32 or float64; pass u.float()")
    if mask is None:
        factors = factor(1 << max(1, (u.shape[-1] - 1).bit_length()))
        mask = BlockMask.full(math.prod(factors), factors, block=factors)
    u_f = monarch_fft(u, mask)
    return monarch_ifft(u_f * block_spectrum(k, mask, lookahead).to(u_f), mask, u.shape[-1])


def work(mask: BlockMask, seqlen: int | None = None) -> tuple[int, ...]:
    """Real multiply-accumulates of each stage of `monarch_fft` on one real row; `monarch_ifft` does as many.

    Two to a product with a real number, in the first stage, else four: 2 M N1, 4 M N2, ... 4 M Np for all blocks.
    seqlen: samples of the signal, M unless given; the first stage skips the padding, in whole rows of M / N1.  Where
    the sides are multiples of a tensor core's tile, division by its size counts its instructions.
    """
    counts = []
    for axis, size in enumerate(mask.factors):
        rest = math.prod(mask.factors[axis + 1 :])
        inputs = size if axis or seqlen is None else -(-seqlen // rest)
        products = len(mask.prefixes(axis)) * math.prod(mask.block[: axis + 1]) * inputs * rest
        counts.append(products * (4 if axis else 2))
    return tuple(counts)
