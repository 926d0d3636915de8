// One row, that is one channel of one sequence, from memory to memory: its parts, and how they share the passes over it.
#pragma once

#include "parts.h"

namespace {

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
        out.put(in, i, smaller(STRETCH, in.seqlen - i), s.sum + i, s.re);
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
        const int64_t first = larger(j * length, history), stop = smaller((j + 1) * length, history + count);
        if (first < stop) out.put(in, at + first - history, stop - first, aside + first, buffer);
    }
}

void comb_row(const Comb& p, int64_t h, const Input& in, const Output& out, const Scratch& s) {
    const int64_t M = p.transforms[0]->n, folds = (in.seqlen + M - 1) / M, L = in.seqlen;
    float *phase = s.low, *folded = s.low + rounded(2 * p.residues * folds);
    for (int64_t r = 0; r < p.residues; r++)
        for (int64_t i = 0; i < folds; i++) {
            float* w = phase + 2 * (r * folds + i);
            root((p.residue[r] + 0.25) * i, (double)p.teeth, w, w + 1);
        }
    comb_parts(p, in, h, phase, folded, s);
    for (int64_t start = 0; start < L; start += STRETCH) {  // what fits L1, cut again where a fold ends
        const int64_t stop = smaller(L, start + STRETCH);
        for (int64_t t = start; t < stop;) {
            const int64_t i = t / M, end = smaller((i + 1) * M, stop);
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
            touch((const float*)in.u.data + touched, smaller(TOUCHED, L - touched));
        const bool two = start + hop < L;
        const float* g = in.see(start - (history - p.ahead), two ? n + hop : n, s.seen);
        const int64_t left = L - start, first = smaller(hop, left), second = smaller(hop, left - hop);
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
        const int64_t count = smaller(STRETCH, in.seqlen - start);
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
