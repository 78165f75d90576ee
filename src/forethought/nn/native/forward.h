// One forward pass over rows, in the order of the model: every step is shared among the threads by outputs or by rows.
#pragma once

#include "model.h"

struct Rows {
    int64_t num_rows, num_sequences, num_pages, num_extra;  // N, S, P, E
    int64_t num_wanted;                                     // M
    const int32_t *tokens, *positions, *slots, *sequence, *visible, *pages, *wanted, *extra;
};

static APART void normalise(const float *x, const float *weight, size_t padded, int size, float epsilon, float *out) {
    Vector sum = spread(0.0f);
    for (size_t i = 0; i < padded; i += LANES) sum += load(x + i) * load(x + i);
    const float scale = 1.0f / std::sqrt(total(sum) / float(size) + epsilon);
    for (size_t i = 0; i < padded; i += LANES) store(out + i, (load(x + i) * scale) * load(weight + i));
}

static APART void add(float *to, const float *from, size_t size) {
    for (size_t i = 0; i < size; i += LANES) store(to + i, load(to + i) + load(from + i));
}

// silu(gate) * up, where panels of gate and up alternate.
static APART void activate(const float *both, size_t size, float *out) {
    for (size_t i = 0; i < size; i += LANES) {
        const float *at = both + i / PANEL * 2 * PANEL + i % PANEL;
        const Vector gate = load(at);
        store(out + i, gate / (exponential(-gate) + 1.0f) * load(at + PANEL));
    }
}

// Turn the pairs (i, i + width / 2) of a head.
static APART void turn(float *head, const float *cosine, const float *sine, int half) {
    for (int i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

class Pass {
  public:
    Pass(Model &model, const Rows &rows) : m(model), s(model.shape), r(rows), n(size_t(rows.num_rows)) {}

    // Leave the logits of the wanted rows at `logits`, `outputs` floats apart.
    void run(float *logits) {
        prepare();
        embed();
        for (int layer = 0; layer < s.layers; layer++) {
            attention(layer);
            mlp(layer);
        }
        const size_t count = size_t(r.num_wanted);
        float *wanted = m.wanted.of(count * m.hidden);
        m.team.share(count, [&](int, size_t first, size_t last) {
            for (size_t i = first; i < last; i++)
                normalise(x + size_t(r.wanted[i]) * m.hidden, m.final_norm, m.hidden, s.hidden, s.epsilon,
                          wanted + i * m.hidden);
        });
        product(m.head, wanted, m.hidden, s.hidden, logits, m.outputs, m.outputs, count, nullptr);
    }

  private:
    // Number every row's slots once for all layers and heads.
    void prepare() {
        std::vector<int32_t> longest(size_t(r.num_sequences), 0);
        size_t most_extra = 0;
        for (size_t i = 0; i < n; i++) {
            int32_t &so_far = longest[r.sequence[i]];
            so_far = std::max(so_far, r.visible[i]);
            most_seen = std::max(most_seen, size_t(r.visible[i]));
        }
        m.prefixes.assign(size_t(r.num_sequences), Prefix{});
        std::vector<size_t> starts(size_t(r.num_sequences)), runs(size_t(r.num_sequences));
        m.prefix_slots.clear(), m.prefix_blocks.clear(), m.prefix_starts.clear();
        for (size_t q = 0; q < longest.size(); q++) {
            starts[q] = m.prefix_slots.size(), runs[q] = m.prefix_blocks.size();
            number(r.pages + q * r.num_pages, longest[q]);
        }
        for (size_t q = 0; q < longest.size(); q++)
            m.prefixes[q] = {m.prefix_slots.data() + starts[q], m.prefix_blocks.data() + runs[q],
                             m.prefix_starts.data() + runs[q], s.page_size % BLOCK == 0};
        m.extras.assign(n * size_t(r.num_extra), 0);
        m.num_extras.assign(n, 0);
        for (size_t i = 0; i < n; i++) {
            for (int64_t e = 0; e < r.num_extra; e++)
                if (r.extra[i * r.num_extra + e] >= 0)
                    m.extras[i * r.num_extra + m.num_extras[i]++] = r.extra[i * r.num_extra + e];
            most_extra = std::max(most_extra, size_t(m.num_extras[i]));
        }
        groups.clear();
        for (size_t i = 0; i < n; i++) {
            const bool joins = !groups.empty() && groups.back().count < TOGETHER &&
                               r.sequence[groups.back().first] == r.sequence[i];
            if (joins)
                groups.back().count++;
            else
                groups.push_back({i, 1});
        }
        // For each row that goes along: scores, a query and a sum; for all: raw scores of blocks (a page of one slot
        // takes a block of its own) and the numbers of blocks.
        positions = rounded(most_seen + most_extra + 2 * BLOCK, BLOCK);
        raw_size = rounded((s.page_size % BLOCK ? std::max(most_seen, most_extra) : most_extra) * BLOCK + BLOCK, BLOCK);
        scratch_size = rounded(TOGETHER * (positions + 2 * m.stride) + raw_size + rounded(most_extra, 16), 16);
        m.scratch.of(scratch_size * size_t(m.team.size()));
    }

    // The slots and the runs of one sequence's leading positions; a last start closes the runs.
    void number(const int32_t *pages, int32_t count) {
        for (int32_t j = 0; j < count;) {
            const int32_t slot = pages[j / s.page_size] * s.page_size + j % s.page_size;
            const int32_t run = std::min(BLOCK - slot % BLOCK, s.page_size - j % s.page_size);
            m.prefix_blocks.push_back(slot / BLOCK);
            m.prefix_starts.push_back(j);
            for (int32_t i = 0; i < run && j < count; i++, j++) m.prefix_slots.push_back(slot + i);
        }
        m.prefix_blocks.push_back(0);
        m.prefix_starts.push_back(std::numeric_limits<int32_t>::max());
    }

    void embed() {
        x = m.x.of(n * m.hidden);
        for (size_t i = 0; i < n; i++) {
            float *row = x + i * m.hidden;
            const size_t at = size_t(r.tokens[i]) * s.hidden;
            if (m.brain_table)
                for (int d = 0; d < s.hidden; d++) row[d] = from_brain(m.brain_table[at + d]);
            else
                memcpy(row, m.table + at, size_t(s.hidden) * 4);
            std::fill(row + s.hidden, row + m.hidden, 0.0f);
        }
    }

    // y = from W + bias for `count` rows; x += y where y is the residual stream's share (added by the caller).
    void product(const void *w, const float *from, size_t from_stride, size_t inputs, float *to, size_t to_stride,
                 size_t size, size_t count, const float *bias) {
        m.team.share(size / PANEL, [&](int, size_t first, size_t last) {
            if (s.brain)
                Product<Brain>{from, from_stride, (const Brain *)w, inputs, to, to_stride}.run(count, first, last);
            else
                Product<float>{from, from_stride, (const float *)w, inputs, to, to_stride}.run(count, first, last);
            if (bias)
                for (size_t i = 0; i < count; i++)
                    add(to + i * to_stride + first * PANEL, bias + first * PANEL, (last - first) * PANEL);
        });
    }

    const float *normed(const float *weight) {
        float *out = m.normed.of(n * m.hidden);
        m.team.share(n, [&](int, size_t first, size_t last) {
            for (size_t i = first; i < last; i++)
                normalise(x + i * m.hidden, weight, m.hidden, s.hidden, s.epsilon, out + i * m.hidden);
        });
        return out;
    }

    void residual(const void *w, const float *from, size_t from_stride, size_t inputs, const float *bias) {
        float *out = m.normed.of(n * m.hidden);
        product(w, from, from_stride, inputs, out, m.hidden, m.hidden, n, bias);
        add(x, out, n * m.hidden);
    }

    void attention(int layer) {
        const Layer &l = m.layers[layer];
        float *projected = m.projected.of(n * m.qkv);
        product(l.matrix[QKV], normed(l.vector[ATTENTION_NORM]), m.hidden, s.hidden, projected, m.qkv, m.qkv, n,
                l.vector[QKV_BIAS]);
        m.team.share(n, [&](int thread, size_t first, size_t last) {
            for (size_t i = first; i < last; i++) remember(layer, i, projected + i * m.qkv, thread);
        });
        float *mixed = m.mixed.of(n * m.attended + LANES);
        // Head by head: its keys and values stay near for all rows.
        m.team.share(groups.size() * s.heads, [&](int thread, size_t first, size_t last) {
            for (size_t i = first; i < last; i++)
                together<TOGETHER>(layer, groups[i % groups.size()], int(i / groups.size()), projected, mixed, thread);
        });
        residual(l.matrix[OUTPUT], mixed, m.attended, m.attended, l.vector[OUTPUT_BIAS]);
    }

    float *scratch(int thread) { return m.scratch.base + scratch_size * size_t(thread); }

    void normalise_head(float *head, const float *weight, float *room) {
        std::fill(room, room + m.stride, 0.0f);
        memcpy(room, head, size_t(s.width) * 4);
        normalise(room, weight, m.stride, s.width, s.epsilon, room + m.stride);
        memcpy(head, room + m.stride, size_t(s.width) * 4);
    }

    // Norm and rotation of a row's queries and keys; keys and values go to the row's slot.
    void remember(int layer, size_t i, float *row, int thread) {
        const Layer &l = m.layers[layer];
        const int half = s.width / 2;
        const size_t slot = size_t(r.slots[i]);
        const float *cosine = m.cosines + size_t(r.positions[i]) * half, *sine = m.sines + size_t(r.positions[i]) * half;
        for (int h = 0; h < s.heads + s.kv_heads; h++) {
            float *head = row + size_t(h) * s.width;
            const float *weight = l.vector[h < s.heads ? QUERY_NORM : KEY_NORM];
            if (weight) normalise_head(head, weight, scratch(thread));
            turn(head, cosine, sine, half);
        }
        for (int h = 0; h < s.kv_heads; h++) {
            const float *key = row + size_t(s.heads + h) * s.width;
            float *to = m.keys_of(layer, h) + slot / BLOCK * BLOCK * s.width + slot % BLOCK;
            for (int d = 0; d < s.width; d++) to[d * BLOCK] = key[d];
            memcpy(m.values_of(layer, h) + slot * m.stride, key + size_t(s.kv_heads) * s.width, size_t(s.width) * 4);
        }
    }

    // Rows of one sequence that attend together.
    struct Group {
        size_t first;
        int count;
    };

    template <int R>
    void together(int layer, const Group &group, int head, const float *projected, float *mixed, int thread) {
        if (group.count == R) return attend_rows<R>(layer, group.first, head, projected, mixed, thread);
        if constexpr (R > 1) together<R - 1>(layer, group, head, projected, mixed, thread);
    }

    template <int R>
    void attend_rows(int layer, size_t first, int head, const float *projected, float *mixed, int thread) {
        float *scores = scratch(thread), *query = scores + TOGETHER * positions, *sum = query + TOGETHER * m.stride;
        float *raw = sum + TOGETHER * m.stride;
        const Work work{query, scores, raw, sum, (int32_t *)(raw + raw_size), positions};
        const float scale = 1.0f / std::sqrt(float(s.width));
        Sight sights[R];
        for (int i = 0; i < R; i++) {
            const size_t row = first + size_t(i);
            const float *from = projected + row * m.qkv + size_t(head) * s.width;
            for (int d = 0; d < s.width; d++) query[i * m.stride + d] = from[d] * scale;
            sights[i] = {size_t(r.visible[row]), m.extras.data() + row * size_t(r.num_extra), size_t(m.num_extras[row])};
        }
        const int kv = head / (s.heads / s.kv_heads);
        const Head place{m.keys_of(layer, kv), m.values_of(layer, kv), s.width, m.stride};
        attend<R>(place, m.prefixes[r.sequence[first]], sights, work);
        for (int i = 0; i < R; i++)
            memcpy(mixed + (first + i) * m.attended + size_t(head) * s.width, sum + i * m.stride, size_t(s.width) * 4);
    }

    void mlp(int layer) {
        const Layer &l = m.layers[layer];
        float *both = m.gated.of(n * 2 * m.middle), *active = m.activated.of(n * m.middle);
        product(l.matrix[GATE], normed(l.vector[MLP_NORM]), m.hidden, s.hidden, both, 2 * m.middle, 2 * m.middle, n,
                l.vector[GATE_BIAS]);
        m.team.share(n, [&](int, size_t first, size_t last) {
            for (size_t i = first; i < last; i++) activate(both + i * 2 * m.middle, m.middle, active + i * m.middle);
        });
        residual(l.matrix[DOWN], active, m.middle, s.middle, l.vector[DOWN_BIAS]);
    }

    Model &m;
    const Shape &s;
    const Rows &r;
    const size_t n;
    float *x = nullptr;
    size_t most_seen = 0, positions = 0, raw_size = 0, scratch_size = 0;
    std::vector<Group> groups;
};
