// What crosses from Python: plain structures, mirrored field by field in __init__.py.
#pragma once

#include <stdint.h>

enum { MARGIN = 16 };

enum Type { FLOAT32, FLOAT16, BFLOAT16 };

// A (batch, channels, time) tensor; data is null where there is none.  Strides in elements.
struct Signal {
    void* data;
    int64_t batch_stride, channel_stride, time_stride;
    int64_t type;
};

// Values that lie side by side; data is null where there are none.
struct Values {
    void* data;
    int64_t type;
};

// A transform of N points and its tables; see fft.h.  V: the lanes of a vector.
enum { STAGES = 40, RADIX = 9 };

struct Stage {
    int64_t radix;
    int64_t rest;          // M: vectors between two points of a butterfly
    const float* twiddle;  // (rest, radix, 2): exp(-2 pi i (f + shift) m / (radix * rest)); shift in the first stage only
};

struct Transform {
    int64_t n, blocks, stages, merged;
    double shift;
    struct Stage stage[STAGES];
    float turn[RADIX][2];  // exp(-2 pi i shift j / radix of the first stage)
    const float* across;   // (blocks, 2, V): exp(-2 pi i (F + shift) lane / N), F the bin that the stages leave in a block
    const float* inner;    // (V, 2, V): exp(-2 pi i d lane / V^2); where `merged`, that times `across` for every block
};

// Convolution with every lag: one right-angle transform (shift 1/4) of N >= seqlen points.
// Either its spectra (channels, 2 N) are given, or the taps, and each spectrum is made where it is needed.
struct Whole {
    const Transform* transform;  // null: this part is absent
    const float* spectra;
    const float* taps;  // (channels, count), tap j at lag j - lookahead; rows `stride` apart
    int64_t stride, count, lookahead;
};

// Convolution with very few taps, sample by sample.
struct Direct {
    const float* taps;  // (channels, count), tap j at lag j - lookahead; null: absent
    int64_t count, lookahead;
};

// Convolution with few taps: blocks of N samples that overlap (overlap-save), two of them as one complex signal.
struct Blocks {
    const Transform* transform;  // shift 0; null: absent
    const float* spectra;        // (channels, 2 N)
    int64_t count, lookahead;        // taps, and how many of them lie ahead
};

// Convolution with a band-limited filter: every `rate`th sample of a smoothed signal, convolved, smoothed again.
struct Decimated {
    int64_t rate;         // 0: absent
    int64_t width;        // the window spans width * rate samples, centred
    const float* window;  // (width * rate,) between MARGIN zeros on either side; width * rate a multiple of MARGIN
    struct Whole low;     // the convolution of the decimated signal, which has ceil(seqlen / rate) + width samples
};

// Convolution with a comb: bins residue + teeth * f of a teeth * M point spectrum of shift 1/4, for every residue that is
// kept.  teeth * M >= seqlen.
struct Comb {
    int64_t teeth, residues;  // 0 residues: absent
    const Transform* const* transforms;  // (residues,), M points, shift (residue + 1/4) / teeth
    const int64_t* residue;              // (residues,), each 0 .. teeth - 1
    const float* const* spectra;         // (residues,) of (channels, 2 M)
};

// y = gate_out * (sum of the parts, applied to g + skip * g),  g = gate_in * u.  The parts: whole, or comb, or decimated
// together with direct or blocks, or one of these three.
struct Call {
    int64_t batch, channels, seqlen;
    struct Signal u, gate_in, gate_out, y;
    const float* skip;  // (channels,) or null
    struct Whole whole;
    struct Direct direct;
    struct Blocks blocks;
    struct Decimated decimated;
    struct Comb comb;
};

// Short causal depthwise filter and first gate of a Hyena operator, and the turn from channel-last to channel-first.
struct ShortGate {
    int64_t batch, seqlen, width, taps;  // width: D; z has 3 D columns
    int64_t alone;                       // which third becomes x0; g is the product of the two others
    struct Values z;                     // (batch, seqlen, 3 D)
    struct Values history;               // (batch, taps - 1, 3 D) of z's type, or null for zeros
    const float* weight;                 // (3 D, taps)
    const float* bias;                   // (3 D,) or null
    struct Signal x0, g;                 // (batch, D, seqlen) float32, time_stride 1
};

// The same values with the time last, and with the channels last; either is made of the other.
struct Turn {
    int64_t batch, channels, seqlen;
    struct Signal y;     // (batch, channels, seqlen) float32, time_stride 1
    struct Values rows;  // (batch, seqlen, channels)
};

// y = gelu(gate) * h, GELU in its exact form, row by row.
struct GeluGate {
    int64_t rows, width;
    struct Values x;  // (rows, 2 width): gate, then h
    struct Values y;  // (rows, width) of the same type
};

// x += sum, and y = layer norm of x, row by row.
struct Norm {
    int64_t rows, width;
    float* x;             // (rows, width)
    struct Values sum;    // (rows, width) or null
    const float* weight;  // (width,)
    const float* bias;    // (width,)
    float epsilon;
    struct Values y;  // (rows, width)
};
