// From a row of logits to the law that a token is drawn from, and the drawing.
//
// All in double precision, each row by itself and every sum in an order that its length alone fixes: a row has the same
// bits in any batch.
#pragma once

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t Longs __attribute__((vector_size(VECTOR_BYTES)));
typedef float Singles __attribute__((vector_size(VECTOR_BYTES / 2)));

constexpr int WIDE = VECTOR_BYTES / 8;   // doubles in a vector
constexpr int CHUNK = 16;                // values whose largest stands for them in a search
constexpr int STRETCH = 64;              // tokens between two stored cumulative sums
constexpr size_t BUCKETS = 514;          // classes of falling values, 64 octaves and one for nothing
constexpr double NOTHING = -std::numeric_limits<double>::infinity();

struct Filters {
    double temperature, least, top_p;  // least: the smallest scaled logit that min_p keeps
    int64_t top_k;                     // 0 keeps all
};

static INLINE Doubles both(double value) {
    Doubles v;
    for (int i = 0; i < WIDE; i++) v[i] = value;
    return v;
}

static INLINE Doubles take(const double *from) {
    Doubles v;
    memcpy(&v, from, sizeof v);
    return v;
}

static INLINE Doubles take(const float *from) {
    Singles v;
    memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, Doubles);
}

static INLINE void put(double *to, Doubles v) { memcpy(to, &v, sizeof v); }

// e^x for x <= 0 to less than one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, Taylor's series of e^r to
// the thirteenth power (the next is below 5e-18), and n put into the exponent. 0 below -708, where doubles lose digits,
// and for what is no number.
static INLINE Doubles exponential(Doubles x) {
    const Doubles lowest = both(-708.0), shift = both(6755399441055744.0);
    const Doubles clamped = x >= lowest ? x : lowest;
    const Doubles shifted = clamped * 1.44269504088896340736 + shift;  // 1.5 * 2^52 rounds to whole numbers
    const Doubles whole = shifted - shift;
    // ln 2 in two parts: the first has so few digits that its product with n is exact.
    Doubles r = clamped - whole * 6.93147180369123816490e-01;
    r = r - whole * 1.90821492927058770002e-10;
    Doubles sum = r * (1.0 / 6227020800) + (1.0 / 479001600);
    sum = sum * r + (1.0 / 39916800);
    sum = sum * r + (1.0 / 3628800);
    sum = sum * r + (1.0 / 362880);
    sum = sum * r + (1.0 / 40320);
    sum = sum * r + (1.0 / 5040);
    sum = sum * r + (1.0 / 720);
    sum = sum * r + (1.0 / 120);
    sum = sum * r + (1.0 / 24);
    sum = sum * r + (1.0 / 6);
    sum = sum * r + 0.5;
    sum = (sum * r) * r + r + 1.0;
    const Longs power = ((Longs)shifted - (Longs)shift + 1023) << 52;
    return x >= lowest ? sum * (Doubles)power : both(0.0);
}

// How long a row is that is filled up to whole groups of four vectors.
static INLINE size_t whole_groups(size_t size) { return rounded(size, 4 * WIDE); }

static INLINE double sum_of(Doubles lane) {
    double sum = lane[0];
    for (int i = 1; i < WIDE; i++) sum += lane[i];
    return sum;
}

// Copy a row as doubles, minus infinity behind it; return the largest, or NaN where some logit is none.
template <class T> static APART double widen(const T *logits, size_t size, double *out) {
    Doubles top = both(NOTHING);
    Longs strange = {};
    size_t i = 0;
    for (; i + WIDE <= size; i += WIDE) {
        const Doubles each = take(logits + i);
        strange |= each != each;
        top = each > top ? each : top;
        put(out + i, each);
    }
    double best = NOTHING;
    bool number = true;
    for (int lane = 0; lane < WIDE; lane++) {
        number = number && !strange[lane];
        best = std::max(best, top[lane]);
    }
    for (; i < size; i++) {
        out[i] = double(logits[i]);
        number = number && out[i] == out[i];
        best = out[i] > best ? out[i] : best;
    }
    for (; i < whole_groups(size); i++) out[i] = NOTHING;
    return number ? best : std::numeric_limits<double>::quiet_NaN();
}

// The differences from the largest over the temperature, those below `least` left out.
static APART void scale(double *row, size_t size, double best, const Filters &filters) {
    const Doubles nothing = both(NOTHING), least = both(filters.least);
    for (size_t i = 0; i < whole_groups(size); i += WIDE) {
        const Doubles each = (take(row + i) - best) / filters.temperature;
        put(row + i, each < least ? nothing : each);
    }
}

// The exponentials in place, and their sum.
static APART double exponentials(double *row, size_t size) {
    Doubles sum[4] = {};
    for (size_t i = 0; i < whole_groups(size); i += 4 * WIDE)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            const Doubles each = exponential(take(row + i + part * WIDE));
            put(row + i + part * WIDE, each);
            sum[part] += each;
        }
    return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static APART double sum_of(const double *row, size_t size) {
    Doubles sum[4] = {};
    for (size_t i = 0; i < whole_groups(size); i += 4 * WIDE)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) sum[part] += take(row + i + part * WIDE);
    return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Leave at the front of `held`, in no order, the `count` largest values of a row.
static void leaders(const double *row, size_t size, size_t count, std::vector<double> &held) {
    held.clear();
    const size_t chunks = (size + CHUNK - 1) / CHUNK;
    if (count >= chunks) {
        held.assign(row, row + size);
    } else {
        std::vector<double> top(chunks), order;
        for (size_t c = 0; c < chunks; c++)
            top[c] = *std::max_element(row + c * CHUNK, row + std::min(size, (c + 1) * CHUNK));
        order = top;
        std::nth_element(order.begin(), order.begin() + count - 1, order.end(), std::greater<double>());
        // So many chunks reach this that as many values do.
        const double bound = order[count - 1];
        for (size_t c = 0; c < chunks; c++)
            for (size_t i = c * CHUNK; top[c] >= bound && i < std::min(size, (c + 1) * CHUNK); i++)
                if (row[i] >= bound) held.push_back(row[i]);
    }
    if (count < held.size())
        std::nth_element(held.begin(), held.begin() + count - 1, held.end(), std::greater<double>());
}

// Put `filling` for all but the `count` largest values, `edge` the least of them; its equals stay by ascending id.
static void keep_leading(double *row, size_t size, double edge, size_t count, double filling) {
    size_t reached = 0;
    for (size_t i = 0; i < size; i++) {
        reached += row[i] >= edge;
        row[i] = row[i] >= edge ? row[i] : filling;
    }
    for (size_t i = size; reached > count; i--)
        if (row[i - 1] == edge) {
            row[i - 1] = filling;
            reached--;
        }
}

// Which of the buckets of falling values a part of a law falls into: eight an octave, the last but one for all that is
// far below the largest, the last for nothing.
static INLINE size_t bucket(double value, uint64_t largest) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value > 0.0 ? std::min(BUCKETS - 2, size_t(largest - (bits >> 49))) : BUCKETS - 1;
}

// Keep the fewest tokens of a law that together hold top_p of its mass, and return what they hold, which is summed from
// the likeliest on. Only as many buckets are sorted as it takes.
static double nucleus(double *law, size_t size, double top_p, double largest, std::vector<double> &held) {
    uint64_t top;
    memcpy(&top, &largest, sizeof top);
    top >>= 49;
    size_t ends[BUCKETS] = {}, sum = 0;
    for (size_t i = 0; i < size; i++) ends[bucket(law[i], top)]++;
    for (size_t &end : ends) {
        const size_t count = end;
        end = sum;
        sum += count;
    }
    held.resize(size);
    for (size_t i = 0; i < size; i++) held[ends[bucket(law[i], top)]++] = law[i];
    const double wanted = top_p * sum_of(law, size);
    double mass = 0.0;
    size_t count = 0;
    for (size_t b = 0; b + 1 < BUCKETS && (mass < wanted || count == 0); b++) {
        std::sort(held.begin() + count, held.begin() + ends[b], std::greater<double>());
        while (count < ends[b] && (mass < wanted || count == 0)) mass += held[count++];
    }
    keep_leading(law, size, held[count - 1], count, 0.0);
    return mass;
}

static APART void divide(double *row, size_t size, double by) {
    for (size_t i = 0; i < whole_groups(size); i += WIDE) put(row + i, take(row + i) / by);
}

// The law of a row into `law`, which has room for whole groups; false where the largest logit is not finite.
template <class T>
static bool law_of(const T *logits, size_t size, const Filters &filters, double *law, std::vector<double> &held) {
    const double best = widen(logits, size, law);
    if (!std::isfinite(best)) return false;
    scale(law, size, best, filters);
    if (0 < filters.top_k && size_t(filters.top_k) < size) {
        const size_t count = size_t(filters.top_k);
        leaders(law, size, count, held);
        const double edge = held[count - 1];
        if (edge > NOTHING) keep_leading(law, size, edge, count, NOTHING);
    }
    const double sum = exponentials(law, size);
    divide(law, size, sum);
    if (filters.top_p < 1.0) divide(law, size, nucleus(law, size, filters.top_p, 1.0 / sum, held));
    return true;
}

// Where the cumulative sums of R laws first exceed a part of their totals, -1 where there is no mass. A row's sums run
// from its first token to its last; the rows go side by side because each addition waits for the one before it.
template <class T, int R>
static APART void draw(const T *laws, size_t stride, size_t size, const double *uniforms, int64_t *tokens, double *marks) {
    const size_t stretches = (size + STRETCH - 1) / STRETCH;
    double sum[R] = {};
    for (size_t s = 0; s < stretches; s++) {
        for (int r = 0; r < R; r++) marks[r * (stretches + 1) + s] = sum[r];
        for (size_t i = s * STRETCH; i < std::min(size, (s + 1) * STRETCH); i++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) sum[r] += double(laws[r * stride + i]);
    }
    for (int r = 0; r < R; r++) {
        double *mark = marks + r * (stretches + 1);
        const T *law = laws + r * stride;
        mark[stretches] = sum[r];
        const double goal = uniforms[r] * sum[r];
        tokens[r] = -1;
        const size_t s = size_t(std::upper_bound(mark + 1, mark + stretches + 1, goal) - (mark + 1));
        size_t i = s * STRETCH;
        if (s < stretches) {
            double reached = mark[s] + double(law[i]);
            while (!(reached > goal)) reached += double(law[++i]);
            tokens[r] = int64_t(i);
        } else if (sum[r] > 0.0) {
            // The product was rounded up to the total.
            for (i = size; !(law[i - 1] > 0); i--) {
            }
            tokens[r] = int64_t(i) - 1;
        }
    }
}

template <class T>
static void draw_all(const T *laws, size_t rows, size_t stride, size_t size, const double *uniforms, int64_t *tokens) {
    std::vector<double> marks(8 * ((size + STRETCH - 1) / STRETCH + 1));
    size_t m = 0;
    for (; m + 8 <= rows; m += 8) draw<T, 8>(laws + m * stride, stride, size, uniforms + m, tokens + m, marks.data());
    if (rows - m >= 4) draw<T, 4>(laws + m * stride, stride, size, uniforms + m, tokens + m, marks.data()), m += 4;
    if (rows - m >= 2) draw<T, 2>(laws + m * stride, stride, size, uniforms + m, tokens + m, marks.data()), m += 2;
    if (rows - m >= 1) draw<T, 1>(laws + m * stride, stride, size, uniforms + m, tokens + m, marks.data());
}
