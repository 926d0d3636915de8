// One row, that is one channel of one sequence, from memory to memory: its parts, and how they share the passes over it.
#pragma once

#include "parts.h"

namespace {

// How much scratch a row needs, and where its pieces lie.
struct Room {
    int64_t points, row, low;  // of the largest transform; of what is seen or summed at once; of the decimated signal
    bool making;               // the spectrum of the whole part is made here

    explicit Room(const Call& c) {
        const int64_t L = c.seqlen;
        points = 0, row = STRETCH + 4 * V, low = 0;
        making = c.whole.transform && !c.whole.spectra;
        auto transform = [&](const Transform* t) { points = larger(points, t->n); };
        if (c.whole.transform) transform(c.whole.transform), row = larger(row, c.whole.transform->n);
        if (c.direct.taps) row = larger(row, STRETCH + c.direct.count + 4 * V);
        if (c.blocks.transform) transform(c.blocks.transform), row = larger(row, 2 * c.blocks.transform->n);
        if (c.decimated.rate) {
            transform(c.decimated.low.transform);
            const int64_t span = c.decimated.width * c.decimated.rate;
            const int64_t length = decimated_length(c.decimated, L) + larger(STRETCH / c.decimated.rate, V);
            low = larger(c.decimated.low.transform->n, length) + V;
            row = larger(row, larger(STRETCH, V * c.decimated.rate) + span + 2 * V);
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

// `count` samples of a row from `start` on, to be fetched with the blocks of a transform.
Span soon(const Transform* t, const Row& u, int64_t seqlen, int64_t start, int64_t count) {
    count = smaller(count, seqlen - start);
    if (!u.data || count <= 0) return {};
    const char* at = u.data + start * u.stride;
    return {at, at + count * u.stride, (count * u.stride / t->blocks + LINE) / LINE * LINE};
}

// Whether the rows of a transform's first stage are so short that the processor does not foresee them: then they are
// fetched by name, and stored to memory in one go.
INLINE bool short_rows(const Transform* t) { return t->n / t->stage[0].radix < LONG; }

// The rows of n samples of the signal from `start` on: where they lie, or copied to `buffer`.
void see_rows(const Transform* t, const Input& in, int64_t start, float* buffer, const float** rows) {
    const int64_t length = t->n / t->stage[0].radix;
    for (int64_t j = 0; j < t->stage[0].radix; j++) rows[j] = in.see(start + j * length, length, buffer + j * length);
}

// The rows of n samples of a result, of which the first `history` are of no use and the next `count` belong at `start`.
// Those that lie in these go straight to where they belong, unless `straight` forbids it; the others to `aside`.
void put_rows(const Transform* t, const Output& out, int64_t start, int64_t history, int64_t count, bool straight,
              float* aside, float** rows) {
    const int64_t length = t->n / t->stage[0].radix;
    float* y = (float*)out.y.data + start - history;
    for (int64_t j = 0; j < t->stage[0].radix; j++) {
        const bool inside = j * length >= history && (j + 1) * length <= history + count;
        rows[j] = (straight && inside ? y : aside) + j * length;
    }
}

// Finish what went aside.
void put_aside(const Transform* t, const Input& in, const Output& out, int64_t start, int64_t history, int64_t count,
               float* aside, float* const* rows, float* buffer) {
    const int64_t length = t->n / t->stage[0].radix;
    for (int64_t j = 0; j < t->stage[0].radix; j++) {
        if (rows[j] != aside + j * length) continue;
        const int64_t first = larger(j * length, history), stop = smaller((j + 1) * length, history + count);
        if (first < stop) out.put(in, start + first - history, stop - first, aside + first, buffer);
    }
}

// next: the row of the signal that this thread works on next, if any.
void whole_row(const Transform* t, const float* k_f, const Input& in, const Output& out, const Scratch& s, const Row& next) {
    const int64_t L = in.seqlen;
    const bool past = out.direct() && out.past && out.aligned();
    Rows<const float> from;
    Rows<float> to;
    see_rows(t, in, 0, s.seen, from.re);
    put_rows(t, out, 0, 0, L, out.direct(), s.sum, to.re);
    const Ahead ahead{{short_rows(t) ? soon(t, next, L, 0, L) : Span{}, soon(t, out.gate, L, 0, L)}};
    convolve_rows(t, from, k_f, s.z, to, past, ahead);
    put_aside(t, in, out, 0, 0, L, s.sum, to.re, s.re);
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
void blocks_row(const Call& c, int64_t h, const Input& in, const Output& out, const Scratch& s, const Row& next) {
    const Blocks& p = c.blocks;
    const Transform* t = p.transform;
    const int64_t n = t->n, L = in.seqlen;
    int64_t history = p.count - 1;
    if (n - history > 4 * V) history = (history + V - 1) / V * V;  // whole vectors, where they cost little
    const int64_t hop = n - history;
    const float* k_f = p.spectra + 2 * n * h;
    const bool straight = out.direct() && !c.decimated.rate && !(out.past && short_rows(t));  // no sum to be finished
    const bool past = straight && out.past && out.aligned() && history % V == 0;
    for (int64_t start = 0; start < L; start += 2 * hop) {
        const int64_t after = start + hop, left = L - start, first = smaller(hop, left), second = smaller(hop, left - hop);
        const bool two = second > 0;
        Rows<const float> from;
        Rows<float> to;
        see_rows(t, in, start - (history - p.lookahead), s.seen, from.re);
        if (two) see_rows(t, in, after - (history - p.lookahead), s.seen + n, from.im);
        put_rows(t, out, start, history, first, straight, s.re, to.re);
        if (two) put_rows(t, out, after, history, second, straight, s.im, to.im);
        const Span follows = left > 2 * hop ? soon(t, in.u, L, start + 2 * hop, 2 * hop) : soon(t, next, L, 0, 2 * hop);
        const Ahead ahead{{follows, soon(t, out.gate, L, start, 2 * hop)}};
        convolve_rows(t, from, k_f, s.z, to, past, ahead);
        if (c.decimated.rate) {
            put_decimated(c.decimated, in, out, s.low, start, first, s.re + history, s.sum);
            if (two) put_decimated(c.decimated, in, out, s.low, after, second, s.im + history, s.sum);
        } else {
            put_aside(t, in, out, start, history, first, s.re, to.re, s.sum);
            if (two) put_aside(t, in, out, after, history, second, s.im, to.im, s.sum);
        }
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
        if (c.decimated.rate)
            put_decimated(c.decimated, in, out, s.low, start, count, s.sum, s.seen);
        else
            out.put(in, start, count, s.sum, s.seen);
    }
}

// The row (b, h); k_f: the spectrum of the whole part; next: as in whole_row.
void run_row(const Call& c, const Scratch& s, int64_t b, int64_t h, const float* k_f, const Row& next) {
    const Input in{row_of(c.u, b, h), row_of(c.gate_in, b, h), c.seqlen};
    const bool past = c.batch * c.channels * c.seqlen > LARGE;
    const Output out{row_of(c.y, b, h), row_of(c.gate_out, b, h), c.skip ? c.skip[h] : 0, past};
    if (c.whole.transform) return whole_row(c.whole.transform, k_f, in, out, s, next);
    if (c.comb.residues) {
        comb_row(c.comb, h, in, out, s);
        return;
    }
    if (c.decimated.rate) decimated_part(c.decimated, in, h, s);
    if (c.blocks.transform)
        blocks_row(c, h, in, out, s, next);
    else
        stretches_row(c, h, in, out, s);
}

}  // namespace
