// The passes of inference.h, over pairs of rows, for each kind of product: Exact here, Pairs and
// Tiles elsewhere.
#pragma once
#include "inference.h"
#include "kernels.h"
#include "rows.h"

constexpr int TILES = 64;  // pieces of 2x2 pixels that a convolution takes at once

namespace {

// f(first pixel of the image, first row, last row + 1) for the rows of each image among the units
// first .. last - 1.
template <class F>
static inline void images(int64_t first, int64_t last, int64_t height, int64_t width, F f) {
    int64_t half = height / 2;
    while (first < last) {
        int64_t image = first / half, start = first % half * 2;
        int64_t stop = less(height, start + 2 * (last - first));
        f(image * height * width, start, stop);
        first = image * half + stop / 2;
    }
}

// The widths of our networks; the runner accepts no others.
static void normalised(int64_t channels, int64_t count, const float* x, int64_t xs,
                       const float* scale, const float* shift, float* y, int64_t ys) {
    switch (channels) {
        case 8: return normalise<8>(count, x, xs, scale, shift, y, ys);
        case 16: return normalise<16>(count, x, xs, scale, shift, y, ys);
        case 32: return normalise<32>(count, x, xs, scale, shift, y, ys);
        case 64: return normalise<64>(count, x, xs, scale, shift, y, ys);
        case 128: return normalise<128>(count, x, xs, scale, shift, y, ys);
    }
}

// Prefetch a row of the next iteration: the third cache is slow.
template <class T> static inline void prefetch(const T* at, int64_t count) {
    for (int64_t line = 0; line < count; line += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(at + line, 0, 2);
}

// Each pass takes its scratch from memory and returns how many numbers that is; without memory it
// only returns the number.

template <class P>
static int64_t front(int64_t first, int64_t last, const Front* a, float* memory) {
    typedef typename P::Stored Stored;
    const int64_t C = a->channels, width = a->width, height = a->height;
    Scratch scratch{memory};
    float* n = scratch.take(width * C);
    Ring<float, 3, 1> ring(scratch, width, 2 * C), inner(scratch, width, C);
    float* low = scratch.take(2 * width * C);
    if (!memory) return scratch.used;
    images(first, last, height, width, [&](int64_t image, int64_t start, int64_t stop) {
        Stored* halves = (Stored*)a->halves + image * 2 * C;
        ring.clear();
        inner.clear();
        for (int64_t i = start - 2; i < stop + 2; i++) {
            if (i >= 0 && i < height) {
                normalised(C, width, a->v + (image + i * width) * a->v_stride, a->v_stride, nullptr,
                           nullptr, n, C);
                P::product(width, n, C, a->in_x, C, 2 * C,
                           Biased{{ring.row(i), 2 * C}, a->in_x_bias});
            } else {
                ring.clear(i);
            }
            int64_t row = i - 1;
            const float* x[3];
            ring.pads(row - 1, x);
            const float* high[3] = {x[0] + C, x[1] + C, x[2] + C};
            if (row >= 0 && row < height && row >= start - 1)
                stencil<Silu>(width, C, high, 2 * C, a->conv + C, 2 * C, a->conv_bias + C,
                              inner.row(row), C);
            else inner.clear(row);
            if (row >= start && row < stop) {
                stencil<Silu>(width, C, x, 2 * C, a->conv, 2 * C, a->conv_bias,
                              low + row % 2 * width * C, C);
                if (row % 2) {
                    int64_t quarter = image / 4 + row / 2 * (width / 2);
                    float* means = a->pooled + quarter * C;
                    pool(width, C, low, C, means, halves + (row - 1) * width * 2 * C);
                    P::product(width / 2, means, C, a->x_proj, C, a->projections,
                               Plain{a->projected + quarter * a->projections, a->projections});
                }
            }
            row = i - 2;
            if (row < start) continue;
            inner.pads(row - 1, x);
            stencil<Same>(width, C, x, C, a->high_conv, C, a->high_bias,
                          halves + row * width * 2 * C + C, 2 * C);
        }
    });
    return scratch.used;
}

template <class P> static int64_t tail(int64_t first, int64_t last, const Tail* a, float* memory) {
    typedef typename P::Stored Stored;
    const int64_t C = a->channels, width = a->width;
    Scratch scratch{memory};
    float *n = scratch.take(width * C), *y = scratch.take(2 * width * C);
    if (!memory) return scratch.used;
    images(first, last, a->height, width, [&](int64_t image, int64_t start, int64_t stop) {
        const float* slabs = a->scanned + image / 2 * C;  // two of pixels / 4 for each image
        for (int64_t row = start; row < stop; row++) {
            int64_t pixel = image + row * width;
            const Stored* halves = (const Stored*)a->halves + pixel * 2 * C;
            const float* v = a->v + pixel * a->v_stride;
            float* result = a->result + pixel * a->result_stride;
            enlarge(row, a->height, width, C, slabs, halves, y);
            normalised(2 * C, width, y, 2 * C, a->out_scale, a->out_shift, y, 2 * C);
            normalised(C, width, v, a->v_stride, nullptr, nullptr, n, C);
            prefetch(v + width * a->v_stride, width * a->v_stride);
            P::product(width, n, C, a->in_z, C, 2 * C, Gate{{{y, 2 * C}, a->in_z_bias}});
            prefetch(halves + width * 2 * C, width * 2 * C);
            P::product(
                width, y, 2 * C, a->out_proj, 2 * C, C,
                Residual{{{result, a->result_stride}, a->out_bias}, v, a->gain, a->v_stride});
            const float* beside = a->beside + pixel * a->beside_stride;
            for (int64_t p = 0; a->beside_channels && p < width; p++)
                memcpy(result + p * a->result_stride + C, beside + p * a->beside_stride,
                       a->beside_channels * sizeof(float));
        }
    });
    return scratch.used;
}

template <class P>
static int64_t feed_forward(int64_t first, int64_t last, const FeedForward* a, float* memory) {
    const int64_t C = a->channels, hidden = a->hidden, width = a->width, height = a->height;
    Scratch scratch{memory};
    float *n = scratch.take(width * C), *h = scratch.take(width * hidden), *ones = scratch.take(C);
    Ring<float, 3, 0> sum(scratch, width, C);
    Ring<float, 5, 2> ring(scratch, width, hidden);
    if (!memory) return scratch.used;
    for (int64_t c = 0; c < C; c++) ones[c] = 1;
    images(first, last, height, width, [&](int64_t image, int64_t start, int64_t stop) {
        ring.clear();
        for (int64_t i = start - 2; i < stop + 2; i++) {
            if (i >= 0 && i < height) {
                float* entering = sum.row(i);
                int64_t from = (image + i * width) * C;
                for (int64_t at = 0; at < width * C; at += LANES)
                    store(entering + at, load(a->t + from + at) + load(a->c + from + at));
                normalised(C, width, entering, C, nullptr, nullptr, n, C);
                P::product(width, n, C, a->fc1, C, hidden,
                           Activated<Gelu>{{{ring.row(i), hidden}, a->fc1_bias}});
            } else {
                ring.clear(i);
            }
            int64_t row = i - 2;
            if (row < start) continue;
            const float* x[5];
            ring.pads(row - 2, x);
            stencil<Gelu, true>(width, hidden, x, hidden, a->conv, hidden, a->conv_bias, h, hidden);
            float* result = a->result + (image + row * width) * C;
            P::product(width, h, hidden, a->fc2, hidden, C,
                       Residual{{{result, C}, a->fc2_bias}, sum.row(row), ones, C});
        }
    });
    return scratch.used;
}

// A 3x3 convolution of 2x2 pixels by Winograd's algorithm, F(2x2, 3x3) of Lavin and Gray 2016:
// A^T [(G g G^T) * (B^T d B)] A, where * is a product over channels for each of 16 elements. The
// plain convolution takes 36.

template <class V> static inline void four_seen(const V (&d)[4], V (&result)[4]) {  // B^T d
    result[0] = d[0] - d[2];
    result[1] = d[1] + d[2];
    result[2] = d[2] - d[1];
    result[3] = d[1] - d[3];
}

template <class V> static inline void two_made(const V (&m)[4], V (&result)[2]) {  // A^T m
    result[0] = m[0] + (m[1] + m[2]);
    result[1] = (m[1] - m[2]) - m[3];
}

// B^T d B of the 4x4 pixels that start at every second one of four rows; element e of tile t is row
// e TILES + t of the result.
static inline void tiles_seen(int64_t tiles, int64_t channels, const float* const (&x)[4],
                              float* result) {
    for (int64_t tile = 0; tile < tiles; tile++)
        registers(channels, [&](auto v, int64_t c) {
            typedef decltype(v) V;
            V columns[4][4];
            for (int column = 0; column < 4; column++) {
                V d[4];
                for (int row = 0; row < 4; row++)
                    d[row] = load<V>(x[row] + (2 * tile + column) * channels + c);
                four_seen(d, columns[column]);
            }
            for (int row = 0; row < 4; row++) {
                V d[4], elements[4];
                for (int column = 0; column < 4; column++) d[column] = columns[column][row];
                four_seen(d, elements);
                for (int column = 0; column < 4; column++)
                    store(result + ((4 * row + column) * TILES + tile) * channels + c,
                          elements[column]);
            }
        });
}

// A^T x A + bias + skip, times the slope below zero, of every tile, as two rows of pixels.
static inline void tiles_made(int64_t tiles, int64_t channels, const float* x, const float* bias,
                              const float* const (&skip)[2], float slope,
                              float* const (&result)[2]) {
    for (int64_t tile = 0; tile < tiles; tile++)
        registers(channels, [&](auto v, int64_t c) {
            typedef decltype(v) V;
            V rows[4][2], start = load<V>(bias + c);
            for (int row = 0; row < 4; row++) {
                V m[4];
                for (int column = 0; column < 4; column++)
                    m[column] = load<V>(x + ((4 * row + column) * TILES + tile) * channels + c);
                two_made(m, rows[row]);
            }
            for (int side = 0; side < 2; side++) {
                V m[4] = {rows[0][side], rows[1][side], rows[2][side], rows[3][side]}, made[2];
                two_made(m, made);
                int64_t at = (2 * tile + side) * channels + c;
                for (int row = 0; row < 2; row++) {
                    V value = made[row] + start;
                    if (skip[0]) value += load<V>(skip[row] + at);
                    store(result[row] + at, value > 0.0f ? value : value * slope);
                }
            }
        });
}

// Two rows of pixels as 2 scale rows of the image: a pixel's channels are scale x scale pixels of
// each band.
static inline void shuffle(const Convolution* a, const float* rows, int64_t image, int64_t row) {
    int64_t scale = a->scale, across = scale * a->width;
    float* result = a->shuffled + image * scale * scale * a->bands + row * scale * across;
    for (int64_t each = 0; each < 2; each++)
        for (int64_t band = 0; band < a->bands; band++)
            for (int64_t i = 0; i < scale; i++) {
                float* to = result + (band * a->height * scale + each * scale + i) * across;
                const float* from =
                    rows + each * a->width * a->outputs + (band * scale + i) * scale;
                for (int64_t j = 0; j < a->width; j++)
                    for (int64_t k = 0; k < scale; k++)
                        to[j * scale + k] = from[j * a->outputs + k];
            }
}

template <class P>
static int64_t convolution(int64_t first, int64_t last, const Convolution* a, float* memory) {
    const int64_t C = a->inputs, N = a->outputs, width = a->width, height = a->height;
    Scratch scratch{memory};
    Ring<float, 4, 1> ring(scratch, width, C);
    float *seen = scratch.take(16 * TILES * C), *made = scratch.take(16 * TILES * N);
    float* rows = scratch.take(2 * width * N);
    if (!memory) return scratch.used;
    images(first, last, height, width, [&](int64_t image, int64_t start, int64_t stop) {
        ring.fill(a->edge);
        for (int64_t i = start - 1; i <= stop; i++) {
            const float* x = a->x + (image + i * width) * C;
            if (i < 0 || i >= height) ring.fill(i, a->edge);
            else if (a->norm)
                normalised(C, width, x, C, a->norm_scale, a->norm_shift, ring.row(i), C);
            else memcpy(ring.row(i), x, width * C * sizeof(float));
            int64_t row = i - 2;
            if (row < start || row % 2) continue;
            int64_t at = (image + row * width) * N;
            float* result = a->result ? a->result + at : rows;
            for (int64_t left = 0; left < width; left += 2 * TILES) {
                int64_t tiles = less(TILES, (width - left) / 2);
                const float* x[4];
                ring.pads(row - 1, x);
                for (const float*& each : x) each += left * C;
                tiles_seen(tiles, C, x, seen);
                for (int64_t element = 0; element < 16; element++)
                    P::product(tiles, seen + element * TILES * C, C,
                               a->weight + element * P::numbers(C, N), C, N,
                               Plain{made + element * TILES * N, N});
                const float* skip[2] = {nullptr, nullptr};
                for (int each = 0; a->skip && each < 2; each++)
                    skip[each] = a->skip + at + (each * width + left) * N;
                float* const to[2] = {result + left * N, result + (width + left) * N};
                tiles_made(tiles, N, made, a->bias, skip, (float)a->slope, to);
            }
            if (!a->result) shuffle(a, rows, image, row);
        }
    });
    return scratch.used;
}

}  // namespace

// The kernel of a pass, and how much scratch it needs in float32 numbers, with a suffix to both
// names.
#define PASS(name, Arguments, ...)                                       \
    KERNEL(name, Arguments) { __VA_ARGS__(first, last, a, scratch); }    \
    EXPORTED int64_t JOINED(name##_scratch, LEVEL)(const Arguments* a) { \
        return __VA_ARGS__(0, 0, a, nullptr);                            \
    }
