// Parts of the passes over rows of pixels: memory, normalisation, depthwise convolution, pooling
// and enlarging. Maps are channels-last.
#pragma once
#include "products.h"

constexpr float EPS = 1e-5f;  // of every normalisation of the network

namespace {

// Divides memory into arrays that start on a cache line each; without memory it only counts.
struct Scratch {
    float* memory;
    int64_t used = 0;

    template <class... T> void cut(int64_t count, T*&... arrays) {  // each of so many numbers
        ((arrays = take<T>(count)), ...);
    }
    template <class T = float> T* take(int64_t count) {
        float* at = memory ? memory + used : nullptr;
        used += (count * (int64_t)sizeof(T) + 63) / 64 * 16;
        return (T*)at;
    }
};

// The last ROWS rows of a map, row n in place n modulo ROWS, with PAD pixels more on each side.
template <class T, int ROWS, int PAD> struct Ring {
    T* memory;
    int64_t width, channels;

    Ring(Scratch& scratch, int64_t width, int64_t channels, int64_t behind = 0)
        : memory(scratch.take<T>(ROWS * (width + 2 * PAD + behind) * channels)),
          width(width + 2 * PAD + behind),
          channels(channels) {}
    int64_t row_numbers() const { return width * channels; }
    T* pad(int64_t row) const {  // the row with its left pad
        return memory + (row + 8 * ROWS) % ROWS * row_numbers();
    }
    T* row(int64_t row) const { return pad(row) + PAD * channels; }
    template <int N> void pads(int64_t row, const T* (&rows)[N]) const {  // from this row on
        for (int n = 0; n < N; n++) rows[n] = pad(row + n);
    }
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

// N vectors, stride numbers apart.
template <class V, int N>
static inline void load_rows(const float* at, int64_t stride, V (&rows)[N]) {
    UNROLLED(n, N) rows[n] = load<V>(at + n * stride);
}

// Layer normalisation over C channels, (x - mean) / sqrt(variance + eps), of as many pixels at once
// as a register has lanes; times scale, plus shift if they are given. y may be x.
template <int C, bool WHOLE, class T>
static inline void normalise_some(int64_t pixels, const float* x, int64_t xs, const float* scale,
                                  const float* shift, T* y, int64_t ys) {
    typedef decltype(vector_for<C>()) V;
    constexpr int N = lanes<V>, REGISTERS = C / N;
    V total[N] = {};
    float mean[N], inverse[N];
    auto each = [&](auto f) {
        if constexpr (WHOLE) {
            UNROLLED(p, N) f(p);
        } else {
            for (int p = 0; p < pixels; p++) f(p);
        }
    };
    each([&](int p) {
        V sum = {};
        UNROLLED(r, REGISTERS) sum += load<V>(x + p * xs + r * N);
        total[p] = sum;
    });
    store(mean, sums(total) * (1.0f / C));
    each([&](int p) {
        V sum = {};
        UNROLLED(r, REGISTERS) {
            V value = load<V>(x + p * xs + r * N) - mean[p];
            sum += value * value;
        }
        total[p] = sum;
    });
    store(inverse, 1.0f / __builtin_elementwise_sqrt(sums(total) * (1.0f / C) + EPS));
    for (int64_t p = 0; p < (WHOLE ? N : pixels); p++) {
        UNROLLED(r, REGISTERS) {
            V value = (load<V>(x + p * xs + r * N) - mean[p]) * inverse[p];
            if (scale) value = value * load<V>(scale + r * N) + load<V>(shift + r * N);
            store(y + p * ys + r * N, value);
        }
    }
}

template <int C, class T>
static void normalise(int64_t count, const float* x, int64_t xs, const float* scale,
                      const float* shift, T* y, int64_t ys) {
    constexpr int N = lanes<decltype(vector_for<C>())>;
    int64_t p = 0;
    for (; p + N <= count; p += N)
        normalise_some<C, true>(N, x + p * xs, xs, scale, shift, y + p * ys, ys);
    if (p < count)
        normalise_some<C, false>(count - p, x + p * xs, xs, scale, shift, y + p * ys, ys);
}

// A row of a depthwise convolution, of one register of channels: finish(pixel, bias + sum of taps).
// x: as many rows as the window is high, from the left pad on, pixels xs apart.
template <int SIZE, class V, class F>
static inline void over_row(int64_t count, const float* const (&x)[SIZE], int64_t xs,
                            const V (&taps)[SIZE * SIZE], V bias, F finish) {
    in_blocks<4>(count, [&](auto pixels, int64_t first) {
        constexpr int PIXELS = decltype(pixels)::value;
        V total[PIXELS];
        for (int p = 0; p < PIXELS; p++) total[p] = bias;
        for (int row = 0; row < SIZE; row++)
            for (int column = 0; column < PIXELS + SIZE - 1; column++) {
                V value = load<V>(x[row] + (first + column) * xs);  // for all windows that hold it
                for (int p = 0; p < PIXELS; p++)
                    if (column - p >= 0 && column - p < SIZE)
                        total[p] += value * taps[row * SIZE + column - p];
            }
        for (int p = 0; p < PIXELS; p++) finish(first + p, total[p]);
    });
}

// y = activation(bias + sum of taps) [+ the middle of x]. weight: (SIZE * SIZE, channels), rows ws
// apart.
template <class Activation, bool ADD_MIDDLE = false, int SIZE, class T>
static void stencil(int64_t count, int64_t channels, const float* const (&x)[SIZE], int64_t xs,
                    const float* weight, int64_t ws, const float* bias, T* y, int64_t ys) {
    registers(channels, [&](auto v, int64_t c) {
        typedef decltype(v) V;
        V taps[SIZE * SIZE];
        load_rows(weight + c, ws, taps);
        const float* rows[SIZE];
        for (int row = 0; row < SIZE; row++) rows[row] = x[row] + c;
        over_row<SIZE>(count, rows, xs, taps, load<V>(bias + c), [&](int64_t p, V sum) {
            V value = Activation::of(sum);
            if (ADD_MIDDLE) value += load<V>(rows[SIZE / 2] + (p + SIZE / 2) * xs);
            store(y + p * ys + c, value);
        });
    });
}

// The means of 2x2 pixels of two rows (2 width, C), pixels xs apart, and each pixel less its mean
// into halves (2 width, 2C), which may be the rows.
template <class Stored>
static void pool(int64_t width, int64_t channels, const float* rows, int64_t xs, float* means,
                 Stored* halves) {
    registers(channels, [&](auto v, int64_t c) {
        typedef decltype(v) V;
        for (int64_t j = 0; j < width; j += 2) {
            int64_t pixels[4] = {j, j + 1, width + j, width + j + 1};
            V values[4], mean = {};
            for (int p = 0; p < 4; p++) mean += values[p] = load<V>(rows + pixels[p] * xs + c);
            mean *= 0.25f;
            store(means + j / 2 * channels + c, mean);
            for (int p = 0; p < 4; p++)
                store(halves + pixels[p] * 2 * channels + c, values[p] - mean);
        }
    });
}

// A row of a map (height, width, 2C): its low half, low + the sum of the scan's two slabs enlarged
// bilinearly, and the high half. scanned: (2, height / 2, width / 2, C); halves: the row of low and
// high.
template <class Stored>
static void enlarge(int64_t row, int64_t height, int64_t width, int64_t channels,
                    const float* scanned, const Stored* halves, float* y) {
    int64_t rows = height / 2, step = width / 2 * channels, apart = 2 * channels;
    int64_t near = row / 2, far = row % 2 ? less(near + 1, rows - 1) : near > 0 ? near - 1 : 0;
    registers(channels, [&](auto v, int64_t c) {
        typedef decltype(v) V;
        auto both = [&](int64_t coarse, int64_t j) {
            const float* at = scanned + coarse * step + j * channels + c;
            return load<V>(at) + load<V>(at + rows * step);
        };
        auto between = [&](int64_t j) { return both(near, j) * 0.75f + both(far, j) * 0.25f; };
        int64_t last = width / 2 - 1;
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

}  // namespace
