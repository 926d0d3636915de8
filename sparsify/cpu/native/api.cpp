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

EXPORT uint64_t sparsify_digest(const char* const* blocks, const int64_t* bytes, int64_t count) {
    return chosen->digest(blocks, bytes, count);
}

EXPORT int64_t sparsify_call_size(void) { return sizeof(Call); }
