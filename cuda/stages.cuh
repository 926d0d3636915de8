// The stages of a right-angle convolution of M = N1 N2 .. Np complex points: what one block of WARPS warps does to its ROWS
// rows.  `sparsify/monarch.py` takes the same steps in plain tensors.
//
// Data lie in time order, then, digit by digit, in frequency order: index (f1 .. fi, n(i+1) .. np), the last the fastest.
// A stage is a product of small matrices on tensor cores: 8 complex numbers fill the 16 columns of a left operand, and 8
// complex results its 16 rows, real parts above imaginary ones.  Thread 4 g + t of a warp reads and writes 16 bytes,
// four complex numbers ("a quad") at a time; which column of a product is which column of the data is ours to choose, and
// chosen so that quads never leave their thread.
//
//   first     global -> shared   real samples, N1 at a distance of S1; 64 columns a warp at a time
//   stage     shared -> shared   N complex numbers at a distance of S; 32 columns a warp at a time, in place; there or back
//   inner     shared -> shared   the last stage, the product with the spectrum, and its way back: `spectrum.cuh`
//   last      shared -> global   real parts only; skip, gate and store
//
// A stage that reads and writes the same memory reads all of its columns before the products, and a warp's product needs
// every lane's part: nobody writes what another has still to read.
//
// Masks: a word has a bit for each tile of 8 digits of an axis that leads to anything kept.
#pragma once
#include "toeplitz.cuh"

// Eight (or what there is room for) of w[from] = first, first step, first step^2, ... on the unit circle, by Chebyshev's
// recurrence x[j + 1] = 2 cos(angle) x[j] - x[j - 1]: half the work of products, errors of some 1e-6 after 8 steps.
template <int COUNT> DEVICE void fill(pair (&w)[COUNT], int from, pair first, pair step) {
    const float twice = 2 * step.re;
    w[from] = first, w[from + 1] = times(first, step);
#pragma unroll
    for (int j = from + 2; j < from + 8 && j < COUNT; j++)
        w[j] = {twice * w[j - 1].re - w[j - 2].re, twice * w[j - 1].im - w[j - 2].im};
}

// Four results of a product, columns that this thread has of real and imaginary parts, times four twiddles.
DEVICE Data turned(const float (&c)[4][4], int e, const pair* w) {
    Data data;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const pair z = times({c[j][e], c[j][2 + e]}, w[j]);
        put(data, j, z.re, z.im);
    }
    return data;
}

// Number i of a and number i of b side by side.
DEVICE void side_by_side(const Data& a, const Data& b, int i, word (&both)[PLANES]) {
#pragma unroll
    for (int p = 0; p < PLANES; p++)
        both[p] = select_bytes(word_of(a.plane[p], i / 2), word_of(b.plane[p], i / 2), i % 2 ? 0x7632 : 0x5410);
}

// Stage 1 on samples.  PAST: of a block and of the one before it, x[n - M] standing for i x[n]; else of the block alone.
template <bool PAST, class Sink> DEVICE void first(const Call& call, unsigned row0, const Sink& sink) {
    constexpr int N = Axis<0>::N, S = Axis<0>::S, TILES = N / 8, STEPS = PAST ? N / 8 : N / 16, UNITS = ROWS * S / 64;
    constexpr bool KEPT = TILES <= 2;  // twiddles, 16 for each tile
    const int g = lane_g(), t = lane_t();
    const Matrix<TILES, STEPS> dft(call.forward[0]);
    const word bits = MASKED ? load_word(call.live[0]) : ~0u;
    const int full = PAST ? STEPS : ((int)call.u.length + 16 * S - 1) / (16 * S);  // steps with more than padding
    const Share<UNITS, (S > 64 ? S / 64 : 1)> share;
    const Row only = row_of(call, row0);
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[KEPT ? TILES : 1][16];
        const auto twiddles = [&](int tile) {
            const int f = 8 * tile + g, at = (8 * share.unit(run, 0) + 2 * t) * 8 % S;
            const pair* turn = call.turns[0] + ((long long)f * S + at) / Axis<0>::TURN;
            const pair step = load_pair(call.steps[0] + f);
            fill(w[KEPT ? tile : 0], 0, load_pair(turn), step);
            fill(w[KEPT ? tile : 0], 8, load_pair(turn + 8 / Axis<0>::TURN), step);
        };
        if (KEPT)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) twiddles(tile);
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j);
            const unsigned column = (8 * unit + g) * 8, mine = (8 * unit + 2 * t) * 8;
            const Row row = ROWS > 1 ? row_of(call, row0 + column / S) : only;
            const auto at = [&](int k, int half, int two) {  // where the samples of a lane's step begin
                const int n = PAST ? 8 * k + t + 4 * half : 16 * k + 2 * t + 8 * half + two;
                return row.start + call.lookahead + n * S + (int)(column % S) - (PAST && two ? M : 0);
            };
            Eight x[STEPS][2][2];  // all reads before the first use
#pragma unroll
            for (int i = 0; i < 4 * STEPS; i++)
                x[i / 4][i / 2 % 2][i % 2] = read_eight(row.u, call.u, row, at(i / 4, i / 2 % 2, i % 2));
            if (call.pregate.memory)
#pragma unroll
                for (int i = 0; i < 4 * STEPS; i++) {
                    Eight& own = x[i / 4][i / 2 % 2][i % 2];
                    own = gated(own, read_eight(call.pregate, row, at(i / 4, i / 2 % 2, i % 2)));
                }
            word b[STEPS][2][8][PLANES];
#pragma unroll
            for (int i = 0; i < 2 * STEPS; i++) {
                const Data one = samples(x[i / 2][i % 2][0]), other = samples(x[i / 2][i % 2][1]);
#pragma unroll
                for (int q = 0; q < 8; q++) side_by_side(one, other, q, b[i / 2][i % 2][q]);
            }
            const auto to = sink.find((mine / S * (long long)sink.digits + g) * (S / 4) + mine % S / 4);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (!(bits >> tile & 1)) continue;
                if (!KEPT) twiddles(tile);
                float c[2][4][4] = {};
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    if ((k || !KEPT) && k >= full) break;  // there is always one
                    const Data a = dft.at(tile, k);
#pragma unroll
                    for (int q = 0; q < 8; q++) multiply(c[q / 4][q % 4], a, b[k][0][q], b[k][1][q]);
                }
#pragma unroll
                for (int i = 0; i < 4; i++)  // 16 columns, a quad at a time
                    sink.store(to, 8 * tile * (S / 4) + i, turned(c[i % 2], i / 2, &w[KEPT ? tile : 0][4 * i]));
            }
        }
    }
}

template <int I> DEVICE word live_tiles(const Call& call, int outer, int prefix) {
    constexpr int PREFIXES = M / (Axis<I>::N * Axis<I>::S);
    if (!MASKED) return ~0u;
    return load_word(call.live[I] + (outer * PREFIXES + prefix % PREFIXES) / (I ? 8 : 1));
}

// A quad of a stage's columns: which (prefix, quad) it is, counted over the rows of the block.
template <int I> DEVICE long long quad_of(unsigned column, int n) {
    return (column / Axis<I>::QUADS * (long long)Axis<I>::N + n) * Axis<I>::QUADS + column % Axis<I>::QUADS;
}

// The N complex numbers of 8 quads that a lane has of 32 columns, `quads` apart; those of tiles whose bit is set.
template <int STEPS, class Source>
DEVICE void load_columns(Data (&x)[STEPS][2], const Source& source, typename Source::Place from, int quads, word bits) {
#pragma unroll
    for (int k = 0; k < STEPS; k++)
        if (bits >> k & 1)
#pragma unroll
            for (int half = 0; half < 2; half++) x[k][half] = source.load(from, (8 * k + 4 * half) * quads);
}

// c = a tile of a matrix times these columns.
template <int TILES, int STEPS>
DEVICE void multiply_columns(float (&c)[4][4], const Matrix<TILES, STEPS>& dft, int tile, const Data (&x)[STEPS][2], word bits) {
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (!(bits >> k & 1)) continue;
        const Data a = dft.at(tile, k);
#pragma unroll
        for (int q = 0; q < 4; q++) multiply(c[q], a, x[k][0], q, x[k][1], q);
    }
}

// Twiddles of a quad that comes out of stage I + 1: there its own, at digit f of this axis; back those of the stage before,
// which for I = 0 is an outer one.  quad: counted as by `quad_of`, but for this axis.
template <int I, bool BACK> DEVICE void twiddles(const Call& call, int outer, int quad, int f, pair (&w)[8]) {
    constexpr int S = Axis<I>::S, QUADS = Axis<I>::QUADS, B = I ? I - 1 : 0;
    if constexpr (!BACK) {
        const pair* turn = call.turns[I] + (f * S + 4 * (quad % QUADS)) / Axis<I>::TURN;
        fill(w, 0, load_pair(turn), load_pair(call.steps[I] + f));
    } else {
        const int before = I ? quad / QUADS % Axis<B>::N : outer, column = f * S + 4 * (quad % QUADS);
        const pair* turn = I ? call.turns[B] + (before * Axis<B>::S + column) / Axis<B>::TURN
                             : call.outer_turns + (before * M + column) / 4;
        const pair* step = (I ? call.steps[B] : call.outer_steps) + before;
        fill(w, 0, conjugate(load_pair(turn)), conjugate(load_pair(step)));
    }
}

// Stage I + 1 on complex numbers, there or back, and the twiddles behind it.
template <int I, bool BACK, class Source, class Sink>
DEVICE void stage(const Call& call, int outer, const Source& source, const Sink& sink) {
    constexpr int N = Axis<I>::N, S = Axis<I>::S, QUADS = Axis<I>::QUADS, STEPS = N / 8, UNITS = ROWS * M / (32 * N);
    constexpr int EQUAL = BACK && I ? S * Axis<I ? I - 1 : 0>::N : S;  // columns from one twiddle to the same
    constexpr bool KEPT = STEPS <= 2;
    const int g = lane_g(), t = lane_t();
    const Matrix<STEPS, STEPS> dft(BACK ? call.inverse[I] : call.forward[I]);
    const Share<UNITS, (EQUAL > 32 ? EQUAL / 32 : 1)> share;
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[KEPT ? STEPS : 1][8];
        const auto turn = [&](int tile) {
            twiddles<I, BACK>(call, outer, 8 * share.unit(run, 0) + 2 * t, 8 * tile + g, w[KEPT ? tile : 0]);
        };
        if (KEPT)
#pragma unroll
            for (int tile = 0; tile < STEPS; tile++) turn(tile);
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j);
            const word bits = live_tiles<I>(call, outer, 8 * unit / QUADS);  // of what comes out, on the way back of what goes in
            if (!bits) continue;
            Data x[STEPS][2];
            load_columns(x, source, source.find(quad_of<I>(8 * unit + g, t)), QUADS, BACK ? bits : ~0u);
            const auto to = sink.find(quad_of<I>(8 * unit + 2 * t, g));
#pragma unroll
            for (int tile = 0; tile < STEPS; tile++) {
                if (!BACK && !(bits >> tile & 1)) continue;
                if (!KEPT) turn(tile);
                float c[4][4] = {};
                multiply_columns(c, dft, tile, x, BACK ? bits : ~0u);
#pragma unroll
                for (int e = 0; e < 2; e++) sink.store(to, 8 * tile * QUADS + e, turned(c, e, &w[KEPT ? tile : 0][4 * e]));
            }
        }
    }
}

// Stage 1 backwards, to the real parts, which are the result.
template <class Source> DEVICE void last(const Call& call, unsigned row0, const Source& source) {
    constexpr int N = Axis<0>::N, S = Axis<0>::S, QUADS = Axis<0>::QUADS, TILES = N / 16, STEPS = N / 8;
    const int g = lane_g(), t = lane_t();
    const Matrix<TILES, STEPS> dft(call.inverse[0]);
    const word bits = MASKED ? load_word(call.live[0]) : ~0u;
    const Share<ROWS * S / 32, 1> share;
    const Row only = row_of(call, row0);
    for (int run = share.next; run < share.stop; run += share.step)
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j);
            const unsigned column = 8 * unit + g, mine = 8 * unit + 2 * t;  // unsigned: quotients without a correction
            const auto from = source.find((column / QUADS * (long long)source.digits + t) * QUADS + column % QUADS);
            Data x[STEPS][2];
            load_columns(x, source, from, QUADS, bits);
            const Row row = ROWS > 1 ? row_of(call, row0 + mine / QUADS) : only;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (16 * tile * S + (S < 32 ? 0 : row.start) >= (int)call.y.length) break;  // padding; short rows share a unit
                const int at = row.start + (16 * tile + g) * S + 4 * (mine % QUADS);
                const Around around[2] = {read_around(call, row, at), read_around(call, row, at + 8 * S)};
                float c[4][4] = {};
                multiply_columns(c, dft, tile, x, bits);
                if (HEAD) convolve_head(call, row, at, S, c);
                write_tile(call, row, at, S, c, around);
            }
        }
}
