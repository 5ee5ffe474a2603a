// Gradients of products and of layer normalisations. See training.h.
#pragma once
#include "training_memory.h"

namespace {

// dw (outputs, inputs) += dy^T x, over steps factors of dy and x; outputs is a multiple of 4.
template <class V, int COLS, class T>
static inline void outer_products(int64_t steps, const T* dy, int64_t dys, const T* x, int64_t xs,
                                  int64_t outputs, int64_t inputs, float* dw) {
    for (int64_t n = 0; n < outputs; n += 4) {
        float* at = dw + n * inputs;
        V sums[4][COLS];
        UNROLLED(r, 4) load_rows(at + r * inputs, lanes<V>, sums[r]);
        for (int64_t t = 0; t < steps; t++) {
            V values[COLS];
            UNROLLED(c, COLS) values[c] = read<V>(x + (t * xs + c * lanes<V>)*DEPTH<T>);
            UNROLLED(r, 4)
                UNROLLED(c, COLS)
                    sums[r][c] = multiply_add(sums[r][c], factor(dy + (t * dys + n + r) * DEPTH<T>),
                                              values[c]);
        }
        UNROLLED(r, 4)
            UNROLLED(c, COLS) store(at + r * inputs + c * lanes<V>, sums[r][c]);
    }
}

// Rows (pixels, channels) as factors of two rows each; channels is a multiple of 8.
static inline void paired(int64_t pixels, const bfloat16* x, int64_t xs, int64_t channels,
                          bfloat16* factors) {
    typedef float eight_numbers __attribute__((vector_size(32)));
    typedef Bits<eight_numbers> Of;
    for (int64_t t = 0; t < pixels; t += 2)
        for (int64_t c = 0; c < channels; c += 8) {
            auto wide = [&](const bfloat16* at) {
                return __builtin_convertvector(read<Of::Narrow>(at), Of::Wide);
            };
            Of::Wide both = wide(x + t * xs + c) | wide(x + (t + 1) * xs + c) << 16;
            memcpy(factors + t * channels + 2 * c, &both, sizeof both);
        }
}

// dw (outputs, inputs) += dy^T x over pixels, an even number in bfloat16; for this, scratch is that
// many numbers of the channels of both.
template <class T>
NOINLINE void weight_gradient(int64_t pixels, const T* dy, int64_t dys, int64_t outputs, const T* x,
                              int64_t xs, int64_t inputs, float* dw, float* scratch) {
    if constexpr (DEPTH<T> == 2) {
        T *of_dy = (T*)scratch, *of_x = of_dy + pixels * outputs;
        paired(pixels, dy, dys, outputs, of_dy);
        paired(pixels, x, xs, inputs, of_x);
        dy = of_dy, x = of_x, dys = outputs, xs = inputs;
    }
    panels(inputs, [&](auto v, auto columns, int64_t column) {
        outer_products<decltype(v), decltype(columns)::value>(
            pixels / DEPTH<T>, dy, dys, x + column * DEPTH<T>, xs, outputs, inputs, dw + column);
    });
}

// A weight of torch in panels, its rows and columns so many numbers apart; columns from outputs to
// padded are zero.
template <class T>
NOINLINE void packed(const float* weight, int64_t inputs, int64_t outputs, int64_t stride_in,
                     int64_t stride_out, int64_t padded, float* result) {
    typedef float four __attribute__((vector_size(16)));
    panels(padded, [&](auto v, auto columns, int64_t column) {
        constexpr int64_t across = decltype(columns)::value * lanes<decltype(v)>;
        T* panel = (T*)(result + column * (inputs / DEPTH<T>));
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t n = 0; n < across; n++) {
                int64_t to = column + n;
                float value = to < outputs ? weight[k * stride_in + to * stride_out] : 0;
                T rounded[4];
                store(rounded, splat<four>(value));
                panel[(k / DEPTH<T> * across + n) * DEPTH<T> + k % DEPTH<T>] = rounded[0];
            }
    });
}

// C channels of a pixel, normalised.
template <int C> struct Normal {
    typedef Of<C> V;
    static constexpr int L = lanes<V>, N = C / L;
    V normal[N];  // (x - mean) / deviation
    float inverse;

    explicit Normal(const float* x) {
        V total{}, squares{};
        UNROLLED(n, N) normal[n] = load<V>(x + n * L), total += normal[n];
        float mean = sum(total) / C;
        UNROLLED(n, N) normal[n] -= mean, squares += normal[n] * normal[n];
        inverse = 1 / __builtin_sqrtf(sum(squares) / C + EPS);
        UNROLLED(n, N) normal[n] *= inverse;
    }

    // The gradient of x from that of the normalised, times the scale.
    void back(V (&g)[N]) const {
        V total{}, along{};
        UNROLLED(n, N) total += g[n], along += g[n] * normal[n];
        float mean = sum(total) / C, mean_along = sum(along) / C;
        UNROLLED(n, N) g[n] = (g[n] - mean - normal[n] * mean_along) * inverse;
    }
};

// give(pixel, channel, gradient of x) for all x, from take(pixel, channel, normalised x) -> the
// gradient of the scaled and shifted. Those of scale and shift are added to totals (2, C).
template <int C, class Take, class Give>
static inline void normalise_back(int64_t pixels, const float* x, int64_t stride,
                                  const float* scale, double* totals, Take take, Give give) {
    typedef Normal<C> Of;
    typedef typename Of::V V;
    V sums[2][Of::N] = {};
    for (int64_t p = 0; p < pixels; p++) {
        Of of(x + p * stride);
        V scaled[Of::N];
        UNROLLED(n, Of::N) {
            V gradient = take(p, n * Of::L, of.normal[n]);
            sums[0][n] += gradient * of.normal[n], sums[1][n] += gradient;
            scaled[n] = gradient * load<V>(scale + n * Of::L);
        }
        of.back(scaled);
        UNROLLED(n, Of::N) give(p, n * Of::L, scaled[n]);
    }
    UNROLLED(n, Of::N) add(totals + n * Of::L, sums[0][n]), add(totals + C + n * Of::L, sums[1][n]);
}

// dx += the gradient of the layer normalisation of x, from g (pixels, C).
template <int C>
NOINLINE void normalise_back(int64_t pixels, const float* x, int64_t stride, const float* scale,
                             const float* g, float* dx, double* totals) {
    typedef Of<C> V;
    normalise_back<C>(
        pixels, x, stride, scale, totals,
        [=](int64_t p, int c, V) { return load<V>(g + p * C + c); },
        [=](int64_t p, int c, V gradient) { add(dx + p * C + c, gradient); });
}

// y = the normalised x times SiLU(z).
template <int C, class T>
NOINLINE void gate(int64_t pixels, const float* x, const float* scale, const float* shift,
                   const T* z, int64_t stride, T* y) {
    typedef Normal<C> Of;
    typedef typename Of::V V;
    for (int64_t p = 0; p < pixels; p++) {
        Of of(x + p * C);
        UNROLLED(n, Of::N) {
            V normal = of.normal[n] * load<V>(scale + n * Of::L) + load<V>(shift + n * Of::L);
            store(y + p * C + n * Of::L, normal * Silu::of(load<V>(z + p * stride + n * Of::L)));
        }
    }
}

// From g, the gradient of `gate`'s result, those of x and z.
template <int C, class T>
NOINLINE void gate_back(int64_t pixels, const float* x, const float* scale, const float* shift,
                        const T* z, T* dz, int64_t stride, const float* g, float* dx,
                        double* totals) {
    typedef Of<C> V;
    normalise_back<C>(
        pixels, x, C, scale, totals,
        [=](int64_t p, int c, V normal) {
            V gate = load<V>(z + p * stride + c), open = sigmoid(gate), value = gate * open;
            V gradient = load<V>(g + p * C + c);
            normal = normal * load<V>(scale + c) + load<V>(shift + c);
            store(dz + p * stride + c, normal * gradient * (open + value * (1.0f - open)));
            return gradient * value;
        },
        [=](int64_t p, int c, V gradient) { store(dx + p * C + c, gradient); });
}

}  // namespace
