// What stands around the long convolution of a Hyena operator, in tiles of V tokens by V channels.
#pragma once

#include "rows.h"

namespace {

constexpr int64_t TILES = 4;  // tiles of tokens that one thread takes at a time

struct Tokens {  // a stretch of tokens of one sequence
    int64_t b, start, stop;
};

INLINE int64_t stretches(int64_t seqlen) { return (seqlen + TILES * V - 1) / (TILES * V); }

INLINE Tokens stretch(int64_t item, int64_t seqlen) {
    int64_t many = stretches(seqlen), start = item % many * TILES * V;
    return {item / many, start, start + TILES * V < seqlen ? start + TILES * V : seqlen};
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

// Output of the short filter at token t, for the channels from column `at` on.
INLINE vec short_filter(const ShortGate& c, int64_t b, int64_t t, int64_t at, int64_t count, const float* weight) {
    const int64_t columns = 3 * c.width;
    vec y = c.bias ? some(c.bias + at, count) : vec{};
    for (int64_t j = 0; j < c.taps; j++) {
        const int64_t from = t - (c.taps - 1) + j;
        const float* z = from >= 0   ? c.z + (b * c.seqlen + from) * columns + at
                         : c.history ? c.history + (b * (c.taps - 1) + from + c.taps - 1) * columns + at
                                     : nullptr;
        if (z) y += some(weight + j * columns + at, count) * some(z, count);
    }
    return y;
}

// weight: (taps, 3 D)
void short_gate_tokens(const ShortGate& c, const float* weight, Tokens tokens) {
    const int64_t D = c.width;
    for (int64_t t = tokens.start; t < tokens.stop; t += V) {
        const int64_t many = tokens.stop - t < V ? tokens.stop - t : V;
        for (int64_t h = 0; h < D; h += V) {
            const int64_t count = D - h < V ? D - h : V;
            vec x0[V], g[V];
            for (int64_t i = 0; i < V; i++) {
                if (i < many) {
                    x0[i] = short_filter(c, tokens.b, t + i, h, count, weight);
                    g[i] = short_filter(c, tokens.b, t + i, D + h, count, weight);
                    g[i] *= short_filter(c, tokens.b, t + i, 2 * D + h, count, weight);
                } else {
                    x0[i] = g[i] = vec{};
                }
            }
            put_columns(c.x0, tokens.b, h, count, t, many, x0);
            put_columns(c.g, tokens.b, h, count, t, many, g);
        }
    }
}

void rows_tokens(const ToRows& c, Tokens tokens) {
    for (int64_t t = tokens.start; t < tokens.stop; t += V) {
        const int64_t many = tokens.stop - t < V ? tokens.stop - t : V;
        for (int64_t h = 0; h < c.channels; h += V) {
            const int64_t count = c.channels - h < V ? c.channels - h : V;
            vec tile[V];
            for (int64_t i = 0; i < V; i++) tile[i] = i < count ? some(channel(c.y, tokens.b, h + i) + t, many) : vec{};
            transpose(tile);
            for (int64_t i = 0; i < many; i++)
                put_some(c.rows + (tokens.b * c.seqlen + t + i) * c.channels + h, tile[i], count);
        }
    }
}

}  // namespace
