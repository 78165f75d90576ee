// From a row of logits to the law that a token is drawn from.
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
constexpr size_t GROUPED = 4 * WIDE;
constexpr int CHUNK = 16;                // values whose largest stands for them in a search
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

static INLINE void put(float *to, Doubles v) {
    const Singles rounded = __builtin_convertvector(v, Singles);
    memcpy(to, &rounded, sizeof rounded);
}

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
    // Even and odd powers apart, in pairs: short chains of operations that wait for one another.
    const Doubles square = r * r, fourth = square * square;
    Doubles even = square * (1.0 / 479001600) + (1.0 / 3628800), odd = square * (1.0 / 6227020800) + (1.0 / 39916800);
    even = even * fourth + (square * (1.0 / 40320) + (1.0 / 720));
    odd = odd * fourth + (square * (1.0 / 362880) + (1.0 / 5040));
    even = even * fourth + (square * (1.0 / 24) + 0.5);
    odd = odd * fourth + (square * (1.0 / 120) + (1.0 / 6));
    const Doubles sum = (odd * r + even) * square + r + 1.0;
    const Longs power = ((Longs)shifted - (Longs)shift + 1023) << 52;
    return x >= lowest ? sum * (Doubles)power : both(0.0);
}

static INLINE double sum_of(Doubles lane) {
    double sum = lane[0];
    for (int i = 1; i < WIDE; i++) sum += lane[i];
    return sum;
}

// How long a row is that is filled up to whole groups of four vectors.
static INLINE size_t whole_groups(size_t size) { return rounded(size, GROUPED); }

static INLINE Vector take_own(const float *from) { return load(from); }
static INLINE Doubles take_own(const double *from) { return take(from); }

// The largest logit, or NaN where some logit is none.
template <class T> static APART double largest(const T *logits, size_t size) {
    auto top = take_own(logits), odd = top;
    constexpr size_t lanes = sizeof top / sizeof(T);
    for (size_t lane = 0; lane < lanes; lane++) top[lane] = T(NOTHING), odd[lane] = 0;
    size_t i = 0;
    for (; i + lanes <= size; i += lanes) {
        const auto each = take_own(logits + i);
        odd = each == each ? odd : each;
        top = each > top ? each : top;
    }
    T best = T(NOTHING);
    bool number = true;
    for (size_t lane = 0; lane < lanes; lane++) {
        number = number && odd[lane] == odd[lane];
        best = std::max(best, top[lane]);
    }
    for (; i < size; i++) {
        number = number && logits[i] == logits[i];
        best = logits[i] > best ? logits[i] : best;
    }
    return number ? double(best) : std::numeric_limits<double>::quiet_NaN();
}

// The difference from the largest over the temperature; minus infinity where it is below `least`.
struct Scaling {
    Doubles best, temperature, least, nothing;
    Scaling(double best, const Filters &filters)
        : best(both(best)), temperature(both(filters.temperature)), least(both(filters.least)), nothing(both(NOTHING)) {}
    INLINE Doubles operator()(Doubles logits) const {
        const Doubles each = (logits - best) / temperature;
        return each < least ? nothing : each;
    }
};

// Four vectors of a row from `i` on, minus infinity behind its end.
template <class T> static INLINE const T *group(const T *row, size_t size, size_t i, T *spare) {
    if (i + GROUPED <= size) return row + i;
    for (size_t j = 0; j < GROUPED; j++) spare[j] = i + j < size ? row[i + j] : T(NOTHING);
    return spare;
}

// Scaled logits into `out`, which has room for whole groups.
template <class T>
static APART void scale(const T *logits, size_t size, double best, const Filters &filters, double *out) {
    const Scaling scaled(best, filters);
    T spare[GROUPED];
    for (size_t i = 0; i < size; i += GROUPED) {
        const T *from = group(logits, size, i, spare);
        for (int part = 0; part < 4; part++) put(out + i + part * WIDE, scaled(take(from + part * WIDE)));
    }
}

// The exponentials of scaled logits into `out`, which has room for whole groups, and their sum.
template <class T>
static APART double exponentials(const T *logits, size_t size, double best, const Filters &filters, double *out) {
    const Scaling scaled(best, filters);
    T spare[GROUPED];
    Doubles sum[4] = {};
    for (size_t i = 0; i < size; i += GROUPED) {
        const T *from = group(logits, size, i, spare);
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            const Doubles each = exponential(scaled(take(from + part * WIDE)));
            put(out + i + part * WIDE, each);
            sum[part] += each;
        }
    }
    return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static APART double sum_of(const double *row, size_t size) {
    Doubles sum[4] = {};
    for (size_t i = 0; i < size; i += GROUPED)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) sum[part] += take(row + i + part * WIDE);
    return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// The least of the `count` largest values of a row.
static double edge_of(const double *row, size_t size, size_t count, std::vector<double> &held) {
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
    std::nth_element(held.begin(), held.begin() + count - 1, held.end(), std::greater<double>());
    return held[count - 1];
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

// A row times a number, rounded to the type of `out`, which may be the row.
template <class Law> static APART void multiply(const double *row, size_t size, double by, Law *out) {
    size_t i = 0;
    for (; i + WIDE <= size; i += WIDE) put(out + i, take(row + i) * by);
    for (; i < size; i++) out[i] = Law(row[i] * by);
}

template <class Law> static APART void divide(const double *row, size_t size, double by, Law *out) {
    size_t i = 0;
    for (; i + WIDE <= size; i += WIDE) put(out + i, take(row + i) / by);
    for (; i < size; i++) out[i] = Law(row[i] / by);
}

struct Scratch {
    std::vector<double> row, held;
    explicit Scratch(size_t size) : row(whole_groups(size)) {}
};

// The law of a row, computed in double precision and rounded to the type of `law`; false where the largest logit is not
// finite.
template <class T, class Law>
static bool law_of(const T *logits, size_t size, const Filters &filters, Law *law, Scratch &scratch) {
    const double best = largest(logits, size);
    if (!std::isfinite(best)) return false;
    double *row = scratch.row.data(), sum;
    if (0 < filters.top_k && size_t(filters.top_k) < size) {
        const size_t count = size_t(filters.top_k);
        scale(logits, size, best, filters, row);
        const double edge = edge_of(row, size, count, scratch.held);
        if (edge > NOTHING) keep_leading(row, size, edge, count, NOTHING);
        sum = exponentials(row, size, 0.0, Filters{1.0, NOTHING, 1.0, 0}, row);
    } else {
        sum = exponentials(logits, size, best, filters, row);
    }
    if (filters.top_p < 1.0) {
        multiply(row, size, 1.0 / sum, row);
        divide(row, size, nucleus(row, size, filters.top_p, 1.0 / sum, scratch.held), law);
    } else {
        multiply(row, size, 1.0 / sum, law);
    }
    return true;
}

// A law without filters in single precision, but for the sum: enough for a draft, whose law may be any that was really
// drawn from. The exponentials lie where the law will.
static bool single_law_of(const float *logits, size_t size, float temperature, float *law) {
    const double best = largest(logits, size);
    if (!std::isfinite(best)) return false;
    const Vector top = spread(float(best)), by = spread(1.0f / temperature);
    size_t i = 0;
    for (; i + LANES <= size; i += LANES) store(law + i, exponential((load(logits + i) - top) * by));
    Vector end = spread(float(NOTHING));
    memcpy(&end, logits + i, (size - i) * sizeof *logits);
    end = exponential((end - top) * by);
    memcpy(law + i, &end, (size - i) * sizeof *law);
    // A pass of its own: both loops are shorter than what the processor looks ahead.
    Doubles sum[4] = {};
    for (i = 0; i + GROUPED <= size; i += GROUPED)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) sum[part] += take(law + i + part * WIDE);
    double mass = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; i < size; i++) mass += double(law[i]);
    const Vector share = spread(float(1.0 / mass));
    for (i = 0; i + LANES <= size; i += LANES) store(law + i, load(law + i) * share);
    for (; i < size; i++) law[i] *= share[0];
    return true;
}
