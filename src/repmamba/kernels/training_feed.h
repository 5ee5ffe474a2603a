// The ConvFFN in training. See training.h.
#pragma once
#include "training_rmb.h"

namespace {

static inline vec gelu(vec x, vec& slope) {
    vec bell, below = normal_below(x, bell);
    slope = x * bell * 0.3989422804014327f + below;
    return x * below;
}

typedef Ring<float, 5, 2> Rows;  // of a register of channels, for 5x5 windows

// h + GELU(c), c the 5x5 convolution of h = GELU(x + bias); a sample.
template <class T>
NOINLINE void feed(const Feed<T>& f, int64_t first, int64_t height, int64_t width, float* memory) {
    int64_t hidden = f.hidden;
    Scratch scratch{memory};
    Rows h(scratch, width, LANES);
    const float* rows[5];
    for (int64_t c = 0; c < hidden; c += LANES) {
        const T* x = f.x + first * hidden + c;
        T *convolved = f.convolved + first * hidden + c, *result = f.h + first * hidden + c;
        vec before = load(f.parameters[FC1_BIAS] + c), bias = load(f.parameters[DW5X5_BIAS] + c);
        vec taps[25];
        load_rows(f.taps + c, hidden, taps);
        h.clear();
        for (int64_t i = 0; i < height + 2; i++) {
            for (int64_t j = 0; i < height && j < width; j++)
                store(h.row(i) + j * LANES, Gelu::of(load(x + (i * width + j) * hidden) + before));
            if (i >= height) h.clear(i);
            int64_t k = i - 2;
            if (k < 0) continue;
            h.pads(k - 2, rows);
            over_row<5>(width, rows, LANES, taps, bias, [&](int64_t j, vec sum) {
                int64_t place = (k * width + j) * hidden;
                store(convolved + place, sum);
                store(result + place, Gelu::of(sum) + load(h.row(k) + j * LANES));
            });
        }
    }
}

// The gradients of `feed`; dx holds that of its result first.
template <class T>
NOINLINE void feed_back(const Feed<T>& f, const FeedBack<T>& back, int64_t b, int64_t height,
                        int64_t width, float* memory) {
    int64_t hidden = f.hidden, first = b * height * width;
    Scratch scratch{memory};
    Rows h(scratch, width, LANES), dc(scratch, width, LANES), slopes(scratch, width, LANES);
    const float* rows[5];
    double *dtaps = back.dtaps + b * 25 * hidden, *biases = back.biases + b * 2 * hidden;
    zero(dtaps, 25 * hidden), zero(biases, 2 * hidden);
    for (int64_t c = 0; c < hidden; c += LANES) {
        const T *x = f.x + first * hidden + c, *convolved = f.convolved + first * hidden + c;
        T* dx = back.dx + first * hidden + c;
        vec before = load(f.parameters[FC1_BIAS] + c), turned[25];
        load_rows(f.turned + c, hidden, turned);
        h.clear(), dc.clear();
        for (int64_t i = 0; i < height + 2; i++) {
            vec of_bias{}, of_before{};
            for (int64_t j = 0; i < height && j < width; j++) {
                int64_t place = (i * width + j) * hidden;
                vec slope, slope5;
                store(h.row(i) + j * LANES, gelu(load(x + place) + before, slope));
                store(slopes.row(i) + j * LANES, slope);
                gelu(load(convolved + place), slope5);
                slope5 *= load(dx + place);
                store(dc.row(i) + j * LANES, slope5);
                of_bias += slope5;
            }
            if (i >= height) h.clear(i), dc.clear(i);
            if (int64_t k = i - 2; k >= 0) {
                const float* g = dc.row(k);
                h.pads(k - 2, rows);
                UNROLLED(r, 5) {
                    Sums<vec, 5> sums{dtaps + 5 * r * hidden + c, hidden};
                    in_blocks<4>(width, [&](auto pixels, int64_t column) {
                        constexpr int N = decltype(pixels)::value;
                        vec values[N + 4];
                        load_rows(rows[r] + column * LANES, LANES, values);
                        UNROLLED(n, N) {
                            vec gradient = load(g + (column + n) * LANES);
                            UNROLLED(tap, 5) sums.of[tap] += gradient * values[n + tap];
                        }
                    });
                    sums.flush();
                }
                dc.pads(k - 2, rows);
                over_row<5>(width, rows, LANES, turned, vec{}, [&](int64_t j, vec sum) {
                    T* at = dx + (k * width + j) * hidden;
                    vec value = (sum + load(at)) * load(slopes.row(k) + j * LANES);
                    store(at, value);
                    of_before += value;
                });
            }
            add(biases + c, of_bias), add(biases + hidden + c, of_before);
        }
    }
}

struct ResidualOfFeed : Biased {  // sum + skip, whose rows are those of y
    const float* skip;
    template <class V> void finish(V sum, int64_t r, int64_t c) const {
        store(y + r * ys + c, sum + load<V>(skip + r * ys + c));
    }
};

// a from the last RMB, and the result a + fc2(feed(fc1(LN(a)))).
template <class T> NOINLINE void feed_forward(const Block<T>& block, int64_t b, float* scratch) {
    const Training* of = block.of;
    const Feed<T>& f = block.feed;
    int64_t hidden = f.hidden, first = b * block.pixels;
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += first;
        finish<T, WIDTH>(block.rmbs[RMBS - 1], of->t, p, pixels, f.a);
        normalise<WIDTH>(pixels, f.a + p * WIDTH, WIDTH, f.parameters[FFN_NORM],
                         f.parameters[FFN_NORM_SHIFT], f.n + p * WIDTH, WIDTH);
        multiply(pixels, f.n + p * WIDTH, WIDTH, f.fc1, WIDTH, hidden,
                 Plain{f.x + p * hidden, hidden});
    });
    feed(f, first, of->height, of->width, scratch);
    multiply(block.pixels, f.h + first * hidden, hidden, f.fc2, hidden, WIDTH,
             ResidualOfFeed{{{of->result + first * WIDTH, WIDTH}, f.parameters[FC2_BIAS]},
                            f.a + first * WIDTH});
}

template <class T>
NOINLINE void feed_forward_back(const Block<T>& block, int64_t b, float* scratch) {
    const Training* of = block.of;
    const Feed<T>& f = block.feed;
    const FeedBack<T>& back = block.feed_back;
    int64_t hidden = f.hidden, first = b * block.pixels;
    T* working = (T*)scratch;
    float *dn = scratch, *rest = scratch + CHUNK * WIDTH;
    float *dfc1 = back.dfc1 + b * hidden * WIDTH, *dfc2 = back.dfc2 + b * hidden * WIDTH;
    double *dnorm = back.dnorm + b * 2 * WIDTH, *dbias2 = back.dbias2 + b * WIDTH;
    zero(dfc1, hidden * WIDTH), zero(dfc2, hidden * WIDTH);
    zero(dnorm, 2 * WIDTH), zero(dbias2, WIDTH);
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += first;
        for (int c = 0; c < WIDTH; c += LANES) {
            vec sum{};
            for (int64_t q = 0; q < pixels; q++) {
                vec g = load(of->gradient + (p + q) * WIDTH + c);
                sum += g;
                store(of->dt + (p + q) * WIDTH + c, g);
                store(working + q * WIDTH + c, g);
            }
            add(dbias2 + c, sum);
        }
        multiply(pixels, working, WIDTH, f.fc2_back, WIDTH, hidden,
                 Plain{back.dx + p * hidden, hidden});
        weight_gradient(pixels, working, WIDTH, WIDTH, f.h + p * hidden, hidden, hidden, dfc2,
                        rest);
    });
    feed_back(f, back, b, of->height, of->width, scratch);
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += first;
        multiply(pixels, back.dx + p * hidden, hidden, f.fc1_back, hidden, WIDTH, Plain{dn, WIDTH});
        weight_gradient(pixels, back.dx + p * hidden, hidden, hidden, f.n + p * WIDTH, WIDTH, WIDTH,
                        dfc1, rest);
        normalise_back<WIDTH>(pixels, f.a + p * WIDTH, WIDTH, f.parameters[FFN_NORM], dn,
                              of->dt + p * WIDTH, dnorm);
    });
    out_sums<T, WIDTH>(block.rmbs[RMBS - 1], b, block.pixels, of->dt, WIDTH);
}

template <class T> static void fold_feed(const Block<T>& block) {
    const FeedBack<T>& back = block.feed_back;
    int64_t batch = block.of->batch, hidden = block.feed.hidden;
    float* const* to = block.feed.gradients;
    reduced_pair(back.dnorm, batch, WIDTH, to[FFN_NORM], to[FFN_NORM_SHIFT]);
    reduced_pair(back.biases, batch, hidden, to[DW5X5_BIAS], to[FC1_BIAS]);
    reduced(back.dbias2, batch, WIDTH, to[FC2_BIAS]);
    reduced(back.dfc1, batch, hidden * WIDTH, to[FC1]);
    reduced(back.dfc2, batch, hidden * WIDTH, to[FC2]);
    reduced_taps(back.dtaps, batch, 25, hidden, to[DW5X5]);
}

}  // namespace
