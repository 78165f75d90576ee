// Attention of a few rows and one head over keys and values in pages.
//
// Keys lie 16 slots side by side (block, dimension, slot), so sixteen scores are lanes of one sum over the dimensions.
// Values lie slot by slot. What a row attends to is numbered in the order named, pages first, extra slots after them;
// scores, the sum of the exponentials and the weighted sum follow that numbering, never pages, blocks or tiles. Rows of
// one sequence go together, so that a key or value is read once for all of them; what each sums, and in which order,
// stays its own.
#pragma once

#include "vectors.h"

#include <limits>
#include <type_traits>

constexpr int PER_BLOCK = BLOCK / LANES;
constexpr int TOGETHER = LANES >= 16 ? 4 : 2;                 // rows that go together
constexpr int BESIDE = LANES >= 16 ? 4 : LANES >= 8 ? 2 : 1;  // blocks of keys that go together then

// The scores of R queries, `stride` floats apart, with B blocks of keys; those of a query `room` floats apart.
template <int R, int B>
static INLINE void score(const float *query, size_t stride, int width, const float *keys, const int32_t *blocks,
                         float *out, size_t room) {
    Vector sum[R][B][PER_BLOCK];
    const float *key[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
        key[b] = keys + size_t(blocks[b]) * BLOCK * width;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int p = 0; p < PER_BLOCK; p++) sum[r][b][p] = spread(0.0f);
    }
    for (int d = 0; d < width; d++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
#pragma GCC unroll 4
            for (int p = 0; p < PER_BLOCK; p++) {
                const Vector each = load(key[b] + d * BLOCK + p * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) sum[r][b][p] += each * query[r * stride + d];
            }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
#pragma GCC unroll 4
            for (int p = 0; p < PER_BLOCK; p++) store(out + r * room + b * BLOCK + p * LANES, sum[r][b][p]);
}

template <int R>
static APART void scores_of(const float *query, size_t stride, int width, const float *keys, const int32_t *blocks,
                            size_t count, float *out, size_t room) {
    constexpr int WIDE = R == 1 ? 8 : BESIDE;
    const auto some = [&](auto wide, size_t &b) {
        constexpr int B = decltype(wide)::value;
        for (; b + B <= count; b += B) score<R, B>(query, stride, width, keys, blocks + b, out + b * BLOCK, room);
    };
    size_t b = 0;
    some(std::integral_constant<int, WIDE>(), b);
    if constexpr (WIDE > 4) some(std::integral_constant<int, 4>(), b);
    if constexpr (WIDE > 2) some(std::integral_constant<int, 2>(), b);
    some(std::integral_constant<int, 1>(), b);
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

// Add values [from, to) of `slots`, by the weights of R rows, to C vectors of each row's sum, which begins at 0.
template <int R, int C>
static APART void blend(const float *weights, size_t room, const float *values, size_t stride, const int32_t *slots,
                        size_t from, size_t to, bool resume, float *out, size_t apart) {
    Vector sum[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[r][c] = resume ? load(out + r * apart + c * LANES) : spread(0.0f);
    for (size_t j = from; j < to; j++) {
        const float *value = values + size_t(slots[j]) * stride;
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            const Vector each = load(value + c * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) sum[r][c] += each * weights[r * room + j];
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) store(out + r * apart + c * LANES, sum[r][c]);
}

// What the rows of one sequence share: the slots of its leading positions and the blocks of keys they lie in.
struct Prefix {
    const int32_t *slots;    // a position's slot
    const int32_t *blocks;   // the key blocks in order, each with a run of positions
    const int32_t *starts;   // a run's first position
    bool whole;              // every run is a whole block
};

// One head of one layer: where its keys and values lie, and how long they are.
struct Head {
    const float *keys, *values;
    int width;
    size_t stride;  // floats of a value
};

// The room that R rows work in: their queries, scores and sums, each row's `room`, `stride` floats apart.
struct Work {
    float *query, *scores, *raw, *sum;
    int32_t *blocks;
    size_t room;
};

// Scores of the first `visible` positions of R rows, the most that any of them sees.
template <int R>
static INLINE void leading_scores(const Head &head, const Prefix &prefix, size_t visible, const Work &work) {
    if (prefix.whole) {
        const size_t count = (visible + BLOCK - 1) / BLOCK;
        return scores_of<R>(work.query, head.stride, head.width, head.keys, prefix.blocks, count, work.scores, work.room);
    }
    size_t runs = 0;
    while (size_t(prefix.starts[runs]) < visible) runs++;
    for (int r = 0; r < R; r++) {
        scores_of<1>(work.query + r * head.stride, head.stride, head.width, head.keys, prefix.blocks, runs, work.raw, 0);
        for (size_t i = 0; i < runs; i++)
            for (size_t j = size_t(prefix.starts[i]); j < visible && j < size_t(prefix.starts[i + 1]); j++)
                work.scores[r * work.room + j] = work.raw[i * BLOCK + prefix.slots[j] % BLOCK];
    }
}

// Scores of one row's extra slots, into `scores`. Slots of a branch lie in a row: a block is scored once for them.
static INLINE void extra_scores(const Head &head, const float *query, const int32_t *extra, size_t count,
                                const Work &work, float *scores) {
    size_t blocks = 0;
    for (size_t e = 0; e < count; e++)
        if (!e || extra[e] / BLOCK != work.blocks[blocks - 1]) work.blocks[blocks++] = extra[e] / BLOCK;
    scores_of<1>(query, head.stride, head.width, head.keys, work.blocks, blocks, work.raw, 0);
    size_t block = 0;
    for (size_t e = 0; e < count; e++) {
        if (extra[e] / BLOCK != work.blocks[block]) block++;
        scores[e] = work.raw[block * BLOCK + extra[e] % BLOCK];
    }
}

// All vectors of the sums of R rows over values [from, to) of `slots`.
template <int R>
static INLINE void blend_all(const Head &head, const float *weights, size_t room, const int32_t *slots, size_t from,
                             size_t to, bool resume, float *out) {
    size_t at = 0;
    for (; at + 4 * LANES <= head.stride; at += 4 * LANES)
        blend<R, 4>(weights, room, head.values + at, head.stride, slots, from, to, resume, out + at, head.stride);
    for (; at < head.stride; at += LANES)
        blend<R, 1>(weights, room, head.values + at, head.stride, slots, from, to, resume, out + at, head.stride);
}

// What one row attends to besides the positions that its neighbours see too.
struct Sight {
    size_t visible;
    const int32_t *extra;
    size_t num_extra;
};

// The attended values of R rows of one sequence, into work.sum.
template <int R> static void attend(const Head &head, const Prefix &prefix, const Sight *sights, const Work &work) {
    size_t least = sights[0].visible, most = least;
    for (int r = 1; r < R; r++) {
        least = sights[r].visible < least ? sights[r].visible : least;
        most = sights[r].visible > most ? sights[r].visible : most;
    }
    leading_scores<R>(head, prefix, most, work);
    float total[R];
    for (int r = 0; r < R; r++) {
        const Sight &sight = sights[r];
        float *scores = work.scores + r * work.room;
        extra_scores(head, work.query + r * head.stride, sight.extra, sight.num_extra, work, scores + sight.visible);
        total[r] = exponentials(scores, sight.visible + sight.num_extra);
    }
    blend_all<R>(head, work.scores, work.room, prefix.slots, 0, least, false, work.sum);
    for (int r = 0; r < R; r++) {
        const Sight &sight = sights[r];
        const float *weights = work.scores + r * work.room;
        float *sum = work.sum + r * head.stride;
        blend_all<1>(head, weights, 0, prefix.slots, least, sight.visible, true, sum);
        blend_all<1>(head, weights + sight.visible, 0, sight.extra, 0, sight.num_extra, true, sum);
        const float scale = sight.visible + sight.num_extra ? 1.0f / total[r] : 0.0f;
        for (size_t d = 0; d < head.stride; d += LANES) store(sum + d, load(sum + d) * scale);
    }
}
