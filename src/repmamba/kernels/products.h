// Products of rows with a matrix. The sums stay in registers until they are finished.
//
// x is (count, inputs), its rows xs numbers apart; they may overlap: that is how a convolution is a
// product. A weight (inputs, outputs) is stored in panels of PANEL columns, each (inputs, columns),
// the last one narrower. For x in bfloat16 a number of it is the bits of two, of two neighbouring
// rows: (inputs / 2, outputs).
#pragma once
#include "vec.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDEST = 4, SUMS = 24;  // of 32 registers
#else
constexpr int WIDEST = 2, SUMS = 12;  // of 16
#endif
constexpr int PANEL = WIDEST * LANES;

template <class T> constexpr int DEPTH = sizeof(float) / sizeof(T);  // numbers of x in a factor

// A factor of a product: a number, or two neighbours in bfloat16.
static inline float factor(const float* at) { return *at; }
static inline uint32_t factor(const bfloat16* at) {
    uint32_t both;
    memcpy(&both, at, sizeof both);
    return both;
}

template <class V> static inline V multiply_add(V sum, float x, V weights) {
    return sum + splat<V>(x) * weights;
}

template <class V> static inline V multiply_add(V sum, uint32_t x, V weights) {
    typedef typename Bits<V>::Wide Wide;
#if defined(__AVX512BF16__)
    Wide pair = x - Wide{};
    if constexpr (sizeof(V) == 64)
        return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)weights);
    else return (V)_mm256_dpbf16_ps((__m256)sum, (__m256bh)pair, (__m256bh)weights);
#else
    uint32_t low = x << 16, high = x & 0xffff0000;
    float first, second;
    memcpy(&first, &low, sizeof low);
    memcpy(&second, &high, sizeof high);
    return sum + first * (V)((Wide)weights << 16) + second * (V)((Wide)weights & 0xffff0000);
#endif
}

namespace {

template <int N> struct Constant { static constexpr int value = N; };

// f(V{}, first) for the first channel of each register, and of a half register for eight channels
// left over.
template <class F> static inline void registers(int64_t channels, F f) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) f(vec{}, c);
    if constexpr (LANES == 16)
        if (c < channels) f(half{}, c);
}

// f(number, first) for blocks of N, then of four, then one by one; number is a constant.
template <int N, class F> static inline void in_blocks(int64_t count, F f) {
    int64_t first = 0;
    for (; first + N <= count; first += N) f(Constant<N>{}, first);
    if constexpr (N > 4)
        for (; first + 4 <= count; first += 4) f(Constant<4>{}, first);
    for (; first < count; first++) f(Constant<1>{}, first);
}

// f(V{}, columns, column) for each panel, columns a constant: how many registers it is wide.
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

// What the sums of a product start from and where they go: of a register, from column c on, in row
// r of the result.
template <class T = float> struct Plain {
    T* y;
    int64_t ys;
    static constexpr bool costly = false;
    template <class V> V start(int64_t, int64_t) const { return V{}; }
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        store(y + r * ys + c, sum);
    }
};
template <class T> Plain(T*, int64_t) -> Plain<T>;

struct Added : Plain<> {
    template <class V> V start(int64_t r, int64_t c) const { return load<V>(y + r * ys + c); }
};

struct Biased : Plain<> {
    const float* bias;
    template <class V> V start(int64_t, int64_t c) const { return load<V>(bias + c); }
};

template <class Activation> struct Activated : Biased {
    static constexpr bool costly = true;
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        store(y + r * ys + c, Activation::of(sum));
    }
};

struct Gate : Biased {  // y times SiLU(sum)
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

// Sums of ROWS rows and COLS registers. A costly finish has a loop of its own, because all sums at
// once would leave it no registers.
template <class V, int ROWS, int COLS, class Result, class Multiply>
static inline void block(const Result& result, int64_t row, int64_t column, Multiply multiply) {
    V sums[ROWS][COLS];
    UNROLLED(r, ROWS)
        UNROLLED(c, COLS) sums[r][c] = result.template start<V>(row + r, column + c * lanes<V>);
    multiply(sums);
    if constexpr (Result::costly) {
        float raw[ROWS][COLS * lanes<V>];
        UNROLLED(r, ROWS)
            UNROLLED(c, COLS) store(raw[r] + c * lanes<V>, sums[r][c]);
#pragma clang loop unroll(disable)
        for (int r = 0; r < ROWS; r++)
            UNROLLED(c, COLS)
                result.finish(load<V>(raw[r] + c * lanes<V>), row + r, column + c * lanes<V>);
    } else {
        UNROLLED(r, ROWS)
            UNROLLED(c, COLS) result.finish(sums[r][c], row + r, column + c * lanes<V>);
    }
}

// x's rows give those of the result from `first` on.
template <class T, class Result>
static void multiply(int64_t count, const T* x, int64_t xs, const float* weight, int64_t inputs,
                     int64_t outputs, const Result& result, int64_t first = 0) {
    panels(outputs, [&](auto v, auto columns, int64_t column) {
        typedef decltype(v) V;
        constexpr int COLS = decltype(columns)::value, MOST = SUMS / COLS < 8 ? SUMS / COLS : 8;
        const float* panel = weight + column * (inputs / DEPTH<T>);
        in_blocks<MOST>(count, [&](auto rows, int64_t row) {
            constexpr int ROWS = decltype(rows)::value;
            block<V, ROWS, COLS>(result, first + row, column, [&](V(&sums)[ROWS][COLS]) {
                const T* from = x + row * xs;
                const float* at = panel;
                for (int64_t k = 0; k < inputs; k += DEPTH<T>, at += COLS * lanes<V>) {
                    V weights[COLS];
                    UNROLLED(c, COLS) weights[c] = load<V>(at + c * lanes<V>);
                    UNROLLED(r, ROWS)
                        UNROLLED(c, COLS)
                            sums[r][c] =
                                multiply_add(sums[r][c], factor(from + r * xs + k), weights[c]);
                }
            });
        });
    });
}

struct Exact {             // in float32
    typedef float Stored;  // what a front leaves for its tail

    static int64_t numbers(int64_t inputs, int64_t outputs) { return inputs * outputs; }

    template <class Result>
    static void product(int64_t count, const float* x, int64_t xs, const float* weight,
                        int64_t inputs, int64_t outputs, const Result& result) {
        multiply(count, x, xs, weight, inputs, outputs, result);
    }
};

}  // namespace
