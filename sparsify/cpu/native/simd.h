// Vectors of LANES floats: the compiler's own vector types, so that one source makes every instruction set.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {  // every instruction set compiles its own copy; nothing of it may be shared by the linker

constexpr int V = LANES;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4)));  // the same at any address

INLINE vec load(const float* p) { return *(const loose*)p; }
INLINE void store(float* p, vec x) { *(loose*)p = x; }

// Past the caches, for results that nobody reads soon: p must be aligned to a vector.
INLINE void store_past(float* p, vec x) {
#if LANES == 16
    _mm512_stream_ps(p, (__m512)x);
#elif LANES == 8
    _mm256_stream_ps(p, (__m256)x);
#else
    store(p, x);
#endif
}

INLINE vec all(float x) { return x - vec{}; }

// V complex numbers
struct Complex {
    vec re, im;
};

INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
INLINE Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
INLINE Complex turn_back(Complex a, Complex w) {  // a * conj(w)
    return {a.re * w.re + a.im * w.im, a.im * w.re - a.re * w.im};
}

// A number times -i on the way forward, i on the way back.
template <bool BACK>
INLINE Complex quarter(Complex a) {
    return BACK ? Complex{-a.im, a.re} : Complex{a.im, -a.re};
}

// x[V] holds V rows of V numbers; swaps rows and columns.  Every step is one shuffle within or between 128-bit lanes.
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#if LANES == 16
#define MIX_LOW(a, b) MIX(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define MIX_HIGH(a, b) MIX(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define PAIRS_LOW(a, b) MIX(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define PAIRS_HIGH(a, b) MIX(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN_QUADS(a, b) MIX(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD_QUADS(a, b) MIX(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#elif LANES == 8
#define MIX_LOW(a, b) MIX(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define MIX_HIGH(a, b) MIX(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define PAIRS_LOW(a, b) MIX(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define PAIRS_HIGH(a, b) MIX(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN_QUADS(a, b) MIX(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ODD_QUADS(a, b) MIX(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define MIX_LOW(a, b) MIX(a, b, 0, 4, 1, 5)
#define MIX_HIGH(a, b) MIX(a, b, 2, 6, 3, 7)
#define PAIRS_LOW(a, b) MIX(a, b, 0, 1, 4, 5)
#define PAIRS_HIGH(a, b) MIX(a, b, 2, 3, 6, 7)
#endif

INLINE void transpose(vec* x) {
    constexpr int Q = V / 4;
    vec quad[V];  // quad[4 q + c]: in 128-bit lane i, column 4 i + c of rows 4 q .. 4 q + 3
    for (int q = 0; q < V; q += 4) {
        vec a = MIX_LOW(x[q], x[q + 1]), b = MIX_HIGH(x[q], x[q + 1]);
        vec c = MIX_LOW(x[q + 2], x[q + 3]), d = MIX_HIGH(x[q + 2], x[q + 3]);
        quad[q] = PAIRS_LOW(a, c);
        quad[q + 1] = PAIRS_HIGH(a, c);
        quad[q + 2] = PAIRS_LOW(b, d);
        quad[q + 3] = PAIRS_HIGH(b, d);
    }
    for (int c = 0; c < 4; c++) {
        if constexpr (Q == 1) {
            x[c] = quad[c];
        } else {
#if LANES == 8
            x[c] = EVEN_QUADS(quad[c], quad[4 + c]);
            x[4 + c] = ODD_QUADS(quad[c], quad[4 + c]);
#elif LANES == 16
            vec even_low = EVEN_QUADS(quad[c], quad[4 + c]), even_high = EVEN_QUADS(quad[8 + c], quad[12 + c]);
            vec odd_low = ODD_QUADS(quad[c], quad[4 + c]), odd_high = ODD_QUADS(quad[8 + c], quad[12 + c]);
            x[c] = EVEN_QUADS(even_low, even_high);
            x[4 + c] = EVEN_QUADS(odd_low, odd_high);
            x[8 + c] = ODD_QUADS(even_low, even_high);
            x[12 + c] = ODD_QUADS(odd_low, odd_high);
#endif
        }
    }
}

}  // namespace
