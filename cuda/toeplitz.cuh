// Convolutions without a transform: few taps, and windows to a lower rate and back, as matrices on tensor cores.
#pragma once
#include "memory.cuh"
#include "samples.cuh"

// Words i of x and y and words i + 1: a left operand whose 8 complex columns are a quad's half of each of 4 threads.
DEVICE Data left(const Data& x, const Data& y, int i) {
    Data a;
#pragma unroll
    for (int p = 0; p < PLANES; p++)
        a.plane[p] = {word_of(x.plane[p], i), word_of(y.plane[p], i), word_of(x.plane[p], i + 1), word_of(y.plane[p], i + 1)};
    return a;
}

// c += 16 rows of samples times a table of 32 outputs, 32 samples a step.  samples(d, i) reads 8 from number i of row g + 8d
// of the product on.
template <class Samples> DEVICE void convolve_rows(const Samples& samples, int steps, const chunk* entries, float (&c)[4][4]) {
#pragma unroll 1
    for (int step = 0; step < steps; step++, entries += 4 * PLANES * 32) {
        const Data x = samples(0, 32 * step + 8 * lane_t()), y = samples(1, 32 * step + 8 * lane_t());
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Data a = left(x, y, 2 * half);
#pragma unroll
            for (int two = 0; two < 2; two++) {
                const Data b = table(entries, half * 2 + two);
#pragma unroll
                for (int j = 0; j < 2; j++) multiply(c[2 * two + j], a, b, 2 * j, b, 2 * j + 1);
            }
        }
    }
}

// c += head * u for 32 samples of each of 16 rows, as Toeplitz matrices of HEAD taps.  at: the sample that this lane's first
// result belongs to; below: how far the rows of c are apart.  HEAD samples before the 32 go in, too.
DEVICE void convolve_head(const Call& call, const Row& row, int at, int below, float (&c)[4][4]) {
    const int start = at - 8 * lane_t() + call.lookahead - HEAD;
    convolve_rows([&](int d, int i) { return samples(read_gated(call, row, start + 8 * d * below + i)); }, HEAD / 32 + 1,
                  call.head + row.channel * (long long)HEAD_CHUNKS, c);
}

// Filters of at most HEAD taps: 16 pieces of 32 samples a warp at a time.
DEVICE void direct_row(const Call& call, const Row& row) {
    const Share<1, 1> share(((int)call.y.length + 511) / 512);
    for (int unit = share.next; unit < share.stop; unit += share.step) {
        float c[4][4] = {};
        const int at = 512 * unit + 32 * lane_g() + 8 * lane_t();
        const Around around[2] = {read_around(call, row, at), read_around(call, row, at + 8 * 32)};
        convolve_head(call, row, at, 32, c);
        write_tile(call, row, at, 32, c, around);
    }
}

// Every RATEth sample of what a window of SPAN samples sees: v[i] = sum over x of window[x] u[RATE i - SPAN + x].
constexpr int SPAN = 8 * RATE;
DEVICE void decimate_row(const Call& call, const Row& row) {
    constexpr int STEPS = (31 * RATE + SPAN + 31) / 32;
    const Share<1, 1> share(((int)call.y.length + 511) / 512);
    for (int unit = share.next; unit < share.stop; unit += share.step) {
        float c[4][4] = {};
        const int piece = 512 * unit + 32 * lane_g(), start = RATE * piece - SPAN;
        convolve_rows([&](int d, int i) { return samples(read_gated(call, row, start + 8 * 32 * RATE * d + i)); }, STEPS,
                      call.window, c);
        write_tile(call, row, piece + 8 * lane_t(), 32, c, {});
    }
}

// Back through the same window, y[t] = sum over i of window[t - RATE i + SPAN] decimated[i], and a head besides: 16 pieces of
// 8 RATE samples a warp at a time, each from 16 decimated ones.
DEVICE void interpolate_row(const Call& call, const Row& row) {
    const Share<1, 1> share(((int)call.y.length + 16 * SPAN - 1) / (16 * SPAN));
    const float weight = 1 / load_float(call.scale, row.channel);
    for (int unit = share.next; unit < share.stop; unit += share.step) {
        const int piece = 16 * unit + lane_g(), t = lane_t();
        const Data decimated[2] = {samples(read_eight(call.decimated, row, 8 * piece + 8 * t)),
                                   samples(read_eight(call.decimated, row, 8 * piece + 8 * t + 64))};
#pragma unroll 1
        for (int part = 0; part < RATE / 4; part++) {
            const int at = SPAN * piece + 32 * part + 8 * t;
            const Around around[2] = {read_around(call, row, at), read_around(call, row, at + 8 * SPAN)};
            float c[4][4] = {};
            convolve_rows([&](int d, int) { return decimated[d]; }, 1, call.window + part * (4 * 32 * PLANES), c);
#pragma unroll
            for (int i = 0; i < 16; i++) c[i / 4][i % 4] *= weight;  // the head is in units of its scale
            if (HEAD) convolve_head(call, row, at, SPAN, c);
            write_tile(call, row, at, SPAN, c, around);
        }
    }
}
