"""The CPU backend: real FFTs of good sizes, cached spectra, rows in blocks that stay in cache."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

ROWS_BYTES = 1 << 21  # rows worked on together hold about this much signal: what stays in the caches of two cores
ROWS_AT_LEAST = 16  # and are this many, because every call of an FFT costs some 0.1 ms besides its work, measured
OVERLAP_BLOCKS = (1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15)  # overlap-save block sizes worth trying

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory for the next tensor instead of returning it to the system; False where it cannot.

    Otherwise every large tensor is made of fresh pages, and the first touch of a page costs more than the work on it.
    It holds for the whole process, so a program says it, never an import.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def good_size(n: int) -> int:
    """Smallest even size >= n whose only prime factors are 2, 3 and 5, where every FFT library is fast."""
    best = 1 << max(1, (n - 1).bit_length())
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            size = threes * 2
            while size < n:
                size *= 2
            best = min(best, size)
            threes *= 3
        fives *= 5
    return best


def one_block(seqlen: int, taps: int, ahead: int = 0) -> int:
    """FFT size for the whole signal at once: no lag that matters wraps onto another."""
    return good_size(max(seqlen + max(taps - 1 - ahead, ahead), taps))


def choose_size(seqlen: int, taps: int, ahead: int = 0) -> tuple[int, int]:
    """FFT size n and hop, the outputs that one block yields: the whole signal, or overlap-save when that is cheaper."""
    whole = one_block(seqlen, taps, ahead)
    best = (whole * whole.bit_length(), whole, seqlen)
    if ahead == 0:
        for n in OVERLAP_BLOCKS:
            hop = n - taps + 1
            if 0 < hop < seqlen:
                blocks = -(-seqlen // hop)
                best = min(best, (blocks * n * n.bit_length(), n, hop))
    return best[1], best[2]


def fftconv(u: Tensor, k_f: Tensor, n: int, hop: int) -> Tensor:
    """Convolution of u (B, H, L) with prepared spectra k_f (H, n // 2 + 1, 2); see `sparsify.fftconv`.

    hop >= L transforms the whole signal at once; a smaller hop cuts it into blocks of n samples that overlap by
    n - hop (overlap-save), which asks for a causal filter of at most n - hop + 1 taps.
    """
    batch, channels, seqlen = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    rows = max(ROWS_AT_LEAST, ROWS_BYTES // (seqlen * k_f.element_size()))
    if rows >= channels:  # several samples fit
        step = rows // channels
        for b in range(0, batch, step):
            y[b : b + step] = convolve(u[b : b + step], k_f, n, hop)
        return y
    for b in range(batch):
        for h in range(0, channels, rows):
            y[b, h : h + rows] = convolve(u[b, h : h + rows], k_f[h : h + rows], n, hop)
    return y


def convolve(u: Tensor, k_f: Tensor, n: int, hop: int) -> Tensor:
    """The same with all rows at once: u (..., H, L) -> y (..., H, L), dtype of u."""
    y = whole(u, k_f, n) if hop >= u.shape[-1] else overlap_save(u, k_f, n, hop)
    return y.to(u.dtype, memory_format=torch.contiguous_format)


def whole(u: Tensor, k_f: Tensor, n: int) -> Tensor:
    """u (..., H, L), k_f (H, n // 2 + 1, 2) -> y (..., H, L) in the dtype of k_f, one transform a row."""
    y_f = torch.fft.rfft(u.to(k_f.dtype), n) * torch.view_as_complex(k_f)
    return torch.fft.irfft(y_f, n)[..., : u.shape[-1]]


def overlap_save(u: Tensor, k_f: Tensor, n: int, hop: int) -> Tensor:
    """u (..., H, L), k_f (H, n // 2 + 1, 2) -> y (..., H, L) in the dtype of k_f, `hop` samples a transform."""
    seqlen = u.shape[-1]
    blocks = -(-seqlen // hop)
    history = n - hop
    padded = torch.nn.functional.pad(u.to(k_f.dtype), (history, blocks * hop - seqlen))
    u_f = torch.fft.rfft(padded.unfold(-1, n, hop), n)  # (..., H, blocks, n // 2 + 1)
    y = torch.fft.irfft(u_f * torch.view_as_complex(k_f).unsqueeze(-2), n)[..., history:]
    return y.reshape(*y.shape[:-2], blocks * hop)[..., :seqlen]
