// Whether memory has changed: a digest that any change of one word changes for certain, and any other all but surely.
#pragma once

#include "simd.h"

namespace {

typedef uint32_t whole_words __attribute__((vector_size(4 * LANES), aligned(4)));

// Four vectors of chains, for one would wait for its own products.  A step can be undone, so a chain that has met two
// different words in the same place never forgets it.  The shift brings high bits down: by products alone a flipped sign
// would stay the flip of one bit, and two of them would cancel.
uint64_t digest_blocks(const char* const* blocks, const int64_t* bytes, int64_t count) {
    constexpr uint32_t odd = 0x9e3779b1u;
    constexpr int64_t step = 4 * sizeof(whole_words);
    whole_words chain[4];
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < V; lane++) chain[i][lane] = 1 + i * V + lane;
    uint64_t rest = 1;
    for (int64_t b = 0; b < count; b++) {
        const char* at = blocks[b];
        int64_t left = bytes[b];
        for (; left >= step; left -= step, at += step)
            for (int i = 0; i < 4; i++) {
                chain[i] = (chain[i] ^ ((const whole_words*)at)[i]) * odd;
                chain[i] ^= chain[i] >> 15;
            }
        for (; left > 0; left -= 4, at += 4) {
            uint32_t word = 0;
            memcpy(&word, at, left < 4 ? left : 4);
            rest = (rest ^ word) * 0x9e3779b97f4a7c15u;
            rest ^= rest >> 32;
        }
        rest = (rest ^ (uint64_t)bytes[b]) * 0x9e3779b97f4a7c15u;  // where a block ends matters, too
    }
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < V; lane++) {
            rest = (rest ^ chain[i][lane]) * 0x9e3779b97f4a7c15u;
            rest ^= rest >> 32;
        }
    return rest;
}

}  // namespace
