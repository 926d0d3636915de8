"""Long convolutions fed in pieces: `ConvStream` remembers what came before, and so does a model made of them.

The tiling is that of relaxed multiplication (van der Hoeven 1997), which Flash Inference (Oncescu et al. 2024, arXiv
2410.12982) brought to these models.  Time is cut into spans as long as the filter, a span into blocks of C samples.
Where `at` samples of a span are complete and S, C times a power of two, is the largest that divides `at`, the last S
samples are convolved once with the lags they have to the next S, and the result waits there:

    inputs  [at - S, at)  x  lags 1 .. 2S - 1  ->  added to the outputs  [at, at + S)

So an input meets every later block exactly once, and one buffer of a span is all there is to remember: a sample's slot
holds what waits for it until it comes, and the sample itself from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from .fftconv import LongConv, fftconv
from .filters.filter import AnyFilter, Filter, Taps, as_filter, in_memory
from .sites import Conv

BLOCK = 128  # C: samples that meet each other directly; 64 and 256 cost some tenth more a token, measured
FEW = 5  # a piece of up to this many samples goes sample by sample, a longer one through an FFT
SHORT, LONG = 1 << 12, 1 << 13  # up to SHORT lags all spectra are kept, and up to LONG samples taken at once
TEMPORARY_BYTES = 1 << 26  # spectra that are not kept are made for this much of the channels at a time
PIECE = 1 << 14  # tokens that a model works through at once, by default


class ConvStream:
    """Convolution with one fixed causal filter, fed in pieces of any length; equal to that of the whole, to round-off.

    k: (H, K) float32.  Call: u (B, H, P), the next P samples -> y (B, H, P); with skip (H,) plus skip * u, with gate
    (B, H, P) all that times gate.  Lags past K count as zero, so a sequence may be longer than the filter.

    Memory: B * H * K floats for the past and about H * max(K, 32768) for spectra, however many pieces come.
    Time, a sample and channel: C / 2 multiplications and log2(K / C) levels of about half the price of a convolution
    in one go, each.  Long pieces save the levels below their length.
    """

    def __init__(self, k: Taps, batch: int = 1) -> None:
        whole = in_memory(as_filter(k))
        k = whole.k
        if k.dtype != torch.float32:
            raise ValueError(f"filter k is {k.dtype} {tuple(k.shape)}, expected torch.float32 (channels, taps)")
        if whole.lookahead:
            raise ValueError(
                f"the filter reads {whole.lookahead} samples ahead, which have not come yet; "
                f"pass it without its negative lags, k.past()"
            )
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.k = k.detach().contiguous()
        self.near = self.k[:, :BLOCK].t().unsqueeze(1).contiguous()  # (C, 1, H): the channels of a lag side by side
        self.convs: dict[tuple[int, int], LongConv] = {}  # samples and delay -> prepared convolution
        channels, taps = k.shape
        self.lags = taps - 1
        short = self.lags <= SHORT
        self.span = BLOCK * max(1, -(-self.lags // BLOCK) if short else self.lags // BLOCK)
        self.longest = LONG if short else self.span  # samples taken at once
        self.kept = LONG if short else max(SHORT, self.span // 8)  # of those, how many with a spectrum that is kept
        self.at = 0  # samples that came in this span
        self.past = k.new_zeros(batch, channels, self.span)  # the samples before `at`; from there on, what waits
        self.block = k.new_zeros(BLOCK, batch, channels)  # the same for a block that has begun
        self.older = k.new_zeros(batch, channels, max(0, self.lags - self.span))  # end of the span before

    @property
    def nbytes(self) -> int:
        """Bytes that the past takes."""
        return self.past.nbytes + self.block.nbytes + self.older.nbytes

    def __call__(self, u: Tensor, gate: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if u.dim() != 3 or u.shape[:2] != self.past.shape[:2] or u.dtype != torch.float32:
            batch, channels, _ = self.past.shape
            raise ValueError(
                f"signal u is {u.dtype} {tuple(u.shape)}, expected torch.float32 ({batch}, {channels}, samples)"
            )
        if u.requires_grad:
            raise ValueError("a stream keeps no gradients; call it under torch.no_grad()")
        y = self.one(u) if u.shape[-1] == 1 else self.many(u)
        if skip is not None:
            y.addcmul_(u, skip[:, None])
        return y if gate is None else y.mul_(gate)

    def one(self, u: Tensor) -> Tensor:
        """The next sample: u (B, H, 1) -> y (B, H, 1)."""
        r = self.at % BLOCK
        if r == 0:
            self.open()
        sample, rest = u[:, :, 0], self.block[r : r + len(self.near)]
        rest.addcmul_(sample, self.near[: len(rest)])
        y = rest[0].clone()
        rest[0] = sample
        self.advance(1)
        return y.unsqueeze(-1)

    def many(self, u: Tensor) -> Tensor:
        """The next samples, cut where blocks and levels end: u (B, H, P) -> y (B, H, P)."""
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        start, stop = 0, u.shape[-1]
        while start < stop:
            to_block_end = BLOCK - self.at % BLOCK
            if to_block_end == BLOCK <= stop - start:
                piece = self.blocks(u[..., start:])
            elif (n := min(to_block_end, stop - start)) > FEW:
                piece = self.part(u[..., start : start + n])
            else:
                piece = self.one(u[..., start : start + 1])
            y[..., start : start + piece.shape[-1]] = piece
            start += piece.shape[-1]
        return y

    def part(self, u: Tensor) -> Tensor:
        """The next samples of a block: u (B, H, n) -> y (B, H, n)."""
        n, r = u.shape[-1], self.at % BLOCK
        if r == 0:
            self.open()
        rest = self.block[r:].permute(1, 2, 0)
        rest += self.convolve(F.pad(u, (0, BLOCK - n)))[..., : BLOCK - r]
        y = rest[..., :n].clone()
        rest[..., :n] = u
        self.advance(n)
        return y

    def blocks(self, u: Tensor) -> Tensor:
        """As many whole blocks as can be taken at once: u (B, H, at least C) -> y (B, H, n)."""
        self.carry()
        if self.at == 0 and u.shape[-1] >= self.span:
            n, limit = self.span, min(u.shape[-1], self.longest)
        else:
            n, limit = BLOCK, min(u.shape[-1], self.span - self.at, self.level() or self.span)
        while 2 * n <= limit:
            n *= 2
        u = u[..., :n]
        y = self.convolve(u)
        waiting = self.past[..., self.at : self.at + n]
        length = waiting.shape[-1]
        y[..., :length] += waiting
        waiting.copy_(u[..., n - length :])
        self.at += length
        return y

    def open(self) -> None:
        """Begin a block: what waits for it, a sample's channels side by side."""
        self.carry()
        self.block.copy_(self.past[..., self.at : self.at + BLOCK].permute(2, 0, 1))

    def advance(self, n: int) -> None:
        """Count n samples of the block; a whole block joins the past."""
        self.at += n
        if self.at % BLOCK == 0:
            self.past[..., self.at - BLOCK : self.at].copy_(self.block.permute(1, 2, 0))

    def level(self) -> int:
        """S, the largest power of two times C that divides `at`; 0 at the start."""
        return self.at & -self.at

    def carry(self) -> None:
        """Convolve the level that ends at `at` with what follows, once its first sample comes."""
        if self.at == self.span:
            return self.turn()
        if n := min(self.level(), self.lags):
            waiting = self.past[..., self.at : self.at + n]
            waiting += self.convolve(self.past[..., self.at - n : self.at], n)[..., : waiting.shape[-1]]

    def turn(self) -> None:
        """Begin a span: all of the one before is convolved with what follows."""
        n, older = min(self.lags, self.span), self.older.shape[-1]
        y = self.convolve(self.past[..., self.span - n :], n) if n else self.past[..., :0]
        if older:
            y[..., :older] += self.convolve(self.older, self.span + older)
            self.older.copy_(self.past[..., self.span - older :])
        self.past[..., :n] = y
        self.past[..., n:] = 0  # no lag reaches that far
        self.at = 0

    def convolve(self, u: Tensor, delay: int = 0) -> Tensor:
        """What n samples mean to n outputs, the first of them `delay` after the first sample: u, y (B, H, n)."""
        n = u.shape[-1]
        if n > self.kept:
            step = max(1, TEMPORARY_BYTES // (16 * n))
            rows = [slice(h, h + step) for h in range(0, len(self.k), step)]
            return torch.cat([fftconv(u[:, h], Filter(self.k[h], delay)) for h in rows], dim=1)
        if (n, delay) not in self.convs:
            self.convs[n, delay] = LongConv(Filter(self.k, delay))
        return self.convs[n, delay](u)


class Streamed(Protocol):
    """A layer that can be fed a sequence in pieces, whatever it mixes with: a convolution, attention, a recurrence."""

    def begin(self, batch: int) -> Any:
        """What the layer carries from piece to piece of `batch` sequences of which nothing has come yet.

        It is the layer's own affair, handed back with every piece and updated by it.
        """


def begin(layers: Iterable[Any], batch: int) -> list[Any]:
    """The state of every layer before the first piece; refuses layers that cannot be fed in pieces."""
    layers = list(layers)
    if strange := next((layer for layer in layers if not hasattr(layer, "begin")), None):
        raise ValueError(
            f"a stream needs layers that go on where they stopped, and {type(strange).__name__} has no `begin`; "
            f"run the model on whole sequences"
        )
    return [layer.begin(batch) for layer in layers]


def causal_filter(conv: Conv, source: Any = None) -> AnyFilter:
    """The filter of an installed convolution without its negative lags, as a stream can apply it.

    source: what it is made of, where it is not kept.
    """
    if not isinstance(conv, LongConv):
        raise ValueError(f"a stream needs the filter of each convolution, and {type(conv).__name__} is no LongConv")
    return conv.made(source).past()


class Stream:
    """A language model fed in pieces of any length: the logits are those of the whole sequence, memory stays bounded.

    step: the next ids (B, P) -> their logits (B, P, V), remembering what came before.  piece: tokens a row that `step`
    gets at most.  letters: ids that `generate` chooses from, None for all.
    """

    def __init__(
        self, step: Callable[[Tensor], Tensor], batch: int, piece: int = PIECE, letters: Sequence[int] | None = None
    ) -> None:
        if piece < 1:
            raise ValueError(f"a piece must have at least 1 token, got {piece}")
        self.step, self.batch, self.piece, self.letters = step, batch, piece, letters

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """What a stream remembers lies behind `step`, which a copy would share."""
        raise TypeError(
            "a stream cannot be copied; for several continuations of a text, make a stream of that batch size"
        )

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        """Logits (B, P, V) of the next tokens.  ids: (B, P)."""
        if ids.dim() != 2 or len(ids) != self.batch or ids.shape[1] < 1:
            raise ValueError(f"got ids {tuple(ids.shape)}, expected ({self.batch}, at least 1)")
        logits = [self.step(piece) for piece in ids.split(self.piece, dim=1)]
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        count: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | None = None,
        allowed: Sequence[int] | None = None,
    ) -> Tensor:
        """`ids` and `count` tokens more: (B, P + count), all fed but the last.  ids: (B, P), the next tokens.

        temperature: 0 takes the likeliest token each time, 1 draws as the model predicts.  top_k: draw among so many of
        the likeliest.  seed: draws the same tokens again.  allowed: ids to choose from, None for the stream's letters.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1 token, got {count}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be 0 (the likeliest token) or a positive number, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 token, got {top_k}")
        draw = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
        logits = self.feed(ids)[:, -1]
        choice = letters(self.letters if allowed is None else allowed, logits.shape[-1]).to(ids.device)
        grown = torch.cat([ids, ids.new_empty(self.batch, count)], dim=1)
        for t in range(ids.shape[1], grown.shape[1]):
            grown[:, t] = choice[pick(logits[:, choice], temperature, top_k, draw)]
            if t + 1 < grown.shape[1]:
                logits = self.feed(grown[:, t : t + 1])[:, -1]
        return grown


def letters(allowed: Sequence[int] | None, columns: int) -> Tensor:
    """Ids to choose from, in order: (n,) int64.  columns: how many the logits have."""
    ids = sorted(set(range(columns) if allowed is None else allowed))
    if not ids or ids[0] < 0 or ids[-1] >= columns:
        raise ValueError(f"allowed ids must lie in [0, {columns}) and be at least one, got {ids}")
    return torch.tensor(ids)


def pick(logits: Tensor, temperature: float, top_k: int | None, draw: torch.Generator | None) -> Tensor:
    """A column for each row: logits (B, n) -> (B,) int64; the likeliest for temperature 0, else drawn."""
    if temperature == 0:
        return logits.argmax(-1)
    values, columns = logits.double().topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    p = ((values - values[:, :1]) / temperature).softmax(-1)  # the largest is 0, whatever the temperature
    return columns.gather(-1, torch.multinomial(p, 1, generator=draw))[:, 0]
