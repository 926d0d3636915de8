// The middle of a convolution: the last stage, the product with the spectrum and the way back, without leaving registers.
#pragma once
#include "stages.cuh"
#include "toeplitz.cuh"

// Four numbers of a spectrum, those that go with one tile of `inner`: halves beside 16-bit signals, float32 beside float32.
struct Spectrum { chunk part[PLANES]; };
DEVICE Spectrum read_spectrum(const chunk* spectra, long long entry) {
    Spectrum four;
#pragma unroll
    for (int p = 0; p < PLANES; p++) four.part[p] = load_chunk(spectra + (entry * PLANES + p) * 32 + threadIdx.x % 32);
    return four;
}
DEVICE pair number(const Spectrum& four, int i) {
    if (TYPE != FLOAT) return {low_half(word_of(four.part[0], i)), high_half(word_of(four.part[0], i))};
    const chunk& two = four.part[i / 2 * (PLANES - 1)];
    return i % 2 ? pair{as_float(two.z), as_float(two.w)} : pair{as_float(two.x), as_float(two.y)};
}

// The channel of a row: where its spectra begin, in rows of them, and what joins them.
struct Channel { long long rows; Weight weight; };
DEVICE Channel channel_of(const Call& call, unsigned row) {
    const int channel = (row < call.rows ? row : call.rows - 1) / (call.batch * call.blocks * call.outer);
    return {channel * (long long)call.outer, weight_of(call, channel)};
}
DEVICE pair weighted(const Spectrum& four, int i, const Weight& weight) {
    const pair k = number(four, i);
    if (SKIP_APART) return k;
    return {k.re * weight.spectrum + weight.skip, k.im * weight.spectrum};
}

// A table of right operands that fits in registers stays there.
template <int COUNT> struct Operands {
    static constexpr bool KEPT = COUNT * PLANES <= 4;
    const chunk* entries;
    Data kept[KEPT ? COUNT : 1];
    DEVICE_MEMBER Operands(const chunk* entries) : entries(entries) {
        if (KEPT)
#pragma unroll
            for (int i = 0; i < COUNT; i++) kept[i] = table(entries, i);
    }
    DEVICE_MEMBER Data at(int i) const { return KEPT ? kept[KEPT ? i : 0] : table(entries, i); }
};

// The last stage, the product with the spectrum and the way back, without leaving the registers.
DEVICE void inner(const Call& call, unsigned row0, int outer, const Shared& data) {
    constexpr int N = Axis<P - 1>::N, QUADS = N / 4, LOADS = N / 16, TILES = N / 8, BEFORE = Axis<P - 2>::N, OWN = M / N / 16;
    const int g = lane_g(), t = lane_t();
    const Operands<TILES * TILES> there(call.forward[P - 1]), back(call.inverse[P - 1]);
    const Channel only = channel_of(call, row0);
    const Share<ROWS * OWN, (BEFORE > 16 ? BEFORE / 16 : 1)> share;
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[2][4];
        const auto twiddles = [&](int l) {
#pragma unroll
            for (int d = 0; d < 2; d++) {
                const int f = (16 * share.unit(run, 0) + g + 8 * d) % BEFORE;
                fill(w[d], 0, conjugate(load_pair(call.turns[P - 2] + f * QUADS + t + 4 * l)),
                     conjugate(load_pair(call.steps[P - 2] + f)));
            }
        };
        if (LOADS == 1) twiddles(0);
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j), own = unit % OWN;
            const word bits = MASKED ? load_word(call.live[P - 1] + outer * OWN + own) : ~0u;
            if (!bits) continue;
            const Channel channel = ROWS > 1 ? channel_of(call, row0 + unit / OWN) : only;
            const long long first = ((channel.rows + outer) * OWN + own) * TILES;
            Spectrum k_f[TILES];  // the long way from memory starts before the products
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                if (bits >> tile & 1) k_f[tile] = read_spectrum(call.spectra, first + tile);
            const auto from = data.find((16 * unit + g) * QUADS + t);
            Data x[2][LOADS];
#pragma unroll
            for (int i = 0; i < 2 * LOADS; i++) x[i / LOADS][i % LOADS] = data.load(from, i / LOADS * 8 * QUADS + i % LOADS * 4);
            Data z[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (!(bits >> tile & 1)) continue;
                float c[2][4] = {};
#pragma unroll
                for (int k = 0; k < TILES; k++) {
                    const Data a = left(x[0][k / 2], x[1][k / 2], k % 2 * 2), b = there.at(k * TILES + tile);
#pragma unroll
                    for (int q = 0; q < 2; q++) multiply(c[q], a, b, 2 * q, b, 2 * q + 1);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const pair y = times({c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]}, weighted(k_f[tile], i, channel.weight));
                    put(z[tile], i, y.re, y.im);
                }
            }
#pragma unroll
            for (int l = 0; l < LOADS; l++) {
                if (LOADS > 1) twiddles(l);
                float c[4][4] = {};
#pragma unroll
                for (int i = 0; i < 2 * TILES; i++) {
                    const int tile = i / 2, half = i % 2;
                    if (!(bits >> tile & 1)) continue;
                    const Data b = back.at((tile * LOADS + l) * 2 + half);
#pragma unroll
                    for (int q = 0; q < 2; q++) multiply(c[2 * half + q], z[tile], b, 2 * q, b, 2 * q + 1);
                }
#pragma unroll
                for (int d = 0; d < 2; d++) {
                    Data out;
#pragma unroll
                    for (int q = 0; q < 4; q++) {
                        const pair y = times({c[q][2 * d], c[q][2 * d + 1]}, w[d][q]);
                        put(out, q, y.re, y.im);
                    }
                    data.store(from, d * 8 * QUADS + l * 4, out);
                }
            }
        }
    }
}

// The last two stages of 16 x 16 numbers, the product with the spectrum, and the way back, all without leaving the registers:
// two prefixes a warp at a time.  Each product comes out as the operand of the next.  Of prefix e, lane 4 g + t has
//   after stage P - 1    rows f = g, g + 8, columns n = 4t .. 4t + 3    as left operands (rows, n)
//   after stage P        rows f = g, g + 8 of that stage's digits       as right operands (digits, f)
//   on the way back      rows n = 4 (g / 2) + 2 i + g % 2, columns f = 8 r + 2t, 8 r + 2t + 1    as right operands (f, n)
//   at the end           rows m = g, g + 8 of stage P - 1, columns n = 4t .. 4t + 3
struct Core {
    static constexpr int OWN = M / 256;              // prefixes of a row
    static constexpr int BEFORE = CORE ? P - 3 : 0;  // the axis before
    const Call& call;
    const Matrix<2, 2> back, back_inner;
    const Operands<4> there_inner;
    pair w_there[2][4], w_back[2][2][2];

    DEVICE_MEMBER Core(const Call& call)
        : call(call), back(call.inverse[P - 2]), back_inner(call.inverse[P - 1]), there_inner(call.forward[P - 1]) {
        const int g = lane_g(), t = lane_t();
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const int f = 8 * tile + g;
            fill(w_there[tile], 0, load_pair(call.turns[P - 2] + 4 * f + t), load_pair(call.steps[P - 2] + f));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = i / 2, e = i % 2, f = 8 * r + 2 * t + e;
            const pair step = conjugate(load_pair(call.steps[P - 2] + f));
            pair w = conjugate(load_pair(call.turns[P - 2] + 4 * f + g / 2));
            if (g % 2) w = times(w, step);
            w_back[0][r][e] = w, w_back[1][r][e] = times(w, times(step, step));
        }
    }

    // Stage P - 1 of both prefixes.
    DEVICE_MEMBER void there(const Data (&x)[2][2], Data (&rows)[2][2]) const {
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            float c[4][4] = {};
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const Data a = table(call.forward[P - 2], tile * 2 + k);  // read anew: registers are few
#pragma unroll
                for (int q = 0; q < 4; q++) multiply(c[q], a, x[k][0], q, x[k][1], q);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int e = i / 4, q = i % 4;
                const pair z = times({c[q][e], c[q][2 + e]}, w_there[tile][q]);
                put(rows[e][q / 2], q % 2 * 2 + tile, z.re, z.im);
            }
        }
    }

    // Stage P of one prefix, the product with its spectrum, and stage P backwards.
    DEVICE_MEMBER void middle(const Data (&rows)[2], const Spectrum (&k_f)[2], word bits, Weight weight,
                              Data (&columns)[2]) const {
        float y[2][2][4] = {};
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            if (!(bits >> tile & 1)) continue;
            float c[2][4] = {};
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int q = 0; q < 2; q++) {
                    const Data b = there_inner.at(k * 2 + tile);
                    multiply(c[q], rows[k], b, 2 * q, b, 2 * q + 1);
                }
            Data z;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const pair sum = {c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]};
                const pair product = times(sum, weighted(k_f[tile], i, weight));
                put(z, i % 2 * 2 + i / 2, product.re, product.im);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int r = 0; r < 2; r++) multiply(y[i][r], back_inner.at(i, tile), z, 2 * r, z, 2 * r + 1);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&c)[4] = y[i / 2][i % 2];
            const pair one = times({c[0], c[2]}, w_back[i / 2][i % 2][0]), two = times({c[1], c[3]}, w_back[i / 2][i % 2][1]);
            put(columns[i / 2], i % 2 * 2, one.re, two.re), put(columns[i / 2], i % 2 * 2 + 1, one.im, two.im);
        }
    }

    // Stage P - 1 of one prefix backwards, and the twiddles of the stage before.
    DEVICE_MEMBER void home(const Data (&columns)[2], int prefix, const Shared& data) const {
        const int g = lane_g(), t = lane_t(), f = prefix % Axis<BEFORE>::N;
        const pair step = conjugate(load_pair(call.steps[BEFORE] + f));
        const auto to = data.find((prefix * 16 + g) * 4 + t);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            float c[2][4] = {};
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int i = 0; i < 2; i++) multiply(c[i], back.at(tile, r), columns[i], 2 * r, columns[i], 2 * r + 1);
            pair w[4];
            fill(w, 0, conjugate(load_pair(call.turns[BEFORE] + 64 * f + 4 * (8 * tile + g) + t)), step);
            Data out;
#pragma unroll
            for (int q = 0; q < 4; q++) {
                const pair z = times({c[q / 2][q % 2], c[q / 2][2 + q % 2]}, w[q]);
                put(out, q, z.re, z.im);
            }
            data.store(to, 32 * tile, out);
        }
    }
};

DEVICE void core(const Call& call, unsigned row0, int outer, const Shared& data) {
    constexpr int OWN = Core::OWN;
    const int g = lane_g(), t = lane_t();
    const Core stages(call);
    const Channel only = channel_of(call, row0);
#pragma unroll 1
    for (int unit = warp(); unit < ROWS * OWN / 2; unit += WARPS) {
        const Channel channel = ROWS > 1 ? channel_of(call, row0 + 2 * unit / OWN) : only;
        const int own = 2 * unit % OWN;
        word bits[2];
#pragma unroll
        for (int e = 0; e < 2; e++) bits[e] = MASKED ? load_word(call.live[P - 1] + outer * OWN + own + e) : ~0u;
        if (!(bits[0] | bits[1])) continue;
        Spectrum k_f[2][2];  // the long way from memory starts before the products
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (bits[i / 2] >> i % 2 & 1)
                k_f[i / 2][i % 2] = read_spectrum(call.spectra, ((channel.rows + outer) * OWN + own) * 2 + i);
        const auto from = data.find(((2 * unit + g % 2) * 16 + t) * 4 + g / 2);
        Data x[2][2], rows[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i / 2][i % 2] = data.load(from, 16 * i);
        stages.there(x, rows);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (!bits[e]) continue;
            Data columns[2];
            stages.middle(rows[e], k_f[e], bits[e], channel.weight, columns);
            stages.home(columns, 2 * unit + e, data);
        }
    }
}
