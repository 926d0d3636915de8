// What stands around the long convolution of a Hyena operator, in tiles of V tokens by V channels.
#pragma once

#include "dense.h"
#include "rows.h"

namespace {

constexpr int64_t TILES = 8;  // tiles of tokens that one thread takes at a time

struct Tokens {  // a stretch of tokens of one sequence
    int64_t b, start, stop;
};

INLINE int64_t stretches(int64_t seqlen) { return (seqlen + TILES * V - 1) / (TILES * V); }

INLINE Tokens stretch(int64_t item, int64_t seqlen) {
    int64_t many = stretches(seqlen), start = item % many * TILES * V;
    return {item / many, start, smaller(start + TILES * V, seqlen)};
}

INLINE float* channel(const Signal& s, int64_t b, int64_t h) {
    return (float*)s.data + b * s.batch_stride + h * s.channel_stride;
}

// A vector of up to V channels that lie side by side.
template <typename T>
INLINE vec some(const T* p, int64_t count) {
    if (count >= V) return take(p);
    float part[V] = {};
    for (int64_t i = 0; i < count; i++) part[i] = widen(p[i]);
    return load(part);
}

template <typename T>
INLINE void put_some(T* p, vec x, int64_t count) {
    if (count >= V) return give(p, x);
    float part[V];
    store(part, x);
    for (int64_t i = 0; i < count; i++) narrow(part[i], p + i);
}

// Rows `tile`, one a token, to columns: channel i of `to` gets `tokens` values at `start`.
// past: store past the caches.
INLINE void put_columns(const Signal& to, int64_t b, int64_t h, int64_t channels, int64_t start, int64_t tokens, vec* tile,
                        bool past) {
    transpose(tile);
    for (int64_t i = 0; i < V && i < channels; i++) {
        float* p = channel(to, b, h + i) + start;
        if (past && tokens == V && (uintptr_t)p % sizeof(vec) == 0)
            store_past(p, tile[i]);
        else
            put_some(p, tile[i], tokens);
    }
}

// The short filter of V channels, from column `column` on, at token t.  z: that column of token 0; weight: (taps, 3 D).
template <typename T>
INLINE vec short_filter(const ShortGate& c, const T* z, const T* history, int64_t t, int64_t column, int64_t count,
                        const float* weight) {
    const int64_t columns = 3 * c.width, before = c.taps - 1;
    vec y = c.bias ? some(c.bias + column, count) : vec{};
    for (int64_t j = 0; j < c.taps; j++) {
        const int64_t from = t - before + j;
        const T* seen = from >= 0 ? z + from * columns : history ? history + (from + before) * columns : nullptr;
        if (seen) y += some(weight + j * columns + column, count) * some(seen, count);
    }
    return y;
}

// The same for three taps, whole vectors, and tokens that lie before t.
template <typename T>
struct ThreeTaps {
    vec weight[3], bias;
    const T* z;
    int64_t columns;

    ThreeTaps(const ShortGate& c, const T* z, int64_t column, const float* w) : z(z), columns(3 * c.width) {
        for (int j = 0; j < 3; j++) weight[j] = load(w + j * columns + column);
        bias = c.bias ? load(c.bias + column) : vec{};
    }
    vec operator()(int64_t t) const {
        const T* at = z + t * columns;
        return bias + weight[0] * take(at - 2 * columns) + weight[1] * take(at - columns) + weight[2] * take(at);
    }
};

template <typename T>
void short_gate_tokens(const ShortGate& c, const T* all_z, const T* all_history, const float* weight, Tokens tokens) {
    const int64_t D = c.width, alone = c.alone, left = (alone + 1) % 3, right = (alone + 2) % 3;
    const bool past = c.batch * D * c.g.channel_stride > LARGE;  // of all tokens, of which these may be a few
    for (int64_t h = 0; h < D; h += V) {  // tokens inside: what a channel gets lies side by side
        const int64_t count = smaller(V, D - h);
        const T* z = all_z + tokens.b * c.seqlen * 3 * D + h;
        const T* history = all_history ? all_history + tokens.b * (c.taps - 1) * 3 * D + h : nullptr;
        auto slowly = [&](int64_t t, int64_t part) {
            return short_filter(c, z + part * D, history ? history + part * D : nullptr, t, part * D + h, count, weight);
        };
        for (int64_t t = tokens.start; t < tokens.stop; t += V) {
            const int64_t many = smaller(V, tokens.stop - t);
            vec x0[V], g[V];
            if (c.taps == 3 && count == V && many == V && t >= 2) {
                auto third = [&](int64_t part) { return ThreeTaps<T>(c, z + part * D, part * D + h, weight); };
                const ThreeTaps<T> first = third(alone), one = third(left), other = third(right);
                for (int64_t i = 0; i < V; i++) x0[i] = first(t + i), g[i] = one(t + i) * other(t + i);
            } else {
                for (int64_t i = 0; i < V; i++) {
                    x0[i] = i < many ? slowly(t + i, alone) : vec{};
                    g[i] = i < many ? slowly(t + i, left) * slowly(t + i, right) : vec{};
                }
            }
            put_columns(c.x0, tokens.b, h, count, t, many, x0, past);
            put_columns(c.g, tokens.b, h, count, t, many, g, past);
        }
    }
}

template <typename T>
void columns_tokens(const Turn& c, const T* rows, Tokens tokens) {
    const bool past = c.batch * c.channels * c.y.channel_stride > LARGE;
    rows += tokens.b * c.seqlen * c.channels;
    for (int64_t h = 0; h < c.channels; h += V) {
        const int64_t count = smaller(V, c.channels - h);
        for (int64_t t = tokens.start; t < tokens.stop; t += V) {
            const int64_t many = smaller(V, tokens.stop - t);
            vec tile[V];
            for (int64_t i = 0; i < V; i++) tile[i] = i < many ? some(rows + (t + i) * c.channels + h, count) : vec{};
            put_columns(c.y, tokens.b, h, count, t, many, tile, past);
        }
    }
}

template <typename T>
void rows_tokens(const Turn& c, T* rows, Tokens tokens) {
    for (int64_t h = 0; h < c.channels; h += V) {
        const int64_t count = smaller(V, c.channels - h);
        for (int64_t t = tokens.start; t < tokens.stop; t += V) {
            const int64_t many = smaller(V, tokens.stop - t);
            vec tile[V];
            for (int64_t i = 0; i < V; i++) tile[i] = i < count ? some(channel(c.y, tokens.b, h + i) + t, many) : vec{};
            transpose(tile);
            for (int64_t i = 0; i < many; i++)
                put_some(rows + (tokens.b * c.seqlen + t + i) * c.channels + h, tile[i], count);
        }
    }
}

}  // namespace
