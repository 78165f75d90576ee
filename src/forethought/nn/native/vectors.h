// Vectors of the machine's own width, and the few functions on them that every kernel shares.
//
// Only lane-wise operators of the compiler's vector extension are used, so the same text is compiled to AVX-512, AVX2,
// NEON or SSE. Nothing here depends on how many rows run along: that is what makes a row's result reproducible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

constexpr int LANES = VECTOR_BYTES / 4;
constexpr int PANEL = 32;              // outputs of a matrix that lie side by side in its packed form
constexpr int GROUP = PANEL / LANES;   // vectors that hold them
constexpr int BLOCK = 16;              // slots whose keys lie side by side

#define INLINE inline __attribute__((always_inline))
#define APART __attribute__((noinline))

static INLINE Vector load(const float *from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

static INLINE void store(float *to, Vector v) { memcpy(to, &v, sizeof v); }

static INLINE Vector spread(float value) {
    Vector v;
    for (int i = 0; i < LANES; i++) v[i] = value;
    return v;
}

static INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// The sum of the lanes, always in the same order.
static INLINE float total(Vector v) {
    float lane[LANES];
    memcpy(lane, &v, sizeof v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

static INLINE float greatest(Vector v) {
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}

static INLINE size_t rounded(size_t n, size_t step) { return (n + step - 1) / step * step; }

// e^x to about one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, Taylor's series of e^r to the seventh
// power (the eighth is below 6e-9), and n put into the exponent. 0 below -87.3, no more than e^88 above; NaN stays NaN.
static INLINE Vector exponential(Vector x) {
    const Vector lowest = spread(-87.3f), highest = spread(88.0f), shift = spread(12582912.0f);
    Vector clamped = x < lowest ? lowest : x;
    clamped = clamped > highest ? highest : clamped;
    const Vector shifted = clamped * 1.44269504088896341f + shift;  // 1.5 * 2^23 rounds to whole numbers
    const Vector whole = shifted - shift;
    // ln 2 in two parts: the first has so few digits that its product with n is exact.
    Vector r = clamped - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    Vector sum = r * (1.0f / 5040) + (1.0f / 720);
    sum = sum * r + (1.0f / 120);
    sum = sum * r + (1.0f / 24);
    sum = sum * r + (1.0f / 6);
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    const Integers power = ((Integers)shifted - (Integers)shift + 127) << 23;
    const Vector result = sum * (Vector)power;
    return x < lowest ? spread(0.0f) : result;
}
