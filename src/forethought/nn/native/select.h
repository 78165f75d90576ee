// The most likely tokens of a row of logits.
#pragma once

#include "vectors.h"

#include <cmath>
#include <limits>
#include <vector>

// The lowest id among the largest logits, or -1 where the largest is not finite or some logit is no number.
static APART int64_t most_likely(const float *logits, int64_t vocab) {
    const float least = -std::numeric_limits<float>::infinity();
    Vector top = spread(least);
    Integers strange = {};
    int64_t i = 0;
    for (; i + LANES <= vocab; i += LANES) {
        const Vector each = load(logits + i);
        strange |= each != each;
        top = larger(each, top);
    }
    float best = greatest(top);
    bool number = true;
    for (int lane = 0; lane < LANES; lane++) number = number && !strange[lane];
    for (; i < vocab; i++) {
        number = number && logits[i] == logits[i];
        best = logits[i] > best ? logits[i] : best;
    }
    if (!number || !std::isfinite(best)) return -1;
    for (i = 0; logits[i] != best; i++) {
    }
    return i;
}

// The k largest in descending order, equals by ascending id; what is no number counts as minus infinity; an
// excluded id never comes. An ordered list of the best so far: most entries fail its last at once.
static void top_k(const float *logits, int64_t vocab, int64_t k, int64_t excluded, int64_t *ids) {
    const float least = -std::numeric_limits<float>::infinity();
    std::vector<float> held;
    held.reserve(size_t(k) + 1);
    for (int64_t i = 0; i < vocab; i++) {
        if (int64_t(held.size()) == k && !(logits[i] > held.back())) continue;
        if (i == excluded) continue;
        const float value = logits[i] == logits[i] ? logits[i] : least;
        int64_t at = int64_t(held.size());
        while (at > 0 && held[at - 1] < value) at--;
        held.insert(held.begin() + at, value);
        for (int64_t j = std::min(int64_t(held.size()), k) - 1; j > at; j--) ids[j] = ids[j - 1];
        ids[at] = i;
        if (int64_t(held.size()) > k) held.pop_back();
    }
}
