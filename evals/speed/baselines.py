"""The same convolution by others: torch.fft as one would write it, the models' own code, libraries where they are.

A rival takes input sets (u, pregate, gate), a filter k (H, L) float32 and a skip (H,), and gives a function of a set's
number.  Who is not here, or does not take the case, raises: the message says why.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsify.cpu.backend import good_size
from sparsify.filters.filter import Filter

from .cpu_convolution import reference

Set = tuple[Tensor, Tensor | None, Tensor | None]
Run = Callable[[int], Tensor]
Rival = Callable[[Sequence[Set], Tensor, Tensor | None], Run]


def around(conv: Callable[[Tensor], Tensor], sets: Sequence[Set], skip: Tensor | None) -> Run:
    """A convolution with gates and skip as separate operations, in the signals' own type."""
    dtype = sets[0][0].dtype
    factor = None if skip is None else skip.to(dtype)[:, None]

    def run(i: int) -> Tensor:
        u, pregate, gate = sets[i]
        if pregate is None or gate is None or factor is None:
            return conv(u).to(dtype)
        g = u * pregate
        return gate * torch.addcmul(conv(g).to(dtype), g, factor)

    return run


def best_fft(sets: Sequence[Set], k: Tensor, skip: Tensor | None) -> Run:
    """torch.fft in float32, with the spectrum prepared and a size without large primes."""
    seqlen = k.shape[-1]
    n = good_size(2 * seqlen)
    k_f = torch.fft.rfft(k, n)
    return around(lambda u: torch.fft.irfft(torch.fft.rfft(u.float(), n) * k_f, n)[..., :seqlen], sets, skip)


def half_fft(sets: Sequence[Set], k: Tensor, skip: Tensor | None) -> Run:
    """torch.fft in float16: powers of two only, scaled so that nothing overflows."""
    seqlen, n = k.shape[-1], 2 * k.shape[-1]
    if sets[0][0].dtype != torch.float16 or n & (n - 1):
        raise ValueError("takes float16 and powers of two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex halves are experimental, it says
        k_f = torch.fft.rfft(k, n).to(torch.complex32)

    def conv(u: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(u, n, norm="ortho") * k_f, n, norm="ortho")[..., :seqlen]

    return around(conv, sets, skip)


def own_code(sets: Sequence[Set], k: Tensor, skip: Tensor | None) -> Run:
    """As the published models do it: everything in float32, the filter's spectrum made anew in every call."""
    return around(lambda u: reference(u.float(), Filter(k)), sets, skip)


def flash(sets: Sequence[Set], k: Tensor, skip: Tensor | None) -> Run:
    """`flashfftconv.FlashFFTConv(N, dtype)(u, k, pregate, postgate)`, N >= 2 L for a causal filter.

    Its every call makes the filter's spectrum.  It has no skip, which goes into the first tap.
    """
    u = sets[0][0]
    if u.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError("takes float16 and bfloat16")
    made: Any = importlib.import_module("flashfftconv")
    conv = made.FlashFFTConv(2 * k.shape[-1], dtype=u.dtype).to(u.device)
    if skip is not None:
        k = k.clone()
        k[:, 0] += skip

    def run(i: int) -> Tensor:
        u, pregate, gate = sets[i]
        return conv(u, k) if pregate is None else conv(u, k, pregate, gate)

    return run


def flash_kept(sets: Sequence[Set], k: Tensor, skip: Tensor | None) -> Run:
    """The same with the transform of the filter taken out, which its interface has no word for; permutations stay.

    Inside a call, torch.fft.fft and rfft give what they gave the first time: it calls them for the filter alone.
    """
    run, originals = flash(sets, k, skip), {name: getattr(torch.fft, name) for name in ("fft", "rfft")}
    kept: dict[str, Tensor] = {}

    def stand_in(name: str, *arguments: Any, **options: Any) -> Tensor:
        if name not in kept:
            kept[name] = originals[name](*arguments, **options)
        return kept[name]

    def patched(i: int) -> Tensor:
        for name in originals:
            setattr(torch.fft, name, partial(stand_in, name))
        try:
            return run(i)
        finally:
            for name, function in originals.items():
                setattr(torch.fft, name, function)

    return patched


def causal_conv(module: str) -> Rival:
    """`fft_causal_conv1d(x, weight)` of a module: x (B, H, L), weight (H, K) of x's type, tap 0 at lag 0."""

    def rival(sets: Sequence[Set], k: Tensor, skip: Tensor | None) -> Run:
        convolve = importlib.import_module(module).fft_causal_conv1d
        weight = k.to(sets[0][0].dtype)
        return around(lambda u: convolve(u, weight), sets, skip)

    return rival


TORCH, OWN = "best torch.fft", "models' own code"
RIVALS: Mapping[str, Rival] = {
    TORCH: best_fft,
    "torch.fft in float16": half_fft,
    OWN: own_code,
    "FlashFFTConv": flash,
    "FlashFFTConv, filter's FFT kept": flash_kept,
    "subquadratic_ops_torch": causal_conv("subquadratic_ops_torch.fft_causal_conv1d"),
    "cuDNN": causal_conv("cudnn.ops"),
}
PACKAGES = ("flashfftconv", "subquadratic-ops-torch-cu13", "subquadratic-ops-torch-cu12", "nvidia-cudnn-frontend")


def versions() -> dict[str, str | None]:
    """Of the libraries; None for those that are not here."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
