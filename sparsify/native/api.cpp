// The way in, plain C: picks the instruction set, and runs the kernels on the threads of the process's own pool.
#include <pthread.h>
#include <string.h>

#include "kernels.h"

extern const Kernels kernels_base;
#ifndef SPARSIFY_BASE_ONLY
extern const Kernels kernels_avx2, kernels_avx512;
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const Kernels* fitting(const char* isa) {  // isa: null for the best
#ifndef SPARSIFY_BASE_ONLY
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && (!isa || !strcmp(isa, "avx512"))) return &kernels_avx512;
    if (avx2 && (!isa || !strcmp(isa, "avx2"))) return &kernels_avx2;
#endif
    return !isa || !strcmp(isa, "base") ? &kernels_base : nullptr;
}

const Kernels* chosen = fitting(nullptr);

typedef void (*Gomp)(Task, void*, unsigned threads, unsigned flags);
Gomp gomp = nullptr;

struct Job {
    Task task;
    void* data;
};

void* run_job(void* job) {
    ((Job*)job)->task(((Job*)job)->data);
    return nullptr;
}

// Threads that are started for the call: for processes without an OpenMP runtime.
void start_and_join(Task task, void* data, int64_t threads) {
    constexpr int64_t most = 64;
    pthread_t others[most];
    Job job{task, data};
    int64_t started = 0;
    while (started < threads - 1 && started < most && !pthread_create(&others[started], nullptr, run_job, &job)) started++;
    task(data);
    for (int64_t i = 0; i < started; i++) pthread_join(others[i], nullptr);
}

void parallel(Task task, void* data, int64_t threads) {
    if (gomp)
        gomp(task, data, (unsigned)threads, 0);
    else
        start_and_join(task, data, threads);
}

}  // namespace

EXPORT const char* sparsify_sources(void) { return SPARSIFY_SOURCES; }
EXPORT const char* sparsify_isa(void) { return chosen->isa; }

// Transforms and spectra belong to the instruction set they were made with: choose before making any.
EXPORT int sparsify_use(const char* isa) {
    const Kernels* found = fitting(isa);
    if (found) chosen = found;
    return found != nullptr;
}

EXPORT void sparsify_threads(void* gomp_parallel) { gomp = (Gomp)gomp_parallel; }

EXPORT int64_t sparsify_fits(int64_t n) { return chosen->fits(n); }
EXPORT Transform* sparsify_transform(int64_t n, double shift) { return chosen->transform(n, shift); }
EXPORT void sparsify_bins(const Transform* t, int64_t* bins) { chosen->bins(t, bins); }

EXPORT int sparsify_spectra(const Transform* t, const Whole* taps, int64_t channels, float* k_f, int64_t threads) {
    return chosen->spectra(t, taps, channels, k_f, threads, parallel);
}
EXPORT int sparsify_convolve(const Call* c, int64_t threads) { return chosen->convolve(c, threads, parallel); }
EXPORT int sparsify_short_gate(const ShortGate* c, int64_t threads) { return chosen->short_gate(c, threads, parallel); }
EXPORT int sparsify_to_rows(const Turn* c, int64_t threads) { return chosen->to_rows(c, threads, parallel); }
EXPORT int sparsify_to_columns(const Turn* c, int64_t threads) { return chosen->to_columns(c, threads, parallel); }
EXPORT int sparsify_gelu_gate(const GeluGate* c, int64_t threads) { return chosen->gelu_gate(c, threads, parallel); }
EXPORT int sparsify_norm(const Norm* c, int64_t threads) { return chosen->norm(c, threads, parallel); }

// A number that tells blocks of memory from others: it changes, all but surely, with any of their bytes.  Four chains of
// exclusive or and multiplication run side by side, since one would wait for its own products.
EXPORT uint64_t sparsify_digest(const char* const* blocks, const int64_t* bytes, int64_t count) {
    constexpr uint64_t prime = 0x9e3779b97f4a7c15u;
    uint64_t chain[4] = {1, 2, 3, 4};
    auto take = [&](int i, const char* at, int64_t size) {
        uint64_t word = 0;
        memcpy(&word, at, size);
        chain[i] = (chain[i] ^ word) * prime;
        chain[i] ^= chain[i] >> 29;
    };
    for (int64_t b = 0; b < count; b++) {
        const char* at = blocks[b];
        int64_t left = bytes[b];
        for (; left >= 32; left -= 32, at += 32)
            for (int i = 0; i < 4; i++) take(i, at + 8 * i, 8);
        for (; left > 0; left -= 8, at += 8) take(0, at, left < 8 ? left : 8);
        chain[1] = (chain[1] ^ (uint64_t)bytes[b]) * prime;  // where a block ends matters, too
    }
    uint64_t digest = 0;
    for (uint64_t one : chain) digest = (digest ^ one ^ (one >> 32)) * prime;
    return digest;
}

EXPORT int64_t sparsify_call_size(void) { return sizeof(Call); }
