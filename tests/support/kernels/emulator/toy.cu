// Kernels that show what the emulator does: a matrix product as it should be, and one mistake each.
#include "ptx.cuh"

#ifndef TOY_BFLOAT16
#define TOY_BFLOAT16 0
#endif
#ifndef TOY_BARRIER
#define TOY_BARRIER barrier()
#endif

// c (M, N) = a (M, K) b (K, N), row by row, 16-bit numbers in, float out.  A block of 2 warps makes 16 rows of 16
// columns: it takes 16 columns of a and 16 rows of b to shared memory, a row of 16 numbers in two chunks, and
// multiplies.
struct Product {
  const void *a, *b;
  float* c;
  int n, k;
};

DEVICE word element(const chunk* tile, int row, int column) {
  const chunk part = shared_load(tile + 2 * row + column / 8);
  const word words[] = {part.x, part.y, part.z, part.w};
  return words[column % 8 / 2] >> 16 * (column % 2) & 0xffff;
}

KERNEL(64, 1) product(Product call) {
  SHARED_MEMORY(chunk, tiles);
  const int thread = threadIdx.x, g = thread % 32 / 4, t = thread % 4, column = thread / 32 * 8;
  chunk *const a = tiles, *const b = tiles + 32;
  float d[4] = {};
  for (int k = 0; k < call.k; k += 16) {
    const int row = thread % 32 / 2, half = thread % 2;
    if (thread < 32)
      shared_store(a + thread, load_chunk((const short*)call.a + (16 * blockIdx.y + row) * call.k + k + 8 * half));
    else
      shared_store(b + thread % 32, load_chunk((const short*)call.b + (k + row) * call.n + 16 * blockIdx.x + 8 * half));
    TOY_BARRIER;
    word left[4], right[2];
    for (int i = 0; i < 4; i++) {
      const int r = g + 8 * (i % 2), c = 2 * t + 8 * (i / 2);
      left[i] = element(a, r, c) | element(a, r, c + 1) << 16;
    }
    for (int i = 0; i < 2; i++) {
      const int r = 2 * t + 8 * i;
      right[i] = element(b, r, column + g) | element(b, r + 1, column + g) << 16;
    }
    const chunk fragment = {left[0], left[1], left[2], left[3]};
    if (TOY_BFLOAT16)
      mma_bfloat16(d, fragment, right[0], right[1]);
    else
      mma_half(d, fragment, right[0], right[1]);
    barrier();
  }
  for (int i = 0; i < 4; i++) {
    const int row = 16 * blockIdx.y + g + 8 * (i / 2);
    store_word(call.c + row * call.n + 16 * blockIdx.x + column + 2 * t + i % 2, as_word(d[i]));
  }
}
EXPORT(product, Product)

// Every conversion of `count` words: one thread a word.
struct Conversions {
  const word* from;
  float *low, *high;       // of the words as two halves
  word *half, *bfloat16;   // of the words as float, low, and its negative, high
};

KERNEL(256, 1) convert(Conversions call) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const word from = load_word(call.from + i);
  store_word(call.low + i, as_word(low_half(from)));
  store_word(call.high + i, as_word(high_half(from)));
  store_word(call.half + i, pack_half(as_float(from), -as_float(from)));
  store_word(call.bfloat16 + i, pack_bfloat16(as_float(from), -as_float(from)));
}
EXPORT(convert, Conversions)

// Memory in all widths: y[i] of each is x[i], and bytes are selected.
struct Copies {
  const void *x;
  void *chunks, *pairs, *words, *shorts, *selected;
  int offset;  // bytes, at which each reads
  word selector;
};

KERNEL(32, 1) copy(Copies call) {
  const int i = threadIdx.x;
  const char* x = (const char*)call.x + call.offset;
  store_chunk((chunk*)call.chunks + i, load_chunk(x + 16 * i));
  const pair both = load_pair(x + 8 * i);
  store_word((pair*)call.pairs + i, as_word(both.re));
  store_word((word*)call.pairs + 2 * i + 1, as_word(both.im));
  store_word((word*)call.words + i, load_word(x + 4 * i));
  store_short((short*)call.shorts + i, load_short(x + 2 * i));
  store_word((word*)call.selected + i, select_bytes(load_word(x), load_word(x + 4), call.selector));
}
EXPORT(copy, Copies)

// What goes wrong, by `what`; else thread i writes chunk i * stride, and reads it if it is one of the first `readers`.
enum What { NOTHING, DIVERGENT_BARRIER, TWO_BARRIERS, LONELY_MMA, TWO_MMAS, RACE, UNWRITTEN };
struct Mistake {
  float* y;  // a float a thread
  int what, stride, readers;
};

KERNEL(64, 1) mistake(Mistake call) {
  SHARED_MEMORY(chunk, memory);
  const int i = threadIdx.x;
  const chunk mine = {as_word((float)i), 0, 0, 0};
  float d[4] = {}, y = 0;
  if (call.what == DIVERGENT_BARRIER && i % 32 < 20) barrier();
  if (call.what == TWO_BARRIERS) {
    if (i < 20)
      barrier();
    else
      barrier();
  }
  if (call.what == LONELY_MMA) {
    if (i == 7)
      barrier();
    else
      mma_half(d, mine, 0, 0);
  }
  if (call.what == TWO_MMAS) {
    if (i < 7)
      mma_half(d, mine, 0, 0);
    else
      mma_half(d, mine, 0, 0);
  }
  if (call.what == NOTHING) {
    shared_store(memory + i * call.stride, mine);
    barrier();
    if (i < call.readers) y = as_float(shared_load(memory + i * call.stride).x);
    mma_half(d, shared_load(memory + i * call.stride), 0, 0);
  }
  if (call.what == RACE) {
    shared_store(memory + i, mine);
    y = as_float(shared_load(memory + (i ^ call.stride)).x);
  }
  if (call.what == UNWRITTEN) y = as_float(shared_load(memory + i).x);
  store_word(call.y + i, as_word(y));
}
EXPORT(mistake, Mistake)
