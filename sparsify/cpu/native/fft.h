// Cyclic convolution of N complex points on the bins (f + shift) / N, in place, nothing ever reordered.
//
//     Z[f] = sum_t z[t] exp(-2 pi i (f + shift) t / N),     N = q * V * V,     q = r0 * r1 * ...  with radices 2 to 9, but for 7
//
// Time is t = V m + lane, so a vector holds V neighbours in time and stage after stage works on whole vectors: stage i
// takes radix ri out of m, by decimation in frequency, with one twiddle for all lanes.  What is left after the stages are
// q blocks of V vectors.  A block does the last V points of m, twiddles lane by lane, transposes, and does the V points
// that lay across the lanes; multiplies by the spectrum, which is stored in the order that has come about; and goes back.
// The recursion is depth first: a block that leaves the first stages stays in cache until its inverse is done.
//
// Bins of shift 1/4 give the right-angle convolution: with z real and N >= L, the real part of the result holds samples
// 0 .. N-1 of the linear convolution and the imaginary part, negated, samples N .. 2N-1.  No zero-padded half is needed.
#pragma once

#include <stdlib.h>

#include "call.h"
#include "simd.h"

namespace {

// --- butterflies: x[R] -> its DFT of R points, in natural order; BACK conjugates -------------------------------------

INLINE Complex scaled(Complex a, float s) { return {a.re * s, a.im * s}; }

template <bool BACK>
INLINE Complex turned(Complex a, float re, float im) {  // a * (re + i im), or its conjugate on the way back
    return a * Complex{all(re), all(BACK ? -im : im)};
}

template <bool BACK>
INLINE void dft2(Complex& a, Complex& b) {
    Complex sum = a + b;
    b = a - b;
    a = sum;
}

template <bool BACK>
INLINE void dft3(Complex& a, Complex& b, Complex& c) {
    Complex sum = b + c, across = quarter<BACK>(scaled(b - c, 0.86602540378443864676f));
    Complex mid = a - scaled(sum, 0.5f);
    a = a + sum;
    b = mid + across;
    c = mid - across;
}

template <bool BACK>
INLINE void dft4(Complex& a, Complex& b, Complex& c, Complex& d) {
    Complex ac = a + c, a_c = a - c, bd = b + d, b_d = quarter<BACK>(b - d);
    a = ac + bd;
    c = ac - bd;
    b = a_c + b_d;
    d = a_c - b_d;
}

template <bool BACK>
INLINE void dft5(Complex& a, Complex& b, Complex& c, Complex& d, Complex& e) {
    constexpr float c1 = 0.30901699437494742410f, c2 = -0.80901699437494742410f;
    constexpr float s1 = 0.95105651629515357212f, s2 = 0.58778525229247312917f;
    Complex be = b + e, b_e = b - e, cd = c + d, c_d = c - d;
    Complex m1 = a + scaled(be, c1) + scaled(cd, c2), m2 = a + scaled(be, c2) + scaled(cd, c1);
    Complex n1 = quarter<BACK>(scaled(b_e, s1) + scaled(c_d, s2)), n2 = quarter<BACK>(scaled(b_e, s2) - scaled(c_d, s1));
    a = a + be + cd;
    b = m1 + n1;
    e = m1 - n1;
    c = m2 + n2;
    d = m2 - n2;
}

template <bool BACK>
INLINE void dft8(Complex* x) {
    constexpr float h = 0.70710678118654752440f;
    dft4<BACK>(x[0], x[2], x[4], x[6]);
    dft4<BACK>(x[1], x[3], x[5], x[7]);
    Complex odd1 = scaled(x[3] + quarter<BACK>(x[3]), h);
    Complex odd2 = quarter<BACK>(x[5]);
    Complex odd3 = scaled(quarter<BACK>(x[7]) - x[7], h);
    Complex e0 = x[0], e1 = x[2], e2 = x[4], e3 = x[6], odd0 = x[1];
    x[0] = e0 + odd0, x[4] = e0 - odd0;
    x[1] = e1 + odd1, x[5] = e1 - odd1;
    x[2] = e2 + odd2, x[6] = e2 - odd2;
    x[3] = e3 + odd3, x[7] = e3 - odd3;
}

template <bool BACK>
INLINE void dft16(Complex* x) {
    constexpr float h = 0.70710678118654752440f, c = 0.92387953251128675613f, s = 0.38268343236508977173f;
    for (int j = 0; j < 4; j++) dft4<BACK>(x[j], x[j + 4], x[j + 8], x[j + 12]);
    x[5] = turned<BACK>(x[5], c, -s);  // row k, column j by exp(-2 pi i k j / 16)
    x[6] = scaled(x[6] + quarter<BACK>(x[6]), h);
    x[7] = turned<BACK>(x[7], s, -c);
    x[9] = scaled(x[9] + quarter<BACK>(x[9]), h);
    x[10] = quarter<BACK>(x[10]);
    x[11] = scaled(quarter<BACK>(x[11]) - x[11], h);
    x[13] = turned<BACK>(x[13], s, -c);
    x[14] = scaled(quarter<BACK>(x[14]) - x[14], h);
    x[15] = turned<BACK>(x[15], -c, s);
    for (int k = 0; k < 4; k++) dft4<BACK>(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
    for (int k = 0; k < 4; k++)  // the result of row k, column j is bin k + 4 j
        for (int j = k + 1; j < 4; j++) {
            Complex swap = x[4 * k + j];
            x[4 * k + j] = x[4 * j + k];
            x[4 * j + k] = swap;
        }
}

// R = A * B with no common factor: no twiddles, only an order (Good and Thomas).
template <bool BACK>
INLINE void dft6(Complex* x) {
    dft2<BACK>(x[0], x[3]);  // columns: n = 3 a + 2 b, so that  n k = 3 a k + 2 b k
    dft2<BACK>(x[2], x[5]);
    dft2<BACK>(x[4], x[1]);
    dft3<BACK>(x[0], x[2], x[4]);  // even bins 0, 4, 2
    dft3<BACK>(x[3], x[5], x[1]);  // odd bins 3, 1, 5
    Complex two = x[4], one = x[5], three = x[3], five = x[1];
    x[4] = x[2], x[2] = two, x[1] = one, x[3] = three, x[5] = five;
}

template <bool BACK>
INLINE void dft9(Complex* x) {
    for (int j = 0; j < 3; j++) dft3<BACK>(x[j], x[j + 3], x[j + 6]);
    x[4] = turned<BACK>(x[4], 0.76604444311897803520f, -0.64278760968653932632f);  // exp(-2 pi i / 9)
    x[5] = turned<BACK>(x[5], 0.17364817766693034885f, -0.98480775301220805937f);  // to the 2
    x[7] = turned<BACK>(x[7], 0.17364817766693034885f, -0.98480775301220805937f);
    x[8] = turned<BACK>(x[8], -0.93969262078590838405f, -0.34202014332566873304f);  // to the 4
    for (int k = 0; k < 3; k++) dft3<BACK>(x[3 * k], x[3 * k + 1], x[3 * k + 2]);
    for (int k = 0; k < 3; k++)  // the result of row k, column j is bin k + 3 j
        for (int j = k + 1; j < 3; j++) {
            Complex swap = x[3 * k + j];
            x[3 * k + j] = x[3 * j + k];
            x[3 * j + k] = swap;
        }
}

template <int R, bool BACK>
INLINE void dft(Complex* x) {
    if constexpr (R == 2) dft2<BACK>(x[0], x[1]);
    if constexpr (R == 3) dft3<BACK>(x[0], x[1], x[2]);
    if constexpr (R == 4) dft4<BACK>(x[0], x[1], x[2], x[3]);
    if constexpr (R == 5) dft5<BACK>(x[0], x[1], x[2], x[3], x[4]);
    if constexpr (R == 6) dft6<BACK>(x);
    if constexpr (R == 8) dft8<BACK>(x);
    if constexpr (R == 9) dft9<BACK>(x);
    if constexpr (R == 16) dft16<BACK>(x);
}

// --- sizes and tables --------------------------------------------------------------------------------------------------

INLINE void root(double over, double n, float* re, float* im) {  // exp(-2 pi i over / n)
    double angle = -2 * M_PI * (fmod(over, n) / n);
    re[0] = (float)cos(angle);
    im[0] = (float)sin(angle);
}

// Radices of q, the largest first; 0 if q has a prime factor beyond 5.
int split_radices(int64_t q, int* radix) {
    int count = 0, twos = 0;
    for (; q % 5 == 0; q /= 5) radix[count++] = 5;
    for (; q % 9 == 0; q /= 9) radix[count++] = 9;
    for (; q % 2 == 0; q /= 2) twos++;
    if (q == 3) radix[count++] = twos % 3 == 1 ? (twos--, 6) : 3;
    if (q != 1 && q != 3) return 0;
    for (; twos >= 5 || twos == 3; twos -= 3) radix[count++] = 8;
    for (; twos >= 2; twos -= 2) radix[count++] = 4;
    if (twos) radix[count++] = 2;
    if (!count) radix[count++] = 1;  // the first stage also reads the signal and turns it by the shift
    return count;
}

bool transform_fits(int64_t n) {
    int radix[64];
    return n > 0 && n % (V * V) == 0 && split_radices(n / (V * V), radix) > 0;
}

constexpr int64_t MERGED = 1 << 14;  // points up to which a table of all twiddles of all blocks stays in the cache

void* aligned(size_t bytes) {
    void* p = nullptr;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? nullptr : p;
}

void transform_free(Transform* t) {
    if (!t) return;
    for (int i = 0; i < t->stages; i++) free((void*)t->stage[i].twiddle);
    free((void*)t->across);
    free((void*)t->inner);
    free(t);
}

// The bin that the stages leave in each block: digit i of its index is fi, and the bin f0 + r0 f1 + r0 r1 f2 + ...
int64_t stage_bin(const Transform* t, int64_t block) {
    int64_t bin = 0, weight = 1, rest = block * V;
    for (int i = 0; i < t->stages; i++) {
        bin += weight * (rest / t->stage[i].rest);
        weight *= t->stage[i].radix;
        rest %= t->stage[i].rest;
    }
    return bin;
}

Transform* transform_new(int64_t n, double shift) {
    int radix[64];
    if (!transform_fits(n)) return nullptr;
    Transform* t = (Transform*)aligned(sizeof(Transform));
    if (!t) return nullptr;
    memset(t, 0, sizeof(Transform));
    t->n = n;
    t->blocks = n / (V * V);
    t->shift = shift;
    t->stages = split_radices(t->blocks, radix);
    int64_t size = n / V;
    for (int i = 0; i < t->stages; i++) {
        Stage& s = t->stage[i];
        s.radix = radix[i];
        s.rest = size / s.radix;
        float* w = (float*)aligned(sizeof(float) * 2 * size);
        s.twiddle = w;
        if (!w) return transform_free(t), nullptr;
        for (int64_t m = 0; m < s.rest; m++)
            for (int f = 0; f < s.radix; f++, w += 2) root((f + (i ? 0 : shift)) * m, size, w, w + 1);
        size = s.rest;
    }
    for (int j = 0; j < t->stage[0].radix; j++) root(shift * j, t->stage[0].radix, t->turn[j], t->turn[j] + 1);
    t->merged = n <= MERGED;
    float* across = (float*)aligned(sizeof(float) * 2 * V * t->blocks);
    float* inner = (float*)aligned(sizeof(float) * 2 * V * V * (t->merged ? t->blocks : 1));
    t->across = across, t->inner = inner;
    if (!across || !inner) return transform_free(t), nullptr;
    for (int64_t b = 0; b < t->blocks; b++) {
        const double bin = stage_bin(t, b) + shift;
        for (int l = 0; l < V; l++) {
            root(bin * l, n, across + 2 * V * b + l, across + 2 * V * b + V + l);
            for (int d = 0; d < V && (t->merged || b == 0); d++) {
                float* w = inner + 2 * V * (V * b + d) + l;
                root((t->merged ? bin + t->blocks * d : t->blocks * d) * l, n, w, w + V);
            }
        }
    }
    return t;
}

// Bins in the order of the spectrum: entry (block, F1, d) is bin  stage bin + blocks * d + N / V * F1.
void transform_bins(const Transform* t, int64_t* bins) {
    for (int64_t b = 0; b < t->blocks; b++)
        for (int f = 0; f < V; f++)
            for (int d = 0; d < V; d++) *bins++ = stage_bin(t, b) + t->blocks * d + t->n / V * f;
}

// --- stages ------------------------------------------------------------------------------------------------------------
// z holds N / V pairs of vectors, (real, imaginary).

INLINE Complex at(const float* z, int64_t i) { return {load(z + 2 * V * i), load(z + 2 * V * i + V)}; }
INLINE void put(float* z, int64_t i, Complex x) {
    store(z + 2 * V * i, x.re);
    store(z + 2 * V * i + V, x.im);
}
INLINE Complex twiddle(const float* w) { return {all(w[0]), all(w[1])}; }

template <int R>
void stage_forward(float* z, const Stage& s) {
    const int64_t M = s.rest;
    const float* w = s.twiddle;
    for (int64_t m = 0; m < M; m++, w += 2 * R) {
        Complex x[R];
        for (int j = 0; j < R; j++) x[j] = at(z, j * M + m);
        dft<R, false>(x);
        put(z, m, x[0]);
        for (int f = 1; f < R; f++) put(z, f * M + m, x[f] * twiddle(w + 2 * f));
    }
}

template <int R>
void stage_back(float* z, const Stage& s) {
    const int64_t M = s.rest;
    const float* w = s.twiddle;
    for (int64_t m = 0; m < M; m++, w += 2 * R) {
        Complex x[R];
        x[0] = at(z, m);
        for (int f = 1; f < R; f++) x[f] = turn_back(at(z, f * M + m), twiddle(w + 2 * f));
        dft<R, true>(x);
        for (int j = 0; j < R; j++) put(z, j * M + m, x[j]);
    }
}

// Where the samples of a signal lie: row j of the first stage, N / radix samples, at re[j] and im[j].
template <typename Float>
struct Rows {
    Float *re[RADIX] = {}, *im[RADIX] = {};  // all of im null: there is no imaginary part

    Rows() = default;
    Rows(const Transform* t, Float* real, Float* imaginary) {  // of a signal that lies in one piece
        const int64_t length = t->n / t->stage[0].radix;
        for (int64_t j = 0; j < t->stage[0].radix; j++) {
            re[j] = real + j * length;
            im[j] = imaginary ? imaginary + j * length : nullptr;
        }
    }
    bool real() const { return !im[0]; }
};

// The first stage, out of the signal.
template <int R, bool REAL, bool SHIFTED>
void first_forward(const Transform* t, const Rows<const float>& from, float* z) {
    const int64_t M = t->stage[0].rest;
    const float* w = t->stage[0].twiddle;
    for (int64_t m = 0; m < M; m++, w += 2 * R) {
        Complex x[R];
        for (int j = 0; j < R; j++) {
            vec a = load(from.re[j] + V * m), b = REAL ? vec{} : load(from.im[j] + V * m);
            x[j] = {a, b};
            if (SHIFTED && j) {
                Complex turn = twiddle(t->turn[j]);
                x[j] = REAL ? Complex{a * turn.re, a * turn.im} : x[j] * turn;
            }
        }
        dft<R, false>(x);
        for (int f = 0; f < R; f++) put(z, f * M + m, SHIFTED || f ? x[f] * twiddle(w + 2 * f) : x[f]);
    }
}

// And its inverse, into a signal; PAST stores past the caches, and rows are aligned to vectors then.
template <int R, bool REAL, bool SHIFTED, bool PAST>
void first_back(const Transform* t, const float* z, const Rows<float>& to) {
    const int64_t M = t->stage[0].rest;
    const float* w = t->stage[0].twiddle;
    for (int64_t m = 0; m < M; m++, w += 2 * R) {
        Complex x[R];
        for (int f = 0; f < R; f++) {
            x[f] = at(z, f * M + m);
            if (SHIFTED || f) x[f] = turn_back(x[f], twiddle(w + 2 * f));
        }
        dft<R, true>(x);
        for (int j = 0; j < R; j++) {
            Complex y = SHIFTED && j ? turn_back(x[j], twiddle(t->turn[j])) : x[j];
            PAST ? store_past(to.re[j] + V * m, y.re) : store(to.re[j] + V * m, y.re);
            if (!REAL) PAST ? store_past(to.im[j] + V * m, y.im) : store(to.im[j] + V * m, y.im);
        }
    }
}

// --- memory that is wanted soon --------------------------------------------------------------------------------------------

// A transform computes for much longer than it reads, so what comes next is fetched meanwhile, a little with every block.
constexpr int64_t LINE = 64;             // bytes of a cache line
constexpr int64_t SPECTRUM_AHEAD = 6144;  // bytes; measured, between 2 and 8 KB it matters little

struct Span {
    const char *at, *end;
    int64_t step;  // bytes a block
};

struct Ahead {
    Span span[2] = {};
};

INLINE void fetch(const char* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(p + i, 0, 2);  // nothing is read, whatever lies there
}

INLINE void fetch_some(Ahead& ahead) {
    for (Span& s : ahead.span)
        if (s.at < s.end) {
            fetch(s.at, s.step);
            s.at += s.step;
        }
}

// --- the block -----------------------------------------------------------------------------------------------------------

INLINE void transpose(Complex* x) {
    vec part[V];
    for (int i = 0; i < V; i++) part[i] = x[i].re;
    transpose(part);
    for (int i = 0; i < V; i++) x[i].re = part[i], part[i] = x[i].im;
    transpose(part);
    for (int i = 0; i < V; i++) x[i].im = part[i];
}

template <bool MERGE>
INLINE void block_forward(const Transform* t, const float* z, int64_t block, Complex* x) {
    const Complex across = at(t->across, block);
    const float* inner = t->inner + (MERGE ? 2 * V * V * block : 0);
    for (int e = 0; e < V; e++) x[e] = MERGE ? at(z, e) : at(z, e) * across;
    dft<V, false>(x);
    for (int d = MERGE ? 0 : 1; d < V; d++) x[d] = x[d] * at(inner, d);
    transpose(x);
    dft<V, false>(x);
}

template <bool MERGE>
void block_convolve(const Transform* t, float* z, int64_t block, const float* k_f) {
    Complex x[V];
    fetch((const char*)(k_f + 2 * V * V * block) + SPECTRUM_AHEAD, sizeof(x));
    block_forward<MERGE>(t, z, block, x);
    for (int f = 0; f < V; f++) x[f] = x[f] * at(k_f + 2 * V * V * block, f);
    dft<V, true>(x);
    transpose(x);
    const float* inner = t->inner + (MERGE ? 2 * V * V * block : 0);
    for (int d = MERGE ? 0 : 1; d < V; d++) x[d] = turn_back(x[d], at(inner, d));
    dft<V, true>(x);
    const Complex across = at(t->across, block);
    for (int e = 0; e < V; e++) put(z, e, MERGE ? x[e] : turn_back(x[e], across));
}

void block_spectrum(const Transform* t, const float* z, int64_t block, float* k_f, float scale) {
    Complex x[V];
    t->merged ? block_forward<true>(t, z, block, x) : block_forward<false>(t, z, block, x);
    for (int f = 0; f < V; f++) put(k_f + 2 * V * V * block, f, scaled(x[f], scale));
}

// --- the whole -----------------------------------------------------------------------------------------------------------

#define EVERY_RADIX(radix, call)            \
    switch (radix) {                        \
        case 1: { constexpr int R = 1; call; break; } \
        case 2: { constexpr int R = 2; call; break; } \
        case 3: { constexpr int R = 3; call; break; } \
        case 4: { constexpr int R = 4; call; break; } \
        case 5: { constexpr int R = 5; call; break; } \
        case 6: { constexpr int R = 6; call; break; } \
        case 8: { constexpr int R = 8; call; break; } \
        case 9: { constexpr int R = 9; call; break; } \
    }

void inner_convolve(const Transform* t, float* z, int level, int64_t block, const float* k_f, Ahead& ahead) {
    if (level == t->stages) {
        fetch_some(ahead);
        return t->merged ? block_convolve<true>(t, z, block, k_f) : block_convolve<false>(t, z, block, k_f);
    }
    const Stage& s = t->stage[level];
    EVERY_RADIX(s.radix, stage_forward<R>(z, s));
    for (int f = 0; f < s.radix; f++)
        inner_convolve(t, z + 2 * V * f * s.rest, level + 1, block + f * s.rest / V, k_f, ahead);
    EVERY_RADIX(s.radix, stage_back<R>(z, s));
}

void inner_spectrum(const Transform* t, float* z, int level, int64_t block, float* k_f, float scale) {
    if (level == t->stages) return block_spectrum(t, z, block, k_f, scale);
    const Stage& s = t->stage[level];
    EVERY_RADIX(s.radix, stage_forward<R>(z, s));
    for (int f = 0; f < s.radix; f++)
        inner_spectrum(t, z + 2 * V * f * s.rest, level + 1, block + f * s.rest / V, k_f, scale);
}

template <bool REAL, bool SHIFTED>
void enter_as(const Transform* t, const Rows<const float>& from, float* z) {
    EVERY_RADIX(t->stage[0].radix, (first_forward<R, REAL, SHIFTED>(t, from, z)));
}

void enter(const Transform* t, const Rows<const float>& from, float* z) {
    if (t->shift != 0) return from.real() ? enter_as<true, true>(t, from, z) : enter_as<false, true>(t, from, z);
    return from.real() ? enter_as<true, false>(t, from, z) : enter_as<false, false>(t, from, z);
}

template <bool REAL, bool SHIFTED>
void leave_as(const Transform* t, const float* z, const Rows<float>& to, bool past) {
    if (past) {
        EVERY_RADIX(t->stage[0].radix, (first_back<R, REAL, SHIFTED, true>(t, z, to)));
    } else {
        EVERY_RADIX(t->stage[0].radix, (first_back<R, REAL, SHIFTED, false>(t, z, to)));
    }
}

void leave(const Transform* t, const float* z, const Rows<float>& to, bool past) {
    if (t->shift != 0) return to.real() ? leave_as<true, true>(t, z, to, past) : leave_as<false, true>(t, z, to, past);
    return to.real() ? leave_as<true, false>(t, z, to, past) : leave_as<false, false>(t, z, to, past);
}

// Spectrum of re + i im, times scale: k_f (N, 2) floats in our order.  z: room for 2 N floats.
void spectrum(const Transform* t, const float* re, const float* im, float* z, float* k_f, float scale) {
    const Stage& s = t->stage[0];
    enter(t, {t, re, im}, z);
    for (int f = 0; f < s.radix; f++) inner_spectrum(t, z + 2 * V * f * s.rest, 1, f * s.rest / V, k_f, scale);
}

// Convolution with the filter behind k_f, from rows to rows; where `to` has no imaginary rows, that part of the result is
// dropped.  past: store past the caches, to rows that are aligned to vectors.  z: as above.
void convolve_rows(const Transform* t, const Rows<const float>& from, const float* k_f, float* z, const Rows<float>& to,
                   bool past, Ahead ahead) {
    const Stage& s = t->stage[0];
    enter(t, from, z);
    for (int f = 0; f < s.radix; f++) inner_convolve(t, z + 2 * V * f * s.rest, 1, f * s.rest / V, k_f, ahead);
    leave(t, z, to, past);
}

// The same, from re and im to y_re and y_im; either im may be null.  May work in place.
void convolve(const Transform* t, const float* re, const float* im, const float* k_f, float* z, float* y_re, float* y_im) {
    convolve_rows(t, {t, re, im}, k_f, z, {t, y_re, y_im}, false, {});
}

}  // namespace
