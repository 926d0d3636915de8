// What stands around the long convolution of a Hyena operator, in tiles of V tokens by V channels.
#pragma once

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
INLINE vec some(const float* p, int64_t count) {
    if (count >= V) return load(p);
    float part[V] = {};
    for (int64_t i = 0; i < count; i++) part[i] = p[i];
    return load(part);
}

INLINE void put_some(float* p, vec x, int64_t count) {
    if (count >= V) return store(p, x);
    float part[V];
    store(part, x);
    for (int64_t i = 0; i < count; i++) p[i] = part[i];
}

// Rows `tile`, one a token, to columns: channel i of `to` gets `tokens` values at `start`.
INLINE void put_columns(const Signal& to, int64_t b, int64_t h, int64_t channels, int64_t start, int64_t tokens, vec* tile) {
    transpose(tile);
    for (int64_t i = 0; i < V && i < channels; i++) put_some(channel(to, b, h + i) + start, tile[i], tokens);
}

// The short filter of V channels, from column `column` on, at token t.  z: that column of token 0; weight: (taps, 3 D).
INLINE vec short_filter(const ShortGate& c, const float* z, const float* history, int64_t t, int64_t column, int64_t count,
                        const float* weight) {
    const int64_t columns = 3 * c.width, before = c.taps - 1;
    vec y = c.bias ? some(c.bias + column, count) : vec{};
    for (int64_t j = 0; j < c.taps; j++) {
        const int64_t from = t - before + j;
        const float* seen = from >= 0 ? z + from * columns : history ? history + (from + before) * columns : nullptr;
        if (seen) y += some(weight + j * columns + column, count) * some(seen, count);
    }
    return y;
}

// The same for three taps, whole vectors, and tokens that lie before t.
struct ThreeTaps {
    vec weight[3], bias;
    const float* z;
    int64_t columns;

    ThreeTaps(const ShortGate& c, const float* z, int64_t column, const float* w) : z(z), columns(3 * c.width) {
        for (int j = 0; j < 3; j++) weight[j] = load(w + j * columns + column);
        bias = c.bias ? load(c.bias + column) : vec{};
    }
    vec operator()(int64_t t) const {
        const float* at = z + t * columns;
        return bias + weight[0] * load(at - 2 * columns) + weight[1] * load(at - columns) + weight[2] * load(at);
    }
};

void short_gate_tokens(const ShortGate& c, const float* weight, Tokens tokens) {
    const int64_t D = c.width;
    for (int64_t h = 0; h < D; h += V) {  // tokens inside: what a channel gets lies side by side
        const int64_t count = smaller(V, D - h);
        const float* z = c.z + tokens.b * c.seqlen * 3 * D + h;
        const float* history = c.history ? c.history + tokens.b * (c.taps - 1) * 3 * D + h : nullptr;
        auto slowly = [&](int64_t t, int64_t part) {
            return short_filter(c, z + part * D, history ? history + part * D : nullptr, t, part * D + h, count, weight);
        };
        for (int64_t t = tokens.start; t < tokens.stop; t += V) {
            const int64_t many = smaller(V, tokens.stop - t);
            vec x0[V], g[V];
            if (c.taps == 3 && count == V && many == V && t >= 2) {
                const ThreeTaps first(c, z, h, weight), second(c, z + D, D + h, weight), third(c, z + 2 * D, 2 * D + h, weight);
                for (int64_t i = 0; i < V; i++) x0[i] = first(t + i), g[i] = second(t + i) * third(t + i);
            } else {
                for (int64_t i = 0; i < V; i++) {
                    x0[i] = i < many ? slowly(t + i, 0) : vec{};
                    g[i] = i < many ? slowly(t + i, 1) * slowly(t + i, 2) : vec{};
                }
            }
            put_columns(c.x0, tokens.b, h, count, t, many, x0);
            put_columns(c.g, tokens.b, h, count, t, many, g);
        }
    }
}

void rows_tokens(const ToRows& c, Tokens tokens) {
    for (int64_t h = 0; h < c.channels; h += V) {
        const int64_t count = smaller(V, c.channels - h);
        for (int64_t t = tokens.start; t < tokens.stop; t += V) {
            const int64_t many = smaller(V, tokens.stop - t);
            vec tile[V];
            for (int64_t i = 0; i < V; i++) tile[i] = i < count ? some(channel(c.y, tokens.b, h + i) + t, many) : vec{};
            transpose(tile);
            for (int64_t i = 0; i < many; i++)
                put_some(c.rows + (tokens.b * c.seqlen + t + i) * c.channels + h, tile[i], count);
        }
    }
}

}  // namespace
