// Attention of one row and one head over keys and values in pages.
//
// Keys lie 16 slots side by side (block, dimension, slot), so sixteen scores are lanes of one sum over the dimensions.
// Values lie slot by slot. What a row attends to is numbered in the order named, pages first, extra slots after them;
// scores, the sum of the exponentials and the weighted sum follow that numbering, never pages, blocks or tiles.
#pragma once

#include "vectors.h"

#include <limits>

constexpr int PER_BLOCK = BLOCK / LANES;

// The scores of one query with B blocks of keys.
template <int B>
static INLINE void score(const float *query, int width, const float *keys, const int32_t *blocks, float *out) {
    Vector sum[B][PER_BLOCK];
    const float *key[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
        key[b] = keys + size_t(blocks[b]) * BLOCK * width;
#pragma GCC unroll 4
        for (int p = 0; p < PER_BLOCK; p++) sum[b][p] = spread(0.0f);
    }
    for (int d = 0; d < width; d++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
#pragma GCC unroll 4
            for (int p = 0; p < PER_BLOCK; p++) sum[b][p] += load(key[b] + d * BLOCK + p * LANES) * query[d];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int p = 0; p < PER_BLOCK; p++) store(out + b * BLOCK + p * LANES, sum[b][p]);
}

static APART void scores_of(const float *query, int width, const float *keys, const int32_t *blocks, size_t count,
                            float *out) {
    size_t b = 0;
    for (; b + 8 <= count; b += 8) score<8>(query, width, keys, blocks + b, out + b * BLOCK);
    if (count - b >= 4) score<4>(query, width, keys, blocks + b, out + b * BLOCK), b += 4;
    if (count - b >= 2) score<2>(query, width, keys, blocks + b, out + b * BLOCK), b += 2;
    if (count - b >= 1) score<1>(query, width, keys, blocks + b, out + b * BLOCK);
}

// Turn scores into e^(score - largest) in place, up to a whole vector, and return their sum; 0 where there is none.
static APART float exponentials(float *scores, size_t count) {
    const size_t padded = rounded(count, LANES);
    for (size_t j = count; j < padded; j++) scores[j] = -std::numeric_limits<float>::infinity();
    Vector top = spread(-std::numeric_limits<float>::infinity()), sum = spread(0.0f);
    for (size_t j = 0; j < padded; j += LANES) top = larger(load(scores + j), top);
    const Vector largest = spread(greatest(top));
    for (size_t j = 0; j < padded; j += LANES) {
        const Vector each = exponential(load(scores + j) - largest);
        store(scores + j, each);
        sum += each;
    }
    return total(sum);
}

// C vectors of the weighted sum of values.
template <int C>
static APART void blend(const float *weights, const float *values, size_t stride, const int32_t *slots, size_t visible,
                        const int32_t *extra, size_t num_extra, float scale, float *out) {
    Vector sum[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) sum[c] = spread(0.0f);
    for (size_t j = 0; j < visible; j++) {
        const float *value = values + size_t(slots[j]) * stride;
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[c] += load(value + c * LANES) * weights[j];
    }
    for (size_t e = 0; e < num_extra; e++) {
        const float *value = values + size_t(extra[e]) * stride;
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[c] += load(value + c * LANES) * weights[visible + e];
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) store(out + c * LANES, sum[c] * scale);
}

// What the rows of one sequence share: the slots of its leading positions and the blocks of keys they lie in.
struct Prefix {
    const int32_t *slots;    // a position's slot
    const int32_t *blocks;   // the key blocks in order, each with a run of positions
    const int32_t *starts;   // a run's first position
    bool whole;              // every run is a whole block
};

// Scores of the first `visible` positions and the extra slots, in that order, into `scores`; `raw` is scratch.
static INLINE void all_scores(const float *query, int width, const float *keys, const Prefix &prefix, size_t visible,
                              const int32_t *extra, size_t num_extra, float *scores, float *raw, int32_t *blocks) {
    if (prefix.whole) {
        scores_of(query, width, keys, prefix.blocks, (visible + BLOCK - 1) / BLOCK, scores);
    } else {
        size_t runs = 0;
        while (size_t(prefix.starts[runs]) < visible) runs++;
        scores_of(query, width, keys, prefix.blocks, runs, raw);
        for (size_t r = 0; r < runs; r++)
            for (size_t j = size_t(prefix.starts[r]); j < visible && j < size_t(prefix.starts[r + 1]); j++)
                scores[j] = raw[r * BLOCK + prefix.slots[j] % BLOCK];
    }
    for (size_t e = 0; e < num_extra; e++) blocks[e] = extra[e] / BLOCK;
    scores_of(query, width, keys, blocks, num_extra, raw);
    for (size_t e = 0; e < num_extra; e++) scores[visible + e] = raw[e * BLOCK + extra[e] % BLOCK];
}

// All vectors of a head's weighted sum; `out` has room for whole vectors.
static INLINE void blend_all(const float *weights, const float *values, size_t stride, const Prefix &prefix,
                             size_t visible, const int32_t *extra, size_t num_extra, float scale, float *out) {
    size_t at = 0;
    for (; at + 4 * LANES <= stride; at += 4 * LANES)
        blend<4>(weights, values + at, stride, prefix.slots, visible, extra, num_extra, scale, out + at);
    for (; at < stride; at += LANES)
        blend<1>(weights, values + at, stride, prefix.slots, visible, extra, num_extra, scale, out + at);
}
