// Where complex numbers lie between two stages, four of them (a quad) in 16 bytes, and which warp takes which.
#pragma once
#include "call.cuh"

constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }

// The units of a stage, dealt out so that one warp meets those of equal twiddles one after another: of every PERIOD units
// the first all have the same, the second, and so on.  A warp has runs of RUN such units; `unit(i, j)` is the j-th of run i.
// Where whole rows are shared by several blocks (an outer stage, a direct filter), runs are of one unit.
template <int UNITS, int PERIOD> struct Share {
    static constexpr int EQUAL = UNITS / PERIOD, OWN = (UNITS + WARPS - 1) / WARPS;
    static constexpr int RUN = KIND == CONV ? gcd(OWN, EQUAL) : 1;
    int next, stop, step;
    DEVICE_MEMBER Share(int units = UNITS) {
        if (KIND == CONV) next = warp() * OWN, step = RUN, stop = next + OWN < units ? next + OWN : units;
        else next = warp() + WARPS * blockIdx.y, step = WARPS * gridDim.y, stop = units;
    }
    DEVICE_MEMBER int unit(int first, int j) const {
        return KIND == CONV ? (first + j) % EQUAL * PERIOD + first / EQUAL : first;
    }
};

// Where a quad lies in shared memory: the low three bits of its index are turned by the high ones, so that the eight threads
// that are served together never meet in a bank.  For indices without common bits, place(a + b) = place(a) ^ place(b).
DEVICE int place(int quad) {
    constexpr int turned[] = {SPARSIFY_SWIZZLE};  // pairs of a bit, and what it turns
    int fold = 0;
#pragma unroll
    for (int i = 0; i + 1 < (int)(sizeof turned / sizeof turned[0]); i += 2) fold ^= (quad >> turned[i] & 1) * turned[i + 1];
    return quad ^ fold;
}

// Memory for rows of quads: a place found once, and from there offsets that have no bit in common with it.
struct Shared {
    typedef int Place;
    chunk* memory;
    int digits;  // values of the first digit that have a place
    DEVICE_MEMBER Place find(long long quad) const { return place((int)quad); }
    DEVICE_MEMBER chunk* at(Place from, int offset, int plane) const {
        return memory + (from ^ (place(offset) & 7)) + (offset & ~7) + plane * (ROWS * M / 4);
    }
    DEVICE_MEMBER Data load(Place from, int offset) const {
        Data data;
#pragma unroll
        for (int p = 0; p < PLANES; p++) data.plane[p] = shared_load(at(from, offset, p));
        return data;
    }
    DEVICE_MEMBER void store(Place from, int offset, const Data& data) const {
#pragma unroll
        for (int p = 0; p < PLANES; p++) shared_store(at(from, offset, p), data.plane[p]);
    }
};

// Between the levels of a two-level transform: the rows of this block in global memory.
struct Scratch {
    typedef chunk* Place;
    chunk* memory;
    long long plane;  // chunks
    int digits;
    DEVICE_MEMBER Place find(long long quad) const { return memory + quad; }
    DEVICE_MEMBER Data load(Place from, int offset) const {
        Data data;
#pragma unroll
        for (int p = 0; p < PLANES; p++) data.plane[p] = load_chunk(from + offset + p * plane);
        return data;
    }
    DEVICE_MEMBER void store(Place from, int offset, const Data& data) const {
#pragma unroll
        for (int p = 0; p < PLANES; p++) store_chunk(from + offset + p * plane, data.plane[p]);
    }
};
