// The kernels of one instruction set, behind a table of plain functions.
#pragma once

#include "call.h"

typedef void (*Task)(void*);
typedef void (*Parallel)(Task task, void* data, int64_t threads);  // runs task(data) on so many threads at once

// Functions that return int: 0, or -1 where memory ran out.
struct Kernels {
    const char* isa;
    int64_t (*fits)(int64_t n);  // whether there is a transform of n points
    Transform* (*transform)(int64_t n, double shift);
    void (*bins)(const Transform*, int64_t* bins);
    int (*spectra)(const Transform*, const Whole* taps, int64_t channels, float* k_f, int64_t threads, Parallel);
    int (*convolve)(const Call*, int64_t threads, Parallel);
    int (*short_gate)(const ShortGate*, int64_t threads, Parallel);
    int (*to_rows)(const Turn*, int64_t threads, Parallel);
    int (*to_columns)(const Turn*, int64_t threads, Parallel);
    int (*gelu_gate)(const GeluGate*, int64_t threads, Parallel);
    int (*norm)(const Norm*, int64_t threads, Parallel);
    uint64_t (*digest)(const char* const* blocks, const int64_t* bytes, int64_t count);
};

#ifdef SPARSIFY_KERNELS  // the name of the table, defined by the one file that makes it

#include "digest.h"
#include "hyena.h"

namespace {

thread_local Arena arena;

constexpr int64_t NEIGHBOURS = 8, SMALL = 4096;  // channels whose spectra, of so many points, fit a cache together

// Items 0 .. count-1, each done by whichever thread comes first.  It is told which one it takes next; -1 for none.
template <typename Each>
struct Queue {
    int64_t count, next;
    size_t floats;  // of scratch for a thread
    bool failed;
    Each each;

    int64_t take() {
        int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        return i < count ? i : -1;
    }
    static void work(void* data) {
        Queue* q = (Queue*)data;
        if (!arena.grow(q->floats)) {
            __atomic_store_n(&q->failed, true, __ATOMIC_RELAXED);
            return;
        }
        for (int64_t i = q->take(), next; i >= 0; i = next) {
            next = q->take();
            q->each(i, arena.memory, next);
        }
        __atomic_thread_fence(__ATOMIC_SEQ_CST);  // what went past the caches is there before others look
    }
};

template <typename Each>
int share_out(int64_t count, size_t floats, int64_t threads, Parallel parallel, Each each) {
    Queue<Each> queue{count, 0, floats, false, each};
    if (threads > count) threads = count;
    if (threads > 1)
        parallel(Queue<Each>::work, &queue, threads);
    else
        Queue<Each>::work(&queue);
    return queue.next >= count && !queue.failed ? 0 : -1;
}

int spectra_all(const Transform* t, const Whole* taps, int64_t channels, float* k_f, int64_t threads, Parallel parallel) {
    const int64_t n = t->n;
    return share_out(channels, 4 * n + 3 * GAP, threads, parallel, [=](int64_t h, float* memory, int64_t) {
        Scratch s{};
        s.z = piece(memory, 2 * n), s.re = piece(memory, n), s.im = piece(memory, n);
        taps_spectrum(t, taps->taps + h * taps->stride, taps->count, taps->lookahead, s, k_f + 2 * n * h);
    });
}

int convolve_all(const Call* c, int64_t threads, Parallel parallel) {
    const Room room(*c);
    const size_t floats = room.floats();
    const Whole& whole = c->whole;
    if (room.making)
        return share_out(c->channels, floats, threads, parallel, [=](int64_t h, float* memory, int64_t) {
            const Scratch s = room.lay(memory);
            taps_spectrum(whole.transform, whole.taps + h * whole.stride, whole.count, whole.lookahead, s, s.k_f);
            for (int64_t b = 0; b < c->batch; b++) run_row(*c, s, b, h, s.k_f, Row{});
        });
    // Neighbouring channels in turn, for every sequence: their rows follow in memory, and their spectra stay in cache.
    const bool small = whole.transform && whole.transform->n <= SMALL && c->channels % NEIGHBOURS == 0;
    const int64_t turn = small ? NEIGHBOURS : 1;
    auto channel = [=](int64_t i) { return i / (turn * c->batch) * turn + i % turn; };
    auto sequence = [=](int64_t i) { return i / turn % c->batch; };
    return share_out(c->batch * c->channels, floats, threads, parallel, [=](int64_t i, float* memory, int64_t next) {
        const float* k_f = whole.transform ? whole.spectra + 2 * whole.transform->n * channel(i) : nullptr;
        const Row after = next < 0 ? Row{} : row_of(c->u, sequence(next), channel(next));
        run_row(*c, room.lay(memory), sequence(i), channel(i), k_f, after);
    });
}

// Tokens of all sequences, some at a time.
template <typename Go>
int by_stretches(int64_t batch, int64_t seqlen, int64_t threads, Parallel parallel, Go go) {
    return share_out(batch * stretches(seqlen), 0, threads, parallel,
                     [=](int64_t i, float*, int64_t) { go(stretch(i, seqlen)); });
}

int short_gate_all(const ShortGate* c, int64_t threads, Parallel parallel) {
    const int64_t columns = 3 * c->width;
    float* weight = (float*)aligned(sizeof(float) * columns * c->taps);  // (taps, 3 D): channels side by side
    if (!weight) return -1;
    for (int64_t j = 0; j < c->taps; j++)
        for (int64_t i = 0; i < columns; i++) weight[j * columns + i] = c->weight[i * c->taps + j];
    int failed = by_stretches(c->batch, c->seqlen, threads, parallel, [=](Tokens tokens) {
        typed(c->z.type, [&](auto* z) {
            typedef decltype(z) Z;
            short_gate_tokens(*c, (Z)c->z.data, (Z)c->history.data, weight, tokens);
        });
    });
    free(weight);
    return failed;
}

int to_rows_all(const Turn* c, int64_t threads, Parallel parallel) {
    return by_stretches(c->batch, c->seqlen, threads, parallel, [=](Tokens tokens) {
        typed(c->rows.type, [&](auto* rows) { rows_tokens(*c, (decltype(rows))c->rows.data, tokens); });
    });
}

int to_columns_all(const Turn* c, int64_t threads, Parallel parallel) {
    return by_stretches(c->batch, c->seqlen, threads, parallel, [=](Tokens tokens) {
        typed(c->rows.type, [&](auto* rows) { columns_tokens(*c, (decltype(rows))c->rows.data, tokens); });
    });
}

constexpr int64_t VALUES = 1 << 14;  // of what stands between linear layers, that one thread takes at a time

// Rows of `width` values, some at a time: go(call, start, stop).
template <typename Rowwise, typename Go>
int by_rows(const Rowwise* c, int64_t threads, Parallel parallel, Go go) {
    const int64_t rows = larger(1, VALUES / c->width);
    return share_out((c->rows + rows - 1) / rows, 0, threads, parallel, [=](int64_t i, float*, int64_t) {
        go(*c, i * rows, smaller((i + 1) * rows, c->rows));
    });
}

int gelu_gate_all(const GeluGate* c, int64_t threads, Parallel parallel) {
    return by_rows(c, threads, parallel, gelu_gate_rows);
}

int norm_all(const Norm* c, int64_t threads, Parallel parallel) { return by_rows(c, threads, parallel, norm_rows); }

int64_t fits(int64_t n) { return transform_fits(n); }

}  // namespace

extern const Kernels SPARSIFY_KERNELS;
const Kernels SPARSIFY_KERNELS = {
#if LANES == 16
    "avx512",
#elif LANES == 8
    "avx2",
#else
    "base",
#endif
    fits, transform_new, transform_bins, spectra_all, convolve_all, short_gate_all, to_rows_all,
    to_columns_all, gelu_gate_all, norm_all, digest_blocks,
};

#endif
