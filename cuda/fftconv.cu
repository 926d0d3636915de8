// The long convolution y = gate (k * (pregate u) + skip pregate u), a row (one channel of one sequence) at a time.
//
//   conv      whole rows: samples in, samples out, everything between in the shared memory of one block of threads
//   outer_forward, conv, outer_inverse
//             rows that do not fit: one stage before and one behind, through scratch in global memory
//   direct    filters of few taps: Toeplitz matrices alone
//   decimate, conv, interpolate
//             filters of a narrow band: every RATEth sample is convolved; a head of few taps joins at the end
//
// A build has one of them, by its macros: SPARSIFY_KERNEL, _TYPE and _SOURCE (numbers of the enumerations), _FACTORS, _ROWS,
// _WARPS, _BLOCKS (at least so many a multiprocessor), _MASKED, _HEAD, _RATE, _PIECE, _SWIZZLE.  Shared memory, of conv
// only: ROWS * M words of 4 bytes, times PLANES.  Grid: conv a block for every ROWS rows; the others (rows, parts of a row).
#include "spectrum.cuh"

template <int I> DEVICE void middle_stages(const Call& call, unsigned row0, int outer, const Shared& data) {
    if constexpr (CORE && I == P - 2) {
        core(call, row0, outer, data);
        barrier();  // the next stage reads what other warps wrote; so before and after every stage
    } else if constexpr (I == P - 1) {
        inner(call, row0, outer, data);
        barrier();
    } else {
        stage<I, false>(call, outer, data, data);
        barrier();
        middle_stages<I + 1>(call, row0, outer, data);
        stage<I, true>(call, outer, data, data);
        barrier();
    }
}

#if SPARSIFY_KERNEL == 0
KERNEL(32 * WARPS, SPARSIFY_BLOCKS) conv(const Call call) {
    SHARED_MEMORY(chunk, memory);
    const Shared data = {memory, Axis<0>::N};
    const unsigned row0 = blockIdx.x * ROWS;
    if constexpr (SOURCE == COMPLEX) {
        const int outer = (int)(row0 % call.outer);
        const Scratch rows = {call.scratch + row0 * (long long)(M / 4), call.scratch_plane, Axis<0>::N};
        stage<0, false>(call, outer, rows, data);
        barrier();
        middle_stages<1>(call, row0, outer, data);
        stage<0, true>(call, outer, data, rows);
    } else {
        first<SOURCE == HISTORY>(call, row0, data);
        barrier();
        middle_stages<1>(call, row0, 0, data);
        last(call, row0, data);
    }
}
EXPORT(conv, Call)

#elif SPARSIFY_KERNEL == 3
KERNEL(32 * WARPS, SPARSIFY_BLOCKS) direct(const Call call) { direct_row(call, row_of(call, blockIdx.x)); }
EXPORT(direct, Call)
#elif SPARSIFY_KERNEL == 4
KERNEL(32 * WARPS, SPARSIFY_BLOCKS) decimate(const Call call) { decimate_row(call, row_of(call, blockIdx.x)); }
EXPORT(decimate, Call)
#elif SPARSIFY_KERNEL == 5
KERNEL(32 * WARPS, SPARSIFY_BLOCKS) interpolate(const Call call) { interpolate_row(call, row_of(call, blockIdx.x)); }
EXPORT(interpolate, Call)

#else
DEVICE Scratch scratch_of(const Call& call) {
    return {call.scratch + blockIdx.x * (long long)Axis<0>::QUADS * call.outer, call.scratch_plane, (int)call.outer};
}
#if SPARSIFY_KERNEL == 1
KERNEL(32 * WARPS, SPARSIFY_BLOCKS) outer_forward(const Call call) {
    first<false>(call, blockIdx.x, scratch_of(call));
}
EXPORT(outer_forward, Call)
#else
KERNEL(32 * WARPS, SPARSIFY_BLOCKS) outer_inverse(const Call call) { last(call, blockIdx.x, scratch_of(call)); }
EXPORT(outer_inverse, Call)
#endif
#endif
