"""What searches for plans are tried on: filters, signals and windows whose errors are known, and a flat device."""

import dataclasses

import torch

from sparsify.evals.data import Document, windows
from sparsify.fftconv import fftconv_ref
from sparsify.filters.filter import Filter
from sparsify.search.sensitivity import Recorder
from sparsify.sites import ConvSite

L, N, H = 200, 256, 4  # a context that fills no power of two


def smooth_filter(length=1024, channels=4):
    """Like a trained implicit filter: a few slow sinusoids under a decay, switched on at lag 0."""
    t = torch.arange(length, dtype=torch.float64) / length
    waves = torch.stack([torch.cos(2 * torch.pi * (c + 1) * t + c) + 0.5 for c in range(channels)])
    return (waves * torch.exp(-5 * t)).float()


def site(k, causal=True):
    return ConvSite("site", k.shape[0], k.shape[1], k.shape[1], causal, lambda: Filter(k), lambda conv: None)


def two_sided(lookahead, channels=H):
    """Slow waves to either side of lag 0, others ahead of it than behind it, which jump there: lookahead + L taps."""
    behind, before = smooth_filter(L, channels), -0.6 * smooth_filter(L, channels).flip(0)
    return Filter(torch.cat([before[:, :lookahead].flip(-1), behind], dim=-1), lookahead)


def signals(windows=400, color=0.9):
    """Stationary noise whose neighbours resemble each other, louder from channel to channel, and gates: (W, H, L)."""
    white = torch.randn(windows, H, L + 64, dtype=torch.float64)
    decay = color ** torch.arange(64, dtype=torch.float64)
    colored = fftconv_ref(white, decay.expand(H, -1))[..., 64:]
    loud = torch.arange(1.0, H + 1, dtype=torch.float64)[:, None]
    return loud * colored, 0.5 + torch.randn(windows, H, L, dtype=torch.float64) / loud


def recorded(g, gate=None):
    recorder = Recorder(torch.zeros(H, 1), N)
    for i in range(0, len(g), 50):
        recorder.note(g[i : i + 50], None if gate is None else gate[i : i + 50])
    return recorder.moments()


def measured(k, g, gate):
    return float((gate * fftconv_ref(g, k)).square().sum())


def data(count=40, context=64, stride=None):
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(4, (count * (stride or context) + context - (stride or context),), generator=generator)
    text = "".join("ACGT"[i] for i in letters)
    return windows([Document("dna", text)], lambda text: ["ACGT".index(c) + 7 for c in text], context, stride, "ACGT")


@dataclasses.dataclass(frozen=True)
class Flat:
    """A device on which nothing is cheaper than anything else."""

    name: str = "flat"

    def seconds(self, plan, channels, taps, seqlen, spectra_bytes=None, lookahead=0):
        return 1.0
