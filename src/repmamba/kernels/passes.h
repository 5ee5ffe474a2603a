// The passes of inference.h, over pairs of rows, for each kind of product: Exact here, Pairs and
// Tiles elsewhere.
#pragma once
#include "inference.h"
#include "kernels.h"
#include "products.h"

constexpr float EPS = 1e-5f;  // of every layer normalisation of the network
constexpr int TILES = 64;     // pieces of 2x2 pixels that a convolution takes at once

namespace {

static inline int64_t less(int64_t a, int64_t b) { return a < b ? a : b; }

// Hands out scratch memory, in whole lines of the cache; without memory it only counts.
struct Scratch {
    float* memory;
    int64_t used = 0;

    template <class T = float> T* take(int64_t count) {
        float* at = memory ? memory + used : nullptr;
        used += (count * (int64_t)sizeof(T) + 63) / 64 * 16;
        return (T*)at;
    }
};

// ROWS rows of pixels, the n-th where the n-th modulo ROWS was; PAD pixels more on each side, for
// windows.
template <class T, int ROWS, int PAD> struct Ring {
    T* memory;
    int64_t width, channels;

    Ring(Scratch& scratch, int64_t width, int64_t channels, int64_t behind = 0)
        : memory(scratch.take<T>(ROWS * (width + 2 * PAD + behind) * channels)),
          width(width + 2 * PAD + behind),
          channels(channels) {}
    int64_t row_numbers() const { return width * channels; }
    T* pad(int64_t row) const {
        return memory + (row + 8 * ROWS) % ROWS * row_numbers();
    }  // from its left pad on
    T* row(int64_t row) const { return pad(row) + PAD * channels; }
    void clear() const { memset(memory, 0, ROWS * row_numbers() * sizeof(T)); }
    void clear(int64_t row) const { memset(pad(row), 0, row_numbers() * sizeof(T)); }
    void fill(const T* pixel) const {
        for (int64_t row = 0; row < ROWS; row++) fill(row, pixel);
    }
    void fill(int64_t row, const T* pixel) const {
        for (int64_t p = 0; p < width; p++)
            memcpy(pad(row) + p * channels, pixel, channels * sizeof(T));
    }
};

// f(first pixel of the image, first row, last row + 1) for the rows of each image among the units
// first .. last - 1.
template <class F> static inline void images(int64_t first, int64_t last, int64_t height,
                                             int64_t width, F f) {
    int64_t half = height / 2;
    while (first < last) {
        int64_t image = first / half, start = first % half * 2,
                stop = less(height, start + 2 * (last - first));
        f(image * height * width, start, stop);
        first = image * half + stop / 2;
    }
}

template <int C> constexpr auto vector_for() {
    if constexpr (C < LANES) return half{};
    else return vec{};
}

// Layer normalisation of rows of C channels, as many pixels at once as a register has lanes: (x -
// mean) / sqrt(variance + eps), times scale, plus shift where they are given. y may be x.
template <int C, bool WHOLE>
static inline void normalise_some(int64_t pixels, const float* x, int64_t xs, const float* scale,
                                  const float* shift, float* y, int64_t ys) {
    typedef decltype(vector_for<C>()) V;
    constexpr int N = lanes<V>, REGISTERS = C / N;
    V total[N] = {};
    float mean[N], inverse[N];
    auto each = [&](auto f) {
        if constexpr (WHOLE) {
            UNROLLED
                for (int p = 0; p < N; p++) f(p);
        } else {
            for (int p = 0; p < pixels; p++) f(p);
        }
    };
    each([&](int p) {
        V sum = load<V>(x + p * xs);
        UNROLLED
            for (int r = 1; r < REGISTERS; r++) sum += load<V>(x + p * xs + r * N);
        total[p] = sum;
    });
    store(mean, sums(total) * (1.0f / C));
    each([&](int p) {
        V sum = {};
        UNROLLED
            for (int r = 0; r < REGISTERS; r++) {
                V value = load<V>(x + p * xs + r * N) - mean[p];
                sum += value * value;
            }
        total[p] = sum;
    });
    store(inverse, 1.0f / __builtin_elementwise_sqrt(sums(total) * (1.0f / C) + EPS));
    for (int64_t p = 0; p < (WHOLE ? N : pixels); p++) {
        UNROLLED
            for (int r = 0; r < REGISTERS; r++) {
                V value = (load<V>(x + p * xs + r * N) - mean[p]) * inverse[p];
                if (scale) value = value * load<V>(scale + r * N) + load<V>(shift + r * N);
                store(y + p * ys + r * N, value);
            }
    }
}

template <int C>
static void normalise(int64_t count, const float* x, int64_t xs, const float* scale,
                      const float* shift, float* y, int64_t ys) {
    constexpr int N = lanes<decltype(vector_for<C>())>;
    int64_t p = 0;
    for (; p + N <= count; p += N)
        normalise_some<C, true>(N, x + p * xs, xs, scale, shift, y + p * ys, ys);
    if (p < count)
        normalise_some<C, false>(count - p, x + p * xs, xs, scale, shift, y + p * ys, ys);
}

// The widths of our networks; the runner takes no other.
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

// PIXELS pixels of a row of a depthwise convolution, y = activation(bias + sum of taps) [+ the
// middle of x].
template <class Activation, bool ADD_MIDDLE, int SIZE, int PIXELS, class V, class T>
static inline void windows(const float* const (&x)[SIZE], int64_t xs, const V (&taps)[SIZE * SIZE],
                           V bias, T* y, int64_t ys) {
    V total[PIXELS];
    for (int p = 0; p < PIXELS; p++) total[p] = bias;
    for (int row = 0; row < SIZE; row++)
        for (int column = 0; column < PIXELS + SIZE - 1; column++) {
            V value = load<V>(x[row] + column * xs);  // serves all pixels whose windows hold it
            for (int p = 0; p < PIXELS; p++)
                if (column - p >= 0 && column - p < SIZE)
                    total[p] += value * taps[row * SIZE + column - p];
        }
    for (int p = 0; p < PIXELS; p++) {
        V value = Activation::of(total[p]);
        if (ADD_MIDDLE) value += load<V>(x[SIZE / 2] + (p + SIZE / 2) * xs);
        store(y + p * ys, value);
    }
}

// x: as many rows as the window is high, from the left pad on, pixels xs apart.  weight: (SIZE *
// SIZE, channels), rows ws apart.
template <class Activation, bool ADD_MIDDLE = false, int SIZE, class T>
static void stencil(int64_t count, int64_t channels, const float* const (&x)[SIZE], int64_t xs,
                    const float* weight, int64_t ws, const float* bias, T* y, int64_t ys) {
    constexpr int AT_ONCE = 4;
    registers(channels, [&](auto v, int64_t c) {
        typedef decltype(v) V;
        V taps[SIZE * SIZE], start = load<V>(bias + c);
        for (int tap = 0; tap < SIZE * SIZE; tap++) taps[tap] = load<V>(weight + tap * ws + c);
        const float* rows[SIZE];
        for (int row = 0; row < SIZE; row++) rows[row] = x[row] + c;
        int64_t p = 0;
        auto next = [&](auto pixels) {
            constexpr int PIXELS = decltype(pixels)::value;
            windows<Activation, ADD_MIDDLE, SIZE, PIXELS>(rows, xs, taps, start, y + p * ys + c,
                                                          ys);
            for (int row = 0; row < SIZE; row++) rows[row] += PIXELS * xs;
            p += PIXELS;
        };
        while (p + AT_ONCE <= count) next(Constant<AT_ONCE>{});
        while (p < count) next(Constant<1>{});
    });
}

// The means of 2x2 pixels of two rows, and each pixel less its mean into halves, (2 width, 2
// channels).
template <class Stored>
static void pool(int64_t width, int64_t channels, const float* rows, float* means, Stored* halves) {
    registers(channels, [&](auto v, int64_t c) {
        typedef decltype(v) V;
        for (int64_t j = 0; j < width; j += 2) {
            int64_t pixels[4] = {j, j + 1, width + j, width + j + 1};
            V values[4], mean = {};
            for (int p = 0; p < 4; p++)
                mean += values[p] = load<V>(rows + pixels[p] * channels + c);
            mean *= 0.25f;
            store(means + j / 2 * channels + c, mean);
            for (int p = 0; p < 4; p++)
                store(halves + pixels[p] * 2 * channels + c, values[p] - mean);
        }
    });
}

// A row of the low half, low + the row between two rows of half the size, bilinear, and the high
// half: y, (width, 2 channels). near[0] + near[1] counts 3/4, far[0] + far[1] counts 1/4.
template <class Stored>
static void enlarge(int64_t width, int64_t channels, const float* const (&near)[2],
                    const float* const (&far)[2], const Stored* halves, float* y) {
    registers(channels, [&](auto v, int64_t c) {
        typedef decltype(v) V;
        int64_t last = width / 2 - 1, apart = 2 * channels;
        auto between = [&](int64_t j) {
            int64_t at = j * channels + c;
            return (load<V>(near[0] + at) + load<V>(near[1] + at)) * 0.75f +
                   (load<V>(far[0] + at) + load<V>(far[1] + at)) * 0.25f;
        };
        V before = between(0), middle = before;
        for (int64_t j = 0; j <= last; j++) {
            V after = between(less(j + 1, last));
            const Stored* low = halves + 2 * j * apart + c;
            float* at = y + 2 * j * apart + c;
            store(at, load<V>(low) + (middle * 0.75f + before * 0.25f));
            store(at + apart, load<V>(low + apart) + (middle * 0.75f + after * 0.25f));
            for (int side = 0; side < 2; side++)
                store(at + side * apart + channels, load<V>(low + side * apart + channels));
            before = middle;
            middle = after;
        }
    });
}

// Ask for a row of the next turn while this one is computed: the third cache answers slowly.
template <class T> static inline void prefetch(const T* at, int64_t count) {
    for (int64_t line = 0; line < count; line += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(at + line, 0, 2);
}

// Each pass takes its scratch from memory, and returns how many numbers that is; without memory it
// does nothing else.

static int64_t first_convolution(int64_t first, int64_t last, const FirstConvolution* a,
                                 float* memory) {
    const int64_t C = a->inputs, N = a->outputs, width = a->width, matrix = 3 * C * N;
    Scratch scratch{memory};
    Ring<float, 3, 1> ring(scratch, width, C);
    if (!memory) return scratch.used;
    images(first, last, a->height, width, [&](int64_t image, int64_t start, int64_t stop) {
        ring.fill(a->edge);
        for (int64_t i = start - 1; i <= stop; i++) {
            if (i >= 0 && i < a->height)
                memcpy(ring.row(i), a->x + (image + i * width) * C, width * C * sizeof(float));
            else ring.fill(i, a->edge);
            int64_t row = i - 1, at = (image + row * width) * N;
            if (row < start) continue;
            float* y = a->result + at;
            Exact::product(width, ring.pad(row - 1), C, a->weight, 3 * C, N,
                           Biased{{y, N}, a->bias});
            Exact::product(width, ring.pad(row), C, a->weight + matrix, 3 * C, N, Added{{y, N}});
            Exact::product(width, ring.pad(row + 1), C, a->weight + 2 * matrix, 3 * C, N,
                           Added{{y, N}});
            if (a->normalised)
                normalised(N, width, y, N, a->scale, a->shift, a->normalised + at, N);
        }
    });
    return scratch.used;
}

template <class P> static int64_t front(int64_t first, int64_t last, const Front* a,
                                        float* memory) {
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
            const float* x[3] = {ring.pad(row - 1), ring.pad(row), ring.pad(row + 1)};
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
                    pool(width, C, low, means, halves + (row - 1) * width * 2 * C);
                    P::product(width / 2, means, C, a->x_proj, C, a->projections,
                               Plain{a->projected + quarter * a->projections, a->projections});
                }
            }
            row = i - 2;
            if (row < start) continue;
            const float* above[3] = {inner.pad(row - 1), inner.pad(row), inner.pad(row + 1)};
            stencil<Same>(width, C, above, C, a->high_conv, C, a->high_bias,
                          halves + row * width * 2 * C + C, 2 * C);
        }
    });
    return scratch.used;
}

template <class P> static int64_t tail(int64_t first, int64_t last, const Tail* a, float* memory) {
    typedef typename P::Stored Stored;
    const int64_t C = a->channels, width = a->width, half = a->height / 2, step = width / 2;
    Scratch scratch{memory};
    float *n = scratch.take(width * C), *y = scratch.take(2 * width * C);
    if (!memory) return scratch.used;
    images(first, last, a->height, width, [&](int64_t image, int64_t start, int64_t stop) {
        const float* slabs = a->scanned + image / 2 * C;  // two of pixels / 4 for each image
        for (int64_t row = start; row < stop; row++) {
            int64_t pixel = image + row * width, nearer = row / 2,
                    farther = row % 2 ? nearer + 1 : nearer - 1;
            farther = farther < 0 ? 0 : less(farther, half - 1);
            const float *v = a->v + pixel * a->v_stride, *upper = slabs + nearer * step * C;
            const float *lower = slabs + farther * step * C,
                        *near[2] = {upper, upper + half * step * C};
            const float* far[2] = {lower, lower + half * step * C};
            float* result = a->result + pixel * a->result_stride;
            enlarge(width, C, near, far, (const Stored*)a->halves + pixel * 2 * C, y);
            normalised(2 * C, width, y, 2 * C, a->out_scale, a->out_shift, y, 2 * C);
            normalised(C, width, v, a->v_stride, nullptr, nullptr, n, C);
            prefetch(v + width * a->v_stride, width * a->v_stride);
            P::product(width, n, C, a->in_z, C, 2 * C, Gate{{{y, 2 * C}, a->in_z_bias}});
            prefetch((const Stored*)a->halves + (pixel + width) * 2 * C, width * 2 * C);
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

template <class P> static int64_t feed_forward(int64_t first, int64_t last, const FeedForward* a,
                                               float* memory) {
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
                const float *t = a->t + (image + i * width) * C,
                            *c = a->c + (image + i * width) * C;
                for (int64_t at = 0; at < width * C; at += LANES)
                    store(entering + at, load(t + at) + load(c + at));
                normalised(C, width, entering, C, nullptr, nullptr, n, C);
                P::product(width, n, C, a->fc1, C, hidden,
                           Activated<Gelu>{{{ring.row(i), hidden}, a->fc1_bias}});
            } else {
                ring.clear(i);
            }
            int64_t row = i - 2;
            if (row < start) continue;
            const float* x[5];
            for (int near = 0; near < 5; near++) x[near] = ring.pad(row + near - 2);
            stencil<Gelu, true>(width, hidden, x, hidden, a->conv, hidden, a->conv_bias, h, hidden);
            float* result = a->result + (image + row * width) * C;
            P::product(width, h, hidden, a->fc2, hidden, C,
                       Residual{{{result, C}, a->fc2_bias}, sum.row(row), ones, C});
        }
    });
    return scratch.used;
}

// A 3x3 convolution of 2x2 pixels after Winograd (F(2x2, 3x3) of Lavin and Gray 2016): A^T [(G g
// G^T) * (B^T d B)] A,
// * element by element, and as a sum over channels a product for each of the 16 elements, in place
// of 36.

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

// B^T d B of the 4x4 pixels from every second one of four rows: element e of tile t in row e TILES
// + t.
static void tiles_seen(int64_t tiles, int64_t channels, const float* const (&x)[4], float* result) {
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
static void tiles_made(int64_t tiles, int64_t channels, const float* x, const float* bias,
                       const float* const (&skip)[2], float slope, float* const (&result)[2]) {
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
static void shuffle(const Convolution* a, const float* rows, int64_t image, int64_t row) {
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

template <class P> static int64_t convolution(int64_t first, int64_t last, const Convolution* a,
                                              float* memory) {
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
                for (int near = 0; near < 4; near++) x[near] = ring.pad(row + near - 1) + left * C;
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
