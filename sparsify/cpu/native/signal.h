// A thread's memory, and the rows of a signal and of a result: read and gated, skipped, gated and stored.
#pragma once

#include "call.h"
#include "fft.h"

namespace {

// --- memory of a thread, kept between calls ----------------------------------------------------------------------------

INLINE int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Under the address sanitizer the pieces of a thread's memory have guarded gaps between them, and begin as nan.
#if defined(__SANITIZE_ADDRESS__)
#define GUARDED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GUARDED 1
#endif
#endif
#ifdef GUARDED
extern "C" void __asan_poison_memory_region(void const volatile*, size_t);
extern "C" void __asan_unpoison_memory_region(void const volatile*, size_t);
constexpr int64_t GAP = 64;
#else
constexpr int64_t GAP = 0;
#endif

// The next piece of `floats`, cut off the front of `memory`.
INLINE float* piece(float*& memory, int64_t floats) {
    float* start = memory;
    memory += rounded(floats) + GAP;
#ifdef GUARDED
    __asan_unpoison_memory_region(start, sizeof(float) * (memory - start));
    memset(start, 0xff, sizeof(float) * (memory - start));
    __asan_poison_memory_region(start + floats, sizeof(float) * (memory - start - floats));
#endif
    return start;
}

struct Arena {
    float* memory = nullptr;
    size_t size = 0;  // floats
    ~Arena() { drop(); }
    void drop() {
#ifdef GUARDED
        __asan_unpoison_memory_region(memory, sizeof(float) * size);
#endif
        free(memory);
    }
    bool grow(size_t floats) {
        if (floats <= size) return true;
        drop();
        memory = (float*)aligned(sizeof(float) * floats);
        size = memory ? floats : 0;
        return memory != nullptr;
    }
};

// --- load and store ------------------------------------------------------------------------------------------------------

INLINE float from_bits(uint32_t i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}
INLINE uint32_t bits_of(float f) {
    uint32_t i;
    memcpy(&i, &f, 4);
    return i;
}

INLINE float widen(float x) { return x; }
struct Half {
    uint16_t bits;
};
struct Brain {
    uint16_t bits;
};
INLINE float widen(Brain x) { return from_bits((uint32_t)x.bits << 16); }
INLINE float widen(Half x) {
    uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = (uint32_t)(x.bits & 0x7fff) << 13;
    float scaled = from_bits(rest) * 0x1p112f;                       // moves the exponent, subnormals included
    uint32_t finite = bits_of(scaled), special = rest | 0x7f800000;  // infinity and nan
    return from_bits(sign | ((x.bits & 0x7c00) == 0x7c00 ? special : finite));
}
INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(float x, Brain* to) {  // to the nearest, ties to even
    uint32_t i = bits_of(x);
    to->bits = (uint16_t)(x != x ? 0x7fc0 : (i + 0x7fff + (i >> 16 & 1)) >> 16);
}
INLINE void narrow(float x, Half* to) {
    uint32_t i = bits_of(x), sign = i >> 16 & 0x8000, rest = i & 0x7fffffff;
    uint32_t tiny = bits_of(from_bits(rest) + 0.5f) - 0x3f000000;  // the adder rounds subnormals
    uint32_t normal = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
    uint32_t huge = rest > 0x7f800000 ? 0x7e00 : 0x7c00;
    to->bits = (uint16_t)(sign | (rest >= 0x47800000 ? huge : rest < 0x38800000 ? tiny : normal));
}

struct Row {
    const char* data;
    int64_t stride;  // bytes
    int64_t type;

    bool plain() const { return data && type == FLOAT32 && stride == 4; }
};

INLINE Row row_of(const Signal& s, int64_t b, int64_t h) {
    int64_t size = s.type == FLOAT32 ? 4 : 2;
    return {s.data ? (const char*)s.data + size * (b * s.batch_stride + h * s.channel_stride) : nullptr,
            size * s.time_stride, s.type};
}

template <typename T, typename Take>
INLINE void each(Row r, int64_t n, Take take) {
    if (r.stride == sizeof(T)) {
        const T* p = (const T*)r.data;
        for (int64_t i = 0; i < n; i++) take(i, p[i]);
    } else {
        for (int64_t i = 0; i < n; i++) take(i, *(const T*)(r.data + i * r.stride));
    }
}

template <typename Take>
INLINE void each_value(Row r, int64_t n, Take take) {
    if (r.type == FLOAT32) each<float>(r, n, [&](int64_t i, float x) { take(i, x); });
    if (r.type == FLOAT16) each<Half>(r, n, [&](int64_t i, Half x) { take(i, widen(x)); });
    if (r.type == BFLOAT16) each<Brain>(r, n, [&](int64_t i, Brain x) { take(i, widen(x)); });
}

template <typename T>
INLINE void put_row(Row r, const float* y, int64_t n) {
    if (r.stride == sizeof(T)) {
        T* p = (T*)r.data;
        for (int64_t i = 0; i < n; i++) narrow(y[i], p + i);
    } else {
        for (int64_t i = 0; i < n; i++) narrow(y[i], (T*)(r.data + i * r.stride));
    }
}

// --- a row of the signal, as the parts see it ----------------------------------------------------------------------------

// The row g = gate_in * u of a call, zero before 0 and from `seqlen` on.
struct Input {
    Row u, gate;
    int64_t seqlen;

    bool direct() const { return u.plain() && !gate.data; }

    // Samples start .. start + count - 1: where they lie if they can be read as they are, else copied to `buffer`.
    const float* see(int64_t start, int64_t count, float* __restrict buffer) const {
        if (direct() && start >= 0 && start + count <= seqlen) return (const float*)u.data + start;
        const int64_t first = start < 0 ? -start : 0, last = smaller(count, seqlen - start);
        if (first >= last) return (const float*)memset(buffer, 0, sizeof(float) * count);
        memset(buffer, 0, sizeof(float) * first);
        Row from = u, by = gate;
        from.data += (start + first) * u.stride;
        by.data += by.data ? (start + first) * by.stride : 0;
        float* g = buffer + first;
        each_value(from, last - first, [&](int64_t i, float x) { g[i] = x; });
        if (by.data) each_value(by, last - first, [&](int64_t i, float x) { g[i] *= x; });
        memset(buffer + last, 0, sizeof(float) * (count - last));
        return buffer;
    }
};

// The row y = gate_out * (sum of parts + skip * g) of a call.
struct Output {
    Row y, gate;
    float skip;
    bool past;  // the tensor is larger than caches are: store past them

    bool direct() const { return y.plain() && !gate.data && skip == 0; }
    bool aligned() const { return (uintptr_t)y.data % sizeof(vec) == 0; }

    // Finish samples start .. start + count - 1, whose sum of parts is `sum`, and store them.
    void put(const Input& in, int64_t start, int64_t count, float* sum, float* buffer) const {
        const float* g = skip != 0 ? in.see(start, count, buffer) : nullptr;
        Row to = y, by = gate;
        to.data += start * y.stride;
        by.data += by.data ? start * by.stride : 0;
        if (to.plain() && (by.plain() || !by.data))
            return put_plain((float*)to.data, sum, g, (const float*)by.data, count);
        if (g)
            for (int64_t i = 0; i < count; i++) sum[i] += skip * g[i];
        if (by.data) each_value(by, count, [&](int64_t i, float x) { sum[i] *= x; });
        if (y.type == FLOAT32) put_row<float>(to, sum, count);
        if (y.type == FLOAT16) put_row<Half>(to, sum, count);
        if (y.type == BFLOAT16) put_row<Brain>(to, sum, count);
    }

    // The same in one pass, where samples are floats that lie side by side; g and by may be null.
    void put_plain(float* to, const float* sum, const float* g, const float* by, int64_t count) const {
        auto one = [&](int64_t i) { to[i] = (sum[i] + (g ? skip * g[i] : 0)) * (by ? by[i] : 1); };
        int64_t i = 0;
        for (; i < count && (uintptr_t)(to + i) % sizeof(vec); i++) one(i);
        for (; i + V <= count; i += V) {
            vec x = load(sum + i);
            if (g) x += all(skip) * load(g + i);
            if (by) x *= load(by + i);
            past ? store_past(to + i, x) : store(to + i, x);
        }
        for (; i < count; i++) one(i);
    }
};

}  // namespace
