// One row, that is one channel of one sequence: load and gate, the parts of its convolution, gate and store.
#pragma once

#include "call.h"
#include "fft.h"

namespace {

// --- memory of a thread, kept between calls ----------------------------------------------------------------------------

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
    memory += (floats + 15) / 16 * 16 + GAP;
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

INLINE int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

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

// Copies to memory past the caches.
void put_past(float* to, const float* from, int64_t n) {
    int64_t i = 0;
    for (; i < n && (uintptr_t)(to + i) % sizeof(vec); i++) to[i] = from[i];
    for (; i + V <= n; i += V) store_past(to + i, load(from + i));
    for (; i < n; i++) to[i] = from[i];
}

struct Row {
    const char* data;
    int64_t stride;  // bytes
    int64_t type;
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

    bool direct() const { return u.type == FLOAT32 && u.stride == 4 && !gate.data; }

    // Samples start .. start + count - 1: where they lie if they can be read as they are, else copied to `buffer`.
    const float* see(int64_t start, int64_t count, float* __restrict buffer) const {
        if (direct() && start >= 0 && start + count <= seqlen) return (const float*)u.data + start;
        const int64_t first = start < 0 ? -start : 0, last = start + count <= seqlen ? count : seqlen - start;
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

    bool direct() const { return y.type == FLOAT32 && y.stride == 4 && !gate.data && skip == 0; }

    // Finish samples start .. start + count - 1, whose sum of parts is `sum`, and store them.
    void put(const Input& in, int64_t start, int64_t count, float* sum, float* buffer) const {
        if (skip != 0) {
            const float* g = in.see(start, count, buffer);
            for (int64_t i = 0; i < count; i++) sum[i] += skip * g[i];
        }
        Row to = y, by = gate;
        to.data += start * y.stride;
        if (by.data) {
            by.data += start * by.stride;
            each_value(by, count, [&](int64_t i, float x) { sum[i] *= x; });
        }
        if (past && y.type == FLOAT32 && y.stride == 4) return put_past((float*)to.data, sum, count);
        if (y.type == FLOAT32) put_row<float>(to, sum, count);
        if (y.type == FLOAT16) put_row<Half>(to, sum, count);
        if (y.type == BFLOAT16) put_row<Brain>(to, sum, count);
    }
};

// --- the parts -----------------------------------------------------------------------------------------------------------

struct Scratch {
    float *seen, *sum, *z, *re, *im, *low, *k_f;  // low: the slow signal, or the folds of a comb
};

constexpr int64_t LARGE = 1 << 22;  // samples of a result that no cache holds anyway
constexpr int64_t TOUCHED = 8192;  // samples fetched at a time
constexpr int64_t LONG = 512;      // samples of a stage's rows from which on the processor follows all of them at once;
                                   // shorter ones are fetched and stored in one go, since memory is quickest in order
constexpr int64_t STRETCH = 1024;  // samples worked on at a time where no transform says otherwise: they stay in L1

// Taps at lags -ahead .. count - 1 - ahead, as the complex signal whose spectrum with shift 1/4 is theirs:
// lag d wraps to d mod N, by a factor of i for every time round, theta^N being -i.
void wrap_taps(const float* taps, int64_t count, int64_t ahead, int64_t n, float* re, float* im) {
    memset(re, 0, sizeof(float) * n);
    memset(im, 0, sizeof(float) * n);
    for (int64_t j = 0; j < count; j++) {
        int64_t lag = j - ahead;
        if (lag >= 0 && lag < n) re[lag] = taps[j];
        if (lag < 0 && lag + n >= 0) im[lag + n] = taps[j];
    }
}

void taps_spectrum(const Transform* t, const float* taps, int64_t count, int64_t ahead, const Scratch& s, float* k_f) {
    if (t->shift != 0) {
        wrap_taps(taps, count, ahead, t->n, s.re, s.im);
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
    const int64_t history = p.count - 1 - p.ahead;
    const float* g = in.see(start - history, history + (count + many * V - 1) / (many * V) * many * V + p.ahead, seen);
    g += history + p.ahead;
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

INLINE int64_t slow_length(const Slow& p, int64_t seqlen) { return (seqlen + p.rate - 1) / p.rate + p.width; }

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

void decimate(const Slow& p, const Input& in, int64_t count, float* seen, float* v) {
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
void interpolate_rows(const Slow& p, const float* c, int64_t start, int64_t count, const float* sum, float* to) {
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
void interpolate(const Slow& p, const float* c, int64_t start, int64_t count, const float* sum, float* to) {
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

// Samples start .. start + count - 1 of the result: `sum` and the interpolated slow part, finished and stored.
void put_slow(const Slow& p, const Input& in, const Output& out, const float* c, int64_t start, int64_t count, float* sum,
              float* buffer) {
    const int64_t straight = out.direct() ? count / V * V : 0;  // whole vectors need no second look
    float* y = (float*)out.y.data + start;
    if (out.past && (uintptr_t)y % sizeof(vec) == 0)
        interpolate<true>(p, c, start, straight, sum, y);
    else
        interpolate<false>(p, c, start, straight, sum, y);
    interpolate<false>(p, c, start + straight, count - straight, sum + straight, sum + straight);
    out.put(in, start + straight, count - straight, sum + straight, buffer);
}

// The slow signal of the row, convolved: into s.low, with zeros for as far as the last vector of time looks.
void slow_part(const Slow& p, const Input& in, int64_t h, const Scratch& s) {
    const Transform* t = p.low.transform;
    const int64_t count = slow_length(p, in.seqlen);
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
        const bool real = p.residue[r] == 0;
        for (int64_t m = 0; m < M; m += many * V) {
            vec re[many] = {}, im[many] = {};
            for (int64_t i = 0; i < folds; i++)
                for (int j = 0; j < many; j++) {
                    vec x = load(g + i * M + m + V * j);
                    re[j] += all(phase[2 * i]) * x;
                    if (!real) im[j] += all(phase[2 * i + 1]) * x;
                }
            for (int j = 0; j < many; j++) store(folded + m + V * j, re[j]), store(folded + M + m + V * j, im[j]);
        }
        convolve(p.transforms[r], folded, real ? nullptr : folded + M, p.spectra[r] + 2 * M * h, s.z, folded,
                 real ? nullptr : folded + M);
        const float weight = real || 2 * p.residue[r] == p.teeth ? 1 : 2;  // the mirror image counts as much
        for (int64_t m = 0; m < 2 * M; m += V) store(folded + m, weight * load(folded + m));
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

// --- a row, from memory to memory ----------------------------------------------------------------------------------------

// How much scratch a row needs, and where its pieces lie.
struct Room {
    int64_t points, row, low;  // of the largest transform; of what is seen or summed at once; of the slow signal
    bool making;               // the spectrum of the whole part is made here

    explicit Room(const Call& c) {
        const int64_t L = c.seqlen;
        points = 0, row = STRETCH + 4 * V, low = 0;
        making = c.whole.transform && !c.whole.spectra;
        auto transform = [&](const Transform* t) { points = larger(points, t->n); };
        if (c.whole.transform) transform(c.whole.transform), row = larger(row, c.whole.transform->n);
        if (c.direct.taps) row = larger(row, STRETCH + c.direct.count + 4 * V);
        if (c.blocks.transform) transform(c.blocks.transform), row = larger(row, 2 * c.blocks.transform->n);
        if (c.slow.rate) {
            transform(c.slow.low.transform);
            const int64_t span = c.slow.width * c.slow.rate;
            low = larger(c.slow.low.transform->n, slow_length(c.slow, L) + larger(STRETCH / c.slow.rate, V)) + V;
            row = larger(row, larger(STRETCH, V * c.slow.rate) + span + 2 * V);
        }
        if (c.comb.residues) {
            const int64_t M = c.comb.transforms[0]->n;
            transform(c.comb.transforms[0]);
            row = larger(row, (L + M - 1) / M * M + 4 * V);
            low = rounded(2 * c.comb.residues * ((L + M - 1) / M)) + 2 * M * c.comb.residues + V;
        }
        row = rounded(row + V), low = rounded(low);
    }
    size_t floats() const { return 2 * row + 6 * points + low + 8 * GAP; }
    Scratch lay(float* memory) const {
        Scratch s;
        s.seen = piece(memory, row);
        s.sum = piece(memory, row);
        s.z = piece(memory, 2 * points);
        s.re = piece(memory, points);
        s.im = piece(memory, points);
        s.low = piece(memory, low);
        s.k_f = piece(memory, 2 * points);
        return s;
    }
};

void whole_row(const Transform* t, const float* k_f, const Input& in, const Output& out, const Scratch& s) {
    const float* g = in.see(0, t->n, s.seen);
    if (out.direct() && t->n == in.seqlen) {
        float* y = (float*)out.y.data;
        const bool past = out.past && (uintptr_t)y % sizeof(vec) == 0;
        return convolve_to(t, g, nullptr, k_f, s.z, in_one_piece(t, y, nullptr, past), true);
    }
    convolve(t, g, nullptr, k_f, s.z, s.sum, nullptr);
    for (int64_t i = 0; i < in.seqlen; i += STRETCH)
        out.put(in, i, in.seqlen - i < STRETCH ? in.seqlen - i : STRETCH, s.sum + i, s.re);
}

// Rows `first` .. of a block's result that lie in the result of the signal as they are: those go straight there, the
// others to `aside`.  sum[i] belongs at y[at + i - history], for history <= i < history + count.
void straight(const Transform* t, float* y, int64_t at, int64_t history, int64_t count, float* aside, float** rows) {
    const int64_t length = t->n / t->stage[0].radix;
    for (int64_t j = 0; j < t->stage[0].radix; j++) {
        const bool inside = j * length >= history && (j + 1) * length <= history + count;
        rows[j] = inside ? y + at - history + j * length : aside + j * length;
    }
}

// Finish what a block left aside.
void put_aside(const Transform* t, const Input& in, const Output& out, int64_t at, int64_t history, int64_t count,
               float* aside, float* const* rows, float* buffer) {
    const int64_t length = t->n / t->stage[0].radix;
    for (int64_t j = 0; j < t->stage[0].radix; j++) {
        if (rows[j] != aside + j * length) continue;
        const int64_t first = larger(j * length, history), stop = (j + 1) * length, end = history + count;
        if (first < (stop < end ? stop : end))
            out.put(in, at + first - history, (stop < end ? stop : end) - first, aside + first, buffer);
    }
}

void comb_row(const Comb& p, int64_t h, const Input& in, const Output& out, const Scratch& s) {
    const int64_t M = p.transforms[0]->n, folds = (in.seqlen + M - 1) / M, L = in.seqlen;
    float *phase = s.low, *folded = s.low + rounded(2 * p.residues * folds);
    for (int64_t r = 0; r < p.residues; r++)
        for (int64_t i = 0; i < folds; i++) {
            float* w = phase + 2 * (r * folds + i);
            root((double)(p.residue[r] * i), (double)p.teeth, w, w + 1);
        }
    comb_parts(p, in, h, phase, folded, s);
    for (int64_t start = 0; start < L; start += STRETCH) {  // what fits L1, cut again where a fold ends
        const int64_t stop = L - start < STRETCH ? L : start + STRETCH;
        for (int64_t t = start; t < stop;) {
            const int64_t i = t / M, end = (i + 1) * M < stop ? (i + 1) * M : stop;
            unfold(p, i, folds, t - i * M, end - t, phase, folded, s.sum + t - start);
            t = end;
        }
        out.put(in, start, stop - start, s.sum, s.re);
    }
}

// Blocks that overlap, two at a time as the real and imaginary part of one signal.
void blocks_row(const Call& c, int64_t h, const Input& in, const Output& out, const Scratch& s) {
    const Blocks& p = c.blocks;
    const Transform* t = p.transform;
    const int64_t n = t->n, L = in.seqlen;
    int64_t history = p.count - 1;
    if (n - history > 4 * V) history = (history + V - 1) / V * V;  // whole vectors, where they cost little
    const int64_t hop = n - history;
    const float* k_f = p.spectra + 2 * n * h;
    const bool in_turns = n / t->stage[0].radix < LONG, direct = out.direct() && !c.slow.rate && !(out.past && in_turns);
    float* y = (float*)out.y.data;
    Rows to;
    to.past = direct && out.past && (uintptr_t)y % sizeof(vec) == 0 && history % V == 0;
    int64_t touched = 0;
    for (int64_t start = 0; start < L; start += 2 * hop) {
        for (; in_turns && in.direct() && touched < L && touched < start + 2 * n; touched += TOUCHED)
            touch((const float*)in.u.data + touched, L - touched < TOUCHED ? L - touched : TOUCHED);
        const bool two = start + hop < L;
        const float* g = in.see(start - (history - p.ahead), two ? n + hop : n, s.seen);
        const int64_t left = L - start, first = left < hop ? left : hop, second = left - hop < hop ? left - hop : hop;
        const int64_t whole = direct ? 1 : -1;  // nothing goes straight where sums must be finished
        straight(t, y, start, history, whole * first, s.re, to.re);
        if (two) straight(t, y, start + hop, history, whole * second, s.im, to.im);
        convolve_to(t, g, two ? g + hop : nullptr, k_f, s.z, to, !two);
        if (c.slow.rate) {
            put_slow(c.slow, in, out, s.low, start, first, s.re + history, s.sum);
            if (two) put_slow(c.slow, in, out, s.low, start + hop, second, s.im + history, s.sum);
            continue;
        }
        put_aside(t, in, out, start, history, first, s.re, to.re, s.sum);
        if (two) put_aside(t, in, out, start + hop, history, second, s.im, to.im, s.sum);
    }
}

// Parts that need no transform of their own here.
void stretches_row(const Call& c, int64_t h, const Input& in, const Output& out, const Scratch& s) {
    for (int64_t start = 0; start < in.seqlen; start += STRETCH) {
        const int64_t count = in.seqlen - start < STRETCH ? in.seqlen - start : STRETCH;
        if (c.direct.taps)
            direct_part(c.direct, in, h, start, count, s.seen, s.sum);
        else
            memset(s.sum, 0, sizeof(float) * (count + V));
        if (c.slow.rate)
            put_slow(c.slow, in, out, s.low, start, count, s.sum, s.seen);
        else
            out.put(in, start, count, s.sum, s.seen);
    }
}

// The row (b, h); k_f: the spectrum of the whole part.
void run_row(const Call& c, const Scratch& s, int64_t b, int64_t h, const float* k_f) {
    const Input in{row_of(c.u, b, h), row_of(c.gate_in, b, h), c.seqlen};
    const bool past = c.batch * c.channels * c.seqlen > LARGE;
    const Output out{row_of(c.y, b, h), row_of(c.gate_out, b, h), c.skip ? c.skip[h] : 0, past};
    if (c.whole.transform) return whole_row(c.whole.transform, k_f, in, out, s);
    if (c.comb.residues) {
        comb_row(c.comb, h, in, out, s);
        return;
    }
    if (c.slow.rate) slow_part(c.slow, in, h, s);
    if (c.blocks.transform)
        blocks_row(c, h, in, out, s);
    else
        stretches_row(c, h, in, out, s);
}

}  // namespace
