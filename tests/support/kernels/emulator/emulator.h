// CUDA threads as fibers: what cuda/ptx.cuh includes in place of machine instructions under SPARSIFY_EMULATOR.
//
// A kernel file compiles as C++17 with -DSPARSIFY_EMULATOR -I tests/emulator -I cuda.  A kernel takes one trivially
// copyable structure by value, and is exported before the next one begins:
//     KERNEL(threads, blocks) conv(Call call) { SHARED_MEMORY(chunk, data); ... }
//     EXPORT(conv, Call)
// This makes emulate_conv(...), see EXPORT below, which tests/support/kernels/emulation.py calls.  It returns 0, or 1 and a sentence in
// message (1024 bytes) that names thread, block and line.
//
// Blocks run one after another.  A thread runs until it waits: at a barrier for its block, at an mma for its warp; the
// last to arrive computes for all.  Shared memory has exactly the launch's size, begins as NaN in every block, and is
// watched: two threads at the same 16 bytes, one of them writing, with nothing between them that orders them, are a
// race.  A barrier orders; within a warp, so does an mma between a read and a later write: it needs what was read.  But
// what a lane writes, another reads only past a barrier.  Only shared_load and shared_store are watched.
//
// Nothing is contracted into fused multiply-adds, and an mma adds its 16 products to d one by one in ascending k: no
// GPU promises that order.  One launch at a time; a process that failed inside a launch can launch again.
#pragma once

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_SANITIZED 1
#endif
#endif
#ifdef EMULATOR_SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

typedef unsigned int word;
struct alignas(16) chunk { word x, y, z, w; };
struct alignas(8) pair { float re, im; };

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid)
#define SHARED_MEMORY(type, name) type* const name = reinterpret_cast<type*>(emulator::shared.base)
#define KERNEL(threads, blocks)                                            \
  template <> struct emulator::MostThreads<__COUNTER__> {                  \
    static constexpr int value = (threads);                                \
    static_assert(value % 32 == 0 && (blocks) > 0, "no bounds of a launch"); \
  };                                                                       \
  extern "C" void
// Where a wrapper was called, for messages and for telling instructions apart.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emulator {

enum Kind {
  LOAD_CHUNK, LOAD_ENTRY, LOAD_PAIR, LOAD_WORD, LOAD_SHORT, STORE_CHUNK, STORE_WORD, STORE_SHORT,
  SHARED_LOAD, SHARED_STORE, KINDS
};
constexpr struct { const char* name; unsigned bytes; } KIND[KINDS] = {
    {"load_chunk", 16},  {"load_entry", 16}, {"load_pair", 8},   {"load_word", 4},    {"load_short", 2},
    {"store_chunk", 16}, {"store_word", 4},  {"store_short", 2}, {"shared_load", 16}, {"shared_store", 16}};

// As Counters in tests/support/kernels/emulation.py reads them.
struct Counters {
  long long mma, barriers;  // a warp's instruction, a block's barrier
  struct { long long calls, instructions, cost, ideal; } access[KINDS];  // of threads; of warps; wavefronts or sectors
};

struct Index { unsigned x, y, z; };
enum State { READY, AT_BARRIER, AT_MMA, DONE };
constexpr int LANES = 32;
template <int> struct MostThreads;  // that a kernel is compiled for; it and its EXPORT count one each
constexpr size_t STACK = 256 << 10, GUARD = 64 << 10;  // a stack overflow is a crash, no corruption
constexpr long MOST_SHARED = 227 << 10;

// What one instruction of a warp accesses, lane by lane.
struct Access {
  Kind kind;
  const char* file;
  int line;
  unsigned lanes;  // a bit each
  uintptr_t address[LANES];
  bool is(Kind k, const char* f, int l) const { return l == line && k == kind && f == file; }
};

enum Format { HALF, BFLOAT16 };
struct Operands { float* d; chunk a; word b0, b1; };

struct Warp {
  int index, arrived;
  Format format;
  const char* file;
  int line;
  long long epoch;  // mmas and barriers passed
  Operands operands[LANES];
  std::vector<Access> accesses;  // since then
};

struct Fiber {
  Index thread;
  Warp* warp;
  int lane;
  State state;
  bool started;
  size_t cursor;  // of the warp's accesses, the first that may be this lane's next
  const char* file;
  int line;  // where it waits
  char* stack;
  ucontext_t start;
  jmp_buf context;
  void* fake_stack;  // the sanitizer's
};

// Who last read, or wrote, 16 bytes of shared memory.
struct Touch {
  long long block_epoch = -1, warp_epoch = -1;
  int warp = -1, other_warp = -1;  // the last two different warps within block_epoch
  unsigned lanes = 0;              // of `warp`: its readers within warp_epoch, its writers within block_epoch
  const char* file = nullptr;
  int line = 0;
};

struct Shared {
  char* base = nullptr;
  size_t bytes = 0;
  std::vector<Touch> reads, writes;
};

static Fiber* current;
static Index block, block_size, grid;
static Shared shared;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Counters counters;
static long long block_epoch;
static int waiting, finished;  // threads of the block, at its barrier and returned
static bool watch, failed;
static char* message;
static jmp_buf scheduler;
static void* scheduler_fake_stack;
static const void* scheduler_stack;
static size_t scheduler_stack_size;

constexpr size_t MESSAGE = 1024;

static const char* base_name(const char* file) {
  const char* slash = file ? strrchr(file, '/') : nullptr;
  return slash ? slash + 1 : file ? file : "?";
}

// Switching.  ucontext starts a fiber; later switches need no system call.

static inline void leave(void** fake_stack, const void* bottom, size_t size) {
#ifdef EMULATOR_SANITIZED
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}

static inline void enter(void* fake_stack, const void** bottom, size_t* size) {
#ifdef EMULATOR_SANITIZED
  __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}

// The current fiber waits until the scheduler resumes it.
static __attribute__((noinline)) void suspend() {
  leave(&current->fake_stack, scheduler_stack, scheduler_stack_size);
  if (!_setjmp(current->context)) _longjmp(scheduler, 1);
  enter(current->fake_stack, &scheduler_stack, &scheduler_stack_size);
}

// A fiber runs until it waits, returns or fails.
static __attribute__((noinline)) void resume(Fiber& fiber) {
  current = &fiber;
  leave(&scheduler_fake_stack, fiber.stack, STACK);
  if (!_setjmp(scheduler)) {
    if (current->started) _longjmp(current->context, 1);
    current->started = true;
    setcontext(&current->start);
  }
  enter(scheduler_fake_stack, nullptr, nullptr);
}

// The launch ends here with a sentence; the first one stays.
[[noreturn]] static __attribute__((noinline, format(printf, 3, 4)))
void fail(const char* file, int line, const char* text, ...) {
  char what[MESSAGE / 2];
  va_list values;
  va_start(values, text);
  vsnprintf(what, sizeof what, text, values);
  va_end(values);
  snprintf(message, MESSAGE, "%s:%d: thread %u of block (%u, %u, %u) %s", base_name(file), line, current->thread.x,
           block.x, block.y, block.z, what);
  failed = true;
#ifdef EMULATOR_SANITIZED
  __sanitizer_print_stack_trace();  // every line that led here
#endif
  suspend();
  abort();  // a failed launch resumes nobody
}

// Numbers.

template <class To, class From> static inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

static inline float from_half(unsigned half) {
  float scaled = bits<float>((half & 0x7fffu) << 13) * 0x1p112f;  // exact, subnormal numbers too
  unsigned number = bits<unsigned>(scaled);
  number |= scaled >= 65536.0f ? 0x7f800000u : 0;  // infinity and NaN
  return bits<float>(number | (half & 0x8000u) << 16);
}

static inline unsigned to_half(float number) {
  unsigned all = bits<unsigned>(number), sign = all >> 16 & 0x8000u, size = all & 0x7fffffffu;
  if (size > 0x7f800000u) return 0x7fffu;          // the one NaN the GPU writes
  if (size >= 0x47800000u) return sign | 0x7c00u;  // 65536 and above
  if (size < 0x38800000u)  // below 2^-14, where a step is 2^-24: the addition rounds
    return sign | (bits<unsigned>(bits<float>(size) + 0.5f) - 0x3f000000u);
  return sign | (((size + 0xfffu + (size >> 13 & 1)) >> 13) - (112u << 10));  // may carry into infinity
}

static inline unsigned to_bfloat16(float number) {
  unsigned all = bits<unsigned>(number);
  if ((all & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (all + 0x7fffu + (all >> 16 & 1)) >> 16;
}

// D = A B + D of a warp, fragments as PTX lays them out for mma.m16n8k16.
static __attribute__((noinline)) void multiply(Warp& warp) {
  typedef float Row __attribute__((vector_size(32)));
  uint16_t a_bits[16][16], b_bits[16][8];
  float a[16][16];
  alignas(32) float b[16][8], d[16][8];
  for (int lane = 0; lane < LANES; lane++) {
    const Operands& from = warp.operands[lane];
    int g = lane / 4, t = 2 * (lane % 4);
    memcpy(&a_bits[g][t], &from.a.x, 4);
    memcpy(&a_bits[g + 8][t], &from.a.y, 4);
    memcpy(&a_bits[g][t + 8], &from.a.z, 4);
    memcpy(&a_bits[g + 8][t + 8], &from.a.w, 4);
    b_bits[t][g] = uint16_t(from.b0), b_bits[t + 1][g] = uint16_t(from.b0 >> 16);
    b_bits[t + 8][g] = uint16_t(from.b1), b_bits[t + 9][g] = uint16_t(from.b1 >> 16);
    memcpy(&d[g][t], from.d, 8);
    memcpy(&d[g + 8][t], from.d + 2, 8);
  }
  const bool half = warp.format == HALF;
  for (int i = 0; i < 16; i++) {
    if (half) {
      for (int k = 0; k < 16; k++) a[i][k] = from_half(a_bits[i][k]);
      for (int j = 0; j < 8; j++) b[i][j] = from_half(b_bits[i][j]);
    } else {
      for (int k = 0; k < 16; k++) a[i][k] = bits<float>(unsigned(a_bits[i][k]) << 16);
      for (int j = 0; j < 8; j++) b[i][j] = bits<float>(unsigned(b_bits[i][j]) << 16);
    }
  }
  for (int i = 0; i < 16; i++) {
    Row sum = *reinterpret_cast<Row*>(d[i]);
    for (int k = 0; k < 16; k++) sum += a[i][k] * *reinterpret_cast<Row*>(b[k]);
    *reinterpret_cast<Row*>(d[i]) = sum;
  }
  for (int lane = 0; lane < LANES; lane++) {
    int g = lane / 4, t = 2 * (lane % 4);
    memcpy(warp.operands[lane].d, &d[g][t], 8);
    memcpy(warp.operands[lane].d + 2, &d[g + 8][t], 8);
  }
}

// What accesses cost.

// Wavefronts of a quarter warp: 16 bytes fill 4 of 32 banks, so 8 of them fit side by side, at different eighths.
static void count_shared(const Access& access) {
  auto& to = counters.access[access.kind];
  for (int quarter = 0; quarter < LANES; quarter += 8) {
    int most = 0;
    for (unsigned eighth = 0; eighth < 8; eighth++) {
      uintptr_t seen[8];
      int distinct = 0;
      for (int lane = quarter; lane < quarter + 8; lane++) {
        if (!(access.lanes >> lane & 1) || (access.address[lane] >> 4 & 7) != eighth) continue;
        bool is_new = true;
        for (int i = 0; i < distinct; i++) is_new &= seen[i] != access.address[lane];
        if (is_new) seen[distinct++] = access.address[lane];
      }
      if (distinct > most) most = distinct;
    }
    to.cost += most;
    to.ideal += most > 0;
  }
}

// Sectors of 32 bytes that a warp touches, and those that as many bytes side by side would fill.
static void count_global(const Access& access) {
  auto& to = counters.access[access.kind];
  uintptr_t seen[LANES];
  int distinct = 0, calls = 0;
  for (int lane = 0; lane < LANES; lane++) {
    if (!(access.lanes >> lane & 1)) continue;
    bool is_new = true;
    for (int i = distinct; is_new && i-- > 0;) is_new = seen[i] != access.address[lane] >> 5;
    if (is_new) seen[distinct++] = access.address[lane] >> 5;
    calls++;
  }
  to.cost += distinct;
  to.ideal += (calls * KIND[access.kind].bytes + 31) / 32;
}

static void count(const Access& access) {
  counters.access[access.kind].instructions++;
  access.kind >= SHARED_LOAD ? count_shared(access) : count_global(access);
}

// Lanes of a warp come one after another; calls from one line belong together, in the order of each lane.
static inline void record(Kind kind, uintptr_t address, const char* file, int line) {
  Fiber& me = *current;
  std::vector<Access>& accesses = me.warp->accesses;
  counters.access[kind].calls++;
  const unsigned bit = 1u << me.lane;
  size_t i = me.cursor;
  while (i < accesses.size() && (!accesses[i].is(kind, file, line) || accesses[i].lanes & bit)) i++;
  if (i == accesses.size()) {
    // The first of its instruction comes before what earlier lanes, which sat it out, did next.
    i = me.cursor;
    accesses.insert(accesses.begin() + long(i), Access{kind, file, line, 0, {}});
    for (Fiber* fiber = &me - me.lane; fiber < &me - me.lane + LANES; fiber++) fiber->cursor += fiber->cursor > i;
  }
  me.cursor = i + 1;
  accesses[i].lanes |= bit;
  accesses[i].address[me.lane] = address;
}

// The warp is in step: what it accessed is complete.
static void settle(Warp& warp) {
  for (const Access& access : warp.accesses) count(access);
  warp.accesses.clear();
  for (int lane = 0; lane < LANES; lane++) fibers[warp.index * LANES + lane].cursor = 0;
  warp.epoch++;
}

// Races.

// Who else touched these bytes with nothing since that orders it and what the current thread does.
static const char* other_toucher(const Touch& touch, bool ordered_by_mma) {
  const Fiber& me = *current;
  if (touch.block_epoch != block_epoch) return nullptr;
  if (touch.warp != me.warp->index || touch.other_warp >= 0) return "another warp";
  if (ordered_by_mma && touch.warp_epoch != me.warp->epoch) return nullptr;
  return touch.lanes & ~(1u << me.lane) ? "another lane of its warp" : nullptr;
}

static void remember(Touch& touch, bool ordered_by_mma, const char* file, int line) {
  const Fiber& me = *current;
  const int warp = me.warp->index;
  unsigned lanes = 1u << me.lane;
  int other_warp = -1;
  if (touch.block_epoch == block_epoch) {
    other_warp = touch.warp == warp ? touch.other_warp : touch.warp;
    if (touch.warp == warp && !(ordered_by_mma && touch.warp_epoch != me.warp->epoch)) lanes |= touch.lanes;
  }
  touch = Touch{block_epoch, me.warp->epoch, warp, other_warp, lanes, file, line};
}

static void look_for_race(size_t offset, bool store, const char* file, int line) {
  Touch &read = shared.reads[offset / 16], &write = shared.writes[offset / 16];
  const char* who = other_toucher(write, false);
  const Touch* what = &write;
  if (!who && store) who = other_toucher(read, true), what = &read;
  if (who)
    fail(file, line, "races: it %s byte %zu of shared memory, which %s %s at %s:%d with nothing between that orders it",
         store ? "writes" : "reads", offset, who, what == &read ? "reads" : "writes", base_name(what->file),
         what->line);
  remember(store ? write : read, !store, file, line);
}

// Accesses.

template <class Value> static inline void reach(Kind kind, const void* at, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(Value))
    fail(file, line, "%s at %p, which is no multiple of %zu bytes", KIND[kind].name, at, sizeof(Value));
  record(kind, reinterpret_cast<uintptr_t>(at), file, line);
}

template <class Value> static inline Value load(Kind kind, const void* at, const char* file, int line) {
  reach<Value>(kind, at, file, line);
  return *static_cast<const Value*>(at);
}

template <class Value> static inline void store(Kind kind, void* at, Value value, const char* file, int line) {
  reach<Value>(kind, at, file, line);
  *static_cast<Value*>(at) = value;
}

// What lies outside shared memory: the sanitizer, where there is one, has already spoken when this is called.
static inline bool inside(const chunk* at) {
  size_t offset = size_t(reinterpret_cast<const char*>(at) - shared.base);
  return offset < shared.bytes && offset + sizeof(chunk) <= shared.bytes;
}

static inline void reach_shared(Kind kind, const chunk* at, const char* file, int line) {
  const long offset = reinterpret_cast<const char*>(at) - shared.base;
  if (!inside(at)) fail(file, line, "%s at byte %ld of %zu of shared memory", KIND[kind].name, offset, shared.bytes);
  if (offset % 16) fail(file, line, "%s at byte %ld of shared memory, no multiple of 16", KIND[kind].name, offset);
  record(kind, uintptr_t(offset), file, line);
  if (watch) look_for_race(size_t(offset), kind == SHARED_STORE, file, line);
}

// Rendezvous.

static inline void mma(Format format, float (&d)[4], chunk a, word b0, word b1, const char* file, int line) {
  Fiber& me = *current;
  Warp& warp = *me.warp;
  if (warp.arrived == 0) {
    warp.format = format, warp.file = file, warp.line = line;
  } else if (warp.format != format || warp.line != line || warp.file != file) {
    fail(file, line, "comes to this mma while other lanes of its warp wait at %s:%d", base_name(warp.file), warp.line);
  }
  warp.operands[me.lane] = Operands{d, a, b0, b1};
  if (++warp.arrived < LANES) {
    me.state = AT_MMA, me.file = file, me.line = line;
    suspend();
    return;
  }
  multiply(warp);
  counters.mma++;
  warp.arrived = 0;
  settle(warp);
  for (int lane = 0; lane < LANES; lane++) fibers[warp.index * LANES + lane].state = READY;
}

static inline void barrier(const char* file, int line) {
  Fiber& me = *current;
  static const char* first_file;
  static int first_line;
  if (waiting == 0) first_file = file, first_line = line;
  else if (line != first_line || file != first_file)
    fail(file, line, "comes to this barrier while other threads wait at that of %s:%d", base_name(first_file),
         first_line);
  me.state = AT_BARRIER, me.file = file, me.line = line;
  if (++waiting < int(fibers.size())) {
    suspend();
    return;
  }
  counters.barriers++;
  waiting = 0;
  block_epoch++;
  for (Warp& warp : warps) settle(warp);
  for (Fiber& fiber : fibers) fiber.state = READY;
}

// Launching.

static void (*body)();  // the kernel with its arguments

// A fiber's life: the kernel once a block.
static void life() {
  enter(nullptr, &scheduler_stack, &scheduler_stack_size);
  for (;;) {
    body();
    current->state = DONE;
    finished++;
    suspend();
  }
}

enum Order { FORWARD, REVERSED, RANDOM };

// A permutation of 0 .. count - 1, another one at every call where it is random.
struct Shuffle {
  Order order;
  uint64_t state;
  unsigned below(unsigned limit) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return unsigned((state >> 33) * limit >> 31);
  }
  void operator()(int* places, int count) {
    for (int i = 0; i < count; i++) places[i] = order == REVERSED ? count - 1 - i : i;
    if (order == RANDOM)
      for (int i = count; i-- > 1;) std::swap(places[i], places[below(unsigned(i) + 1)]);
  }
};

// Lets each lane of a warp that can run do so once; whether any could.
static bool sweep(Warp& warp, Shuffle& shuffle) {
  int places[LANES];
  shuffle(places, LANES);
  bool ran = false;
  for (int i = 0; i < LANES && !failed; i++) {
    Fiber& fiber = fibers[warp.index * LANES + places[i]];
    if (fiber.state == READY) resume(fiber), ran = true;
  }
  return ran;
}

// Nobody can go on: who waits where, as a sentence.
static void tell_deadlock() {
  int counts[4] = {};
  const Fiber* first[4] = {};
  for (const Fiber& fiber : fibers)
    if (!counts[fiber.state]++) first[fiber.state] = &fiber;
  size_t end = size_t(snprintf(message, MESSAGE, "block (%u, %u, %u) cannot go on:", block.x, block.y, block.z));
  auto add = [&end](const char* text, auto... values) {
    end += size_t(snprintf(message + end, MESSAGE - end, text, values...));
  };
  for (State state : {AT_BARRIER, AT_MMA, DONE}) {
    if (!counts[state]) continue;
    const bool one = counts[state] == 1;
    add(" %d %s %s", counts[state], one ? "thread" : "threads",
        state == DONE ? one ? "has returned" : "have returned" : one ? "waits at" : "wait at");
    if (state != DONE)
      add(" %s (thread %u at %s:%d)", state == AT_BARRIER ? "a barrier" : "an mma", first[state]->thread.x,
          base_name(first[state]->file), first[state]->line);
    add("%s", ",");
  }
  message[end - 1] = 0;
  failed = true;
}

static void run_block(Shuffle& shuffle) {
  shared.base = static_cast<char*>(malloc(shared.bytes ? shared.bytes : 1));
  memset(shared.base, 0xff, shared.bytes);
  shared.reads.assign(shared.bytes / 16 + 1, Touch());
  shared.writes.assign(shared.bytes / 16 + 1, Touch());
  waiting = finished = 0;
  for (Warp& warp : warps) warp.arrived = 0;
  for (Fiber& fiber : fibers) fiber.state = READY;
  const int count = int(warps.size());
  std::vector<int> places(warps.size());
  while (!failed && finished < int(fibers.size())) {
    shuffle(places.data(), count);
    bool ran = false;
    for (int i = 0; i < count && !failed; i++) {
      // In random order warps overtake each other at every mma, else one runs until it waits for the others.
      while (sweep(warps[places[i]], shuffle) && !failed) {
        ran = true;
        if (shuffle.order == RANDOM) break;
      }
    }
    if (!ran && !failed) tell_deadlock();
  }
  if (!failed)
    for (Warp& warp : warps) settle(warp);
  free(shared.base);
}

struct Launch { int x, y, z, threads; long shared_bytes; int bound; Order order; unsigned seed; };

static bool refuse(const Launch& launch) {
  if (launch.threads < LANES || launch.threads % LANES || launch.threads > 1024)
    snprintf(message, MESSAGE, "got %d threads; a block has a multiple of 32 up to 1024", launch.threads);
  else if (launch.threads > launch.bound)
    snprintf(message, MESSAGE, "got %d threads; this kernel is compiled for at most %d", launch.threads, launch.bound);
  else if (launch.x < 1 || launch.y < 1 || launch.z < 1 || launch.y > 65535 || launch.z > 65535)
    snprintf(message, MESSAGE, "no GPU has a grid of (%d, %d, %d)", launch.x, launch.y, launch.z);
  else if (launch.shared_bytes < 0 || launch.shared_bytes > MOST_SHARED)
    snprintf(message, MESSAGE, "got %ld bytes of shared memory; no GPU has more than %ld a block", launch.shared_bytes,
             MOST_SHARED);
  else
    return false;
  return true;
}

static int run(const Launch& launch) {
  if (refuse(launch)) return 1;
  failed = false;
  counters = Counters{};
  grid = Index{unsigned(launch.x), unsigned(launch.y), unsigned(launch.z)};
  block_size = Index{unsigned(launch.threads), 1, 1};
  shared.bytes = size_t(launch.shared_bytes);
  const size_t stacks = (STACK + GUARD) * size_t(launch.threads);
  void* memory = mmap(nullptr, stacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    snprintf(message, MESSAGE, "no memory for %d stacks", launch.threads);
    return 1;
  }
#ifdef EMULATOR_SANITIZED
  __asan_unpoison_memory_region(memory, stacks);  // from what a failed launch left on its stacks
#endif
  warps.assign(size_t(launch.threads) / LANES, Warp());
  fibers.assign(size_t(launch.threads), Fiber());
  for (int i = 0; i < launch.threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.thread = Index{unsigned(i), 0, 0};
    fiber.warp = &warps[i / LANES];
    fiber.warp->index = i / LANES;
    fiber.lane = i % LANES;
    char* bottom = static_cast<char*>(memory) + (STACK + GUARD) * size_t(i);
    mprotect(bottom, GUARD, PROT_NONE);
    fiber.stack = bottom + GUARD;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = STACK;
    makecontext(&fiber.start, life, 0);
  }
  Shuffle shuffle{launch.order, launch.seed};
  std::vector<int> places(size_t(launch.x) * launch.y * launch.z);
  shuffle(places.data(), int(places.size()));
  for (int place : places) {
    if (failed) break;
    const unsigned i = unsigned(place);
    block = Index{i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block(shuffle);
  }
  munmap(memory, stacks);
  return failed;
}

// A kernel and a copy of its arguments for `body`, which takes none.
template <class Call> struct Bound {
  static_assert(std::is_trivially_copyable<Call>::value, "a kernel's argument must be trivially copyable");
  static inline void (*kernel)(Call);
  static inline const void* params;
  static void call() {
    alignas(Call) char copy[sizeof(Call)];
    memcpy(copy, params, sizeof(Call));
    kernel(*reinterpret_cast<Call*>(copy));
  }
};

template <class Call>
static int launch(void (*kernel)(Call), const void* params, long size, const Launch& launch, int watch_races,
                  long long* counted, char* said) {
  message = said;
  message[0] = 0;
  watch = watch_races;
  if (size != long(sizeof(Call))) {
    snprintf(message, MESSAGE, "got a structure of %ld bytes; the kernel's has %zu", size, sizeof(Call));
    return 1;
  }
  Bound<Call>::kernel = kernel;
  Bound<Call>::params = params;
  body = Bound<Call>::call;
  const int status = run(launch);
  memcpy(counted, &counters, sizeof counters);
  return status;
}

}  // namespace emulator

#define EXPORT(name, Call)                                                                                             \
  extern "C" __attribute__((visibility("default"))) int emulate_##name(                                                \
      const void* params, long size, int grid_x, int grid_y, int grid_z, int threads, long shared_bytes, int order,    \
      unsigned seed, int watch_races, long long* counters, char* message) {                                            \
    constexpr int most = emulator::MostThreads<__COUNTER__ - 1>::value; /* unknown: no kernel stands right before */   \
    const emulator::Launch launch = {grid_x,       grid_y, grid_z,                 threads,                            \
                                     shared_bytes, most,   emulator::Order(order), seed};                              \
    return emulator::launch<Call>(name, params, size, launch, watch_races, counters, message);                         \
  }

// The wrappers of cuda/ptx.cuh.

inline float as_float(word number) { return emulator::bits<float>(number); }
inline word as_word(float number) { return emulator::bits<word>(number); }
inline float low_half(word both) { return emulator::from_half(both & 0xffffu); }
inline float high_half(word both) { return emulator::from_half(both >> 16); }
inline word pack_half(float low, float high) { return emulator::to_half(low) | emulator::to_half(high) << 16; }
inline word pack_bfloat16(float low, float high) {
  return emulator::to_bfloat16(low) | emulator::to_bfloat16(high) << 16;
}

inline word select_bytes(word a, word b, word selector, EMULATOR_SITE) {
  if (selector & 0x8888u) emulator::fail(file, line, "asks select_bytes to copy a sign (selector %x)", selector);
  const uint64_t bytes = uint64_t(b) << 32 | a;
  word selected = 0;
  for (int i = 0; i < 4; i++) selected |= word(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return selected;
}

inline void barrier(EMULATOR_SITE) { emulator::barrier(file, line); }
inline void mma_half(float (&d)[4], chunk a, word b0, word b1, EMULATOR_SITE) {
  emulator::mma(emulator::HALF, d, a, b0, b1, file, line);
}
inline void mma_bfloat16(float (&d)[4], chunk a, word b0, word b1, EMULATOR_SITE) {
  emulator::mma(emulator::BFLOAT16, d, a, b0, b1, file, line);
}

inline chunk load_chunk(const void* from, EMULATOR_SITE) {
  return emulator::load<chunk>(emulator::LOAD_CHUNK, from, file, line);
}
inline chunk load_entry(const void* from, EMULATOR_SITE) {
  return emulator::load<chunk>(emulator::LOAD_ENTRY, from, file, line);
}
inline pair load_pair(const void* from, EMULATOR_SITE) {
  return emulator::load<pair>(emulator::LOAD_PAIR, from, file, line);
}
inline word load_word(const void* from, EMULATOR_SITE) {
  return emulator::load<word>(emulator::LOAD_WORD, from, file, line);
}
inline word load_short(const void* from, EMULATOR_SITE) {
  return emulator::load<uint16_t>(emulator::LOAD_SHORT, from, file, line);
}
inline void store_chunk(void* to, chunk value, EMULATOR_SITE) {
  emulator::store(emulator::STORE_CHUNK, to, value, file, line);
}
inline void store_word(void* to, word value, EMULATOR_SITE) {
  emulator::store(emulator::STORE_WORD, to, value, file, line);
}
inline void store_short(void* to, word value, EMULATOR_SITE) {
  emulator::store(emulator::STORE_SHORT, to, uint16_t(value), file, line);
}

// Under the sanitizer the access comes first: what it finds, it tells with every line that led here.
inline chunk shared_load(const chunk* from, EMULATOR_SITE) {
#ifdef EMULATOR_SANITIZED
  if (!emulator::inside(from)) (void)*const_cast<const volatile word*>(&from->w);
#endif
  emulator::reach_shared(emulator::SHARED_LOAD, from, file, line);
  return *from;
}
inline void shared_store(chunk* to, chunk value, EMULATOR_SITE) {
#ifdef EMULATOR_SANITIZED
  if (!emulator::inside(to)) *const_cast<volatile word*>(&to->w) = value.w;
#endif
  emulator::reach_shared(emulator::SHARED_STORE, to, file, line);
  *to = value;
}
