// What stands between linear layers: norms and gates.
#pragma once

#include "signal.h"

namespace {

typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

// V values that lie side by side.
INLINE vec take(const float* p) { return load(p); }
INLINE vec take(const Brain* p) { return (vec)(__builtin_convertvector(*(const halves*)p, words) << 16); }
INLINE vec take(const Half* p) {
    float part[V];
    for (int i = 0; i < V; i++) part[i] = widen(p[i]);
    return load(part);
}

INLINE void give(float* p, vec x) { store(p, x); }
INLINE void give(Brain* p, vec x) {  // as `narrow` does
    words i = (words)x, rounded = (i + 0x7fff + (i >> 16 & 1)) >> 16;
    *(halves*)p = __builtin_convertvector(x != x ? (rounded & 0) + 0x7fc0 : rounded, halves);
}
INLINE void give(Half* p, vec x) {
    float part[V];
    store(part, x);
    for (int i = 0; i < V; i++) narrow(part[i], p + i);
}

// Calls `go` with a null pointer to values of this type.
template <typename Go>
INLINE void typed(int64_t type, Go go) {
    if (type == FLOAT32) go((float*)nullptr);
    if (type == FLOAT16) go((Half*)nullptr);
    if (type == BFLOAT16) go((Brain*)nullptr);
}

// 2^t for -126 <= t <= 127, relative error 1e-7.
INLINE vec power_of_two(vec t) {
    const vec shift = all(0x1.8p23f);  // adding it rounds to a whole number
    vec n = (t + shift) - shift, f = t - n;
    vec p = all(1.5345811e-4f);  // the polynomial of least relative error on [-1/2, 1/2]
    p = p * f + all(1.33999309e-3f);
    p = p * f + all(9.61848907e-3f);
    p = p * f + all(5.55032864e-2f);
    p = p * f + all(0.240226462f);
    p = p * f + all(0.693147182f);
    p = p * f + all(1.0f);
    return (vec)((ints)p + (__builtin_convertvector(n, ints) << 23));
}

// x (1 + erf(x / sqrt(2))) / 2.  erf by the formula 7.1.26 of Abramowitz and Stegun, absolute error 1.5e-7.
INLINE vec gelu(vec x) {
    vec size = x < vec{} ? -x : x;
    size = size > all(12.0f) ? all(12.0f) : size;  // beyond, the result is x or 0
    const vec t = all(1.0f) / (all(1.0f) + all(0.3275911f * 0.70710678118654752440f) * size);
    vec p = all(1.061405429f);
    p = p * t - all(1.453152027f);
    p = p * t + all(1.421413741f);
    p = p * t - all(0.284496736f);
    p = p * t + all(0.254829592f);
    const vec part = size * (all(0.5f) * p * t * power_of_two(size * size * all(-0.5f * 1.44269504088896340736f)));
    return x < vec{} ? -part : x - part;
}

// One row: y = gelu(gate) * h, with x = [gate | h].
template <typename T>
void gelu_gate_row(const T* x, T* y, int64_t width) {
    int64_t i = 0;
    for (; i + V <= width; i += V) give(y + i, gelu(take(x + i)) * take(x + width + i));
    for (; i < width; i++) narrow(gelu(all(widen(x[i])))[0] * widen(x[width + i]), y + i);
}

void gelu_gate_rows(const GeluGate& c, int64_t start, int64_t stop) {
    typed(c.x.type, [&](auto* x) {
        x = (decltype(x))c.x.data;
        auto* y = (decltype(x))c.y.data;
        for (int64_t r = start; r < stop; r++) gelu_gate_row(x + 2 * r * c.width, y + r * c.width, c.width);
    });
}

INLINE float total(vec x) {
    float part[V], sum = 0;
    store(part, x);
    for (int i = 0; i < V; i++) sum += part[i];
    return sum;
}

// One row: x += sum, unless that is null, and y = the norm of x.
template <typename S, typename Y>
void norm_row(const Norm& c, float* x, const S* sum, Y* y) {
    const int64_t D = c.width, whole = D / V * V;
    vec sums = {}, squares = {};
    float rest = 0;
    for (int64_t i = 0; i < whole; i += V) {
        if (sum) store(x + i, load(x + i) + take(sum + i));
        sums += load(x + i);
    }
    for (int64_t i = whole; i < D; i++) {
        if (sum) x[i] += widen(sum[i]);
        rest += x[i];
    }
    const float mean = (total(sums) + rest) / (float)D;
    rest = 0;
    for (int64_t i = 0; i < whole; i += V) {
        vec off = load(x + i) - all(mean);
        squares += off * off;
    }
    for (int64_t i = whole; i < D; i++) rest += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / sqrtf((total(squares) + rest) / (float)D + c.epsilon);
    for (int64_t i = 0; i < whole; i += V)
        give(y + i, (load(x + i) - all(mean)) * all(scale) * load(c.weight + i) + load(c.bias + i));
    for (int64_t i = whole; i < D; i++) narrow((x[i] - mean) * scale * c.weight[i] + c.bias[i], y + i);
}

void norm_rows(const Norm& c, int64_t start, int64_t stop) {
    typed(c.sum.type, [&](auto* sum) {
        typed(c.y.type, [&](auto* y) {
            sum = (decltype(sum))c.sum.data;
            y = (decltype(y))c.y.data;
            for (int64_t r = start; r < stop; r++)
                norm_row(c, c.x + r * c.width, sum ? sum + r * c.width : nullptr, y + r * c.width);
        });
    });
}

}  // namespace
