// The RepConv in training: a 3x3 convolution, a 1x1 and a skip with batch normalisations, computed
// as one convolution whose weights follow from the batch's moments. See training.h and `Branches`.
#pragma once
#include "training_memory.h"

namespace {

// A row of pixels, stride apart; beyond the map, the same zeros for all of them.
template <class T> struct Row {
    const T* at;
    int64_t stride;
    template <class V> V get(int64_t column) const { return load<V>(at + column * stride); }
};

alignas(64) static const float ZEROS[LANES] = {};

template <class T>
static inline Row<T> row_of(const T* map, int64_t i, int64_t height, int64_t width,
                            int64_t stride) {
    if (i < 0 || i >= height) return {(const T*)ZEROS, 0};
    return {map + i * width * stride, stride};
}

// body(column, window): the nine vectors around each pixel of the middle row, zeros beyond its
// ends.
template <class V, class T, class F>
static inline void windows(const Row<T>& above, const Row<T>& at, const Row<T>& below,
                           int64_t width, F body) {
    const Row<T> rows[3] = {above, at, below};
    V window[9];
    UNROLLED(r, 3) window[3 * r + 1] = V{}, window[3 * r + 2] = rows[r].template get<V>(0);
    for (int64_t column = 0; column < width; column++) {
        UNROLLED(r, 3) {
            window[3 * r] = window[3 * r + 1], window[3 * r + 1] = window[3 * r + 2];
            window[3 * r + 2] = column + 1 < width ? rows[r].template get<V>(column + 1) : V{};
        }
        body(column, window);
    }
}

// The same around the pixels of row i of a map.
template <class V, class T, class F>
static inline void windows(const T* map, int64_t stride, int64_t i, int64_t height, int64_t width,
                           F body) {
    windows<V>(row_of(map, i - 1, height, width, stride), row_of(map, i, height, width, stride),
               row_of(map, i + 1, height, width, stride), width, body);
}

template <class V> static inline V weighted(const V (&values)[9], const V (&weights)[9]) {
    V chains[3] = {};
    UNROLLED(n, 9) chains[n % 3] += values[n] * weights[n];
    return chains[0] + chains[1] + chains[2];
}

// Sums of y, y^2, x, x^2 and x y of a sample, y = 3x3(x), into moments (5, C).
template <int C, class T>
NOINLINE void moments(const Branches& of, int64_t b, const T* x, int64_t stride, int64_t height,
                      int64_t width) {
    typedef Of<C> V;
    double* totals = of.moments + b * 5 * C;
    zero(totals, 5 * C);
    for (int c = 0; c < C; c += lanes<V>) {
        V taps[9];
        load_rows(of.taps + c, C, taps);
        Sums<V, 5> sums{totals + c, C};
        for (int64_t i = 0; i < height; i++) {
            windows<V>(x + c, stride, i, height, width, [&](int64_t, const V(&window)[9]) {
                V x = window[4], y = weighted(window, taps);
                sums.of[0] += y, sums.of[1] += y * y, sums.of[2] += x, sums.of[3] += x * x;
                sums.of[4] += x * y;
            });
            sums.flush();
        }
    }
}

// The RepConv: its one convolution, and SiLU.
template <int C, class Activation, class T>
NOINLINE void convolve(const Branches& of, const T* x, int64_t stride, int64_t height,
                       int64_t width, float* result, int64_t result_stride) {
    typedef Of<C> V;
    for (int c = 0; c < C; c += lanes<V>) {
        V taps[9], bias = load<V>(of.bias + c);
        load_rows(of.folded + c, C, taps);
        for (int64_t i = 0; i < height; i++)
            windows<V>(x + c, stride, i, height, width, [&](int64_t column, const V(&window)[9]) {
                store(result + (i * width + column) * result_stride + c,
                      Activation::of(weighted(window, taps) + bias));
            });
    }
}

// Sums of g, g y and g x of a sample, into sums (3, C). With the activation, g is first turned into
// the gradient before the SiLU, in place; the first C / 2 channels also get that of the pooled map
// (height / 2, width / 2, C / 2).
template <int C, bool activated, class T>
NOINLINE void gradient_sums(const Branches& of, int64_t b, const T* x, int64_t stride,
                            int64_t height, int64_t width, float* g, int64_t g_stride,
                            const float* dpooled) {
    typedef Of<C> V;
    double* totals = of.sums + b * 3 * C;
    zero(totals, 3 * C);
    for (int c = 0; c < C; c += lanes<V>) {
        V taps[9], before[3];
        load_rows(of.taps + c, C, taps);
        load_rows(of.before + c, C, before);
        Sums<V, 3> sums{totals + c, C};
        for (int64_t i = 0; i < height; i++) {
            windows<V>(x + c, stride, i, height, width, [&](int64_t column, const V(&window)[9]) {
                float* at = g + (i * width + column) * g_stride + c;
                V x = window[4], y = weighted(window, taps), gradient = load<V>(at);
                if constexpr (activated) {
                    const float* from = dpooled + (i / 2 * (width / 2) + column / 2) * (C / 2);
                    if constexpr (C / 2 < lanes<V>) {  // half of the lanes
                        V share = {};
                        for (int lane = 0; lane < C / 2; lane++) share[lane] = from[lane];
                        gradient += 0.25f * share;
                    } else if (c < C / 2) {
                        gradient += 0.25f * load<V>(from + c);
                    }
                    V input = before[0] * y + before[1] * x + before[2], open = sigmoid(input);
                    gradient *= open + input * open * (1.0f - open);
                    store(at, gradient);
                }
                sums.of[0] += gradient, sums.of[1] += gradient * y, sums.of[2] += gradient * x;
            });
            sums.flush();
        }
    }
}

// The gradients of x and of the 3x3 weights from that of a RepConv's result, g; dx may be g.
// scratch: 5 rows of a register.
template <int C, class T, class G>
NOINLINE void branches_back(const Branches& of, int64_t b, const T* x, int64_t stride,
                            int64_t height, int64_t width, const float* g, int64_t g_stride, G* dx,
                            int64_t dx_stride, float* scratch) {
    typedef Of<C> V;
    constexpr int L = lanes<V>;
    double* totals = of.dtaps + b * 9 * C;
    zero(totals, 9 * C);
    float *branch = scratch, *direct = scratch + 3 * width * L;
    for (int c = 0; c < C; c += L) {
        V taps[9], turned[9], mix[8];
        load_rows(of.taps + c, C, taps);
        load_rows(of.turned + c, C, turned);
        load_rows(of.mix + c, C, mix);
        Sums<V, 9> sums{totals + c, C};
        for (int64_t i = 0; i <= height; i++) {
            if (i < height) {
                float *dy = branch + i % 3 * width * L, *straight = direct + i % 2 * width * L;
                windows<V>(x + c, stride, i, height, width,
                           [&](int64_t column, const V(&window)[9]) {
                               V x = window[4], y = weighted(window, taps);
                               V gradient = load<V>(g + (i * width + column) * g_stride + c);
                               V of_branch = mix[0] * gradient + mix[1] * y + mix[2] * x + mix[3];
                               store(dy + column * L, of_branch);
                               store(straight + column * L,
                                     mix[4] * gradient + mix[5] * y + mix[6] * x + mix[7]);
                               UNROLLED(n, 9) sums.of[n] += of_branch * window[n];
                           });
                sums.flush();
            }
            if (i == 0) continue;
            auto ring = [&](int64_t row) -> Row<float> {
                return row < 0 || row >= height ? Row<float>{ZEROS, 0}
                                                : Row<float>{branch + row % 3 * width * L, L};
            };
            const float* straight = direct + (i - 1) % 2 * width * L;
            windows<V>(ring(i - 2), ring(i - 1), ring(i), width,
                       [&](int64_t column, const V(&window)[9]) {
                           store(dx + ((i - 1) * width + column) * dx_stride + c,
                                 weighted(window, turned) + load<V>(straight + column * L));
                       });
        }
    }
}

struct Statistics { double mean, variance; };

// A normalisation's mean and variance: those of the batch, which move the running ones towards
// them, or the running ones, frozen.
static Statistics statistics(const Training* a, void* const* buffers, int64_t c, double mean,
                             double variance) {
    float *of_mean = (float*)buffers[0] + c, *of_variance = (float*)buffers[1] + c;
    if (a->frozen) return {*of_mean, *of_variance};
    int64_t count = a->batch * a->height * a->width;
    double unbiased = variance * count / (count > 1 ? count - 1 : 1);
    *of_mean += (float)(a->momentum * (mean - *of_mean));
    *of_variance += (float)(a->momentum * (unbiased - *of_variance));
    if (c == 0) ++*(int64_t*)buffers[2];
    return {mean, variance};
}

// What the moments of the batch make of the normalisations.
NOINLINE void fold_conv(const Branches& of, const Training* a, const float* const* parameters,
                        void* const* buffers) {
    int64_t channels = of.channels, count = a->batch * a->height * a->width;
    auto above = [](double x) { return x > 0 ? x : 0; };
    for (int64_t c = 0; c < channels; c++) {
        double mean[5];
        for (int n = 0; n < 5; n++)
            mean[n] =
                a->frozen
                    ? 0
                    : over_samples(of.moments + n * channels + c, a->batch, 5 * channels) / count;
        double mean_y = mean[0], mean_x = of.mean_x[c] = mean[2];
        double var_y = of.var_y[c] = above(mean[1] - mean_y * mean_y);
        double var_x = of.var_x[c] = above(mean[3] - mean_x * mean_x);
        double covariance = of.covariance[c] = mean[4] - mean_x * mean_y;
        Statistics y = statistics(a, buffers, c, mean_y, var_y);
        double inverse_y = of.inverse_y[c] = 1 / __builtin_sqrt(y.variance + EPS);
        double a_ = of.a[c] = parameters[INNER][c] * inverse_y;
        double k = of.k[c] = 1 + parameters[DIRECT][c];
        double shift = parameters[INNER_SHIFT][c] + parameters[DIRECT_BIAS][c] - a_ * y.mean;
        double var_u = above(a_ * a_ * var_y + k * k * var_x + 2 * a_ * k * covariance);
        Statistics u = statistics(a, buffers + 3, c, a_ * mean_y + k * mean_x + shift, var_u);
        double inverse_u = of.inverse_u[c] = 1 / __builtin_sqrt(u.variance + EPS);
        double gain = of.gain[c] = parameters[OUTER][c] * inverse_u;
        of.mean_y[c] = y.mean, of.shift[c] = shift - u.mean;
        double constant = parameters[OUTER_SHIFT][c] + gain * of.shift[c];
        of.before[c] = gain * a_, of.before[channels + c] = gain * k;
        of.before[2 * channels + c] = of.bias[c] = constant;
        for (int n = 0; n < 9; n++)
            of.folded[n * channels + c] =
                of.taps[n * channels + c] * gain * a_ + (n == 4 ? gain * k : 0);
    }
}

// The gradients of all parameters but the 3x3, and what `branches_back` takes.
NOINLINE void fold_conv_back(const Branches& of, const Training* a, float* const* gradients) {
    int64_t channels = of.channels;
    double count = a->batch * a->height * a->width;
    double share = a->frozen ? 0 : 1 / count;  // of a pixel in a mean of the batch
    for (int64_t c = 0; c < channels; c++) {
        auto sum = [&](int n) {
            return over_samples(of.sums + n * channels + c, a->batch, 3 * channels);
        };
        double g = sum(0), gy = sum(1) - of.mean_y[c] * g;
        double gx = sum(2) - of.mean_x[c] * g;
        double a_ = of.a[c], k = of.k[c], gain = of.gain[c];
        double gz =
            of.inverse_u[c] * (a_ * sum(1) + k * sum(2) + of.shift[c] * g);  // z: u normalised
        // du = gain (g - mean(g) - z mean(g z)), without the means where frozen
        double pull = gain * of.inverse_u[c] * gz * share;
        double duy = gain * gy - pull * count * (a_ * of.var_y[c] + k * of.covariance[c]);
        double dux = gain * gx - pull * count * (a_ * of.covariance[c] + k * of.var_x[c]);
        double constant = -gain * g * share - pull * of.shift[c];
        double du[4] = {gain, -pull * a_, -pull * k, constant};  // of g, y, x and 1
        double back = a_ * of.inverse_y[c] * of.inverse_y[c] * duy * share;
        for (int n = 0; n < 4; n++) {
            double own = n == 1 ? -back : n == 3 ? back * of.mean_y[c] : 0;
            of.mix[n * channels + c] = a_ * du[n] + own;
            of.mix[(4 + n) * channels + c] = k * du[n];
        }
        gradients[INNER][c] = of.inverse_y[c] * duy, gradients[DIRECT][c] = dux;
        gradients[OUTER][c] = gz, gradients[OUTER_SHIFT][c] = g;
        // The outer normalisation takes both out, unless it is frozen.
        gradients[INNER_SHIFT][c] = gradients[DIRECT_BIAS][c] = a->frozen ? gain * g : 0;
    }
}

}  // namespace
