// Products in pairs of bfloat16, which one instruction multiplies and adds up: a weight is (inputs
// / 2, outputs), in panels, each number the bits of two. Factors are rounded here. Products of
// other inputs are those of Exact.
#pragma once
#include "products.h"

typedef uint16_t bfloat16;

template <class V> static inline V load(const bfloat16* at) {
    typedef bfloat16 Narrow __attribute__((vector_size(sizeof(V) / 2)));
    typedef uint32_t Wide __attribute__((vector_size(sizeof(V))));
    Narrow narrow;
    memcpy(&narrow, at, sizeof narrow);
    return (V)(__builtin_convertvector(narrow, Wide) << 16);
}

static inline void store(bfloat16* at, vec v) {
    __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
    memcpy(at, &narrow, sizeof narrow);
}

static inline void store(bfloat16* at, half v) {
    __m128bh narrow = _mm256_cvtneps_pbh((__m256)v);
    memcpy(at, &narrow, sizeof narrow);
}

static inline vec multiplied(uint32_t factors, vec weights, vec sum) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)factors),
                                 (__m512bh)weights);
}

static inline half multiplied(uint32_t factors, half weights, half sum) {
    return (half)_mm256_dpbf16_ps((__m256)sum, (__m256bh)_mm256_set1_epi32((int)factors),
                                  (__m256bh)weights);
}

namespace {

constexpr int64_t MOST_INPUTS = 512;  // factors lie on the stack

// Whether products of so many inputs are computed in pairs.
static inline bool in_pairs(int64_t inputs) { return inputs % 32 == 0 && inputs <= MOST_INPUTS; }

// Rows of x, rounded, side by side.
static inline void round_rows(int64_t count, const float* x, int64_t xs, int64_t inputs,
                              uint32_t* pairs) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t k = 0; k < inputs; k += 32) {
            vec low = load(x + r * xs + k), high = load(x + r * xs + k + 16);
            __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
            memcpy(pairs + (r * inputs + k) / 2, &both, sizeof both);
        }
}

struct Pairs {
    typedef bfloat16 Stored;

    static int64_t numbers(int64_t inputs, int64_t outputs) {
        return in_pairs(inputs) ? inputs / 2 * outputs : inputs * outputs;
    }

    template <class Result>
    static void product(int64_t count, const float* x, int64_t xs, const float* weight,
                        int64_t inputs, int64_t outputs, const Result& result) {
        if (!in_pairs(inputs)) return Exact::product(count, x, xs, weight, inputs, outputs, result);
        constexpr int64_t AT_ONCE = 48;
        uint32_t pairs[AT_ONCE * MOST_INPUTS / 2];
        for (int64_t first = 0; first < count; first += AT_ONCE) {
            int64_t some = count - first < AT_ONCE ? count - first : AT_ONCE, across = inputs / 2;
            round_rows(some, x + first * xs, xs, inputs, pairs);
            panels(outputs, [&](auto v, auto columns, int64_t column) {
                typedef decltype(v) V;
                constexpr int COLS = decltype(columns)::value;
                const float* panel = weight + column * across;
                rows_at_once<COLS>(some, [&](auto rows, int64_t row) {
                    constexpr int ROWS = decltype(rows)::value;
                    block<V, ROWS, COLS>(result, first + row, column, [&](V(&sums)[ROWS][COLS]) {
                        const uint32_t* from = pairs + row * across;
                        for (int64_t k = 0; k < across; k++) {
                            V weights[COLS];
                            UNROLLED
                                for (int c = 0; c < COLS; c++)
                                    weights[c] = load<V>(panel + (k * COLS + c) * lanes<V>);
                            UNROLLED
                                for (int r = 0; r < ROWS; r++)
                                    UNROLLED
                                        for (int c = 0; c < COLS; c++)
                                            sums[r][c] = multiplied(from[r * across + k],
                                                                    weights[c], sums[r][c]);
                        }
                    });
                });
            });
        }
    }
};

}  // namespace
