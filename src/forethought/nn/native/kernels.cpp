// What Python calls: a paged language model, its greedy chains, the largest entries of rows of logits, and their laws.

#include <algorithm>

#include "draw.h"
#include "forward.h"
#include "select.h"

namespace {

enum Outcome { DONE = 0, BAD_ROWS = 1, MORE_ANGLES = 2, NO_MEMORY = 3, NOT_FINITE = 4 };

bool within(int32_t value, int64_t limit) { return value >= 0 && value < limit; }

// `later` passes of a chain follow, each one position further.
Outcome check(Model &m, const Rows &r, int64_t later, bool grow_pages) {
    const Shape &s = m.shape;
    m.pass++;
    int32_t furthest = 0;
    for (int64_t i = 0; i < r.num_rows; i++) {
        if (!within(r.tokens[i], s.vocab) || !within(r.sequence[i], r.num_sequences)) return BAD_ROWS;
        if (r.positions[i] < 0 || !within(r.slots[i], int64_t(m.slots))) return BAD_ROWS;
        if (m.stamps[r.slots[i]] == m.pass) return BAD_ROWS;
        m.stamps[r.slots[i]] = m.pass;
        const int64_t seen = int64_t(r.visible[i]) + (grow_pages ? later : 0);
        if (r.visible[i] < 0 || seen > r.num_pages * s.page_size) return BAD_ROWS;
        for (int64_t p = 0; p * s.page_size < seen; p++)
            if (!within(r.pages[r.sequence[i] * r.num_pages + p], s.num_pages)) return BAD_ROWS;
        furthest = std::max(furthest, r.positions[i]);
    }
    for (int64_t i = 0; i < r.num_rows * r.num_extra; i++)
        if (r.extra[i] < -1 || r.extra[i] >= int64_t(m.slots)) return BAD_ROWS;
    for (int64_t i = 0; i < r.num_wanted; i++)
        if (!within(r.wanted[i], r.num_rows)) return BAD_ROWS;
    if (furthest + later >= s.max_positions + int64_t(m.slots)) return BAD_ROWS;
    return furthest + later < m.num_angles ? DONE : MORE_ANGLES;
}

void greedy(Model &m, const Rows &r, int64_t *ids) {
    float *logits = m.logits.of(size_t(r.num_wanted) * m.outputs);
    Pass(m, r).run(logits);
    for (int64_t i = 0; i < r.num_wanted; i++) ids[i] = most_likely(logits + i * m.outputs, m.shape.vocab);
}

// The rows of one step of a chain: one for each chain that still has a finite choice.
struct Step {
    std::vector<int32_t> chain, tokens, positions, slots, sequence, visible, wanted, extra;

    void begin() {
        for (auto *each : {&chain, &tokens, &positions, &slots, &sequence, &visible, &wanted, &extra}) each->clear();
    }

    void add(const Rows &r, int64_t m, int64_t k, const int32_t *later, int64_t num_later, const int64_t *drawn) {
        const int32_t row = r.wanted[m];
        const bool branch = r.extra != nullptr;
        wanted.push_back(int32_t(chain.size()));
        chain.push_back(int32_t(m));
        tokens.push_back(int32_t(drawn[m * (num_later + 1) + k - 1]));
        positions.push_back(r.positions[row] + int32_t(k));
        slots.push_back(later[m * num_later + k - 1]);
        sequence.push_back(r.sequence[row]);
        visible.push_back(r.visible[row] + (branch ? 0 : int32_t(k)));
        if (!branch) return;
        extra.insert(extra.end(), r.extra + row * r.num_extra, r.extra + (row + 1) * r.num_extra);
        extra.insert(extra.end(), later + m * num_later, later + m * num_later + k);
    }

    Rows rows(const Rows &r, int64_t k) const {
        const bool branch = r.extra != nullptr;
        return {int64_t(chain.size()), r.num_sequences, r.num_pages, branch ? r.num_extra + k : 0,
                int64_t(chain.size()), tokens.data(), positions.data(), slots.data(), sequence.data(), visible.data(),
                r.pages, wanted.data(), branch ? extra.data() : nullptr};
    }
};

// The laws of all rows, in double precision or rounded, and a token drawn from each as it then is, if wanted.
template <class T, class Law>
Outcome laws_of(const T *logits, size_t rows, size_t stride, size_t size, const Filters &filters, Law *laws,
                const double *uniforms, int64_t *tokens) {
    Scratch scratch(size);
    for (size_t i = 0; i < rows; i++) {
        Law *law = laws + i * size;
        if (!law_of(logits + i * stride, size, filters, law, scratch)) return NOT_FINITE;
        if (uniforms) tokens[i] = draw(law, size, uniforms[i], scratch.held);
    }
    return DONE;
}

// The same in single precision throughout, where that loses nothing but digits.
Outcome drafts_of(const float *logits, size_t rows, size_t stride, size_t size, float temperature, float *laws,
                  const double *uniforms, int64_t *tokens) {
    std::vector<double> ends;
    for (size_t i = 0; i < rows; i++) {
        float *law = laws + i * size;
        if (!single_law_of(logits + i * stride, size, temperature, law)) return NOT_FINITE;
        tokens[i] = draw(law, size, uniforms[i], ends);
    }
    return DONE;
}

template <class T>
void draw_all(const T *laws, size_t rows, size_t stride, size_t size, const double *uniforms, int64_t *tokens) {
    std::vector<double> ends;
    for (size_t i = 0; i < rows; i++) tokens[i] = draw(laws + i * stride, size, uniforms[i], ends);
}

}  // namespace

extern "C" {

void *forethought_create(const Shape *shape) {
    try {
        return new Model(*shape);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void forethought_destroy(void *handle) { delete (Model *)handle; }

// Pack one matrix of a layer; layer -1 is the output head.
void forethought_matrix(void *handle, int layer, int part, const float *from, int64_t rows, int64_t inputs) {
    Model &m = *(Model *)handle;
    void *to = layer < 0 ? m.head : m.layers[layer].matrix[part];
    const bool paired = part == GATE || part == UP;
    const size_t first = part == UP, step = paired ? 2 : 1;
    if (m.shape.brain)
        pack((Brain *)to, from, size_t(rows), size_t(inputs), first, step);
    else
        pack((float *)to, from, size_t(rows), size_t(inputs), first, step);
}

// Keep one vector of a layer; layer -1 is the last norm. A null pointer says that the model has none.
void forethought_vector(void *handle, int layer, int part, const float *from, int64_t size) {
    Model &m = *(Model *)handle;
    float *&to = layer < 0 ? m.final_norm : m.layers[layer].vector[part];
    if (!from) {
        to = nullptr;
        return;
    }
    const bool paired = part == GATE_BIAS || part == UP_BIAS;
    for (int64_t i = 0; i < size; i++)
        to[paired ? i / PANEL * 2 * PANEL + i % PANEL + (part == UP_BIAS ? PANEL : 0) : i] = from[i];
}

void forethought_table(void *handle, const float *table, const uint16_t *brain_table) {
    Model &m = *(Model *)handle;
    m.table = table;
    m.brain_table = brain_table;
}

void forethought_angles(void *handle, const float *cosines, const float *sines, int64_t count) {
    Model &m = *(Model *)handle;
    std::lock_guard<std::mutex> guard(m.busy);
    m.cosines = cosines;
    m.sines = sines;
    m.num_angles = count;
}

int forethought_logits(void *handle, const Rows *rows, float *logits) {
    Model &m = *(Model *)handle;
    std::lock_guard<std::mutex> guard(m.busy);
    try {
        const Outcome outcome = check(m, *rows, 0, false);
        if (outcome == DONE) Pass(m, *rows).run(logits);
        return outcome;
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

// ids[m, 0] is drawn after the wanted rows; then each drawn token but the last is fed at later[m, k].
int forethought_chain(void *handle, const Rows *rows, const int32_t *later, int64_t num_later, int64_t *ids) {
    Model &m = *(Model *)handle;
    std::lock_guard<std::mutex> guard(m.busy);
    try {
        const Outcome outcome = check(m, *rows, num_later, rows->extra == nullptr);
        if (outcome != DONE) return outcome;
        const int64_t count = rows->num_wanted, length = num_later + 1;
        m.pass++;
        for (int64_t i = 0; i < count * num_later; i++) {
            if (!within(later[i], int64_t(m.slots)) || m.stamps[later[i]] == m.pass) return BAD_ROWS;
            m.stamps[later[i]] = m.pass;
        }
        std::vector<int64_t> drawn(static_cast<size_t>(count));
        greedy(m, *rows, drawn.data());
        std::fill(ids, ids + count * length, int64_t(-1));
        for (int64_t i = 0; i < count; i++) ids[i * length] = drawn[i];
        Step step;
        for (int64_t k = 1; k < length; k++) {
            step.begin();
            for (int64_t i = 0; i < count; i++)
                if (ids[i * length + k - 1] >= 0) step.add(*rows, i, k, later, num_later, ids);
            if (step.chain.empty()) break;
            greedy(m, step.rows(*rows, k), drawn.data());
            for (size_t i = 0; i < step.chain.size(); i++) ids[step.chain[i] * length + k] = drawn[i];
        }
        return DONE;
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

void forethought_top_k(const float *logits, int64_t rows, int64_t stride, int64_t vocab, int64_t k,
                       const int64_t *excluded, int64_t *ids) {
    for (int64_t i = 0; i < rows; i++)
        top_k(logits + i * stride, vocab, k, excluded ? excluded[i] : -1, ids + i * k);
}

// Logits and laws are doubles where `wide` and `wide_laws` say so, floats otherwise; the laws lie row behind row.
int forethought_law(const void *logits, int wide, int64_t rows, int64_t stride, int64_t vocab, double temperature,
                    double least, double top_p, int64_t top_k, int wide_laws, void *laws, const double *uniforms,
                    int64_t *tokens) {
    const Filters filters{temperature, least, top_p, top_k};
    const auto run = [&](const auto *from, auto *to) {
        return laws_of(from, size_t(rows), size_t(stride), size_t(vocab), filters, to, uniforms, tokens);
    };
    try {
        if (wide && wide_laws) return run((const double *)logits, (double *)laws);
        if (wide) return run((const double *)logits, (float *)laws);
        return wide_laws ? run((const float *)logits, (double *)laws) : run((const float *)logits, (float *)laws);
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

int forethought_sample(const float *logits, int64_t rows, int64_t stride, int64_t vocab, float temperature, float *laws,
                       const double *uniforms, int64_t *tokens) {
    try {
        return drafts_of(logits, size_t(rows), size_t(stride), size_t(vocab), temperature, laws, uniforms, tokens);
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

int forethought_draw(const void *laws, int wide, int64_t rows, int64_t stride, int64_t vocab, const double *uniforms,
                     int64_t *tokens) {
    const size_t m = size_t(rows), step = size_t(stride), size = size_t(vocab);
    try {
        if (wide)
            draw_all((const double *)laws, m, step, size, uniforms, tokens);
        else
            draw_all((const float *)laws, m, step, size, uniforms, tokens);
        return DONE;
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

}  // extern "C"
