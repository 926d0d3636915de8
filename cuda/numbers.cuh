// The numbers that a kernel computes with: 16-bit ones as they are, float32 as the sum of two bfloat16 ("planes").
//
// A word holds one complex number (real part low) or two neighbouring samples; Data is four words, in every plane.
#pragma once
#include "ptx.cuh"

enum Type { HALF, BFLOAT16, FLOAT };
constexpr Type TYPE = (Type)(SPARSIFY_TYPE);
constexpr int PLANES = TYPE == FLOAT ? 2 : 1;   // a float32 keeps 16 bits of its 24: errors near 1e-5
constexpr int BYTES = TYPE == FLOAT ? 4 : 2;    // of a sample in global memory

struct Data { chunk plane[PLANES]; };

DEVICE word& word_of(chunk& a, int i) { return i == 0 ? a.x : i == 1 ? a.y : i == 2 ? a.z : a.w; }
DEVICE word word_of(const chunk& a, int i) { return i == 0 ? a.x : i == 1 ? a.y : i == 2 ? a.z : a.w; }

DEVICE word pack(float low, float high) { return TYPE == HALF ? pack_half(low, high) : pack_bfloat16(low, high); }
DEVICE float low(word a) { return TYPE == HALF ? low_half(a) : as_float(a << 16); }
DEVICE float high(word a) { return TYPE == HALF ? high_half(a) : as_float(a & 0xffff0000u); }

// Put two numbers into word i of every plane; the second plane takes what the first rounds away.
DEVICE void put(Data& data, int i, float a, float b) {
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
        const word both = pack(a, b);
        word_of(data.plane[p], i) = both;
        a -= low(both), b -= high(both);
    }
}
DEVICE pair get(const Data& data, int i) {
    pair sum = {0, 0};
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
        const word both = word_of(data.plane[p], i);
        sum.re += low(both), sum.im += high(both);
    }
    return sum;
}

DEVICE pair times(pair a, pair b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
DEVICE pair conjugate(pair a) { return {a.re, -a.im}; }

// d += a b.  Products of two low parts are below what is kept, and left out.
DEVICE void multiply(float (&d)[4], const Data& a, const word (&b0)[PLANES], const word (&b1)[PLANES]) {
#pragma unroll
    for (int i = PLANES - 1; i >= 0; i--)
#pragma unroll
        for (int j = PLANES - 1 - i; j >= 0; j--)
            if (TYPE == HALF) mma_half(d, a.plane[i], b0[j], b1[j]);
            else mma_bfloat16(d, a.plane[i], b0[j], b1[j]);
}
// The same with the right operand in words i and j of the data x and y.
DEVICE void multiply(float (&d)[4], const Data& a, const Data& x, int i, const Data& y, int j) {
    word b0[PLANES], b1[PLANES];
#pragma unroll
    for (int p = 0; p < PLANES; p++) b0[p] = word_of(x.plane[p], i), b1[p] = word_of(y.plane[p], j);
    multiply(d, a, b0, b1);
}

// Tables lie plane beside plane: entry i for every lane, 16 bytes each.
DEVICE Data table(const chunk* entries, int i) {
    Data data;
#pragma unroll
    for (int p = 0; p < PLANES; p++) data.plane[p] = load_entry(entries + threadIdx.x % 32 + (i * PLANES + p) * 32);
    return data;
}

// A matrix of TILES x STEPS left operands, in registers where it fits.
template <int TILES, int STEPS> struct Matrix {
    static constexpr bool KEPT = TILES * STEPS * PLANES <= 16;
    const chunk* entries;
    Data kept[KEPT ? TILES * STEPS : 1];
    DEVICE_MEMBER Matrix(const chunk* entries) : entries(entries) {
        if (KEPT) {
#pragma unroll
            for (int i = 0; i < TILES * STEPS; i++) kept[i] = table(entries, i);
        }
    }
    DEVICE_MEMBER Data at(int tile, int step) const {
        return KEPT ? kept[KEPT ? tile * STEPS + step : 0] : table(entries, tile * STEPS + step);
    }
};
