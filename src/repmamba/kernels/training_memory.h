// What the passes of training read and write between them: the parameters' places, and the maps and
// sums that an LPFM keeps from its forward to its backward pass. See training.h.
#pragma once
#include "rows.h"
#include "scan.h"
#include "training.h"

constexpr int WIDTH = 64, RMBS = 4, STATE = 16, DIRECTIONS = 4, SLABS = 2, SEGMENT = 64;
// Pixels that go through a chain of products and passes together, in the first cache.
constexpr int CHUNK = 64;

// clang-format off
// Parameters of an RMB, of a RepConv in it, and of what follows the four RMBs.
enum {
    NORM, NORM_SHIFT, X_PROJ, DT_WEIGHT, DT_BIAS, A_LOG, SKIP_D, IN_PROJ, CONV, HIGH_CONV = CONV + 7,
    OUT_NORM = HIGH_CONV + 7, OUT_NORM_SHIFT, OUT_PROJ, DW1X1, BN, BN_SHIFT, RMB_PARAMETERS,
    TAPS = 0, INNER, INNER_SHIFT, DIRECT, DIRECT_BIAS, OUTER, OUTER_SHIFT,
    FFN_NORM = 0, FFN_NORM_SHIFT, FC1, FC1_BIAS, DW5X5, DW5X5_BIAS, FC2, FC2_BIAS,
};
// Running mean, variance and count of each normalisation.
enum { CONV_BN = 0, HIGH_CONV_BN = 6, BN_BN = 12, RMB_BUFFERS = 15 };
// clang-format on

// A function of its own, for profiles, and because inlining it would cost registers.
#define NOINLINE __attribute__((noinline)) static

namespace {

template <int C> using Of = decltype(vector_for<C>());

template <class T> static inline void zero(T* at, int64_t count) {
    memset(at, 0, count * sizeof(T));
}

// What is known of a RepConv on one batch: with y = 3x3(x), a = gamma_inner / sqrt(var_y + eps), k
// = 1 + dw1x1, its outer normalisation sees u = a (y - mean_y) + k (x - mean_x) less its mean, and
// var_u follows from the moments of y and x; the result is gain u + beta_outer, gain = gamma_outer
// / sqrt(var_u + eps). In other words, u = a y + k x + shift. With frozen statistics mean_y, var_y
// in a, shift and var_u in gain are of the running ones, and the other moments are 0.
struct Branches {
    int64_t channels;
    float *taps, *turned;  // (9, C): of the 3x3, and backwards
    float *folded, *bias;  // (9, C), (C): the one convolution that gives the result
    float* before;         // (3, C): y, x and 1 times these give the result
    float* mix;            // (8, C): g, y, x and 1 times these give dy, and x past the 3x3
    double *mean_y, *mean_x, *var_y, *var_x, *covariance;  // (C), as all up to gain
    double *inverse_y, *inverse_u, *a, *k, *gain, *shift;
    double *moments, *sums, *dtaps;  // (batch, 5, C), (batch, 3, C), (batch, 9, C)

    void cut(Scratch& from, int64_t batch, int64_t c) {
        channels = c;
        from.cut(9 * c, taps, turned, folded);
        from.cut(c, bias, mean_y, mean_x, var_y, var_x, covariance, inverse_y, inverse_u, a, k,
                 gain, shift);
        before = from.take(3 * c), mix = from.take(8 * c),
        moments = from.take<double>(batch * 5 * c);
        sums = from.take<double>(batch * 3 * c), dtaps = from.take<double>(batch * 9 * c);
    }
};

// An RMB's memory from the forward to the backward pass; L = pixels / 4, C its width. Weights are
// as products.h has them.
template <class T> struct Rmb {
    int64_t channels, rank;
    int64_t rows, padded;  // numbers of a pixel for the scan; padded to whole registers
    const float* v;        // (pixels, C), its pixels v_stride apart
    int64_t v_stride;
    float* own_v;             // none in the first, which reads t
    T *n, *xz, *gated, *out;  // (pixels, C), (pixels, 4C), (pixels, 2C), (pixels, C)
    float *s, *merged;        // (pixels, 2C); the low half of s less its means
    float *pooled, *projected, *kept, *scanned;  // (L, C), (L, padded), states, (2, L, C)
    float *in_proj, *out_proj, *in_proj_back, *out_proj_back, *x_proj, *x_proj_back;
    float* A;  // (4C, 16)
    Branches conv, high_conv;
    double *out_moments, *out_sums;       // (batch, 2, C)
    double *mean, *subtracted, *inverse;  // (C): of r = v + out; by BN from w r; 1 / its deviation
    float *affine, *mix;  // (2, C): r and 1 times these give the result; (3, C): g, r, 1 give dr
    const float* const* parameters;
    void* const* buffers;
    float* const* gradients;

    void cut(Scratch& from, const Training* a, int index) {
        int64_t c = channels = 8 << index, pixels = a->batch * a->height * a->width;
        int64_t length = pixels / 4, segments = (length / a->batch + SEGMENT - 1) / SEGMENT;
        rank = c > 32 ? 2 : 1, rows = DIRECTIONS * (rank + 2 * STATE);
        padded = (rows + 15) / 16 * 16;
        own_v = from.take(index ? pixels * c : 0);
        v = index ? own_v : a->t, v_stride = index ? c : WIDTH;
        from.cut(pixels * c, n, out), from.cut(pixels * 2 * c, gated, s, merged);
        xz = from.take<T>(pixels * 4 * c), pooled = from.take(length * c);
        projected = from.take(length * padded), scanned = from.take(SLABS * length * c);
        kept = from.take(a->batch * DIRECTIONS * segments * STATE * c);
        from.cut(4 * c * c, in_proj, in_proj_back), from.cut(2 * c * c, out_proj, out_proj_back);
        from.cut(padded * c, x_proj, x_proj_back), A = from.take(DIRECTIONS * c * STATE);
        conv.cut(from, a->batch, 2 * c), high_conv.cut(from, a->batch, c);
        from.cut(a->batch * 2 * c, out_moments, out_sums), from.cut(c, mean, subtracted, inverse);
        from.cut(3 * c, affine, mix);
        parameters = a->parameters + index * RMB_PARAMETERS;
        gradients = a->gradients + index * RMB_PARAMETERS;
        buffers = a->buffers + index * RMB_BUFFERS;
    }

    template <class V> V sum(int64_t p, int64_t c) const {  // r, which BN normalises
        return load<V>(v + p * v_stride + c) + load<V>(out + p * channels + c);
    }
};

// Its memory in the backward pass.
template <class T> struct RmbBack {
    float* dv;                              // (pixels, C): outlives the RMB's stages
    T* dxz;                                 // (pixels, 4C)
    float *ds, *dscanned, *dpooled;         // (pixels, 2C), (L, C), (L, C)
    float *du, *drows, *dconstants;         // (2, L, C), (L, padded), see scan.h
    float *din_proj, *dout_proj, *dx_proj;  // (batch, 4C, C), (batch, C, 2C), (batch, rows, C)
    double *dnorm, *dout_norm;              // (batch, 2, C), (batch, 2, 2C)
    int64_t constants;                      // of a sample

    void cut_dv(Scratch& from, const Training* a, int index) {
        dv = from.take(a->batch * a->height * a->width * (8 << index));
    }
    void cut(Scratch& from, const Training* a, const Rmb<T>& of) {
        int64_t c = of.channels, pixels = a->batch * a->height * a->width, length = pixels / 4;
        constants = DIRECTIONS * (STATE + 2 + of.rank) * c;
        dxz = from.take<T>(pixels * 4 * c), ds = from.take(pixels * 2 * c);
        from.cut(length * c, dscanned, dpooled), du = from.take(SLABS * length * c);
        drows = from.take(length * of.padded), dconstants = from.take(a->batch * constants);
        din_proj = from.take(a->batch * 4 * c * c), dout_proj = from.take(a->batch * 2 * c * c);
        dx_proj = from.take(a->batch * of.rows * c), dnorm = from.take<double>(a->batch * 2 * c);
        dout_norm = from.take<double>(a->batch * 4 * c);
    }
};

// The feed-forward part's; a: (pixels, 64), what the four RMBs give.
template <class T> struct Feed {
    int64_t hidden;
    float* a;
    T *n, *x, *convolved, *h;  // (pixels, 64), then (pixels, hidden)
    float *fc1, *fc2, *fc1_back, *fc2_back;
    float *taps, *turned;  // (25, hidden)
    const float* const* parameters;
    float* const* gradients;

    void cut(Scratch& from, const Training* of) {
        int64_t pixels = of->batch * of->height * of->width;
        hidden = of->hidden;
        from.cut(pixels * WIDTH, a, n), from.cut(pixels * hidden, x, convolved, h);
        from.cut(WIDTH * hidden, fc1, fc2, fc1_back, fc2_back);
        from.cut(25 * hidden, taps, turned);
        parameters = of->parameters + RMBS * RMB_PARAMETERS;
        gradients = of->gradients + RMBS * RMB_PARAMETERS;
    }
};

template <class T> struct FeedBack {
    T* dx;                   // (pixels, hidden)
    float *dfc1, *dfc2;      // (batch, hidden, 64), (batch, 64, hidden)
    double *dtaps, *biases;  // (batch, 25, hidden), (batch, 2, hidden)
    double *dnorm, *dbias2;  // (batch, 2, 64), (batch, 64)

    void cut(Scratch& from, const Training* of) {
        int64_t batch = of->batch, hidden = of->hidden;
        dx = from.take<T>(batch * of->height * of->width * hidden);
        from.cut(batch * hidden * WIDTH, dfc1, dfc2);
        dtaps = from.take<double>(batch * 25 * hidden);
        biases = from.take<double>(batch * 2 * hidden);
        dnorm = from.take<double>(batch * 2 * WIDTH), dbias2 = from.take<double>(batch * WIDTH);
    }
};

template <class T> struct Block {
    const Training* of;
    Rmb<T> rmbs[RMBS];
    RmbBack<T> backs[RMBS];
    Feed<T> feed;
    FeedBack<T> feed_back;
    int64_t kept_size, passing_size;  // in float32 numbers
    int64_t pixels, length;           // of a sample

    explicit Block(const Training* a) : of(a) {
        Scratch kept{(float*)a->kept}, passing{(float*)a->passing};
        for (int i = 0; i < RMBS; i++) rmbs[i].cut(kept, a, i);
        feed.cut(kept, a);
        kept_size = kept.used, passing_size = 0;
        for (int i = 0; i < RMBS; i++) backs[i].cut_dv(passing, a, i);
        for (int i = 0; i < RMBS; i++) {  // in the same place: one after another
            Scratch shared = passing;
            backs[i].cut(shared, a, rmbs[i]);
            if (i == RMBS - 1) feed_back.cut(shared, a);
            passing_size = shared.used > passing_size ? shared.used : passing_size;
        }
        pixels = a->height * a->width, length = pixels / 4;
    }
};

// Sums over pixels, in registers until they are added to those of a map, stride numbers apart.
template <class V, int N> struct Sums {
    double* totals;
    int64_t stride;
    V of[N] = {};

    void flush() {
        UNROLLED(n, N) add(totals + n * stride, of[n]), of[n] = V{};
    }
};

// A sum over samples, stride numbers apart.
template <class N> static N over_samples(const N* sums, int64_t batch, int64_t stride) {
    N total = 0;
    for (int64_t b = 0; b < batch; b++) total += sums[b * stride];
    return total;
}

template <class N> static void reduced(const N* values, int64_t batch, int64_t count, float* sum) {
    for (int64_t n = 0; n < count; n++) sum[n] = over_samples(values + n, batch, count);
}

// Of a scale and its shift, (batch, 2, channels).
static void reduced_pair(const double* values, int64_t batch, int64_t channels, float* scale,
                         float* shift) {
    for (int64_t c = 0; c < channels; c++) {
        scale[c] = over_samples(values + c, batch, 2 * channels);
        shift[c] = over_samples(values + channels + c, batch, 2 * channels);
    }
}

// Of (batch, size, channels) as torch has the weights of a depthwise convolution.
static void reduced_taps(const double* taps, int64_t batch, int64_t size, int64_t channels,
                         float* sum) {
    for (int64_t n = 0; n < size; n++)
        for (int64_t c = 0; c < channels; c++)
            sum[c * size + n] = over_samples(taps + n * channels + c, batch, size * channels);
}

// f(first, pixels) for each chunk.
template <class F> static inline void in_chunks(int64_t pixels, F f) {
    for (int64_t p = 0; p < pixels; p += CHUNK) f(p, less(CHUNK, pixels - p));
}

}  // namespace
