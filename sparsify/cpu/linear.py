"""Linear layers on a CPU, prepared for one pass over many rows in the way that is fastest there.

torch computes F.linear in float32 with MKL, which on some CPUs reaches half of what oneDNN does.  torch ships oneDNN
too, but leads to it through private operators, so every way is checked against float64 and timed before it is used,
and F.linear is always one of them.

A layer is prepared anew for each pass.  Laying out its weights costs as much as some 60 rows; in return no copy stays
in memory, and none can go stale however the weights are changed.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.freshness import signature

PAYS_AT = 256  # rows from which preparing a layer pays, measured; fewer take F.linear, in float32
KEPT_BYTES = 1 << 23  # of a layer's weights: larger ones are laid out anew in every pass, which costs them little
SAMPLE_ROWS, ROUNDS = 256, 9  # what a way is checked and timed on
TYPICAL = 256, 768  # inputs and outputs of the layer that ways are timed on
FLOAT32, BFLOAT16 = "float32", "bfloat16"
PRECISIONS = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
OUTER = re.compile(r"^.*?(?=backbone\.|bert\.encoder\.)")  # what wrappers put before the names of the layers
BARS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative L2 error against float64 that a way may have

Call = Callable[[Tensor], Tensor]  # x (..., in) -> (..., out)
Way = Callable[[Tensor, Tensor | None, bool], Call]  # weight (out, in), float32 bias (out) or None, GELU or not


class Preparable(nn.Module):
    """What the layers here share: how they are prepared, and that this is kept while their weights stay the same."""

    weight: Tensor
    precision = torch.float32  # of weights and input in a prepared pass; sums are float32 always
    _kept: tuple[object, Call] | None = None

    def keep(self, key: object, make: Callable[[], Call]) -> Call:
        """What `make` gives, or gave for the same key and the same weights.

        Laying weights out anew costs as much as some hundred rows; looking whether they changed, as some ten.
        """
        if "weight" not in self._parameters or self.weight.nbytes > KEPT_BYTES:
            return make()  # a weight that is made of others changes with those
        now = key, signature([t for t in self._parameters.values() if t is not None], KEPT_BYTES)
        if self._kept is None or self._kept[0] != now:
            self._kept = now, make()
        return self._kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """A copy prepares its own: weights in a library's layout cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


class Linear(Preparable, nn.Linear):
    """nn.Linear that can be prepared for a pass over many rows."""

    def forward(self, x: Tensor, call: Call | None = None) -> Tensor:
        return super().forward(x) if call is None else call(x)

    def takes(self, rows: float) -> torch.dtype:
        """The dtype of input that a pass over `rows` rows, as prepared, need not convert."""
        return self.precision if pays(rows, self.weight) else self.weight.dtype

    def prepare(self, rows: float, gelu: bool = False) -> Call:
        """This layer, and tanh's GELU after it if asked, as a function: x (..., in) -> (..., out).

        rows: how many it will see in all, math.inf for no end.  It has no gradients and misses later changes of the
        weights, so it is meant for one pass, or for a stream that shall stay as it began.  The result has the dtype of
        `precision` where that is used.  Every call goes through the module, for its hooks.
        """
        if not pays(rows, self.weight):
            return (lambda x: F.gelu(self(x), approximate="tanh")) if gelu else self
        key = self.precision, gelu, torch.get_num_threads()
        call = self.keep(key, lambda: prepared(self.weight, self.bias, self.precision, gelu))
        return lambda x: self(x, call)


class BlockDiagonal(Preparable):
    """x (..., N P) -> (..., N Q): each of the N pieces of x through a matrix of its own.  weight: (N, Q, P)."""

    def __init__(self, blocks: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, outputs // blocks, inputs // blocks))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def reset_parameters(self) -> None:
        """As a dense layer of this many inputs a row would be."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, call: Call | None = None) -> Tensor:
        if call is not None:
            return call(x)
        blocks, _, inputs = self.weight.shape
        rows = x.reshape(-1, blocks, inputs).transpose(0, 1)
        y = torch.bmm(rows, self.weight.mT).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def prepare(self, rows: float) -> Call:
        """As `Linear.prepare`."""
        if not pays(rows, self.weight):
            return self
        call = self.keep((self.precision, torch.get_num_threads()), self.by_blocks)
        return lambda x: self(x, call)

    def by_blocks(self) -> Call:
        """This layer, each block prepared apart."""
        blocks = len(self.weight)
        biases = [None] * blocks if self.bias is None else self.bias.chunk(blocks)
        calls = [prepared(*pair, self.precision) for pair in zip(self.weight, biases, strict=True)]

        def call(x: Tensor) -> Tensor:
            pieces = zip(calls, x.chunk(blocks, dim=-1), strict=True)
            return torch.cat([one(piece) for one, piece in pieces], dim=-1)

        return call


def prepare(layer: nn.Module, rows: float, gelu: bool = False) -> Call:
    """What `Linear.prepare` gives, of whatever stands in a linear layer's place: that is called as it is."""
    if isinstance(layer, Linear):
        return layer.prepare(rows, gelu)
    if isinstance(layer, BlockDiagonal) and not gelu:
        return layer.prepare(rows)
    return (lambda x: F.gelu(layer(x), approximate="tanh")) if gelu else layer


def input_dtype(layer: nn.Module, rows: float) -> torch.dtype:
    """The dtype of input that a prepared layer best takes; float32 for one that cannot be prepared."""
    return layer.takes(rows) if isinstance(layer, Linear) else torch.float32


def pays(rows: float, weight: Tensor) -> bool:
    """Whether a layer of this weight is worth preparing for so many rows."""
    return rows >= PAYS_AT and usable(weight)


def prepared(weight: Tensor, bias: Tensor | None, precision: torch.dtype, gelu: bool = False) -> Call:
    """A layer of weight (out, in), and tanh's GELU after it if asked, in the way that is fastest here."""
    outputs, inputs = weight.shape
    way = fastest(inputs, outputs, bias is not None, gelu, precision, torch.get_num_threads())
    return way(weight.detach().to(precision).contiguous(), None if bias is None else bias.detach(), gelu)


def usable(weight: Tensor) -> bool:
    """Whether this weight is one that `fastest` measures: plain float32 on the CPU, with oneDNN not switched off."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype == torch.float32 and weight.device.type == "cpu"
    return plain and bool(torch.backends.mkldnn.enabled)


def layers_of(model: nn.Module) -> dict[str, Linear | BlockDiagonal]:
    """Every linear layer of these kinds by the name that it has in a plan, which no wrapper of the model changes."""
    return {
        OUTER.sub("", name): module
        for name, module in model.named_modules()
        if isinstance(module, Linear | BlockDiagonal)
    }


def use_precision(model: nn.Module, precision: str | Mapping[str, str], strict: bool = True) -> None:
    """Let prepared passes of the linear layers in `model` multiply in "float32" or "bfloat16".

    precision: for all layers, or name -> precision; layers that are not named multiply in float32.
    strict: refuse names that the model does not have, else let them be.
    """
    layers = layers_of(model)
    everywhere, named = (precision, {}) if isinstance(precision, str) else (FLOAT32, precision)
    if unknown := sorted({everywhere, *named.values()} - PRECISIONS.keys()):
        raise ValueError(f"got linears in {unknown[0]!r}; choose one of {', '.join(PRECISIONS)}")
    if strict:
        check_named(model, named)
    for name, layer in layers.items():
        layer.precision = PRECISIONS[named.get(name, everywhere)]


def check_named(model: nn.Module, linears: Mapping[str, str]) -> None:
    """Refuse a plan for linear layers that the model does not have."""
    if strangers := sorted(linears.keys() - layers_of(model).keys()):
        raise ValueError(
            f"the plan names the linear layer {strangers[0]:.200}, which the model does not have; rebuild it from this "
            f"checkpoint"
        )


def precisions_of(model: nn.Module) -> Callable[[], None]:
    """A function that gives the linear layers in `model` the precision back that they have now."""
    before = [(layer, layer.precision) for layer in layers_of(model).values()]

    def restore() -> None:
        for layer, precision in before:
            layer.precision = precision

    return restore


def plain(weight: Tensor, bias: Tensor | None, gelu: bool) -> Call:
    """torch's own way."""
    bias = bias if bias is None else bias.to(weight.dtype)

    def call(x: Tensor) -> Tensor:
        y = F.linear(x.to(weight.dtype), weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y

    return call


def packed(weight: Tensor, bias: Tensor | None, gelu: bool) -> Call:
    """oneDNN, with weights in its own layout and GELU applied before the product leaves the cache.

    A float32 bias beside bfloat16 weights is right: it is added to the float32 sums.
    """
    inner = torch.ops.mkldnn
    laid_out = inner._reorder_linear_weight(weight, SAMPLE_ROWS)  # the number of rows is a hint
    after, algorithm = ("gelu", "tanh") if gelu else ("none", "")

    def call(x: Tensor) -> Tensor:
        return inner._linear_pointwise(x.to(weight.dtype), laid_out, bias, after, [], algorithm)

    return call


WAYS: tuple[Way, ...] = (packed, plain)
CLEARLY = 1.5  # times as quick a later one must be: where they are near each other all processes must choose alike


@functools.cache
def fastest(inputs: int, outputs: int, bias: bool, gelu: bool, precision: torch.dtype, threads: int) -> Way:
    """The quickest way on this CPU that is right for such a layer."""
    sample = Sample(inputs, outputs, bias, gelu, precision)
    return next((way for way in by_speed(precision, threads) if sample.is_right(way)), plain)


@functools.cache
def by_speed(precision: torch.dtype, threads: int) -> tuple[Way, ...]:
    """The ways, the quickest first; measured once a process, on one layer for all, so that processes agree.

    Their results differ in the last bits, and who goes on with the work of another process wants the same.
    """
    sample = Sample(*TYPICAL, True, False, precision)
    calls = {way: sample.call(way) for way in WAYS if sample.is_right(way)}
    taken = {way: math.inf for way in calls}
    for _ in range(ROUNDS):
        for way, call in calls.items():
            taken[way] = min(taken[way], seconds(call, sample.x))
    return tuple(sorted(WAYS, key=lambda way: taken.get(way, math.inf) * CLEARLY ** WAYS.index(way)))


@functools.cache
def gain(precision: str, threads: int) -> float:
    """How many times as fast as in float32 a typical layer multiplies here; measured once a process."""
    taken = {}
    for name in (FLOAT32, precision):
        sample = Sample(*TYPICAL, True, False, PRECISIONS[name])
        call = sample.call(by_speed(PRECISIONS[name], threads)[0])
        taken[name] = min(seconds(call, sample.x) for _ in range(ROUNDS))
    return taken[FLOAT32] / taken[precision]


class Sample:
    """A layer to try ways on."""

    def __init__(self, inputs: int, outputs: int, bias: bool, gelu: bool, precision: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
        self.x = torch.randn(SAMPLE_ROWS, inputs, generator=draw)
        self.weight = torch.randn(outputs, inputs, generator=draw) / math.sqrt(inputs)
        self.bias = torch.randn(outputs, generator=draw) if bias else None
        self.gelu, self.precision = gelu, precision
        self.truth = plain(self.weight.double(), self.bias, gelu)(self.x)

    def call(self, way: Way) -> Call:
        return way(self.weight.to(self.precision), self.bias, self.gelu)

    @torch.no_grad()
    def is_right(self, way: Way) -> bool:
        try:
            error = (self.call(way)(self.x).double() - self.truth).norm() / self.truth.norm()
        except (RuntimeError, AttributeError):  # private operators that this torch or this CPU does not have
            return False
        return bool(error < BARS[self.precision])


@torch.no_grad()
def seconds(call: Call, x: Tensor) -> float:
    start = time.perf_counter()
    call(x)
    return time.perf_counter() - start
