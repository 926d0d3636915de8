// What a build is, by its macros, and what a launch is told.
#pragma once
#include "numbers.cuh"

constexpr int ROWS = SPARSIFY_ROWS, WARPS = SPARSIFY_WARPS;
constexpr bool MASKED = SPARSIFY_MASKED;
enum Kernel { CONV, OUTER_FORWARD, OUTER_INVERSE, DIRECT, DECIMATE, INTERPOLATE };
constexpr Kernel KIND = (Kernel)(SPARSIFY_KERNEL);
enum Source { REAL, HISTORY, COMPLEX };  // whole rows; blocks of a row, for a filter of at most M taps; rows of scratch
constexpr Source SOURCE = (Source)(SPARSIFY_SOURCE);
constexpr bool SKIP_APART = MASKED || SOURCE == HISTORY || KIND >= DIRECT;  // else the spectrum takes the skip along
constexpr int RATE = SPARSIFY_RATE;  // samples to one of a decimated signal, a multiple of 4
constexpr int PIECE = SPARSIFY_PIECE;  // neighbouring samples, 8, 2 or 1, that memory moves at once; L is a multiple
constexpr int HEAD = SPARSIFY_HEAD;  // taps of an exact head, a multiple of 32, or 0
constexpr int HEAD_CHUNKS = (HEAD / 32 + 1) * 4 * 32 * PLANES;  // of a channel's Toeplitz fragments

constexpr int factors[] = {SPARSIFY_FACTORS};
constexpr int P = sizeof factors / sizeof factors[0];
constexpr int product(int from) { return from == P ? 1 : factors[from] * product(from + 1); }
constexpr int M = product(0);

constexpr bool CORE = P > 2 && PLANES == 1 && factors[P - 2] == 16 && factors[P - 1] == 16;  // see `core`

template <int I> struct Axis {
    static constexpr int N = factors[I], S = product(I + 1);
    static constexpr int QUADS = S / 4;                          // of a row of S numbers
    static constexpr int TURN = I == P - 2 || S <= 256 ? 4 : 8;  // columns to an entry in the table of twiddles
};

struct Signal {
    void* memory;              // (B, H, L), neighbouring samples next to each other; null for a gate that is not there
    long long batch, channel;  // samples from one to the next
    long long length;          // L
};

struct Call {
    Signal u, pregate, gate, y, decimated;    // decimated: what INTERPOLATE puts back
    const float *scale, *skip;                // (H,); what spectra were divided by; null without a skip
    const chunk *spectra, *head, *window;     // in the order of `inner`; as right operands: a head's taps, and a window
    const chunk *forward[4], *inverse[4];     // DFT matrices as operands
    const pair *turns[4], *steps[4];          // twiddles: of every 4 or 8 columns, and from column to column
    const pair *outer_turns, *outer_steps;    // those of a two-level transform's outer stage
    const word* live[4];                      // masks
    chunk* scratch;                           // of a two-level transform
    long long scratch_plane;                  // chunks of a plane of scratch
    unsigned rows, batch, blocks, outer;      // rows altogether; sequences; a row's blocks; live digits of an outer stage
    int lookahead;                              // samples by which a filter reads ahead, of HISTORY and DIRECT only
};

DEVICE int lane_g() { return threadIdx.x % 32 / 4; }
DEVICE int lane_t() { return threadIdx.x % 4; }
DEVICE int warp() { return threadIdx.x / 32; }
