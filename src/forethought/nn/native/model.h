// A language model's packed weights, its pages of keys and values, and the rooms that a pass works in.
#pragma once

#include "attention.h"
#include "matmul.h"
#include "threads.h"

#include <cmath>
#include <memory>
#include <new>
#include <sys/mman.h>

struct Shape {
    int32_t vocab, hidden, layers, heads, kv_heads, width, middle;
    int32_t num_pages, page_size, threads, brain, max_positions;
    float epsilon;
};

// Memory that begins on a huge page where the system has such: weights are read from end to end.
class Arena {
  public:
    explicit Arena(size_t bytes) : bytes_(rounded(bytes + LEAF, LEAF)) {
        base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        next_ = (char *)rounded(size_t(base_), LEAF);
#ifdef MADV_HUGEPAGE
        if (bytes >= LEAF) madvise(next_, bytes_ - LEAF, MADV_HUGEPAGE);
#endif
    }
    ~Arena() { munmap(base_, bytes_); }
    Arena(const Arena &) = delete;

    void *take(size_t bytes) {
        char *mine = next_;
        next_ += rounded(bytes, 64);
        return mine;
    }

  private:
    static constexpr size_t LEAF = size_t(2) << 20;
    void *base_;
    size_t bytes_;
    char *next_;
};

enum Part { QKV, OUTPUT, GATE, UP, DOWN, HEAD, NUM_MATRICES };
enum Vectors_ { ATTENTION_NORM, QUERY_NORM, KEY_NORM, MLP_NORM, QKV_BIAS, OUTPUT_BIAS, GATE_BIAS, UP_BIAS, DOWN_BIAS };
constexpr int NUM_VECTORS = 9;

struct Layer {
    void *matrix[NUM_MATRICES] = {};
    float *vector[NUM_VECTORS] = {};
};

// Room for floats that grows and never shrinks.
struct Room {
    std::unique_ptr<float[]> held;
    size_t size = 0;
    float *base = nullptr;
    float *of(size_t count) {
        if (count > size) {
            size = count + count / 2 + 64;
            held.reset(new float[size]);
            base = (float *)rounded(size_t(held.get()), 64);
            size -= 16;
        }
        return base;
    }
};

struct Model {
    Shape shape;
    size_t hidden, qkv, attended, middle, outputs;  // padded widths of a row
    size_t slots, blocks, stride;                   // slots of the pool, blocks of keys, floats of a value
    Arena weights, pool;
    std::vector<Layer> layers;
    void *head = nullptr;
    float *final_norm = nullptr;
    const float *table = nullptr;        // the embedding, row by row, in float32 or
    const Brain *brain_table = nullptr;  // in bfloat16; the caller's memory
    const float *cosines = nullptr, *sines = nullptr;
    int64_t num_angles = 0;
    float *keys = nullptr, *values = nullptr;
    std::vector<uint32_t> stamps;  // the last pass that wrote each slot
    uint32_t pass = 0;
    Team team;
    std::mutex busy;
    Room x, normed, projected, mixed, gated, activated, wanted, logits, scratch;
    std::vector<int32_t> prefix_slots, prefix_blocks, prefix_starts, extras, num_extras;
    std::vector<Prefix> prefixes;

    explicit Model(const Shape &s)
        : shape(s), hidden(rounded(s.hidden, PANEL)),
          qkv(rounded(size_t(s.heads + 2 * s.kv_heads) * s.width, PANEL)), attended(size_t(s.heads) * s.width),
          middle(rounded(s.middle, PANEL)), outputs(rounded(s.vocab, PANEL)),
          slots(size_t(s.num_pages) * s.page_size), blocks((slots + BLOCK - 1) / BLOCK),
          stride(rounded(s.width, LANES)), weights(weight_bytes()), pool(pool_bytes()), layers(s.layers),
          stamps(slots), team(s.threads) {
        for (auto &layer : layers) lay_out(layer);
        head = matrix(outputs, s.hidden);
        final_norm = vector(hidden);
        keys = (float *)pool.take(num_keys() * 4);
        values = (float *)pool.take(num_values() * 4);
    }

    size_t num_keys() const { return size_t(shape.layers) * shape.kv_heads * blocks * BLOCK * shape.width; }
    size_t num_values() const { return size_t(shape.layers) * shape.kv_heads * slots * stride; }
    float *keys_of(int layer, int head) const {
        return keys + (size_t(layer) * shape.kv_heads + head) * blocks * BLOCK * shape.width;
    }
    float *values_of(int layer, int head) const {
        return values + (size_t(layer) * shape.kv_heads + head) * slots * stride;
    }

  private:
    size_t weight_size() const { return shape.brain ? 2 : 4; }
    size_t pool_bytes() const { return (num_keys() + num_values()) * 4 + 4096; }
    size_t weight_bytes() const {
        const size_t matrices = qkv * shape.hidden + hidden * attended + 2 * middle * shape.hidden +
                                hidden * size_t(shape.middle);
        const size_t vectors = 2 * hidden + 2 * stride + qkv + hidden + 2 * middle + hidden + 9 * 16;
        return shape.layers * (matrices * weight_size() + vectors * 4 + 8 * 64) +
               outputs * shape.hidden * weight_size() + hidden * 4 + (1 << 16);
    }
    void *matrix(size_t rows, size_t inputs) { return weights.take(rows * inputs * weight_size()); }
    float *vector(size_t size) { return (float *)weights.take(size * 4); }

    void lay_out(Layer &layer) {
        layer.matrix[QKV] = matrix(qkv, shape.hidden);
        layer.matrix[OUTPUT] = matrix(hidden, attended);
        layer.matrix[GATE] = layer.matrix[UP] = matrix(2 * middle, shape.hidden);
        layer.matrix[DOWN] = matrix(hidden, shape.middle);
        layer.vector[ATTENTION_NORM] = vector(hidden);
        layer.vector[MLP_NORM] = vector(hidden);
        layer.vector[QUERY_NORM] = vector(stride);
        layer.vector[KEY_NORM] = vector(stride);
        layer.vector[QKV_BIAS] = vector(qkv);
        layer.vector[OUTPUT_BIAS] = vector(hidden);
        layer.vector[GATE_BIAS] = layer.vector[UP_BIAS] = vector(2 * middle);
        layer.vector[DOWN_BIAS] = vector(hidden);
    }
};
