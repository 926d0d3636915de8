// What the kernels ask of the machine beyond C++: matrix products, conversions, memory in wide pieces.  Each stands here
// once; tests/emulator has a twin of each, so the kernels run, unchanged, where there is no GPU.
#pragma once

#ifdef SPARSIFY_EMULATOR
#include "emulator.h"
#else

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define EXPORT(name, params)  // the emulator's way in
#define SHARED_MEMORY(type, name) extern __shared__ type name[]

typedef unsigned int word;                       // two 16-bit numbers, the first in the low half
struct alignas(16) chunk { word x, y, z, w; };   // what one thread moves at a time
struct alignas(8) pair { float re, im; };

DEVICE void barrier() { __syncthreads(); }

// d (16, 8) += a (16, 16) b (16, 8) by one warp.  Lane 4 g + t holds of a the rows g and g + 8 at columns 2t, 2t + 1 (x, y)
// and 2t + 8, 2t + 9 (z, w); of b the column g at rows 2t, 2t + 1 and 2t + 8, 2t + 9; of d the columns 2t, 2t + 1 of rows
// g and g + 8.
DEVICE void mma_half(float (&d)[4], chunk a, word b0, word b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
DEVICE void mma_bfloat16(float (&d)[4], chunk a, word b0, word b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

DEVICE word pack_half(float low, float high) {  // to nearest even, like all conversions here
    word r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
DEVICE word pack_bfloat16(float low, float high) {
    word r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
DEVICE float low_half(word a) {
    float r;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(r) : "r"(a));
    return r;
}
DEVICE float high_half(word a) {
    float r;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high;}" : "=f"(r) : "r"(a));
    return r;
}
DEVICE float as_float(word a) { return __uint_as_float(a); }
DEVICE word as_word(float a) { return __float_as_uint(a); }

// Byte i of the result is the byte of b:a that the i-th hexadecimal digit of the selector counts to.
DEVICE word select_bytes(word a, word b, word selector) { return __byte_perm(a, b, selector); }

// Global memory that nobody writes meanwhile.
DEVICE chunk load_chunk(const void* p) {
    chunk r;
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
    return r;
}
// Of tables, and volatile: read where it stands, since all that a compiler would fetch ahead of a loop fills its registers.
DEVICE chunk load_entry(const void* p) {
    chunk r;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
    return r;
}
DEVICE pair load_pair(const void* p) {
    pair r;
    asm volatile("ld.global.nc.v2.f32 {%0,%1}, [%2];" : "=f"(r.re), "=f"(r.im) : "l"(p));
    return r;
}
DEVICE word load_word(const void* p) {
    word r;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(p));
    return r;
}
DEVICE word load_short(const void* p) {
    unsigned short r;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(r) : "l"(p));
    return r;
}
DEVICE void store_chunk(void* p, chunk a) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w) : "memory");
}
DEVICE void store_word(void* p, word a) { asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(a) : "memory"); }
DEVICE void store_short(void* p, word a) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"((unsigned short)a) : "memory");
}

DEVICE chunk shared_load(const chunk* p) { return *p; }
DEVICE void shared_store(chunk* p, chunk a) { *p = a; }

#endif
