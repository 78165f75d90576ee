// Products of a few rows with a packed weight matrix.
//
// A matrix of M outputs and K inputs is packed in panels of 32 outputs: panel p holds, for k = 0, 1, ..., the weights
// of outputs 32 p to 32 p + 31 side by side, so that one pass reads it from start to end. Every output is one sum over
// k in ascending order, whatever the number of rows, the tile or the thread: an exact function of its row alone.
#pragma once

#include "vectors.h"

constexpr int MAX_ROWS = GROUP == 2 ? 12 : 3;  // rows of a tile whose sums fit the registers
constexpr int DEPTH = 256;                                         // inputs of a panel that stay in the first cache

// Bytes of a panel fetched ahead of use. More rows take longer over each line, but a far line that comes too late costs
// more than one that comes too soon: measured at 120 MB, 8 rows take 1.14 times one row with 16 KB and 1.42 with 2 KB.
constexpr int ahead(int rows) { return rows == 1 ? 2048 : 16384; }

typedef uint16_t Brain;  // bfloat16

static INLINE uint16_t to_brain(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static INLINE float from_brain(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

// Where output `o` of a panel's 32 lies. In bfloat16 two outputs share a 32-bit word, one a vector further than the
// other, so that a shift and a mask give two whole vectors.
static INLINE int place(int o, const float *) { return o; }
static INLINE int place(int o, const Brain *) {
    const int pair = o / (2 * LANES), within = o % (2 * LANES);
    return pair * 2 * LANES + (within % LANES) * 2 + within / LANES;
}

static INLINE void convert(float value, float *to) { *to = value; }
static INLINE void convert(float value, Brain *to) { *to = to_brain(value); }

// Pack `rows` outputs into panels first, first + step, ...; the tail of the last one is zero.
template <class W>
static void pack(W *to, const float *from, size_t rows, size_t inputs, size_t first, size_t step) {
    for (size_t o = 0; o < rounded(rows, PANEL); o++) {
        W *panel = to + (first + o / PANEL * step) * inputs * PANEL + place(int(o % PANEL), (const W *)nullptr);
        for (size_t k = 0; k < inputs; k++) convert(o < rows ? from[o * inputs + k] : 0.0f, panel + k * PANEL);
    }
}

static INLINE void fetch_group(const float *w, Vector *out) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; g++) out[g] = load(w + g * LANES);
}

static INLINE void fetch_group(const Brain *w, Vector *out) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; g += 2) {
        Words words;
        memcpy(&words, w + g * LANES, sizeof words);
        out[g] = (Vector)(words << 16);
        out[g + 1] = (Vector)(words & 0xffff0000u);
    }
}

// R rows by P panels: the sums over k in [from, to), added to what y holds where `resume` is set.
template <int R, int P, class W>
static APART void tile(const float *x, size_t x_stride, const W *w, size_t inputs, size_t from, size_t to, float *y,
                       size_t y_stride, bool resume) {
    Vector sum[R][P][GROUP];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 8
            for (int g = 0; g < GROUP; g++)
                sum[r][p][g] = resume ? load(y + r * y_stride + p * PANEL + g * LANES) : spread(0.0f);
    for (size_t k = from; k < to; k++) {
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) {
            const W *weights = w + (p * inputs + k) * PANEL;
            for (size_t line = 0; line < PANEL * sizeof(W); line += 64)
                __builtin_prefetch((const char *)weights + ahead(R) + line);
            Vector group[GROUP];
            fetch_group(weights, group);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int g = 0; g < GROUP; g++) sum[r][p][g] += group[g] * x[r * x_stride + k];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 8
            for (int g = 0; g < GROUP; g++) store(y + r * y_stride + p * PANEL + g * LANES, sum[r][p][g]);
}

template <class W> struct Product {
    const float *x;
    size_t x_stride;
    const W *w;
    size_t inputs;
    float *y;
    size_t y_stride;

    template <int R, int P>
    INLINE void call(size_t row, size_t panel, size_t from, size_t to) const {
        tile<R, P, W>(x + row * x_stride, x_stride, w + panel * inputs * PANEL, inputs, from, to,
                      y + row * y_stride + panel * PANEL, y_stride, from > 0);
    }

    // One panel of any number of rows up to MAX_ROWS.
    template <int R = MAX_ROWS>
    INLINE void rows(int count, size_t row, size_t panel, size_t from, size_t to) const {
        if (count == R) return call<R, 1>(row, panel, from, to);
        if constexpr (R > 1) rows<R - 1>(count, row, panel, from, to);
    }

    void few(int count, size_t panel, size_t end) const {
        // One row leaves registers free: several panels side by side hide the latency of the sums.
        for (; count == 1 && panel + WIDEST <= end; panel += WIDEST) call<1, WIDEST>(0, panel, 0, inputs);
        for (; panel < end; panel++) rows(count, 0, panel, 0, inputs);
    }

    // Panels [panel, end) of `count` rows.
    void run(size_t count, size_t panel, size_t end) const {
        if (count <= size_t(MAX_ROWS)) return few(int(count), panel, end);
        const size_t tiles = (count + MAX_ROWS - 1) / MAX_ROWS;
        for (; panel < end; panel++)
            for (size_t from = 0; from < inputs; from += DEPTH) {
                const size_t to = from + DEPTH < inputs ? from + DEPTH : inputs;
                for (size_t t = 0; t < tiles; t++) {
                    const size_t row = count * t / tiles;
                    rows(int(count * (t + 1) / tiles - row), row, panel, from, to);
                }
            }
    }

    static constexpr int WIDEST = MAX_ROWS >= 4 ? 4 : 2;
};
