// Products of factors rounded to bfloat16, which one instruction multiplies in pairs and adds up.
// Products of other inputs are those of Exact.
#pragma once
#include "products.h"

namespace {

constexpr int64_t MOST_INPUTS = 512;  // the rounded rows are on the stack

// Whether products of this many inputs are computed in pairs.
static inline bool in_pairs(int64_t inputs) { return inputs % 32 == 0 && inputs <= MOST_INPUTS; }

// Rows of x, rounded, without gaps.
static inline void round_rows(int64_t count, const float* x, int64_t xs, int64_t inputs,
                              bfloat16* rounded) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t k = 0; k < inputs; k += 32) {
            vec low = load(x + r * xs + k), high = load(x + r * xs + k + 16);
            __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
            memcpy(rounded + r * inputs + k, &both, sizeof both);
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
        if (!in_pairs(inputs)) return multiply(count, x, xs, weight, inputs, outputs, result);
        constexpr int64_t AT_ONCE = 48;
        bfloat16 rounded[AT_ONCE * MOST_INPUTS];
        for (int64_t first = 0; first < count; first += AT_ONCE) {
            int64_t rows = less(AT_ONCE, count - first);
            round_rows(rows, x + first * xs, xs, inputs, rounded);
            multiply(rows, rounded, inputs, weight, inputs, outputs, result, first);
        }
    }
};

}  // namespace
