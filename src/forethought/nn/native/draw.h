// The drawing of a token from a law, given a uniform number; in double precision and in an order that the law's length
// alone fixes.
#pragma once

#include "law.h"

#include <algorithm>
#include <vector>

constexpr size_t STRETCH = 64;  // tokens whose mass is summed on its own

// The mass of a stretch of a law, always in the same order.
template <class T> static INLINE double mass_of(const T *law, size_t size) {
    double mass = 0.0;
    size_t i = 0;
    if (size == STRETCH) {
        Doubles sum = both(0.0);
#pragma GCC unroll 32
        for (; i < STRETCH; i += WIDE) sum += take(law + i);
        return sum_of(sum);
    }
    for (; i < size; i++) mass += double(law[i]);
    return mass;
}

// The token at which the cumulative sums of a law first exceed a part of its mass, -1 where it has none. They are those
// of whole stretches, one after the other, and within a stretch those of its tokens from its beginning on.
template <class T> static int64_t draw(const T *law, size_t size, double uniform, std::vector<double> &ends) {
    ends.clear();
    double sum = 0.0;
    for (size_t i = 0; i < size; i += STRETCH) ends.push_back(sum += mass_of(law + i, std::min(STRETCH, size - i)));
    const double goal = uniform * sum;
    size_t s = 0, last = size;
    while (s < ends.size() && !(ends[s] > goal)) s++;
    if (s < ends.size()) {
        double reached = s ? ends[s - 1] : 0.0;
        last = std::min(size, (s + 1) * STRETCH);
        for (size_t i = s * STRETCH; i < last; i++) {
            reached += double(law[i]);
            if (reached > goal) return int64_t(i);
        }
    }
    // Rounding alone leads here, of a stretch's sum or of the product with the whole: the last token that has mass.
    if (!(sum > 0.0)) return -1;
    while (!(law[last - 1] > 0)) last--;
    return int64_t(last) - 1;
}
