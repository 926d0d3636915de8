// The stages of a right-angle convolution of M = N1 N2 .. Np complex points: what one block of WARPS warps does to its ROWS
// rows.  `sparsify/monarch.py` takes the same steps in plain tensors.
//
// Data lie in time order, then, digit by digit, in frequency order: index (f1 .. fi, n(i+1) .. np), the last the fastest.
// A stage is a product of small matrices on tensor cores: 8 complex numbers fill the 16 columns of a left operand, and 8
// complex results its 16 rows, real parts above imaginary ones.  Thread 4 g + t of a warp reads and writes 16 bytes,
// four complex numbers ("a quad") at a time; which column of a product is which column of the data is ours to choose, and
// chosen so that quads never leave their thread.
//
//   first     global -> shared   real samples, N1 at a distance of S1; 64 columns a warp at a time
//   forward   shared -> shared   N complex numbers at a distance of S; 32 columns a warp at a time, in place
//   inner     shared -> shared   the last stage, the product with the spectrum, and its way back; 16 rows at a time
//   inverse   shared -> shared   as forward
//   last      shared -> global   real parts only; skip, gate and store
//
// A stage that reads and writes the same memory reads all of its columns before the products, and a warp's product needs
// every lane's part: nobody writes what another has still to read.
//
// Masks: a word has a bit for each tile of 8 digits of an axis that leads to anything kept.
#pragma once
#include "numbers.cuh"

constexpr int ROWS = SPARSIFY_ROWS, WARPS = SPARSIFY_WARPS;
constexpr bool MASKED = SPARSIFY_MASKED;
enum Kernel { CONV, OUTER_FORWARD, OUTER_INVERSE, DIRECT };
constexpr Kernel KIND = (Kernel)(SPARSIFY_KERNEL);
enum Source { REAL, HISTORY, COMPLEX };  // whole rows; blocks of a row, for a filter of at most M taps; rows of scratch
constexpr Source SOURCE = (Source)(SPARSIFY_SOURCE);
constexpr bool SKIP_APART = MASKED || SOURCE == HISTORY || KIND == DIRECT;  // else the spectrum takes the skip along
constexpr bool WIDE = SPARSIFY_WIDE;  // L is a multiple of 8, and every 8 samples of each signal lie at one of 16 bytes
constexpr int HEAD = SPARSIFY_HEAD;  // taps of an exact head, a multiple of 32, or 0
constexpr int HEAD_CHUNKS = (HEAD / 32 + 1) * 4 * 32 * PLANES;  // of a channel's Toeplitz fragments

constexpr int factors[] = {SPARSIFY_FACTORS};
constexpr int P = sizeof factors / sizeof factors[0];
constexpr int product(int from) { return from == P ? 1 : factors[from] * product(from + 1); }
constexpr int M = product(0);

template <int I> struct Axis {
    static constexpr int N = factors[I], S = product(I + 1);
    static constexpr int QUADS = S / 4;             // of a row of S numbers
    static constexpr int TURN = I == P - 2 ? 4 : 8;  // columns to an entry in the table of twiddles
};

struct Signal {
    void* memory;              // (B, H, L), neighbouring samples next to each other; null for a gate that is not there
    long long batch, channel;  // samples from one to the next
};

struct Call {
    Signal u, pregate, gate, y;
    const float *scale, *skip;                // (H,); what spectra were divided by; null without a skip
    const chunk *spectra, *head;              // in the order of `inner`; Toeplitz fragments of a head, or null
    const chunk *forward[4], *inverse[4];     // DFT matrices as operands
    const pair *turns[4], *steps[4];          // twiddles: of every 4 or 8 columns, and from column to column
    const pair *outer_turns, *outer_steps;    // those of a two-level transform's outer stage
    const word* live[4];                      // masks
    chunk* scratch;                           // of a two-level transform
    long long scratch_plane;                  // chunks of a plane of scratch
    unsigned rows, batch, blocks, outer;      // rows altogether; sequences; a row's blocks; live digits of an outer stage
    int seqlen, ahead;                 // ahead: samples by which a filter reads ahead, of a cut filter only
};

DEVICE int lane_g() { return threadIdx.x % 32 / 4; }
DEVICE int lane_t() { return threadIdx.x % 4; }
DEVICE int warp() { return threadIdx.x / 32; }

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

// w[0], w[0] step, w[0] step^2, ...
template <int COUNT> DEVICE void fill(pair (&w)[COUNT], int from, pair first, pair step) {
    w[from] = first;
#pragma unroll
    for (int j = 1; j < 8 && from + j < COUNT; j++) w[from + j] = times(w[from + j - 1], step);
}

// Four results of a product, columns that this thread has of real and imaginary parts, times four twiddles.
DEVICE Data turned(const float (&c)[4][4], int e, const pair* w) {
    Data data;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const pair z = times({c[j][e], c[j][2 + e]}, w[j]);
        put(data, j, z.re, z.im);
    }
    return data;
}

// Rows run over channels, in a channel over the batch, in a sequence over its blocks.
struct Row {
    int channel, sequence, start;  // start: the first sample
    bool there;
};
DEVICE Row row_of(const Call& call, unsigned row) {
    const unsigned signal = SOURCE == HISTORY ? row / call.blocks : row, start = SOURCE == HISTORY ? row % call.blocks * M : 0;
    return {(int)(signal / call.batch), (int)(signal % call.batch), (int)start, row < call.rows};
}

DEVICE float load_float(const float* memory, long long i) { return as_float(load_word(memory + i)); }

// Eight neighbouring samples as they lie in memory, zero outside 0 .. L - 1.
struct Eight { chunk part[BYTES / 2]; };

DEVICE Eight read_eight(const Call& call, const Signal& signal, const Row& row, int at) {
    Eight x = {};
    const char* from = (const char*)signal.memory + BYTES * (row.sequence * signal.batch + row.channel * signal.channel + at);
    if (!row.there) return x;
    if constexpr (WIDE) {  // all lie inside, or none
        if ((unsigned)at < (unsigned)call.seqlen)
#pragma unroll
            for (int p = 0; p < BYTES / 2; p++) x.part[p] = load_chunk(from + 16 * p);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if ((unsigned)(at + i) < (unsigned)call.seqlen) {
                if (TYPE == FLOAT) word_of(x.part[i / 4 * (BYTES / 4)], i % 4) = load_word(from + 4 * i);
                else word_of(x.part[0], i / 2) |= load_short(from + 2 * i) << 16 * (i % 2);
            }
    }
    return x;
}

DEVICE float number(const Eight& x, int i) {
    if (TYPE == FLOAT) return as_float(word_of(x.part[i / 4 * (BYTES / 4)], i % 4));
    const word both = word_of(x.part[0], i / 2);
    return i % 2 ? high(both) : low(both);
}
DEVICE Eight rounded(const float (&x)[8]) {
    Eight r;
#pragma unroll
    for (int i = 0; i < 2 * BYTES; i++)
        word_of(r.part[i / 4], i % 4) = TYPE == FLOAT ? as_word(x[i % 8]) : pack(x[2 * i % 8], x[(2 * i + 1) % 8]);
    return r;
}
DEVICE Eight gated(const Eight& x, const Eight& gate) {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = number(x, i) * number(gate, i);
    return rounded(y);
}
DEVICE Eight read_gated(const Call& call, const Row& row, int at) {
    const Eight x = read_eight(call, call.u, row, at);
    return call.pregate.memory ? gated(x, read_eight(call, call.pregate, row, at)) : x;
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

// Number i of a and number i of b side by side.
DEVICE void side_by_side(const Data& a, const Data& b, int i, word (&both)[PLANES]) {
#pragma unroll
    for (int p = 0; p < PLANES; p++)
        both[p] = select_bytes(word_of(a.plane[p], i / 2), word_of(b.plane[p], i / 2), i % 2 ? 0x7632 : 0x5410);
}

// Stage 1 on samples.  PAST: of a block and of the one before it, x[n - M] standing for i x[n]; else of the block alone.
template <bool PAST, class Sink> DEVICE void first(const Call& call, unsigned row0, const Sink& sink) {
    constexpr int N = Axis<0>::N, S = Axis<0>::S, TILES = N / 8, STEPS = PAST ? N / 8 : N / 16, UNITS = ROWS * S / 64;
    constexpr bool KEPT = TILES <= 2;  // twiddles, 16 for each tile
    const int g = lane_g(), t = lane_t();
    const Matrix<TILES, STEPS> dft(call.forward[0]);
    const word bits = MASKED ? load_word(call.live[0]) : ~0u;
    const int full = PAST ? STEPS : (call.seqlen + 16 * S - 1) / (16 * S);  // steps with more than padding
    const Share<UNITS, (S > 64 ? S / 64 : 1)> share;
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[KEPT ? TILES : 1][16];
        const auto twiddles = [&](int tile) {
            const int f = 8 * tile + g, at = (8 * share.unit(run, 0) + 2 * t) * 8 % S;
            const pair* turn = call.turns[0] + ((long long)f * S + at) / Axis<0>::TURN;
            const pair step = load_pair(call.steps[0] + f);
            fill(w[KEPT ? tile : 0], 0, load_pair(turn), step);
            fill(w[KEPT ? tile : 0], 8, load_pair(turn + 8 / Axis<0>::TURN), step);
        };
        if (KEPT)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) twiddles(tile);
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j), column = (8 * unit + g) * 8, mine = (8 * unit + 2 * t) * 8;
            const Row row = row_of(call, row0 + (ROWS > 1 ? column / S : 0));
            const auto at = [&](int k, int half, int two) {  // where the samples of a lane's step begin
                const int n = PAST ? 8 * k + t + 4 * half : 16 * k + 2 * t + 8 * half + two;
                return row.start + call.ahead + n * S + column % S - (PAST && two ? M : 0);
            };
            Eight x[STEPS][2][2];  // all reads before the first use
#pragma unroll
            for (int i = 0; i < 4 * STEPS; i++)
                x[i / 4][i / 2 % 2][i % 2] = read_eight(call, call.u, row, at(i / 4, i / 2 % 2, i % 2));
            if (call.pregate.memory)
#pragma unroll
                for (int i = 0; i < 4 * STEPS; i++) {
                    Eight& own = x[i / 4][i / 2 % 2][i % 2];
                    own = gated(own, read_eight(call, call.pregate, row, at(i / 4, i / 2 % 2, i % 2)));
                }
            word b[STEPS][2][8][PLANES];
#pragma unroll
            for (int i = 0; i < 2 * STEPS; i++) {
                const Data one = samples(x[i / 2][i % 2][0]), other = samples(x[i / 2][i % 2][1]);
#pragma unroll
                for (int q = 0; q < 8; q++) side_by_side(one, other, q, b[i / 2][i % 2][q]);
            }
            const auto to = sink.find((mine / S * (long long)sink.digits + g) * (S / 4) + mine % S / 4);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (!(bits >> tile & 1)) continue;
                if (!KEPT) twiddles(tile);
                float c[2][4][4] = {};
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    if (k >= full) break;
                    const Data a = dft.at(tile, k);
#pragma unroll
                    for (int q = 0; q < 8; q++) multiply(c[q / 4][q % 4], a, b[k][0][q], b[k][1][q]);
                }
#pragma unroll
                for (int i = 0; i < 4; i++)  // 16 columns, a quad at a time
                    sink.store(to, 8 * tile * (S / 4) + i, turned(c[i % 2], i / 2, &w[KEPT ? tile : 0][4 * i]));
            }
        }
    }
}

template <int I> DEVICE word live_tiles(const Call& call, int outer, int prefix) {
    constexpr int PREFIXES = M / (Axis<I>::N * Axis<I>::S);
    if (!MASKED) return ~0u;
    return load_word(call.live[I] + (outer * PREFIXES + prefix % PREFIXES) / (I ? 8 : 1));
}

// A quad of a stage's columns: which (prefix, quad) it is, counted over the rows of the block.
template <int I> DEVICE long long quad_of(int column, int n) {
    return (column / Axis<I>::QUADS * (long long)Axis<I>::N + n) * Axis<I>::QUADS + column % Axis<I>::QUADS;
}

// Stage I + 1 on complex numbers, and its twiddles.
template <int I, class Source, class Sink>
DEVICE void forward(const Call& call, int outer, const Source& source, const Sink& sink) {
    constexpr int N = Axis<I>::N, S = Axis<I>::S, QUADS = Axis<I>::QUADS, STEPS = N / 8, UNITS = ROWS * M / (32 * N);
    constexpr bool KEPT = STEPS <= 2;
    const int g = lane_g(), t = lane_t();
    const Matrix<STEPS, STEPS> dft(call.forward[I]);
    const Share<UNITS, (S > 32 ? S / 32 : 1)> share;
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[KEPT ? STEPS : 1][8];
        const auto twiddles = [&](int tile) {
            const int f = 8 * tile + g, at = (8 * share.unit(run, 0) + 2 * t) % QUADS;
            fill(w[KEPT ? tile : 0], 0, load_pair(call.turns[I] + (f * S + 4 * at) / Axis<I>::TURN), load_pair(call.steps[I] + f));
        };
        if (KEPT)
#pragma unroll
            for (int tile = 0; tile < STEPS; tile++) twiddles(tile);
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j);
            const word bits = live_tiles<I>(call, outer, 8 * unit / QUADS);
            if (!bits) continue;
            const auto from = source.find(quad_of<I>(8 * unit + g, t));
            Data x[STEPS][2];
#pragma unroll
            for (int k = 0; k < STEPS; k++)
#pragma unroll
                for (int half = 0; half < 2; half++) x[k][half] = source.load(from, (8 * k + 4 * half) * QUADS);
            const auto to = sink.find(quad_of<I>(8 * unit + 2 * t, g));
#pragma unroll
            for (int tile = 0; tile < STEPS; tile++) {
                if (!(bits >> tile & 1)) continue;
                if (!KEPT) twiddles(tile);
                float c[4][4] = {};
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    const Data a = dft.at(tile, k);
#pragma unroll
                    for (int q = 0; q < 4; q++) multiply(c[q], a, x[k][0], q, x[k][1], q);
                }
#pragma unroll
                for (int e = 0; e < 2; e++) sink.store(to, 8 * tile * QUADS + e, turned(c, e, &w[KEPT ? tile : 0][4 * e]));
            }
        }
    }
}

// Four numbers of a spectrum, those that go with one tile of `inner`: halves beside 16-bit signals, float32 beside float32.
struct Spectrum { chunk part[PLANES]; };
DEVICE Spectrum read_spectrum(const chunk* spectra, long long entry) {
    Spectrum four;
#pragma unroll
    for (int p = 0; p < PLANES; p++) four.part[p] = load_chunk(spectra + (entry * PLANES + p) * 32 + threadIdx.x % 32);
    return four;
}
DEVICE pair number(const Spectrum& four, int i) {
    if (TYPE != FLOAT) return {low_half(word_of(four.part[0], i)), high_half(word_of(four.part[0], i))};
    const chunk& two = four.part[i / 2 * (PLANES - 1)];
    return i % 2 ? pair{as_float(two.z), as_float(two.w)} : pair{as_float(two.x), as_float(two.y)};
}

// Words i of x and y and words i + 1: a left operand whose 8 complex columns are a quad's half of each of 4 threads.
DEVICE Data left(const Data& x, const Data& y, int i) {
    Data a;
#pragma unroll
    for (int p = 0; p < PLANES; p++)
        a.plane[p] = {word_of(x.plane[p], i), word_of(y.plane[p], i), word_of(x.plane[p], i + 1), word_of(y.plane[p], i + 1)};
    return a;
}

// A skip is one more tap at lag 0, a constant in the spectrum.  What is left of both stays within 2.
struct Weight { float spectrum, skip, result; };
DEVICE Weight weight_of(const Call& call, int channel) {
    const float scale = load_float(call.scale, channel);
    if (SKIP_APART || !call.skip) return {1, 0, scale};
    const float skip = load_float(call.skip, channel), size = skip < 0 ? -skip : skip, most = size > scale ? size : scale;
    return {scale / most, skip / most, most};
}

// A table of right operands that fits in registers stays there.
template <int COUNT> struct Operands {
    static constexpr bool KEPT = COUNT * PLANES <= 4;
    const chunk* entries;
    Data kept[KEPT ? COUNT : 1];
    DEVICE_MEMBER Operands(const chunk* entries) : entries(entries) {
        if (KEPT)
#pragma unroll
            for (int i = 0; i < COUNT; i++) kept[i] = table(entries, i);
    }
    DEVICE_MEMBER Data at(int i) const { return KEPT ? kept[KEPT ? i : 0] : table(entries, i); }
};

// The last stage, the product with the spectrum and the way back, without leaving the registers.
DEVICE void inner(const Call& call, unsigned row0, int outer, const Shared& data) {
    constexpr int N = Axis<P - 1>::N, QUADS = N / 4, LOADS = N / 16, TILES = N / 8, BEFORE = Axis<P - 2>::N, OWN = M / N / 16;
    const int g = lane_g(), t = lane_t();
    const Operands<TILES * TILES> there(call.forward[P - 1]), back(call.inverse[P - 1]);
    const unsigned per_channel = call.batch * call.blocks * call.outer;
    const Share<ROWS * OWN, (BEFORE > 16 ? BEFORE / 16 : 1)> share;
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[2][LOADS][4];
#pragma unroll
        for (int d = 0; d < 2; d++) {
            const int f = (16 * share.unit(run, 0) + g + 8 * d) % BEFORE;
#pragma unroll
            for (int l = 0; l < LOADS; l++)
                fill(w[d][l], 0, conjugate(load_pair(call.turns[P - 2] + f * QUADS + t + 4 * l)),
                     conjugate(load_pair(call.steps[P - 2] + f)));
        }
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j), own = unit % OWN;
            const word bits = MASKED ? load_word(call.live[P - 1] + outer * OWN + own) : ~0u;
            if (!bits) continue;
            const unsigned row = row0 + (ROWS > 1 ? unit / OWN : 0);
            const int channel = (row < call.rows ? row : call.rows - 1) / per_channel;
            const long long first = ((channel * (long long)call.outer + outer) * OWN + own) * TILES;
            Spectrum k_f[TILES];  // the long way from memory starts before the products
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                if (bits >> tile & 1) k_f[tile] = read_spectrum(call.spectra, first + tile);
            const auto from = data.find((16 * unit + g) * QUADS + t);
            Data x[2][LOADS];
#pragma unroll
            for (int i = 0; i < 2 * LOADS; i++) x[i / LOADS][i % LOADS] = data.load(from, i / LOADS * 8 * QUADS + i % LOADS * 4);
            const Weight weight = weight_of(call, channel);
            Data z[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (!(bits >> tile & 1)) continue;
                float c[2][4] = {};
#pragma unroll
                for (int k = 0; k < TILES; k++) {
                    const Data a = left(x[0][k / 2], x[1][k / 2], k % 2 * 2), b = there.at(k * TILES + tile);
#pragma unroll
                    for (int q = 0; q < 2; q++) multiply(c[q], a, b, 2 * q, b, 2 * q + 1);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    pair k = number(k_f[tile], i);
                    if (!SKIP_APART) k.re = k.re * weight.spectrum + weight.skip, k.im *= weight.spectrum;
                    const pair y = times({c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]}, k);
                    put(z[tile], i, y.re, y.im);
                }
            }
#pragma unroll
            for (int l = 0; l < LOADS; l++) {
                float c[4][4] = {};
#pragma unroll
                for (int i = 0; i < 2 * TILES; i++) {
                    const int tile = i / 2, half = i % 2;
                    if (!(bits >> tile & 1)) continue;
                    const Data b = back.at((tile * LOADS + l) * 2 + half);
#pragma unroll
                    for (int q = 0; q < 2; q++) multiply(c[2 * half + q], z[tile], b, 2 * q, b, 2 * q + 1);
                }
#pragma unroll
                for (int d = 0; d < 2; d++) {
                    Data out;
#pragma unroll
                    for (int q = 0; q < 4; q++) {
                        const pair y = times({c[q][2 * d], c[q][2 * d + 1]}, w[d][l][q]);
                        put(out, q, y.re, y.im);
                    }
                    data.store(from, d * 8 * QUADS + l * 4, out);
                }
            }
        }
    }
}

// Stage I + 1 backwards, and the twiddles of the stage before, which for I = 0 is an outer one.
template <int I, class Source, class Sink>
DEVICE void inverse(const Call& call, int outer, const Source& source, const Sink& sink) {
    constexpr int N = Axis<I>::N, S = Axis<I>::S, QUADS = Axis<I>::QUADS, STEPS = N / 8, UNITS = ROWS * M / (32 * N);
    constexpr int B = I ? I - 1 : 0, DIGITS = I ? Axis<B>::N : 1;
    constexpr bool KEPT = STEPS <= 2;
    const int g = lane_g(), t = lane_t();
    const Matrix<STEPS, STEPS> dft(call.inverse[I]);
    const Share<UNITS, (DIGITS * S > 32 ? DIGITS * S / 32 : 1)> share;
    for (int run = share.next; run < share.stop; run += share.step) {
        pair w[KEPT ? STEPS : 1][8];
        const auto twiddles = [&](int tile) {
            const int mine = 8 * share.unit(run, 0) + 2 * t, f = I ? mine / QUADS % DIGITS : outer;
            const int column = (8 * tile + g) * S + 4 * (mine % QUADS);
            const pair* turn = I ? call.turns[B] + (f * Axis<B>::S + column) / Axis<B>::TURN
                                 : call.outer_turns + (f * M + column) / 4;
            fill(w[KEPT ? tile : 0], 0, conjugate(load_pair(turn)), conjugate(load_pair((I ? call.steps[B] : call.outer_steps) + f)));
        };
        if (KEPT)
#pragma unroll
            for (int tile = 0; tile < STEPS; tile++) twiddles(tile);
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j);
            const word bits = live_tiles<I>(call, outer, 8 * unit / QUADS);
            if (!bits) continue;
            const auto from = source.find(quad_of<I>(8 * unit + g, t));
            Data x[STEPS][2];
#pragma unroll
            for (int k = 0; k < STEPS; k++)
                if (bits >> k & 1)
#pragma unroll
                    for (int half = 0; half < 2; half++) x[k][half] = source.load(from, (8 * k + 4 * half) * QUADS);
            const auto to = sink.find(quad_of<I>(8 * unit + 2 * t, g));
#pragma unroll
            for (int tile = 0; tile < STEPS; tile++) {
                if (!KEPT) twiddles(tile);
                float c[4][4] = {};
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    if (!(bits >> k & 1)) continue;
                    const Data a = dft.at(tile, k);
#pragma unroll
                    for (int q = 0; q < 4; q++) multiply(c[q], a, x[k][0], q, x[k][1], q);
                }
#pragma unroll
                for (int e = 0; e < 2; e++) sink.store(to, 8 * tile * QUADS + e, turned(c, e, &w[KEPT ? tile : 0][4 * e]));
            }
        }
    }
}

// What meets eight results on their way out, read before they are there: y = gate (scale sum + skip u).
struct Around { Eight gate, u; };
DEVICE Around read_around(const Call& call, const Row& row, int at) {
    Around around;
    if (call.gate.memory) around.gate = read_eight(call, call.gate, row, at);
    if (SKIP_APART && call.skip) around.u = read_gated(call, row, at);
    return around;
}
DEVICE void write_eight(const Call& call, const Row& row, int at, float (&y)[8], const Around& around) {
    if (!row.there || at >= call.seqlen) return;
    const float scale = weight_of(call, row.channel).result;
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
    char* to = (char*)call.y.memory + BYTES * (row.sequence * call.y.batch + row.channel * call.y.channel + at);
    if constexpr (WIDE) {
#pragma unroll
        for (int p = 0; p < BYTES / 2; p++) store_chunk(to + 16 * p, out.part[p]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (at + i < call.seqlen) {
                if (TYPE == FLOAT) store_word(to + 4 * i, word_of(out.part[i / 4 * (BYTES / 4)], i % 4));
                else store_short(to + 2 * i, word_of(out.part[0], i / 2) >> 16 * (i % 2) & 0xffff);
            }
    }
}

// c += head * u for 32 samples of each of 16 rows, as Toeplitz matrices of HEAD taps.  at: the sample that this lane's first
// result belongs to; below: how far the rows of c are apart.  HEAD samples before the 32 go in, too.
DEVICE void convolve_head(const Call& call, const Row& row, int at, int below, float (&c)[4][4]) {
    const chunk* head = call.head + row.channel * HEAD_CHUNKS;
#pragma unroll 1
    for (int step = 0; step <= HEAD / 32; step++) {
        const int from = at + call.ahead + 32 * step - HEAD;
        const Data x = samples(read_gated(call, row, from)), y = samples(read_gated(call, row, from + 8 * below));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Data a = left(x, y, 2 * half);
#pragma unroll
            for (int two = 0; two < 2; two++) {
                const Data b = table(head, (step * 2 + half) * 2 + two);
#pragma unroll
                for (int j = 0; j < 2; j++) multiply(c[2 * two + j], a, b, 2 * j, b, 2 * j + 1);
            }
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

// Stage 1 backwards, to the real parts, which are the result.
template <class Source> DEVICE void last(const Call& call, unsigned row0, const Source& source) {
    constexpr int N = Axis<0>::N, S = Axis<0>::S, QUADS = Axis<0>::QUADS, TILES = N / 16, STEPS = N / 8;
    const int g = lane_g(), t = lane_t();
    const Matrix<TILES, STEPS> dft(call.inverse[0]);
    const word bits = MASKED ? load_word(call.live[0]) : ~0u;
    const Share<ROWS * S / 32, 1> share;
    for (int run = share.next; run < share.stop; run += share.step)
#pragma unroll 1
        for (int j = 0; j < share.RUN; j++) {
            const int unit = share.unit(run, j), column = 8 * unit + g, mine = 8 * unit + 2 * t;
            const auto from = source.find((column / QUADS * (long long)source.digits + t) * QUADS + column % QUADS);
            Data x[STEPS][2];
#pragma unroll
            for (int k = 0; k < STEPS; k++)
                if (bits >> k & 1)
#pragma unroll
                    for (int half = 0; half < 2; half++) x[k][half] = source.load(from, (8 * k + 4 * half) * QUADS);
            const Row row = row_of(call, row0 + (ROWS > 1 ? mine / QUADS : 0));
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (16 * tile * S + (S < 32 ? 0 : row.start) >= call.seqlen) break;  // padding; short rows share a unit
                const int at = row.start + (16 * tile + g) * S + 4 * (mine % QUADS);
                const Around around[2] = {read_around(call, row, at), read_around(call, row, at + 8 * S)};
                float c[4][4] = {};
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    if (!(bits >> k & 1)) continue;
                    const Data a = dft.at(tile, k);
#pragma unroll
                    for (int q = 0; q < 4; q++) multiply(c[q], a, x[k][0], q, x[k][1], q);
                }
                if (HEAD) convolve_head(call, row, at, S, c);
                write_tile(call, row, at, S, c, around);
            }
        }
}

// Filters of at most HEAD taps: 16 pieces of 32 samples a warp at a time.
DEVICE void direct_rows(const Call& call, const Row& row) {
    const Share<1, 1> share((call.seqlen + 511) / 512);
    for (int unit = share.next; unit < share.stop; unit += share.step) {
        float c[4][4] = {};
        const int at = 512 * unit + 32 * lane_g() + 8 * lane_t();
        const Around around[2] = {read_around(call, row, at), read_around(call, row, at + 8 * 32)};
        convolve_head(call, row, at, 32, c);
        write_tile(call, row, at, 32, c, around);
    }
}
