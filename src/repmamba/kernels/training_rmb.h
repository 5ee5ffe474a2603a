// The stages of an RMB in training. See training.h.
#pragma once
#include "kernels.h"
#include "training_branches.h"
#include "training_layers.h"

#if defined(__AVX512BF16__)
#define SCAN_LEVEL v4  // which training.cpp is compiled for once more, with products of pairs
#else
#define SCAN_LEVEL LEVEL
#endif
EXPORTED void JOINED(scan_forward, SCAN_LEVEL)(int64_t, int64_t, const Scan*, float*);
EXPORTED void JOINED(scan_backward, SCAN_LEVEL)(int64_t, int64_t, const ScanGradients*, float*);

namespace {

// The gradients of the scan's result and of the pooled means from that of `enlarge`'s result, g
// (height, width, 2C). That of the map, from which the means were subtracted, is g itself.
template <int C>
NOINLINE void enlarge_back(const float* g, int64_t height, int64_t width, float* dscanned,
                           float* dpooled) {
    typedef Of<C> V;
    for (int64_t i = 0; i < height / 2; i++) {
        const int64_t rows[4] = {i ? 2 * i - 1 : 0, 2 * i, 2 * i + 1, less(2 * i + 2, height - 1)};
        for (int64_t j = 0; j < width / 2; j++) {
            int64_t before = j ? 2 * j - 1 : 0, after = less(2 * j + 2, width - 1);
            for (int c = 0; c < C; c += lanes<V>) {
                V along[4], inner[4];
                UNROLLED(r, 4) {
                    const float* row = g + rows[r] * width * 2 * C + c;
                    inner[r] = load<V>(row + 4 * j * C) + load<V>(row + (4 * j + 2) * C);
                    V outer = load<V>(row + before * 2 * C) + load<V>(row + after * 2 * C);
                    along[r] = 0.75f * inner[r] + 0.25f * outer;
                }
                int64_t place = (i * (width / 2) + j) * C + c;
                store(dscanned + place,
                      0.75f * (along[1] + along[2]) + 0.25f * (along[0] + along[3]));
                store(dpooled + place, -(inner[1] + inner[2]));
            }
        }
    }
}

template <class T> static Scan scan_of(const Training* a, const Rmb<T>& r) {
    int64_t length = a->height * a->width / 4;
    Scan scan = {};
    scan.slabs = SLABS, scan.groups = DIRECTIONS, scan.length = length;
    scan.channels = scan.used = r.channels, scan.rank = r.rank, scan.visits = a->visits;
    scan.u = scan.dt = r.pooled, scan.u_batch = length * r.channels;
    scan.rows = r.projected, scan.rows_batch = length * r.padded;
    scan.rows_group = r.rank + 2 * STATE, scan.rows_pixel = r.padded;
    scan.dt_weight = r.parameters[DT_WEIGHT], scan.dt_bias = r.parameters[DT_BIAS], scan.A = r.A;
    scan.D = r.parameters[SKIP_D], scan.kept = r.kept, scan.y = r.scanned;
    return scan;
}

// The end of an RMB on a chunk of pixels, BN(w (v + out)), written to the next map, which has twice
// the channels: in the first RMB with a skip, in the last with the skip around all four. The other
// channels of the next map come from t.
template <class T, int C>
NOINLINE void finish(const Rmb<T>& r, const float* t, int64_t first, int64_t pixels, float* next) {
    typedef Of<C> V;
    constexpr int STRIDE = C < WIDTH ? 2 * C : C, N = C / lanes<V>;
    V slope[N], shift[N];
    load_rows(r.affine, lanes<V>, slope);
    load_rows(r.affine + C, lanes<V>, shift);
    for (int64_t p = first; p < first + pixels; p++)
        UNROLLED(n, N) {
            int c = n * lanes<V>;
            V value = r.template sum<V>(p, c) * slope[n] + shift[n];
            if (C == 8 || C == WIDTH) value += load<V>(t + p * WIDTH + c);
            store(next + p * STRIDE + c, value);
            if (C < WIDTH) store(next + p * STRIDE + C + c, load<V>(t + p * WIDTH + C + c));
        }
}

// Sums of g(pixel, channel, r) and of it times r over some pixels, added to totals (2, C).
template <class T, int C, class F>
static inline void sums_along(const Rmb<T>& r, int64_t first, int64_t pixels, double* totals, F g) {
    typedef Of<C> V;
    for (int c = 0; c < C; c += lanes<V>) {
        Sums<V, 2> sums{totals + c, C};
        for (int64_t p = first; p < first + pixels; p++) {
            V of_r = r.template sum<V>(p, c), value = g(p, c, of_r);
            sums.of[0] += value, sums.of[1] += value * of_r;
        }
        sums.flush();
    }
}

// v from the RMB before, n = LN(v), xz = in_proj(n), and the moments that the RepConv of x needs.
template <class T, int C> NOINLINE void enter(const Block<T>& block, int index, int64_t b) {
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += b * block.pixels;
        if constexpr (C > 8) finish<T, C / 2>(block.rmbs[index - 1], a->t, p, pixels, r.own_v);
        normalise<C>(pixels, r.v + p * r.v_stride, r.v_stride, r.parameters[NORM],
                     r.parameters[NORM_SHIFT], r.n + p * C, C);
        multiply(pixels, r.n + p * C, C, r.in_proj, C, 4 * C, Plain{r.xz + p * 4 * C, 4 * C});
    });
    if (!a->frozen)
        moments<2 * C>(r.conv, b, r.xz + b * block.pixels * 4 * C, 4 * C, a->height, a->width);
}

// s = SiLU(conv(x)), its low half pooled, projected and scanned, and then less its means; the
// moments that the high half's RepConv needs.
template <class T, int C>
NOINLINE void middle(const Block<T>& block, int index, int64_t b, float* scratch) {
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    float *s = r.s + b * block.pixels * 2 * C, *pooled = r.pooled + b * block.length * C;
    convolve<2 * C, Silu>(r.conv, r.xz + b * block.pixels * 4 * C, 4 * C, a->height, a->width, s,
                          2 * C);
    if (!a->frozen) moments<C>(r.high_conv, b, s + C, 2 * C, a->height, a->width);
    for (int64_t i = 0; i < a->height; i += 2) {
        float* rows = s + i * a->width * 2 * C;
        pool(a->width, C, rows, 2 * C, pooled + i / 2 * (a->width / 2) * C, rows);
    }
    multiply(block.length, pooled, C, r.x_proj, C, r.padded,
             Plain{r.projected + b * block.length * r.padded, r.padded});
    Scan scan = scan_of(a, r);
    int64_t units = SLABS * (C / lanes<Of<C>>);
    JOINED(scan_forward, SCAN_LEVEL)(b * units, (b + 1) * units, &scan, scratch);
}

// y = LN(low half + the scan's result, conv(high half)), out = out_proj(y SiLU(z)), and the moments
// of v + out.
template <class T, int C> NOINLINE void leave(const Block<T>& block, int index, int64_t b) {
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    int64_t of_sample = b * block.pixels, height = a->height, width = a->width;
    float *s = r.s + of_sample * 2 * C, *merged = r.merged + of_sample * 2 * C;
    for (int64_t i = 0; i < height; i++)
        enlarge(i, height, width, C, r.scanned + b * SLABS * block.length * C,
                s + i * width * 2 * C, merged + i * width * 2 * C);
    convolve<C, Same>(r.high_conv, s + C, 2 * C, height, width, merged + C, 2 * C);
    double* totals = r.out_moments + b * 2 * C;
    zero(totals, 2 * C);
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += of_sample;
        gate<2 * C>(pixels, r.merged + p * 2 * C, r.parameters[OUT_NORM],
                    r.parameters[OUT_NORM_SHIFT], r.xz + p * 4 * C + 2 * C, 4 * C,
                    r.gated + p * 2 * C);
        multiply(pixels, r.gated + p * 2 * C, 2 * C, r.out_proj, 2 * C, C, Plain{r.out + p * C, C});
        sums_along<T, C>(r, p, pixels, totals, [](int64_t, int, Of<C> of_r) { return of_r; });
    });
}

template <class T> static void fold_out(const Rmb<T>& r, const Training* a) {
    int64_t channels = r.channels, count = a->batch * a->height * a->width;
    for (int64_t c = 0; c < channels; c++) {
        double mean = over_samples(r.out_moments + c, a->batch, 2 * channels) / count;
        double square = over_samples(r.out_moments + channels + c, a->batch, 2 * channels) / count;
        double w = r.parameters[DW1X1][c];
        double variance = w * w * (square > mean * mean ? square - mean * mean : 0);
        Statistics of_wr = statistics(a, r.buffers + BN_BN, c, w * mean, variance);
        r.mean[c] = mean, r.subtracted[c] = of_wr.mean;
        r.inverse[c] = 1 / __builtin_sqrt(of_wr.variance + EPS);
        double gain = r.parameters[BN][c] * r.inverse[c];
        r.affine[c] = gain * w;
        r.affine[channels + c] = r.parameters[BN_SHIFT][c] - gain * of_wr.mean;
    }
}

// Of a sample: sums of g and g r over its pixels, g the gradient of the RMB's result.
template <class T, int C>
NOINLINE void out_sums(const Rmb<T>& r, int64_t b, int64_t pixels, const float* g, int64_t stride) {
    double* totals = r.out_sums + b * 2 * C;
    zero(totals, 2 * C);
    in_chunks(pixels, [&](int64_t p, int64_t count) {
        sums_along<T, C>(r, b * pixels + p, count, totals,
                         [=](int64_t q, int c, Of<C>) { return load<Of<C>>(g + q * stride + c); });
    });
}

template <class T> static void fold_out_back(const Rmb<T>& r, const Training* a) {
    int64_t channels = r.channels;
    double count = a->batch * a->height * a->width;
    for (int64_t c = 0; c < channels; c++) {
        double g = over_samples(r.out_sums + c, a->batch, 2 * channels), w = r.parameters[DW1X1][c];
        double gr = over_samples(r.out_sums + channels + c, a->batch, 2 * channels);
        double inverse = r.inverse[c], gain = r.parameters[BN][c] * inverse;
        r.gradients[BN][c] = inverse * (w * gr - r.subtracted[c] * g);
        r.gradients[BN_SHIFT][c] = g;
        r.mix[c] = gain * w;
        if (a->frozen) {
            r.mix[channels + c] = r.mix[2 * channels + c] = 0;
            r.gradients[DW1X1][c] = gain * gr;
            continue;
        }
        gr -= r.mean[c] * g;
        double of_r = -gain * w * w * inverse * w * inverse * gr / count;
        r.mix[channels + c] = of_r;
        r.mix[2 * channels + c] = -gain * w * g / count - of_r * r.mean[c];
        // The normalisation takes the size of w out again, all but what EPS leaves of it.
        r.gradients[DW1X1][c] = gain * inverse * inverse * EPS * gr;
    }
}

// Back through BN, out_proj, the gate, the enlarging and the scan.
template <class T, int C>
NOINLINE void leave_back(const Block<T>& block, int index, int64_t b, float* scratch) {
    typedef Of<C> V;
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    const RmbBack<T>& back = block.backs[index];
    int64_t of_sample = b * block.pixels, of_coarse = b * block.length;
    // The gradient of the RMB's result: the next one's, or what the last one has.
    constexpr int STRIDE = C < WIDTH ? 2 * C : C;
    const float* g = C < WIDTH ? block.backs[index + 1].dv : a->dt;
    T* dout = (T*)scratch;
    float *dgated = scratch + CHUNK * C, *rest = dgated + CHUNK * 2 * C;
    float* dout_proj = back.dout_proj + b * 2 * C * C;
    double* totals = back.dout_norm + b * 4 * C;
    zero(dout_proj, 2 * C * C), zero(totals, 4 * C);
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += of_sample;
        for (int c = 0; c < C; c += lanes<V>) {
            V mix[3];
            load_rows(r.mix + c, C, mix);
            for (int64_t q = 0; q < pixels; q++) {
                V of_r = r.template sum<V>(p + q, c), gradient = load<V>(g + (p + q) * STRIDE + c);
                V value = mix[0] * gradient + mix[1] * of_r + mix[2];
                store(back.dv + (p + q) * C + c, value);
                store(dout + q * C + c, value);
            }
        }
        multiply(pixels, dout, C, r.out_proj_back, C, 2 * C, Plain{dgated, 2 * C});
        weight_gradient(pixels, dout, C, C, r.gated + p * 2 * C, 2 * C, 2 * C, dout_proj, rest);
        gate_back<2 * C>(pixels, r.merged + p * 2 * C, r.parameters[OUT_NORM],
                         r.parameters[OUT_NORM_SHIFT], r.xz + p * 4 * C + 2 * C,
                         back.dxz + p * 4 * C + 2 * C, 4 * C, dgated, back.ds + p * 2 * C, totals);
    });
    float *ds = back.ds + of_sample * 2 * C, *dpooled = back.dpooled + of_coarse * C;
    enlarge_back<C>(ds, a->height, a->width, back.dscanned + of_coarse * C, dpooled);
    gradient_sums<C, false>(r.high_conv, b, r.s + of_sample * 2 * C + C, 2 * C, a->height, a->width,
                            ds + C, 2 * C, nullptr);

    float *du = back.du + SLABS * of_coarse * C, *drows = back.drows + of_coarse * r.padded;
    zero(du, SLABS * block.length * C), zero(drows, block.length * r.padded);
    zero(back.dconstants + b * back.constants, back.constants);
    ScanGradients scan = {};
    scan.scan = scan_of(a, r);
    scan.dy = back.dscanned, scan.dy_batch = block.length * C;
    scan.du = back.du, scan.drows = back.drows, scan.dconstants = back.dconstants;
    scan.drows_batch = scan.scan.rows_batch, scan.drows_group = scan.scan.rows_group;
    scan.drows_pixel = r.padded;
    JOINED(scan_backward, SCAN_LEVEL)(b * SLABS, (b + 1) * SLABS, &scan, scratch);
    for (int64_t n = 0; n < block.length * C; n += lanes<V>)
        add(dpooled + n, load<V>(du + n) + load<V>(du + block.length * C + n));
    multiply(block.length, drows, r.padded, r.x_proj_back, r.rows, C, Added{{dpooled, C}});
    float* dx_proj = back.dx_proj + b * r.rows * C;
    zero(dx_proj, r.rows * C);
    weight_gradient<float>(block.length, drows, r.padded, r.rows, r.pooled + of_coarse * C, C, C,
                           dx_proj, nullptr);
}

// Back through the high half's RepConv and the SiLU.
template <class T, int C>
NOINLINE void middle_back(const Block<T>& block, int index, int64_t b, float* scratch) {
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    const RmbBack<T>& back = block.backs[index];
    int64_t of_sample = b * block.pixels;
    float *s = r.s + of_sample * 2 * C, *ds = back.ds + of_sample * 2 * C;
    branches_back<C>(r.high_conv, b, s + C, 2 * C, a->height, a->width, ds + C, 2 * C, ds + C,
                     2 * C, scratch);
    gradient_sums<2 * C, true>(r.conv, b, r.xz + of_sample * 4 * C, 4 * C, a->height, a->width, ds,
                               2 * C, back.dpooled + b * block.length * C);
}

// Back through the first RepConv, in_proj and LN; then the sums that the RMB before needs.
template <class T, int C>
NOINLINE void enter_back(const Block<T>& block, int index, int64_t b, float* scratch) {
    typedef Of<C> V;
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    const RmbBack<T>& back = block.backs[index];
    int64_t of_sample = b * block.pixels;
    branches_back<2 * C>(r.conv, b, r.xz + of_sample * 4 * C, 4 * C, a->height, a->width,
                         back.ds + of_sample * 2 * C, 2 * C, back.dxz + of_sample * 4 * C, 4 * C,
                         scratch);
    float *dn = scratch, *rest = scratch + CHUNK * C, *din_proj = back.din_proj + b * 4 * C * C;
    double* totals = back.dnorm + b * 2 * C;
    zero(din_proj, 4 * C * C), zero(totals, 2 * C);
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += of_sample;
        multiply(pixels, back.dxz + p * 4 * C, 4 * C, r.in_proj_back, 4 * C, C, Plain{dn, C});
        weight_gradient(pixels, back.dxz + p * 4 * C, 4 * C, 4 * C, r.n + p * C, C, C, din_proj,
                        rest);
        normalise_back<C>(pixels, r.v + p * r.v_stride, r.v_stride, r.parameters[NORM], dn,
                          back.dv + p * C, totals);
        // To t goes what came from it: its own channels, in the narrow ones by a skip as well.
        for (int64_t q = p; q < p + pixels; q++)
            for (int c = C > 16 ? C / 2 : 0; c < C; c += lanes<V>)
                add(a->dt + q * WIDTH + c, load<V>(back.dv + q * C + c));
    });
    if constexpr (C > 8) out_sums<T, C / 2>(block.rmbs[index - 1], b, block.pixels, back.dv, C);
}

template <class T>
NOINLINE void fold_parameters(const Rmb<T>& r, const RmbBack<T>& back, const Training* a) {
    int64_t batch = a->batch, c = r.channels, rows = STATE + 2 + r.rank;
    float* const* to = r.gradients;
    reduced_pair(back.dnorm, batch, c, to[NORM], to[NORM_SHIFT]);
    reduced_pair(back.dout_norm, batch, 2 * c, to[OUT_NORM], to[OUT_NORM_SHIFT]);
    reduced(back.din_proj, batch, 4 * c * c, to[IN_PROJ]);
    reduced(back.dout_proj, batch, 2 * c * c, to[OUT_PROJ]);
    reduced(back.dx_proj, batch, r.rows * c, to[X_PROJ]);
    reduced_taps(r.conv.dtaps, batch, 9, 2 * c, to[CONV + TAPS]);
    reduced_taps(r.high_conv.dtaps, batch, 9, c, to[HIGH_CONV + TAPS]);
    int64_t lanes = c % LANES ? LANES / 2 : LANES;
    for (int64_t k = 0; k < DIRECTIONS; k++)
        for (int64_t i = 0; i < c; i++) {
            const float* at = back.dconstants + (k * c + i / lanes * lanes) * rows + i % lanes;
            auto row = [&](int64_t n) {
                double total = 0;
                for (int64_t b = 0; b < batch; b++) total += at[b * back.constants + n * lanes];
                return total;
            };
            int64_t place = k * c + i;
            for (int n = 0; n < STATE; n++)
                to[A_LOG][place * STATE + n] = row(n) * r.A[place * STATE + n];
            to[SKIP_D][place] = row(STATE), to[DT_BIAS][place] = row(STATE + 1);
            for (int64_t j = 0; j < r.rank; j++)
                to[DT_WEIGHT][place * r.rank + j] = row(STATE + 2 + j);
        }
}

}  // namespace
