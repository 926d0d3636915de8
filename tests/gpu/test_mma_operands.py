"""The kernels' tables against a warp played in plain tensors, by the layouts of the PTX manual and nothing else."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_close

from sparsify.filters.monarch import BlockMask, digits
from sparsify.filters.spectra import spectrum
from sparsify.gpu import mma_operands
from sparsify.gpu.mma_operands import Stages
from sparsify.gpu.tiling import SOURCES, tile_sides

EXACT = 1e-12
ROUNDED = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 1e-5}
FACTORS = ((16, 16), (32, 16), (16, 32), (48, 32), (16, 8, 16), (32, 16, 32), (16, 8, 32, 16))
LANE = torch.arange(32)


def numbers(table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int32 (.., planes, 32, 4) -> (.., 32, 4, 2) float64: the two 16-bit numbers of every word, planes added up."""
    kind = torch.float16 if dtype == torch.float16 else torch.bfloat16
    pairs = table.contiguous().view(kind).unflatten(-1, (4, 2)).double()
    return pairs.sum(-4)


def left_tile(entry: torch.Tensor) -> torch.Tensor:
    """(32, 4, 2) registers a0 .. a3 -> A (16, 16).  PTX ISA, mma.m16n8k16, matrix A."""
    a = torch.full((16, 16), torch.nan, dtype=torch.float64)
    for lane in range(32):
        for i in range(8):  # the manual's a0 .. a7
            row = lane // 4 + (8 if i in (2, 3, 6, 7) else 0)
            column = lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)
            a[row, column] = entry[lane, i // 2, i % 2]
    return a


def right_tile(b0: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
    """(32, 2) registers b0 and b1 -> B (16, 8)."""
    b = torch.full((16, 8), torch.nan, dtype=torch.float64)
    for lane in range(32):
        for i in range(4):
            b[lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4] = (b0, b1)[i // 2][lane, i % 2]
    return b


def complex_columns(x: torch.Tensor) -> torch.Tensor:
    """(8, C) complex -> (16, C) real: real and imaginary part of each in turn, as a product's inner dimension is."""
    return torch.stack([x.real, x.imag], 1).flatten(0, 1)


def randc(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def shuffled(factors, source="real") -> Stages:
    return Stages(factors, tuple(tuple(torch.randperm(size).tolist()) for size in factors), source)


# --- operands --------------------------------------------------------------------------------------------------------


def test_left_operands_hold_the_tiles_of_a_matrix():
    matrix = torch.randn(48, 32, dtype=torch.float64)
    entries = mma_operands.left_operand(matrix)
    assert entries.shape == (6, 32, 4, 2)
    for i, entry in enumerate(entries):
        row, column = 16 * (i // 2), 16 * (i % 2)
        assert torch.equal(left_tile(entry), matrix[row : row + 16, column : column + 16])
    assert not torch.equal(left_tile(entries[0]), matrix[:16, :16].T)


def test_complex_products_become_real_ones():
    matrix, x = randc(16, 8), randc(8, 5)
    real = mma_operands.real_rows(mma_operands.real_columns(matrix))
    y = (real @ complex_columns(x)).view(2, 2, 8, 5)  # of every 8 rows the real parts, then the imaginary ones
    assert_close(torch.complex(y[:, 0], y[:, 1]).flatten(0, 1), matrix @ x, EXACT)


def test_right_operands_multiply_from_the_right():
    """Two products of 4 outputs each from one entry of 8 inputs."""
    matrix = randc(16, 16)
    rows, columns = torch.randperm(16).view(2, 2, 4), torch.randperm(16).view(2, 2, 4)
    entries = mma_operands.right_operand(matrix, rows, columns)
    assert entries.shape == (2, 32, 4, 2)
    x = randc(3, 16)
    for entry, mine, ours in zip(entries, rows, columns, strict=True):
        inputs = complex_columns(x[:, mine.flatten()].T).T  # (3, 16), as a left operand's columns
        for operand in range(2):
            y = inputs @ right_tile(entry[:, 2 * operand], entry[:, 2 * operand + 1])
            y_ref = x[:, mine.flatten()] @ matrix[mine.flatten()][:, ours[operand]]
            assert_close(torch.complex(y[:, ::2], y[:, 1::2]), y_ref, EXACT)


@pytest.mark.parametrize("dtype", mma_operands.TYPES)
def test_words_round_once(dtype):
    x = torch.randn(3, 32, 4, 2, dtype=torch.float64)
    table = mma_operands.words(x, dtype)
    assert table.shape == (3, mma_operands.planes(dtype), 32, 4) and table.dtype == torch.int32
    assert_close(numbers(table, dtype), x, ROUNDED[dtype])
    if dtype != torch.float32:
        assert torch.equal(numbers(table, dtype), x.to(dtype).double())


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("factors", FACTORS)
def test_stages_are_unitary(factors, source):
    for make in (Stages.natural, shuffled):
        stages = make(factors, source)
        for axis, size in enumerate(factors):
            matrix = stages.dft(axis)
            assert_close(matrix @ matrix.conj().T, torch.eye(size, dtype=torch.complex128), EXACT)
            turn = stages.twiddle(axis, torch.arange(stages.behind(axis)))
            assert (turn.abs() - 1).abs().max() < EXACT
        assert (stages.dft(0)[:, 1].angle().abs().min() > 0) == (source != "complex")  # a quarter of a bin up, or none


@pytest.mark.parametrize("factors", FACTORS)
def test_stages_one_after_another_are_the_transform(factors):
    """dft and twiddle, axis by axis, give the spectrum in the order of `frequencies`, and back."""
    for source in ("real", "complex"):
        stages = shuffled(factors, source)
        x = randc(stages.points) if source == "complex" else torch.randn(stages.points).to(torch.complex128)
        data = x.view(1, *factors)
        for axis in range(len(factors)):
            data = data.reshape(-1, factors[axis], stages.behind(axis))
            data = (stages.dft(axis) @ data) * stages.twiddle(axis, torch.arange(stages.behind(axis)))
        quarter = torch.exp(-2j * math.pi * torch.arange(stages.points).double() / (4 * stages.points))
        x_f = torch.fft.fft(x * (quarter if source == "real" else 1)) / math.sqrt(stages.points)
        assert_close(data.flatten(), x_f[stages.frequencies().flatten()], EXACT)
        if source == "real":
            assert_close(x_f, spectrum(x.real[None], stages.points)[0] / math.sqrt(stages.points), EXACT)


def product_of(table: torch.Tensor, tiles: int, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix that left operands make up."""
    parts = [left_tile(entry) for entry in numbers(table, dtype)]
    return torch.cat([torch.cat(parts[i * steps : (i + 1) * steps], 1) for i in range(tiles)])


def as_complex(rows: torch.Tensor) -> torch.Tensor:
    """(2 F, C) of every 8 the real, then the imaginary parts -> (F, C) complex."""
    parts = rows.unflatten(0, (-1, 2, 8))
    return torch.complex(parts[:, 0], parts[:, 1]).flatten(0, 1)


@pytest.mark.parametrize("dtype", mma_operands.TYPES)
@pytest.mark.parametrize("factors", [(16, 8, 16), (48, 16, 32), (32, 32, 16)])
@pytest.mark.parametrize("source", SOURCES)
def test_outer_stages_as_a_warp_multiplies_them(factors, source, dtype):
    stages, x = shuffled(factors, source), None
    for axis, size in enumerate(factors[:-1]):
        matrix = stages.dft(axis)
        real_input = axis == 0 and source == "real"
        table = stages.forward(axis, dtype)
        there = product_of(table, size // 8, size // (16 if real_input else 8), dtype)
        x = torch.randn(size, 4, dtype=torch.float64) if real_input else randc(size, 4)
        y = as_complex(there @ (x if real_input else complex_columns(x)))
        assert_close(y, matrix @ x.to(torch.complex128), ROUNDED[dtype])
        real_output = axis == 0 and source != "complex"
        back = product_of(stages.inverse(axis, dtype), size // (16 if real_output else 8), size // 8, dtype)
        z = back @ complex_columns(y)
        once_more = z if real_output else as_complex(z)
        assert_close(once_more, x.real if real_output else x.to(torch.complex128), 2 * ROUNDED[dtype])  # the identity


@pytest.mark.parametrize("dtype", mma_operands.TYPES)
@pytest.mark.parametrize("size", [16, 32])
def test_the_inner_stage_as_a_warp_multiplies_it(size, dtype):
    """Rows of quads: lane 4 g + t reads four numbers, number 4 (t + 4 l) of row g and on, and writes them there."""
    stages = shuffled((16, size))
    x, tiles, loads = randc(8, size), size // 8, size // 16
    there = numbers(stages.forward(1, dtype), dtype)
    y = torch.zeros(8, size, dtype=torch.complex128)
    for k in range(tiles):  # a step takes one half of the quads of each thread: left(x0, x1, 2 (k % 2))
        mine = torch.tensor([4 * (t + 4 * (k // 2)) + 2 * (k % 2) for t in range(4)])
        inputs = torch.stack([mine, mine + 1])  # columns 2t, 2t + 1 of the product, and 2t + 8, 2t + 9
        left = complex_columns(x[:, inputs.flatten()].T).T
        for tile in range(tiles):
            entry = there[k * tiles + tile]
            for q in range(2):
                part = left @ right_tile(entry[:, 2 * q], entry[:, 2 * q + 1])
                y[:, 8 * tile + 4 * q : 8 * tile + 4 * q + 4] += torch.complex(part[:, ::2], part[:, 1::2])
    assert_close(y, x @ stages.dft(1).T, ROUNDED[dtype])
    back, z = numbers(stages.inverse(1, dtype), dtype), torch.zeros(8, size, dtype=torch.complex128)
    for load in range(loads):
        for i in range(2 * tiles):
            tile, half = i // 2, i % 2
            left = complex_columns(y[:, 8 * tile : 8 * tile + 8].T).T  # a product's results are the next one's inputs
            entry = back[(tile * loads + load) * 2 + half]
            for q in range(2):
                part = left @ right_tile(entry[:, 2 * q], entry[:, 2 * q + 1])
                column = [4 * (j + 4 * load) + 2 * half + q for j in range(4)]
                z[:, column] += torch.complex(part[:, ::2], part[:, 1::2])
    assert_close(z, x, 2 * ROUNDED[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factors", [(16, 16, 16), (16, 8, 16, 16)])
def test_the_way_back_through_the_core_as_a_warp_multiplies_it(factors, dtype):
    """Rows f of the last stage's results go back to columns n of it, and these to rows m of the stage before.

    Both times from the left, on results where they lie: first (slots, f), whose rows n come out in the order
    4 (g / 2) + 2 i + g % 2, then (f, n), of every 8 rows f the real parts before the imaginary ones.
    """
    stages, z = shuffled(factors), randc(16, 16)  # (f, slots)
    *_, middle, inner = range(len(factors))
    assert stages.core(dtype) and not stages.core(torch.float32) and not shuffled((16, 16)).core(dtype)
    back_inner, back = (numbers(stages.inverse(axis, dtype), dtype) for axis in (inner, middle))
    columns = torch.zeros(16, 16, dtype=torch.complex128)  # (n, f)
    for i in range(2):
        tiles = [
            left_tile(back_inner[2 * i + tile]) @ complex_columns(z[:, 8 * tile : 8 * tile + 8].T) for tile in (0, 1)
        ]
        columns[[4 * (g // 2) + 2 * i + g % 2 for g in range(8)]] = as_complex(sum(tiles))
    assert_close(columns, stages.dft(inner).conj().T @ z.T, ROUNDED[dtype])
    rows = torch.zeros(16, 16, dtype=torch.complex128)  # (m, n)
    for tile in range(2):
        for r in range(2):
            eight = columns[:, 8 * r : 8 * r + 8].T
            rows[8 * tile : 8 * tile + 8] += as_complex(
                left_tile(back[2 * tile + r]) @ torch.cat([eight.real, eight.imag])
            )
    assert_close(rows, stages.dft(middle).conj().T @ columns.T, ROUNDED[dtype])


@pytest.mark.parametrize("factors", FACTORS)
def test_turns_and_steps_are_the_twiddles(factors):
    """From every 4th column, of many every 8th, the kernel multiplies on, column by column."""
    stages = shuffled(factors)
    for axis in range(len(factors) - 1):
        behind = stages.behind(axis)
        every = 4 if axis == len(factors) - 2 or behind <= 256 else 8  # `TURN` of cuda/call.cuh
        turns, steps = (torch.view_as_complex(t.double()) for t in (stages.turns(axis), stages.steps(axis)))
        assert turns.shape == (factors[axis], behind // every) and steps.shape == (factors[axis],)
        columns = turns[:, :, None] * steps[:, None, None] ** torch.arange(every)
        assert_close(columns.flatten(1), stages.twiddle(axis, torch.arange(behind)), 1e-6)


@pytest.mark.parametrize("dtype", mma_operands.TYPES)
@pytest.mark.parametrize("factors", [(16, 16), (32, 32), (16, 8, 16), (16, 16, 32)])
def test_spectra_lie_where_products_leave_their_results(factors, dtype):
    """Lane 4 g + t has of a tile the rows g and g + 8 at columns t and t + 4, as d0, d1 and d2, d3 of two products."""
    stages = shuffled(factors)
    k_f = randc(3, stages.points) / 10
    table, size = stages.spectra(k_f, dtype), factors[-1]
    natural = k_f[:, stages.frequencies().flatten()].view(3, -1, 16, size)  # (filter, unit, row, slot)
    if dtype == torch.float32:
        found = (
            table.view(torch.float32)
            .view(3, -1, size // 8, 2, 32, 4)
            .transpose(3, 4)
            .reshape(3, -1, size // 8, 32, 4, 2)
        )
    else:
        found = table.view(torch.float16).view(3, -1, size // 8, 32, 4, 2)
    found = torch.view_as_complex(found.double().contiguous())  # (filter, unit, tile, lane, number)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for i in range(4):
            half, row = i // 2, g + 8 * (i % 2)
            slots = torch.arange(size // 8) * 8 + 4 * half + t
            mine = natural[:, :, row, slots]
            assert_close(found[:, :, :, lane, i], mine, 1e-6 if dtype == torch.float32 else ROUNDED[torch.float16])


# --- masks -----------------------------------------------------------------------------------------------------------


def bits_by_hand(kept: np.ndarray, axis: int) -> list[int]:
    """For every group of prefixes, one bit for each 8 digits of the axis that lead to a live tile."""
    sides = tile_sides(kept.shape)
    live = np.zeros_like(kept)
    for where in zip(*np.nonzero(kept), strict=True):  # a tile lives as a whole
        live[tuple(slice(i // s * s, i // s * s + s) for i, s in zip(where, sides, strict=True))] = True
    p = kept.ndim
    flat = live.reshape(math.prod(kept.shape[:axis]), kept.shape[axis], -1).any(-1)
    group = 1 if axis == 0 else 16 if axis == p - 1 else 8
    words = []
    for start in range(0, len(flat), group):
        reached = flat[start : start + group].any(0).reshape(-1, 8).any(1)
        words.append(sum(1 << int(tile) for tile in np.nonzero(reached)[0]))
    return words


@pytest.mark.parametrize("factors", [(16, 16), (32, 32), (16, 8, 16), (32, 16, 32), (16, 8, 8, 16)])
@pytest.mark.parametrize("share", [0.002, 0.1, 1.0])
def test_live_bits(factors, share):
    kept = torch.rand(factors, generator=torch.Generator().manual_seed(3)) < share
    kept.view(-1)[7] = True
    tables = Stages.natural(factors).live(kept)
    for axis, table in enumerate(tables):
        assert table.dtype == torch.int32 and table.tolist() == bits_by_hand(kept.numpy(), axis)
    if share == 1:
        full = [(1 << size // 8) - 1 for size in factors]
        assert all((table == bits).all() for table, bits in zip(tables, full, strict=True))


def test_a_lone_bin_lights_one_way():
    factors = (32, 16, 32)
    kept = torch.zeros(factors, dtype=torch.bool)
    kept[17, 3, 30] = True
    first, middle, inner = Stages.natural(factors).live(kept)
    assert first.tolist() == [1 << 2]
    assert middle.tolist() == [0, 0, 0b11, 0]  # a word for 8 of 32 prefixes; on this axis 16 digits live together
    assert inner.nonzero().flatten().tolist() == list(range(16, 24)) and inner[16] == 1 << 3


@pytest.mark.parametrize("factors", [(16, 16), (16, 8, 16), (32, 16, 32)])
def test_kept_bins_have_live_tiles(factors):
    """Whatever the order of the slots: every bin of a mask is computed, and a full mask lights every bit."""
    from sparsify.gpu import backend as gpu

    m = math.prod(factors)
    for mask in (BlockMask.low_pass(m, 0.1, factors), BlockMask.comb(m, 0.2, factors)):
        orders, kept = gpu.slots(mask.bins(), factors)
        stages = Stages(factors, orders)
        assert torch.equal(kept.flatten(), mask.bins()[stages.frequencies().flatten()])
        assert all(sorted(order) == list(range(size)) for order, size in zip(orders, factors, strict=True))
        inner = stages.live(kept)[-1]
        tile = kept.reshape(-1, 16, factors[-1] // 8, 8).any(3).any(1)
        lit = inner[:, None] >> torch.arange(factors[-1] // 8) & 1
        assert (lit.bool() | ~tile).all()


def test_frequencies_are_digits():
    stages = Stages.natural((16, 8, 32))
    parts = digits(stages.frequencies(), (16, 8, 32))
    for axis, part in enumerate(parts):
        shape = [1, 1, 1]
        shape[axis] = -1
        assert torch.equal(part, torch.arange(stages.factors[axis]).view(shape).expand(16, 8, 32))


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", mma_operands.TYPES)
@pytest.mark.parametrize("taps", [32, 64, 160])
def test_toeplitz_operands_convolve(taps, dtype):
    """32 outputs from T + 32 samples; lane 4 g + t reads 8 of them, sample 8 t of a step's 32 and on."""
    head, u = torch.randn(2, taps, dtype=torch.float64), torch.randn(taps + 32, dtype=torch.float64)
    table = numbers(mma_operands.toeplitz(head, dtype), dtype)
    assert table.shape == (2, (taps // 32 + 1) * 4, 32, 4, 2)
    y = torch.zeros(2, 32, dtype=torch.float64)
    for step in range(taps // 32 + 1):
        for half in range(2):
            mine = [32 * step + 8 * t + 4 * half + i for t in range(4) for i in (0, 1)]
            mine += [32 * step + 8 * t + 4 * half + i for t in range(4) for i in (2, 3)]
            for two in range(2):
                entry = table[:, (step * 2 + half) * 2 + two]
                for j in range(2):
                    for h in range(2):
                        part = u[mine] @ right_tile(entry[h, :, 2 * j], entry[h, :, 2 * j + 1])
                        # column 2c and 2c + 1 of the product stand for outputs 8 c + 4 e + (2 two + j)
                        for column, value in enumerate(part):
                            y[h, column // 2 * 8 + column % 2 * 4 + 2 * two + j] += value
    y_ref = torch.stack([sum(head[:, d] * u[taps + i - d] for d in range(taps)) for i in range(32)], 1)
    assert_close(y, y_ref, ROUNDED[dtype])
