// Products of rows with a matrix, whose sums stay in registers until they are finished.
//
// x is (count, inputs), its rows xs numbers apart; they may overlap: that is how a convolution is a
// product. A weight (inputs, outputs) lies in panels of PANEL columns, each (inputs, columns) side
// by side, the last one narrower.
#pragma once
#include "vec.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDEST = 4, SUMS = 24;  // of 32 registers
#else
constexpr int WIDEST = 2, SUMS = 12;  // of 16
#endif
constexpr int PANEL = WIDEST * LANES, MOST_ROWS = 8;

namespace {

// f(V{}, first) for the first channel of each register, and of a half register for eight channels
// left over.
template <class F> static inline void registers(int64_t channels, F f) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) f(vec{}, c);
    if constexpr (LANES == 16)
        if (c < channels) f(half{}, c);
}

// What sums start from, and what becomes of them: of the register from column c on in a row r of
// the result.
struct Plain {
    float* y;
    int64_t ys;
    static constexpr bool costly = false;
    template <class V> V start(int64_t, int64_t) const { return V{}; }
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        store(y + r * ys + c, sum);
    }
};

struct Added : Plain {
    template <class V> V start(int64_t r, int64_t c) const { return load<V>(y + r * ys + c); }
};

struct Biased : Plain {
    const float* bias;
    template <class V> V start(int64_t, int64_t c) const { return load<V>(bias + c); }
};

template <class Activation> struct Activated : Biased {
    static constexpr bool costly = true;
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        store(y + r * ys + c, Activation::of(sum));
    }
};

struct Gate : Biased {  // what stands there times SiLU(sum)
    static constexpr bool costly = true;
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        float* at = y + r * ys + c;
        store(at, load<V>(at) * Silu::of(sum));
    }
};

struct Residual : Biased {  // gain skip + sum
    const float *skip, *gain;
    int64_t skip_stride;
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        store(y + r * ys + c, sum + load<V>(gain + c) * load<V>(skip + r * skip_stride + c));
    }
};

// Sums of ROWS rows and COLS registers. A costly finish has its own loop: all sums at once leave it
// no registers.
template <class V, int ROWS, int COLS, class Result, class Multiply>
static inline void block(const Result& result, int64_t row, int64_t column, Multiply multiply) {
    V sums[ROWS][COLS];
    UNROLLED
        for (int r = 0; r < ROWS; r++)
            UNROLLED
                for (int c = 0; c < COLS; c++)
                    sums[r][c] = result.template start<V>(row + r, column + c * lanes<V>);
    multiply(sums);
    if constexpr (Result::costly) {
        float raw[ROWS][COLS * lanes<V>];
        UNROLLED
            for (int r = 0; r < ROWS; r++)
                UNROLLED
                    for (int c = 0; c < COLS; c++) store(raw[r] + c * lanes<V>, sums[r][c]);
#pragma clang loop unroll(disable)
        for (int r = 0; r < ROWS; r++)
            UNROLLED
                for (int c = 0; c < COLS; c++)
                    result.finish(load<V>(raw[r] + c * lanes<V>), row + r, column + c * lanes<V>);
    } else {
        UNROLLED
            for (int r = 0; r < ROWS; r++)
                UNROLLED
                    for (int c = 0; c < COLS; c++)
                        result.finish(sums[r][c], row + r, column + c * lanes<V>);
    }
}

// f(V{}, columns, column) for each panel, columns a constant: how many registers it is wide.
template <int N> struct Constant { static constexpr int value = N; };
template <class F> static inline void panels(int64_t outputs, F f) {
    int64_t column = 0;
    for (; column + PANEL <= outputs; column += PANEL) f(vec{}, Constant<WIDEST>{}, column);
    int64_t left = (outputs - column) / LANES;
    if (WIDEST == 4 && left == 3) f(vec{}, Constant<3>{}, column);
    if (WIDEST == 4 && left == 2) f(vec{}, Constant<2>{}, column);
    if (left == 1) f(vec{}, Constant<1>{}, column);
    if constexpr (LANES == 16)
        if ((column += left * LANES) < outputs) f(half{}, Constant<1>{}, column);
}

// f(rows, row) for blocks of so many rows, then one by one.
template <int COLS, class F> static inline void rows_at_once(int64_t count, F f) {
    constexpr int ROWS = SUMS / COLS < MOST_ROWS ? SUMS / COLS : MOST_ROWS;
    int64_t row = 0;
    for (; row + ROWS <= count; row += ROWS) f(Constant<ROWS>{}, row);
    for (; row < count; row++) f(Constant<1>{}, row);
}

struct Exact {             // in float32
    typedef float Stored;  // what a front leaves for its tail

    static int64_t numbers(int64_t inputs, int64_t outputs) {
        return inputs * outputs;
    }  // of a weight

    template <class Result>
    static void product(int64_t count, const float* x, int64_t xs, const float* weight,
                        int64_t inputs, int64_t outputs, const Result& result) {
        panels(outputs, [&](auto v, auto columns, int64_t column) {
            typedef decltype(v) V;
            constexpr int COLS = decltype(columns)::value;
            const float* panel = weight + column * inputs;
            rows_at_once<COLS>(count, [&](auto rows, int64_t row) {
                constexpr int ROWS = decltype(rows)::value;
                block<V, ROWS, COLS>(result, row, column, [&](V(&sums)[ROWS][COLS]) {
                    const float* from = x + row * xs;
                    for (int64_t k = 0; k < inputs; k++) {
                        V weights[COLS];
                        UNROLLED
                            for (int c = 0; c < COLS; c++)
                                weights[c] = load<V>(panel + (k * COLS + c) * lanes<V>);
                        UNROLLED
                            for (int r = 0; r < ROWS; r++)
                                UNROLLED
                                    for (int c = 0; c < COLS; c++)
                                        sums[r][c] += splat<V>(from[r * xs + k]) * weights[c];
                    }
                });
            });
        });
    }
};

}  // namespace
