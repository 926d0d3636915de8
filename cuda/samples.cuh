// Samples in global memory, eight neighbours at a time: read, gated, written.
#pragma once
#include "call.cuh"

// Rows run over channels, in a channel over the batch, in a sequence over its blocks.
struct Row {
    int channel, sequence, start;  // start: the first sample
    bool there;                    // else it fills up a block, and counts as the last one: of tables there are no more
    const char *u, *y;             // where its sample 0 lies
};
DEVICE const char* start_of(const Signal& signal, int sequence, int channel) {
    return (const char*)signal.memory + BYTES * (sequence * signal.batch + channel * signal.channel);
}
DEVICE Row row_of(const Call& call, unsigned row) {
    const bool there = row < call.rows;
    if (!there) row = call.rows - 1;
    const unsigned signal = SOURCE == HISTORY ? row / call.blocks : row, start = SOURCE == HISTORY ? row % call.blocks * M : 0;
    const int channel = (int)(signal / call.batch), sequence = (int)(signal % call.batch);
    return {channel, sequence, (int)start, there, start_of(call.u, sequence, channel), start_of(call.y, sequence, channel)};
}

DEVICE float load_float(const float* memory, long long i) { return as_float(load_word(memory + i)); }

// Eight neighbouring samples as they lie in memory, zero outside 0 .. L - 1.
struct Eight { chunk part[BYTES / 2]; };
DEVICE word& word_of(Eight& x, int i) { return word_of(x.part[i / 4], i % 4); }
DEVICE word word_of(const Eight& x, int i) { return word_of(x.part[i / 4], i % 4); }

DEVICE Eight read_eight(const char* start, const Signal& signal, const Row& row, int at) {
    Eight x = {};
    const unsigned length = row.there ? (unsigned)signal.length : 0;
    const char* from = start + BYTES * (long long)at;
    if constexpr (PIECE == 8) {  // all lie inside, or none
        if ((unsigned)at < length)
#pragma unroll
            for (int p = 0; p < BYTES / 2; p++) x.part[p] = load_chunk(from + 16 * p);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i += PIECE)
            if ((unsigned)(at + i) < length) {
                word& both = word_of(x, BYTES * i / 4);
                if (PIECE * BYTES == 4) both = load_word(from + BYTES * i);
                else both |= load_short(from + BYTES * i) << 16 * (i % 2);
            }
    }
    return x;
}
DEVICE Eight read_eight(const Signal& signal, const Row& row, int at) {
    return read_eight(start_of(signal, row.sequence, row.channel), signal, row, at);
}

DEVICE float number(const Eight& x, int i) {
    const word both = word_of(x, BYTES * i / 4);
    return TYPE == FLOAT ? as_float(both) : i % 2 ? high(both) : low(both);
}
DEVICE Eight rounded(const float (&x)[8]) {
    Eight r;
#pragma unroll
    for (int i = 0; i < 2 * BYTES; i++)
        word_of(r, i) = TYPE == FLOAT ? as_word(x[i % 8]) : pack(x[2 * i % 8], x[(2 * i + 1) % 8]);
    return r;
}
DEVICE Eight gated(const Eight& x, const Eight& gate) {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = number(x, i) * number(gate, i);
    return rounded(y);
}
DEVICE Eight read_gated(const Call& call, const Row& row, int at) {
    const Eight x = read_eight(row.u, call.u, row, at);
    return call.pregate.memory ? gated(x, read_eight(call.pregate, row, at)) : x;
}

// The same, two samples to a word.
DEVICE Data samples(const Eight& x) {
    Data data;
    if (TYPE != FLOAT) data.plane[0] = x.part[0];
    else
#pragma unroll
        for (int i = 0; i < 4; i++) put(data, i, number(x, 2 * i), number(x, 2 * i + 1));
    return data;
}

// A skip is one more tap at lag 0, a constant in the spectrum.  What is left of both stays within 2.
DEVICE float result_of(const Call& call, int channel) {  // what results are multiplied by
    const float scale = load_float(call.scale, channel);
    if (SKIP_APART || !call.skip) return scale;
    const float skip = load_float(call.skip, channel), size = skip < 0 ? -skip : skip;
    return size > scale ? size : scale;
}
struct Weight { float spectrum, skip; };
DEVICE Weight weight_of(const Call& call, int channel) {
    if (SKIP_APART || !call.skip) return {1, 0};
    const float most = result_of(call, channel);
    return {load_float(call.scale, channel) / most, load_float(call.skip, channel) / most};
}

// What meets eight results on their way out, read before they are there: y = gate (scale sum + skip u).
struct Around { Eight gate, u; };
DEVICE Around read_around(const Call& call, const Row& row, int at) {
    Around around;
    if (call.gate.memory) around.gate = read_eight(call.gate, row, at);
    if (SKIP_APART && call.skip) around.u = read_gated(call, row, at);
    return around;
}
DEVICE void write_eight(const Call& call, const Row& row, int at, float (&y)[8], const Around& around) {
    const int length = row.there ? (int)call.y.length : 0;
    if (at >= length) return;
    const float scale = result_of(call, row.channel);
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] *= scale;
    if (SKIP_APART && call.skip) {
        const float skip = load_float(call.skip, row.channel);
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] += skip * number(around.u, i);
    }
    if (call.gate.memory)
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] *= number(around.gate, i);
    const Eight out = rounded(y);
    char* to = (char*)row.y + BYTES * (long long)at;
    if constexpr (PIECE == 8) {
#pragma unroll
        for (int p = 0; p < BYTES / 2; p++) store_chunk(to + 16 * p, out.part[p]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i += PIECE)
            if (at + i < length) {
                const word both = word_of(out, BYTES * i / 4);
                if (PIECE * BYTES == 4) store_word(to + BYTES * i, both);
                else store_short(to + BYTES * i, both >> 16 * (i % 2) & 0xffff);
            }
    }
}

// y from what a warp has of 32 columns of 16 rows.
DEVICE void write_tile(const Call& call, const Row& row, int at, int below, const float (&c)[4][4], const Around (&around)[2]) {
#pragma unroll
    for (int d = 0; d < 2; d++) {
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = c[i % 4][2 * d + i / 4];
        write_eight(call, row, at + 8 * d * below, y, around[d]);
    }
}
