// The parts that a convolution may be the sum of, each for one row.
#pragma once

#include "signal.h"

namespace {

struct Scratch {
    float *seen, *sum, *z, *re, *im, *low, *k_f;  // low: the decimated signal, or the folds of a comb
};

constexpr int64_t LARGE = 1 << 22;  // samples of a result that no cache holds anyway
constexpr int64_t LONG = 512;      // samples of a row from which on the processor foresees where it goes on
constexpr int64_t STRETCH = 1024;  // samples worked on at a time where no transform says otherwise: they stay in L1

// Taps at lags -lookahead .. count - 1 - lookahead, as the complex signal whose spectrum with shift 1/4 is theirs:
// lag d wraps to d mod N, by a factor of i for every time round, theta^N being -i.
void wrap_taps(const float* taps, int64_t count, int64_t lookahead, int64_t n, float* re, float* im) {
    memset(re, 0, sizeof(float) * n);
    memset(im, 0, sizeof(float) * n);
    for (int64_t j = 0; j < count; j++) {
        int64_t lag = j - lookahead;
        if (lag >= 0 && lag < n) re[lag] = taps[j];
        if (lag < 0 && lag + n >= 0) im[lag + n] = taps[j];
    }
}

void taps_spectrum(const Transform* t, const float* taps, int64_t count, int64_t lookahead, const Scratch& s, float* k_f) {
    if (t->shift != 0) {
        wrap_taps(taps, count, lookahead, t->n, s.re, s.im);
        spectrum(t, s.re, s.im, s.z, k_f, 1.0f / (float)t->n);
    } else {
        memset(s.re, 0, sizeof(float) * t->n);
        memcpy(s.re, taps, sizeof(float) * count);
        spectrum(t, s.re, nullptr, s.z, k_f, 1.0f / (float)t->n);
    }
}

// Few taps sample by sample: sums of `count` samples from `start` on.
void direct_part(const Direct& p, const Input& in, int64_t h, int64_t start, int64_t count, float* seen, float* sum) {
    constexpr int many = 4;  // vectors at a time: enough to hide the latency of a multiply-add
    const float* k = p.taps + h * p.count;
    const int64_t history = p.count - 1 - p.lookahead;
    const float* g = in.see(start - history, history + (count + many * V - 1) / (many * V) * many * V + p.lookahead, seen);
    g += history + p.lookahead;
    for (int64_t t = 0; t < count; t += many * V) {
        vec y[many] = {};
        for (int64_t j = 0; j < p.count; j++)
            for (int i = 0; i < many; i++) y[i] += all(k[j]) * load(g + t - j + V * i);
        for (int i = 0; i < many; i++) store(sum + t + V * i, y[i]);
    }
}

// Sums of V rows, lane i that of x[i]: a tree that halves the rows and adds at every step.
INLINE vec sums(const vec* x) {
    vec four[V / 4];
    for (int q = 0; q < V / 4; q++) {
        const vec* r = x + 4 * q;
        vec ab = MIX_LOW(r[0], r[1]) + MIX_HIGH(r[0], r[1]), cd = MIX_LOW(r[2], r[3]) + MIX_HIGH(r[2], r[3]);
        four[q] = PAIRS_LOW(ab, cd) + PAIRS_HIGH(ab, cd);
    }
#if LANES == 16
    vec low = EVEN_QUADS(four[0], four[1]) + ODD_QUADS(four[0], four[1]);
    vec high = EVEN_QUADS(four[2], four[3]) + ODD_QUADS(four[2], four[3]);
    return EVEN_QUADS(low, high) + ODD_QUADS(low, high);
#elif LANES == 8
    return EVEN_QUADS(four[0], four[1]) + ODD_QUADS(four[0], four[1]);
#else
    return four[0];
#endif
}

INLINE int64_t decimated_length(const Decimated& p, int64_t seqlen) { return (seqlen + p.rate - 1) / p.rate + p.width; }

// v[i] = sum over x of window[x] g[rate i - span + x]: what the window, centred on every `rate`th sample, sees.

// V of them where the rate is half a vector: two neighbours start in one vector, the later one in its middle, so it
// takes the window half a vector early, margin first, and both read the same vectors of g.
template <int CHUNKS>
void decimate_pairs(const float* window, const float* g, float* v) {
    vec early[CHUNKS], late[CHUNKS + 1], seen[V / 2 + CHUNKS], sum[V];
    for (int x = 0; x < CHUNKS; x++) early[x] = load(window + MARGIN + V * x);
    for (int x = 0; x <= CHUNKS; x++) late[x] = load(window + MARGIN - V / 2 + V * x);
    for (int x = 0; x < V / 2 + CHUNKS; x++) seen[x] = load(g + V * x);
    for (int j = 0; j < V; j += 2) {
        const vec* from = seen + j / 2;
        vec a = from[0] * early[0], b = from[0] * late[0];
        for (int x = 1; x < CHUNKS; x++) a += from[x] * early[x], b += from[x] * late[x];
        sum[j] = a, sum[j + 1] = b + from[CHUNKS] * late[CHUNKS];
    }
    store(v, sums(sum));
}

template <int CHUNKS>
void decimate_dots(const float* window, int64_t rate, const float* g, float* v) {
    vec sum[V];
    for (int j = 0; j < V; j++) {
        vec acc = load(g + rate * j) * load(window + MARGIN);
        for (int x = 1; x < CHUNKS; x++) acc += load(g + rate * j + V * x) * load(window + MARGIN + V * x);
        sum[j] = acc;
    }
    store(v, sums(sum));
}

void decimate(const Decimated& p, const Input& in, int64_t count, float* seen, float* v) {
    const int64_t span = p.width * p.rate, many = larger(STRETCH / p.rate / V, 1) * V;
    for (int64_t first = 0; first < count; first += many) {
        const float* g = in.see(p.rate * first - span, p.rate * many + span + V, seen);
        for (int64_t i = 0; i < many; i += V, g += V * p.rate) {
            float* to = v + first + i;
            const float* w = p.window;
            if (span == 4 * V && 2 * p.rate == V) {
                decimate_pairs<4>(w, g, to);
                continue;
            }
            switch (span / V) {
                case 1: decimate_dots<1>(w, p.rate, g, to); break;
                case 2: decimate_dots<2>(w, p.rate, g, to); break;
                case 4: decimate_dots<4>(w, p.rate, g, to); break;
                case 8: decimate_dots<8>(w, p.rate, g, to); break;
                case 16: decimate_dots<16>(w, p.rate, g, to); break;
                case 32: decimate_dots<32>(w, p.rate, g, to); break;
                case 64: decimate_dots<64>(w, p.rate, g, to); break;
                case 128: decimate_dots<128>(w, p.rate, g, to); break;
            }
        }
    }
}

// to[t - start] = sum[t - start] + sum over i of window[t - rate i + span] c[i];  `to` may be `sum`.
// ROWS: how many i meet a vector of t.
template <int ROWS, bool PAST>
void interpolate_rows(const Decimated& p, const float* c, int64_t start, int64_t count, const float* sum, float* to) {
    vec w[ROWS];
    for (int i = 0; i < ROWS; i++) w[i] = load(p.window + MARGIN + (p.width - i - 1) * p.rate);
    c += start / p.rate + 1;
    for (int64_t t = 0; t < count; t += V, c += V / p.rate) {
        vec a = load(sum + t), b = vec{};
        for (int i = 0; i + 1 < ROWS; i += 2) {
            a += all(c[i]) * w[i];
            b += all(c[i + 1]) * w[i + 1];
        }
        if (ROWS % 2) a += all(c[ROWS - 1]) * w[ROWS - 1];
        PAST ? store_past(to + t, a + b) : store(to + t, a + b);
    }
}

template <bool PAST>
void interpolate(const Decimated& p, const float* c, int64_t start, int64_t count, const float* sum, float* to) {
    if (V % p.rate == 0 && start % p.rate == 0 && p.width == 8) switch (V / p.rate) {
            case 1: return interpolate_rows<8, PAST>(p, c, start, count, sum, to);
            case 2: return interpolate_rows<9, PAST>(p, c, start, count, sum, to);
            case 4: return interpolate_rows<11, PAST>(p, c, start, count, sum, to);
            case 8: return interpolate_rows<15, PAST>(p, c, start, count, sum, to);
        }
    for (int64_t t = start; t < start + count; t += V) {
        const int64_t first = t / p.rate + 1, last = (t + V - 1) / p.rate + p.width;
        vec y = load(sum + t - start);
        for (int64_t i = first; i <= last; i++) y += all(c[i]) * load(p.window + MARGIN + t - p.rate * (i - p.width));
        PAST ? store_past(to + t - start, y) : store(to + t - start, y);
    }
}

// Samples start .. start + count - 1 of the result: `sum` and the interpolated decimated part, finished and stored.
void put_decimated(const Decimated& p, const Input& in, const Output& out, const float* c, int64_t start, int64_t count,
                   float* sum, float* buffer) {
    const int64_t straight = out.direct() ? count / V * V : 0;  // whole vectors need no second look
    float* y = (float*)out.y.data + start;
    if (out.past && (uintptr_t)y % sizeof(vec) == 0)
        interpolate<true>(p, c, start, straight, sum, y);
    else
        interpolate<false>(p, c, start, straight, sum, y);
    interpolate<false>(p, c, start + straight, count - straight, sum + straight, sum + straight);
    out.put(in, start + straight, count - straight, sum + straight, buffer);
}

// The decimated signal of the row, convolved: into s.low, with zeros for as far as the last vector of time looks.
void decimated_part(const Decimated& p, const Input& in, int64_t h, const Scratch& s) {
    const Transform* t = p.low.transform;
    const int64_t count = decimated_length(p, in.seqlen);
    decimate(p, in, count, s.seen, s.low);
    memset(s.low + count, 0, sizeof(float) * (t->n - count));
    convolve(t, s.low, nullptr, p.low.spectra + 2 * t->n * h, s.z, s.low, nullptr);
    memset(s.low + t->n, 0, sizeof(float) * V);
}

// A comb's residues, one by one: the row folded onto M points with a phase for every fold, and convolved.
// folded: (residues, 2, M), real and imaginary part; phase: (residues, folds, 2).
void comb_parts(const Comb& p, const Input& in, int64_t h, const float* phase, float* folded, const Scratch& s) {
    constexpr int many = 4;  // vectors at a time: neighbours in memory
    const int64_t M = p.transforms[0]->n, folds = (in.seqlen + M - 1) / M;
    const float* g = in.see(0, folds * M, s.seen);
    for (int64_t r = 0; r < p.residues; r++, phase += 2 * folds, folded += 2 * M) {
        for (int64_t m = 0; m < M; m += many * V) {
            vec re[many] = {}, im[many] = {};
            for (int64_t i = 0; i < folds; i++)
                for (int j = 0; j < many; j++) {
                    vec x = load(g + i * M + m + V * j);
                    re[j] += all(phase[2 * i]) * x;
                    im[j] += all(phase[2 * i + 1]) * x;
                }
            for (int j = 0; j < many; j++) store(folded + m + V * j, re[j]), store(folded + M + m + V * j, im[j]);
        }
        convolve(p.transforms[r], folded, folded + M, p.spectra[r] + 2 * M * h, s.z, folded, folded + M);
    }
}

// sum[m] = the residues' results at fold i, sample m: the real part of the conjugate phase times each.
void unfold(const Comb& p, int64_t i, int64_t folds, int64_t m, int64_t count, const float* phase, const float* folded,
            float* sum) {
    const int64_t M = p.transforms[0]->n;
    for (int64_t at = 0; at < count; at += V) {
        vec y = vec{};
        for (int64_t r = 0; r < p.residues; r++) {
            const float *c = phase + 2 * (r * folds + i), *x = folded + 2 * M * r + m + at;
            y += all(c[0]) * load(x) + all(c[1]) * load(x + M);
        }
        store(sum + at, y);
    }
}

}  // namespace
