// See training.h.
#include "training.h"
#include "kernels.h"
#include "scan.h"
#include "vec.h"

#if defined(__AVX512BF16__)
#define SCAN_LEVEL v4  // which this file is compiled for once more, with products of pairs
#else
#define SCAN_LEVEL LEVEL
#endif
EXPORTED void JOINED(scan_forward, SCAN_LEVEL)(int64_t, int64_t, const Scan*, float*);
EXPORTED void JOINED(scan_backward, SCAN_LEVEL)(int64_t, int64_t, const ScanGradients*, float*);

constexpr int WIDTH = 64, RMBS = 4, STATE = 16, DIRECTIONS = 4, SLABS = 2, SEGMENT = 64;
constexpr int CHUNK =
    64;  // pixels that go through a chain of products and passes together, in the first cache
constexpr float EPS = 1e-5f, LOG2_E = 1.4426950408889634f;

// Parameters of an RMB, of a RepConv in it, and of what follows the four RMBs.
enum {
    NORM,
    NORM_SHIFT,
    X_PROJ,
    DT_WEIGHT,
    DT_BIAS,
    A_LOG,
    SKIP_D,
    IN_PROJ,
    CONV,
    HIGH_CONV = CONV + 7,
    OUT_NORM = HIGH_CONV + 7,
    OUT_NORM_SHIFT,
    OUT_PROJ,
    DW1X1,
    BN,
    BN_SHIFT,
    RMB_PARAMETERS,
    TAPS = 0,
    INNER,
    INNER_SHIFT,
    DIRECT,
    DIRECT_BIAS,
    OUTER,
    OUTER_SHIFT,
    FFN_NORM = 0,
    FFN_NORM_SHIFT,
    FC1,
    FC1_BIAS,
    DW5X5,
    DW5X5_BIAS,
    FC2,
    FC2_BIAS,
    CONV_BN = 0,
    HIGH_CONV_BN = 6,
    BN_BN = 12,
    RMB_BUFFERS = 15  // running mean, variance and count of each
};

// All is of this file and level: the linker would take one level's functions for another's.
namespace {

// A function of its own, for profiles and for the compiler's sake.
#define PASS __attribute__((noinline)) static void

// Vectors

using ::load, ::store;

template <bool whole> struct Register { typedef vec V; };
template <> struct Register<false> { typedef half V; };
// The vector that maps of C channels are taken in: half a register for eight channels with AVX-512.
template <int C> using Of = typename Register<C % LANES == 0>::V;

typedef uint16_t bf16;
template <class V> struct Halves {
    typedef uint16_t Narrow __attribute__((vector_size(sizeof(V) / 2)));
    typedef uint32_t Wide __attribute__((vector_size(sizeof(V))));
};

template <class V = vec> static inline V load(const bf16* at) {
    typename Halves<V>::Narrow narrow;
    __builtin_memcpy(&narrow, at, sizeof narrow);
    return (V)(__builtin_convertvector(narrow, typename Halves<V>::Wide) << 16);
}

template <class V> static inline void store(bf16* at, V v) {
#if defined(__AVX512BF16__)
    typedef __bf16 Rounded __attribute__((vector_size(sizeof(V) / 2)));
    Rounded narrow = __builtin_convertvector(v, Rounded);
#else
    typedef typename Halves<V>::Wide Wide;
    Wide of = (Wide)v, even = of + 0x7fff + (of >> 16 & 1), nan = of >> 16 | 64;
    auto narrow = __builtin_convertvector(v == v ? even >> 16 : nan, typename Halves<V>::Narrow);
#endif
    __builtin_memcpy(at, &narrow, sizeof narrow);
}

template <class V> static inline void add(float* at, V v) { store(at, load<V>(at) + v); }

template <class V> static inline void add(double* at, V v) {
    typedef double Double __attribute__((vector_size(2 * sizeof(V))));
    Double sum;
    __builtin_memcpy(&sum, at, sizeof sum);
    sum += __builtin_convertvector(v, Double);
    __builtin_memcpy(at, &sum, sizeof sum);
}

template <class V> static inline V silu(V x) { return x * sigmoid(x); }

template <class V> static inline V silu_slope(V x) {
    V open = sigmoid(x);
    return open + x * open * (1.0f - open);
}

// The normal distribution below x, as in vec.h; bell: exp(-x^2 / 2).
template <class V> static inline V normal(V x, V& bell) {
    V t = reciprocal(1.0f + 0.28f * (x > 0.0f ? x : -x));
    bell = exp2_of_product(x * x, splat<V>(-LOG2_E / 2));
    V tail = bell * t *
             polynomial(t, {0.11711906506669244f, 0.0637222643650924f, 0.27837123603337927f,
                            -0.24877396869464297f, 0.397162292892567f, -0.10760095996915225f});
    return x > 0.0f ? 1.0f - tail : tail;
}

template <class V> static inline V gelu(V x, V& slope) {
    V bell, below = normal(x, bell);
    slope = x * bell * 0.3989422804014327f + below;
    return x * below;
}

// Products. In bfloat16, a word is two neighbours of the sum; a matrix (inputs, outputs) is words
// of two rows.

template <class T> struct Words;
template <> struct Words<float> {
    typedef float Word;
    static constexpr int DEPTH = 1;
    template <class V> using Vector = V;
};
template <> struct Words<bf16> {
    typedef uint32_t Word;
    static constexpr int DEPTH = 2;
    template <class V> using Vector = typename Halves<V>::Wide;
};
template <class T> using WordOf = typename Words<T>::Word;

template <class V> static inline V multiply_add(V sum, float x, V w) { return sum + x * w; }

template <class V> static inline V multiply_add(V sum, uint32_t x, typename Halves<V>::Wide w) {
#if defined(__AVX512BF16__)
    typename Halves<V>::Wide pair = w - w + x;
    if constexpr (sizeof(V) == 64)
        return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)w);
    else return (V)_mm256_dpbf16_ps((__m256)sum, (__m256bh)pair, (__m256bh)w);
#else
    uint32_t low = x << 16, high = x & 0xffff0000;
    float first, second;
    __builtin_memcpy(&first, &low, 4);
    __builtin_memcpy(&second, &high, 4);
    return sum + first * (V)(w << 16) + second * (V)(w & 0xffff0000);
#endif
}

template <class W, class At> static inline W load_word(const At* at) {
    W word;
    __builtin_memcpy(&word, at, sizeof word);
    return word;
}

template <class V, int ROWS, int COLS, class T, class Finish>
static inline void block(const T* x, int64_t xs, const WordOf<T>* w, int64_t inputs,
                         int64_t outputs, int64_t row, int64_t column, Finish finish) {
    typedef typename Words<T>::template Vector<V> Vector;
    V sums[ROWS][COLS] = {};
    for (int64_t k = 0; k < inputs; k += Words<T>::DEPTH, w += outputs) {
        Vector weights[COLS];
        UNROLLED
            for (int c = 0; c < COLS; c++) weights[c] = load_word<Vector>(w + c * lanes<V>);
        UNROLLED
            for (int r = 0; r < ROWS; r++) {
                WordOf<T> word = load_word<WordOf<T>>(x + r * xs + k);
                UNROLLED
                    for (int c = 0; c < COLS; c++)
                        sums[r][c] = multiply_add(sums[r][c], word, weights[c]);
            }
    }
    UNROLLED
        for (int r = 0; r < ROWS; r++)
            UNROLLED
                for (int c = 0; c < COLS; c++) finish(sums[r][c], row + r, column + c * lanes<V>);
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDEST = 4, ROWS_AT_ONCE = 6;  // of 32 registers
#else
constexpr int WIDEST = 2, ROWS_AT_ONCE = 4;  // of 16
#endif

// f(V{}, columns) for each panel of columns of a matrix, whose number is a multiple of 8.
template <int N> struct Constant { static constexpr int value = N; };
template <class F> static inline void panels(int64_t outputs, F f) {
    int64_t column = 0;
    for (; column + WIDEST * LANES <= outputs; column += WIDEST * LANES)
        f(vec{}, Constant<WIDEST>{}, column);
    if (WIDEST == 4 && column + 2 * LANES <= outputs) {
        f(vec{}, Constant<2>{}, column);
        column += 2 * LANES;
    }
    if (column + LANES <= outputs) {
        f(vec{}, Constant<1>{}, column);
        column += LANES;
    }
    if constexpr (LANES == 16)
        if (column < outputs) f(half{}, Constant<1>{}, column);
}

// finish(sums, row, column) for every register of x w; x: (count, inputs), its rows xs apart.
template <class T, class Finish>
PASS product(int64_t count, const T* x, int64_t xs, const WordOf<T>* w, int64_t inputs,
             int64_t outputs, Finish finish) {
    panels(outputs, [&](auto v, auto columns, int64_t column) {
        typedef decltype(v) V;
        constexpr int COLS = decltype(columns)::value, ROWS = COLS == WIDEST ? ROWS_AT_ONCE : 8;
        int64_t r = 0;
        for (; r + ROWS <= count; r += ROWS)
            block<V, ROWS, COLS>(x + r * xs, xs, w + column, inputs, outputs, r, column, finish);
        for (; r + 4 <= count; r += 4)
            block<V, 4, COLS>(x + r * xs, xs, w + column, inputs, outputs, r, column, finish);
        for (; r < count; r++)
            block<V, 1, COLS>(x + r * xs, xs, w + column, inputs, outputs, r, column, finish);
    });
}

// dw (outputs, inputs) += dy^T x, over steps words of dy and x.
template <class W, class Vector, class V, int COLS>
static inline void outer_products(int64_t steps, const W* dy, int64_t dys, const W* x, int64_t xs,
                                  int64_t outputs, int64_t inputs, float* dw) {
    for (int64_t n = 0; n < outputs; n += 4) {  // outputs: a multiple of 4
        float* at = dw + n * inputs;
        V sums[4][COLS];
        UNROLLED
            for (int r = 0; r < 4; r++)
                UNROLLED
                    for (int c = 0; c < COLS; c++)
                        sums[r][c] = load<V>(at + r * inputs + c * lanes<V>);
        for (int64_t t = 0; t < steps; t++) {
            Vector values[COLS];
            UNROLLED
                for (int c = 0; c < COLS; c++)
                    values[c] = load_word<Vector>(x + t * xs + c * lanes<V>);
            UNROLLED
                for (int r = 0; r < 4; r++)
                    UNROLLED
                        for (int c = 0; c < COLS; c++)
                            sums[r][c] = multiply_add(sums[r][c], dy[t * dys + n + r], values[c]);
        }
        UNROLLED
            for (int r = 0; r < 4; r++)
                UNROLLED
                    for (int c = 0; c < COLS; c++)
                        store(at + r * inputs + c * lanes<V>, sums[r][c]);
    }
}

// Rows (2 steps, channels) of bfloat16 as words of two rows; channels is a multiple of 8.
static inline void paired(int64_t steps, const bf16* x, int64_t xs, int64_t channels,
                          uint32_t* words) {
    typedef uint16_t Narrow __attribute__((vector_size(16)));
    typedef uint32_t Wide __attribute__((vector_size(32)));
    for (int64_t t = 0; t < steps; t++)
        for (int64_t c = 0; c < channels; c += 8) {
            Wide low = __builtin_convertvector(load_word<Narrow>(x + 2 * t * xs + c), Wide);
            Wide high = __builtin_convertvector(load_word<Narrow>(x + (2 * t + 1) * xs + c), Wide);
            low |= high << 16;
            __builtin_memcpy(words + t * channels + c, &low, sizeof low);
        }
}

// dw (outputs, inputs) += dy^T x over a chunk of pixels, an even number in bfloat16. scratch: CHUNK
// words of each two channels of both.
template <class T>
PASS weight_gradient(int64_t pixels, const T* dy, int64_t dys, int64_t outputs, const T* x,
                     int64_t xs, int64_t inputs, float* dw, float* scratch) {
    typedef WordOf<T> Word;
    const Word *of_dy, *of_x;
    int64_t steps = pixels / Words<T>::DEPTH;
    if constexpr (Words<T>::DEPTH == 2) {
        uint32_t *a = (uint32_t*)scratch, *b = a + steps * outputs;
        paired(steps, dy, dys, outputs, a);
        paired(steps, x, xs, inputs, b);
        of_dy = a, of_x = b, dys = outputs, xs = inputs;
    } else {
        of_dy = dy, of_x = x;
    }
    panels(inputs, [&](auto v, auto columns, int64_t column) {
        typedef decltype(v) V;
        typedef typename Words<T>::template Vector<V> Vector;
        outer_products<Word, Vector, V, decltype(columns)::value>(steps, of_dy, dys, of_x + column,
                                                                  xs, outputs, inputs, dw + column);
    });
}

// A matrix of torch, weight (outputs, inputs), as a product reads it: forward x weight^T, backward
// dy weight.
template <class T>
PASS packed(const float* weight, int64_t inputs, int64_t outputs, int64_t stride_in,
            int64_t stride_out, int64_t padded, WordOf<T>* words) {
    constexpr int DEPTH = Words<T>::DEPTH;
    for (int64_t k = 0; k < inputs; k++)
        for (int64_t n = 0; n < padded; n++) {
            float value = n < outputs ? weight[k * stride_in + n * stride_out] : 0;
            if constexpr (DEPTH == 1) {
                words[k * padded + n] = value;
            } else {
                bits of = (bits)splat(value);
                uint32_t rounded = (uint32_t)of[0] + 0x7fff + ((uint32_t)of[0] >> 16 & 1);
                ((bf16*)words)[(k / 2 * padded + n) * 2 + k % 2] =
                    value == value ? rounded >> 16 : 0x7fc0;
            }
        }
}

// Memory

// Cuts memory into arrays, each on a cache line of its own.
struct Cut {
    uintptr_t begin, at;
    explicit Cut(void* memory)
        : begin((uintptr_t)memory), at(((uintptr_t)memory + 63) & ~(uintptr_t)63) {}
    template <class T> void operator()(T*& array, int64_t count) {
        array = (T*)at;
        at += (count * sizeof(T) + 63) & ~(uintptr_t)63;
    }
    int64_t size() const { return at - begin + 64; }
};

// What is known of a RepConv on one batch: with y = 3x3(x), a = gamma_inner / sqrt(var_y + eps), k
// = 1 + dw1x1, its outer normalisation sees u = a (y - mean_y) + k (x - mean_x) less its mean, and
// var_u follows from the moments of y and x; the result is gain u + beta_outer, gain = gamma_outer
// / sqrt(var_u + eps).
struct Branches {
    int64_t channels;
    float *taps, *turned;  // (9, C): of the 3x3, and backwards
    float *folded, *bias;  // (9, C), (C): the one convolution that gives the result
    float* before;         // (3, C): y, x and 1 times these give the result
    float* mix;            // (8, C): g, y, x and 1 times these give dy, and x past the 3x3
    double *mean_y, *mean_x, *var_y, *var_x, *covariance, *inverse_y, *inverse_u, *a, *k,
        *gain;                       // (C)
    double *moments, *sums, *dtaps;  // (batch, 5, C), (batch, 3, C), (batch, 9, C)

    void cut(Cut& from, int64_t batch, int64_t c) {
        channels = c;
        from(taps, 9 * c), from(turned, 9 * c), from(folded, 9 * c), from(bias, c),
            from(before, 3 * c);
        from(mix, 8 * c);
        from(mean_y, c), from(mean_x, c), from(var_y, c), from(var_x, c), from(covariance, c);
        from(inverse_y, c), from(inverse_u, c), from(a, c), from(k, c), from(gain, c);
        from(moments, batch * 5 * c), from(sums, batch * 3 * c), from(dtaps, batch * 9 * c);
    }
};

// An RMB's memory from the forward to the backward pass; L = pixels / 4, C its width.
template <class T> struct Rmb {
    int64_t channels, rank, rows,
        padded;      // rows of a pixel for the scan; padded to whole registers
    const float* v;  // (pixels, C), its pixels v_stride apart
    int64_t v_stride;
    float* own_v;             // none in the first, which reads t
    T *n, *xz, *gated, *out;  // (pixels, C), (pixels, 4C), (pixels, 2C), (pixels, C)
    float *s, *merged;        // (pixels, 2C)
    float *pooled, *projected, *kept, *scanned;  // (L, C), (L, padded), states, (2, L, C)
    WordOf<T>*in_proj, *out_proj, *in_proj_back, *out_proj_back;
    float *x_proj, *A;  // (C, padded), (4C, 16)
    Branches conv, high_conv;
    double *out_moments, *out_sums;  // (batch, 2, C)
    double *mean, *inverse;          // (C): of BN, r = v + out; 1 / sqrt(w^2 var_r + eps)
    float *affine, *mix;  // (2, C): r and 1 times these give the result; (3, C): g, r, 1 give dr
    const float* const* parameters;
    void* const* buffers;
    float* const* gradients;

    void cut(Cut& from, const Training* a, int index) {
        int64_t c = channels = 8 << index, pixels = a->batch * a->height * a->width,
                length = pixels / 4;
        rank = c > 32 ? 2 : 1, rows = DIRECTIONS * (rank + 2 * STATE),
        padded = (rows + 15) / 16 * 16;
        int64_t segments = (length / a->batch + SEGMENT - 1) / SEGMENT;
        from(own_v, index ? pixels * c : 0);
        v = index ? own_v : a->t, v_stride = index ? c : WIDTH;
        from(n, pixels * c), from(xz, pixels * 4 * c), from(gated, pixels * 2 * c),
            from(out, pixels * c);
        from(s, pixels * 2 * c), from(merged, pixels * 2 * c);
        from(pooled, length * c), from(projected, length * padded),
            from(scanned, SLABS * length * c);
        from(kept, a->batch * DIRECTIONS * segments * STATE * c);
        from(in_proj, 4 * c * c), from(in_proj_back, 4 * c * c), from(out_proj, 2 * c * c);
        from(out_proj_back, 2 * c * c), from(x_proj, padded * c), from(A, DIRECTIONS * c * STATE);
        conv.cut(from, a->batch, 2 * c), high_conv.cut(from, a->batch, c);
        from(out_moments, a->batch * 2 * c), from(out_sums, a->batch * 2 * c), from(mean, c),
            from(inverse, c);
        from(affine, 2 * c), from(mix, 3 * c);
        parameters = a->parameters + index * RMB_PARAMETERS;
        gradients = a->gradients + index * RMB_PARAMETERS;
        buffers = a->buffers + index * RMB_BUFFERS;
    }
};

// Its memory in the backward pass.
template <class T> struct RmbBack {
    float* dv;                       // (pixels, C): the only one that outlives the RMB's stages
    T* dxz;                          // (pixels, 4C)
    float *ds, *dscanned, *dpooled;  // (pixels, 2C), (L, C), (L, C)
    float *du, *drows, *dconstants;  // (2, L, C), (L, padded), see scan.h
    float *din_proj, *dout_proj, *dx_proj;  // (batch, 4C, C), (batch, C, 2C), (batch, rows, C)
    double *dnorm, *dout_norm;              // (batch, 2, C), (batch, 2, 2C)
    int64_t constants;                      // of a sample

    void cut_dv(Cut& from, const Training* a, int index) {
        from(dv, a->batch * a->height * a->width * (8 << index));
    }
    void cut(Cut& from, const Training* a, const Rmb<T>& of) {
        int64_t c = of.channels, pixels = a->batch * a->height * a->width, length = pixels / 4;
        constants = DIRECTIONS * (STATE + 2 + of.rank) * c;
        from(dxz, pixels * 4 * c), from(ds, pixels * 2 * c), from(dscanned, length * c),
            from(dpooled, length * c);
        from(du, SLABS * length * c), from(drows, length * of.padded),
            from(dconstants, a->batch * constants);
        from(din_proj, a->batch * 4 * c * c), from(dout_proj, a->batch * 2 * c * c);
        from(dx_proj, a->batch * of.rows * c), from(dnorm, a->batch * 2 * c),
            from(dout_norm, a->batch * 4 * c);
    }
};

// The feed-forward part's; a: (pixels, 64), what the four RMBs give.
template <class T> struct Feed {
    int64_t hidden;
    float* a;
    T *n, *x, *convolved, *h;  // (pixels, 64), then (pixels, hidden)
    WordOf<T>*fc1, *fc2, *fc1_back, *fc2_back;
    float *taps, *turned;  // (25, hidden)
    const float* const* parameters;
    float* const* gradients;

    void cut(Cut& from, const Training* of) {
        int64_t pixels = of->batch * of->height * of->width;
        hidden = of->hidden;
        from(a, pixels * WIDTH), from(n, pixels * WIDTH), from(x, pixels * hidden);
        from(convolved, pixels * hidden), from(h, pixels * hidden);
        from(fc1, WIDTH * hidden), from(fc2, WIDTH * hidden);
        from(fc1_back, WIDTH * hidden), from(fc2_back, WIDTH * hidden);
        from(taps, 25 * hidden), from(turned, 25 * hidden);
        parameters = of->parameters + RMBS * RMB_PARAMETERS;
        gradients = of->gradients + RMBS * RMB_PARAMETERS;
    }
};

template <class T> struct FeedBack {
    T* dx;               // (pixels, hidden)
    float *dfc1, *dfc2;  // (batch, hidden, 64), (batch, 64, hidden)
    double *dtaps, *biases, *dnorm,
        *dbias2;  // (batch, 25, hidden), (batch, 2, hidden), (batch, 2, 64), (batch, 64)

    void cut(Cut& from, const Training* of) {
        int64_t batch = of->batch, hidden = of->hidden;
        from(dx, batch * of->height * of->width * hidden);
        from(dfc1, batch * hidden * WIDTH), from(dfc2, batch * hidden * WIDTH);
        from(dtaps, batch * 25 * hidden), from(biases, batch * 2 * hidden),
            from(dnorm, batch * 2 * WIDTH);
        from(dbias2, batch * WIDTH);
    }
};

template <class T> struct Block {
    const Training* of;
    Rmb<T> rmbs[RMBS];
    RmbBack<T> backs[RMBS];
    Feed<T> feed;
    FeedBack<T> feed_back;
    int64_t kept_size, passing_size, pixels, length;  // the last two of a sample

    explicit Block(const Training* a) : of(a) {
        Cut kept(a->kept);
        for (int i = 0; i < RMBS; i++) rmbs[i].cut(kept, a, i);
        feed.cut(kept, a);
        kept_size = kept.size();
        Cut passing(a->passing);
        for (int i = 0; i < RMBS; i++) backs[i].cut_dv(passing, a, i);
        passing_size = 0;
        for (int i = 0; i < RMBS; i++) {  // in the same place: one after another
            Cut shared = passing;
            backs[i].cut(shared, a, rmbs[i]);
            if (i == RMBS - 1) feed_back.cut(shared, a);
            passing_size = shared.size() > passing_size ? shared.size() : passing_size;
        }
        pixels = a->height * a->width, length = pixels / 4;
    }
};

// Stencils

// A row of pixels, stride apart; beyond the map, the same zeros for all of them.
template <class T> struct Row {
    const T* at;
    int64_t stride;
    template <class V> V get(int64_t column) const { return load<V>(at + column * stride); }
};

alignas(64) static const float ZEROS[LANES] = {};

template <class T> static inline Row<T> row_of(const T* map, int64_t i, int64_t height,
                                               int64_t width, int64_t stride) {
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
    UNROLLED
        for (int r = 0; r < 3; r++)
            window[3 * r + 1] = V{}, window[3 * r + 2] = rows[r].template get<V>(0);
    for (int64_t column = 0; column < width; column++) {
        UNROLLED
            for (int r = 0; r < 3; r++) {
                window[3 * r] = window[3 * r + 1], window[3 * r + 1] = window[3 * r + 2];
                window[3 * r + 2] = column + 1 < width ? rows[r].template get<V>(column + 1) : V{};
            }
        body(column, window);
    }
}

template <class V, int N> static inline V weighted(const V (&values)[N], const V (&weights)[N]) {
    V chains[3] = {values[0] * weights[0], values[1] * weights[1], values[2] * weights[2]};
    UNROLLED
        for (int n = 3; n < N; n++) chains[n % 3] += values[n] * weights[n];
    return chains[0] + chains[1] + chains[2];
}

template <class V, int N> static inline void load_rows(const float* at, int64_t stride,
                                                       V (&rows)[N]) {
    UNROLLED
        for (int n = 0; n < N; n++) rows[n] = load<V>(at + n * stride);
}

// body(row, column, window) over a map (height, width) of one vector of channels; at_end(row) after
// each row.
template <class V, class T, class F, class G>
static inline void over_windows(const T* map, int64_t stride, int64_t height, int64_t width, F body,
                                G at_end) {
    for (int64_t i = 0; i < height; i++) {
        windows<V>(row_of(map, i - 1, height, width, stride), row_of(map, i, height, width, stride),
                   row_of(map, i + 1, height, width, stride), width,
                   [&](int64_t column, const V(&window)[9]) { body(i, column, window); });
        at_end();
    }
}

// Sums of y, y^2, x, x^2 and x y of a sample, y = 3x3(x), into moments (5, C).
template <int C, class T>
PASS moments(const Branches& of, int64_t b, const T* x, int64_t stride, int64_t height,
             int64_t width) {
    typedef Of<C> V;
    double* totals = of.moments + b * 5 * C;
    memset(totals, 0, 5 * C * sizeof(double));
    for (int c = 0; c < C; c += lanes<V>) {
        V taps[9], sums[5] = {};
        load_rows(of.taps + c, C, taps);
        over_windows<V>(
            x + c, stride, height, width,
            [&](int64_t, int64_t, const V(&window)[9]) {
                V x = window[4], y = weighted(window, taps);
                sums[0] += y, sums[1] += y * y, sums[2] += x, sums[3] += x * x, sums[4] += x * y;
            },
            [&] {
                UNROLLED
                    for (int n = 0; n < 5; n++) add(totals + n * C + c, sums[n]), sums[n] = V{};
            });
    }
}

// The RepConv: its one convolution, and SiLU.
template <int C, bool activated, class T>
PASS convolve(const Branches& of, const T* x, int64_t stride, int64_t height, int64_t width,
              float* result, int64_t result_stride) {
    typedef Of<C> V;
    for (int c = 0; c < C; c += lanes<V>) {
        V taps[9], bias = load<V>(of.bias + c);
        load_rows(of.folded + c, C, taps);
        over_windows<V>(
            x + c, stride, height, width,
            [&](int64_t i, int64_t column, const V(&window)[9]) {
                V y = weighted(window, taps) + bias;
                store(result + (i * width + column) * result_stride + c, activated ? silu(y) : y);
            },
            [] {});
    }
}

// Sums of g, g y and g x of a sample, into sums (3, C); with the activation, g is first made the
// gradient before the SiLU, in place, the first C / 2 channels having that of the pooled map
// (height / 2, width / 2, C / 2) besides.
template <int C, bool activated, class T>
PASS gradient_sums(const Branches& of, int64_t b, const T* x, int64_t stride, int64_t height,
                   int64_t width, float* g, int64_t g_stride, const float* dpooled) {
    typedef Of<C> V;
    double* totals = of.sums + b * 3 * C;
    memset(totals, 0, 3 * C * sizeof(double));
    for (int c = 0; c < C; c += lanes<V>) {
        V taps[9], before[3], sums[3] = {};
        load_rows(of.taps + c, C, taps);
        load_rows(of.before + c, C, before);
        bool of_pool = activated && c < C / 2;
        over_windows<V>(
            x + c, stride, height, width,
            [&](int64_t i, int64_t column, const V(&window)[9]) {
                float* at = g + (i * width + column) * g_stride + c;
                V x = window[4], y = weighted(window, taps), gradient = load<V>(at);
                if constexpr (activated) {
                    if (of_pool) {
                        int64_t place = (i >> 1) * (width >> 1) + (column >> 1);
                        if constexpr (C / 2 < lanes<V>) {  // half of the lanes
                            V share = {};
                            for (int lane = 0; lane < C / 2; lane++)
                                share[lane] = dpooled[place * (C / 2) + lane];
                            gradient += 0.25f * share;
                        } else {
                            gradient += 0.25f * load<V>(dpooled + place * (C / 2) + c);
                        }
                    }
                    gradient *= silu_slope(before[0] * y + before[1] * x + before[2]);
                    store(at, gradient);
                }
                sums[0] += gradient, sums[1] += gradient * y, sums[2] += gradient * x;
            },
            [&] {
                UNROLLED
                    for (int n = 0; n < 3; n++) add(totals + n * C + c, sums[n]), sums[n] = V{};
            });
    }
}

// From the gradient g of a RepConv's result that of x, which may lie in its place, and of the 3x3
// weights. scratch: 5 rows of a vector.
template <int C, class T, class G>
PASS branches_back(const Branches& of, int64_t b, const T* x, int64_t stride, int64_t height,
                   int64_t width, const float* g, int64_t g_stride, G* dx, int64_t dx_stride,
                   float* scratch) {
    typedef Of<C> V;
    constexpr int L = lanes<V>;
    double* totals = of.dtaps + b * 9 * C;
    memset(totals, 0, 9 * C * sizeof(double));
    float *branch = scratch, *direct = scratch + 3 * width * L;
    for (int c = 0; c < C; c += L) {
        V taps[9], turned[9], mix[8];
        load_rows(of.taps + c, C, taps);
        load_rows(of.turned + c, C, turned);
        load_rows(of.mix + c, C, mix);
        for (int64_t i = 0; i <= height; i++) {
            if (i < height) {
                V found[9] = {};
                float *dy = branch + i % 3 * width * L, *straight = direct + i % 2 * width * L;
                windows<V>(row_of(x + c, i - 1, height, width, stride),
                           row_of(x + c, i, height, width, stride),
                           row_of(x + c, i + 1, height, width, stride), width,
                           [&](int64_t column, const V(&window)[9]) {
                               V x = window[4], y = weighted(window, taps);
                               V gradient = load<V>(g + (i * width + column) * g_stride + c);
                               V of_branch = mix[0] * gradient + mix[1] * y + mix[2] * x + mix[3];
                               store(dy + column * L, of_branch);
                               store(straight + column * L,
                                     mix[4] * gradient + mix[5] * y + mix[6] * x + mix[7]);
                               UNROLLED
                                   for (int n = 0; n < 9; n++) found[n] += of_branch * window[n];
                           });
                UNROLLED
                    for (int n = 0; n < 9; n++) add(totals + n * C + c, found[n]);
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

// Layer normalisation

template <int C> struct Normal {
    typedef Of<C> V;
    static constexpr int L = lanes<V>, N = C / L;
    V normal[N];  // (x - mean) / deviation
    float inverse;

    explicit Normal(const float* x) {
        V total{}, squares{};
        UNROLLED
            for (int n = 0; n < N; n++) normal[n] = load<V>(x + n * L), total += normal[n];
        float mean = sum(total) / C;
        UNROLLED
            for (int n = 0; n < N; n++) normal[n] -= mean, squares += normal[n] * normal[n];
        inverse = 1 / __builtin_sqrtf(sum(squares) / C + EPS);
        UNROLLED
            for (int n = 0; n < N; n++) normal[n] *= inverse;
    }

    // The gradient of x from that of the normalised, times the scale.
    void back(V (&g)[N]) const {
        V total{}, along{};
        UNROLLED
            for (int n = 0; n < N; n++) total += g[n], along += g[n] * normal[n];
        float mean = sum(total) / C, mean_along = sum(along) / C;
        UNROLLED
            for (int n = 0; n < N; n++) g[n] = (g[n] - mean - normal[n] * mean_along) * inverse;
    }
};

template <int C, class T>
PASS normalise(int64_t pixels, const float* x, int64_t stride, const float* scale,
               const float* shift, T* y) {
    typedef Normal<C> Of;
    for (int64_t p = 0; p < pixels; p++) {
        Of of(x + p * stride);
        UNROLLED
            for (int n = 0; n < Of::N; n++)
                store(y + p * C + n * Of::L,
                      of.normal[n] * load<typename Of::V>(scale + n * Of::L) +
                          load<typename Of::V>(shift + n * Of::L));
    }
}

// dx += the gradient of `normalise`; that of scale and shift added to totals (2, C).
template <int C>
PASS normalise_back(int64_t pixels, const float* x, int64_t stride, const float* scale,
                    const float* g, float* dx, double* totals) {
    typedef Normal<C> Of;
    typedef typename Of::V V;
    V sums[2][Of::N] = {};
    for (int64_t p = 0; p < pixels; p++) {
        Of of(x + p * stride);
        V scaled[Of::N];
        UNROLLED
            for (int n = 0; n < Of::N; n++) {
                V gradient = load<V>(g + p * C + n * Of::L);
                sums[0][n] += gradient * of.normal[n], sums[1][n] += gradient;
                scaled[n] = gradient * load<V>(scale + n * Of::L);
            }
        of.back(scaled);
        UNROLLED
            for (int n = 0; n < Of::N; n++) add(dx + p * C + n * Of::L, scaled[n]);
    }
    UNROLLED
        for (int n = 0; n < Of::N; n++)
            add(totals + n * Of::L, sums[0][n]), add(totals + C + n * Of::L, sums[1][n]);
}

// The normalised x times SiLU(z).
template <int C, class T>
PASS gate(int64_t pixels, const float* x, const float* scale, const float* shift, const T* z,
          int64_t stride, T* y) {
    typedef Normal<C> Of;
    typedef typename Of::V V;
    for (int64_t p = 0; p < pixels; p++) {
        Of of(x + p * C);
        UNROLLED
            for (int n = 0; n < Of::N; n++) {
                V normal = of.normal[n] * load<V>(scale + n * Of::L) + load<V>(shift + n * Of::L);
                store(y + p * C + n * Of::L, normal * silu(load<V>(z + p * stride + n * Of::L)));
            }
    }
}

template <int C, class T>
PASS gate_back(int64_t pixels, const float* x, const float* scale, const float* shift, const T* z,
               T* dz, int64_t stride, const float* g, float* dx, double* totals) {
    typedef Normal<C> Of;
    typedef typename Of::V V;
    V sums[2][Of::N] = {};
    for (int64_t p = 0; p < pixels; p++) {
        Of of(x + p * C);
        V scaled[Of::N];
        UNROLLED
            for (int n = 0; n < Of::N; n++) {
                V gate = load<V>(z + p * stride + n * Of::L), open = sigmoid(gate),
                  value = gate * open;
                V gradient = load<V>(g + p * C + n * Of::L), by = load<V>(scale + n * Of::L);
                V normal = of.normal[n] * by + load<V>(shift + n * Of::L);
                store(dz + p * stride + n * Of::L,
                      normal * gradient * (open + value * (1.0f - open)));
                gradient *= value;
                sums[0][n] += gradient * of.normal[n], sums[1][n] += gradient;
                scaled[n] = gradient * by;
            }
        of.back(scaled);
        UNROLLED
            for (int n = 0; n < Of::N; n++) store(dx + p * C + n * Of::L, scaled[n]);
    }
    UNROLLED
        for (int n = 0; n < Of::N; n++)
            add(totals + n * Of::L, sums[0][n]), add(totals + C + n * Of::L, sums[1][n]);
}

// Pooled and scanned maps, of half the height and width

// Means of two by two of the first C channels of s (height, width, 2C).
template <int C> PASS pool(const float* s, int64_t height, int64_t width, float* pooled) {
    typedef Of<C> V;
    for (int64_t i = 0; i < height / 2; i++)
        for (int64_t j = 0; j < width / 2; j++)
            for (int c = 0; c < C; c += lanes<V>) {
                const float *at = s + (2 * i * width + 2 * j) * 2 * C + c,
                            *below = at + width * 2 * C;
                V four =
                    load<V>(at) + load<V>(at + 2 * C) + load<V>(below) + load<V>(below + 2 * C);
                store(pooled + (i * (width / 2) + j) * C + c, four * 0.25f);
            }
}

// The first C channels of merged: the scan's two slabs enlarged bilinearly + (s - pooled enlarged
// by repeating).
template <int C>
PASS merge(const float* scanned, const float* pooled, const float* s, int64_t height, int64_t width,
           float* merged) {
    typedef Of<C> V;
    int64_t rows = height / 2, columns = width / 2, slab = rows * columns * C;
    for (int64_t i = 0; i < height; i++) {
        int64_t near = i / 2,
                far = i % 2 ? (near + 1 < rows ? near + 1 : near) : (near ? near - 1 : 0);
        for (int c = 0; c < C; c += lanes<V>) {
            auto at = [&](int64_t j) {
                const float *a = scanned + (near * columns + j) * C + c,
                            *b = scanned + (far * columns + j) * C + c;
                return 0.75f * (load<V>(a) + load<V>(a + slab)) +
                       0.25f * (load<V>(b) + load<V>(b + slab));
            };
            V here = at(0), before = here;
            for (int64_t j = 0; j < columns; j++) {
                V after = j + 1 < columns ? at(j + 1) : here;
                V middle = 0.75f * here - load<V>(pooled + (near * columns + j) * C + c);
                int64_t place = (i * width + 2 * j) * 2 * C + c;
                store(merged + place, load<V>(s + place) + (middle + 0.25f * before));
                store(merged + place + 2 * C,
                      load<V>(s + place + 2 * C) + (middle + 0.25f * after));
                before = here, here = after;
            }
        }
    }
}

// The gradients of `merge` for the scan's result and the pooled map; that of s is g itself,
// (height, width, 2C).
template <int C>
PASS merge_back(const float* g, int64_t height, int64_t width, float* dscanned, float* dpooled) {
    typedef Of<C> V;
    for (int64_t i = 0; i < height / 2; i++) {
        const int64_t rows[4] = {i ? 2 * i - 1 : 0, 2 * i, 2 * i + 1,
                                 2 * i + 2 < height ? 2 * i + 2 : height - 1};
        for (int64_t j = 0; j < width / 2; j++) {
            int64_t before = j ? 2 * j - 1 : 0, after = 2 * j + 2 < width ? 2 * j + 2 : width - 1;
            for (int c = 0; c < C; c += lanes<V>) {
                V along[4], inner[4];
                UNROLLED
                    for (int r = 0; r < 4; r++) {
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

// Folds: what the sums over the batch make of the normalisations

static void track(void* const* buffers, int64_t c, double mean, double variance, int64_t count,
                  double momentum) {
    float *of_mean = (float*)buffers[0] + c, *of_variance = (float*)buffers[1] + c;
    variance *= (double)count / (count > 1 ? count - 1 : 1);
    *of_mean += (float)(momentum * (mean - *of_mean));
    *of_variance += (float)(momentum * (variance - *of_variance));
    if (c == 0) ++*(int64_t*)buffers[2];
}

static double over_samples(const double* sums, int64_t batch, int64_t stride) {
    double total = 0;
    for (int64_t b = 0; b < batch; b++) total += sums[b * stride];
    return total;
}

PASS fold_conv(const Branches& of, const Training* a, const float* const* parameters,
               void* const* buffers) {
    int64_t channels = of.channels, count = a->batch * a->height * a->width;
    auto above = [](double x) { return x > 0 ? x : 0; };
    for (int64_t c = 0; c < channels; c++) {
        double mean[5];
        for (int n = 0; n < 5; n++)
            mean[n] = over_samples(of.moments + n * channels + c, a->batch, 5 * channels) / count;
        double mean_y = of.mean_y[c] = mean[0], mean_x = of.mean_x[c] = mean[2];
        double var_y = of.var_y[c] = above(mean[1] - mean_y * mean_y);
        double var_x = of.var_x[c] = above(mean[3] - mean_x * mean_x);
        double covariance = of.covariance[c] = mean[4] - mean_x * mean_y,
               k = of.k[c] = 1 + parameters[DIRECT][c];
        double inverse_y = of.inverse_y[c] = 1 / __builtin_sqrt(var_y + EPS);
        double a_ = of.a[c] = parameters[INNER][c] * inverse_y;
        double var_u = above(a_ * a_ * var_y + k * k * var_x + 2 * a_ * k * covariance);
        double inverse_u = of.inverse_u[c] = 1 / __builtin_sqrt(var_u + EPS);
        double gain = of.gain[c] = parameters[OUTER][c] * inverse_u;
        double mean_u = parameters[INNER_SHIFT][c] + k * mean_x + parameters[DIRECT_BIAS][c];
        track(buffers, c, mean_y, var_y, count, a->momentum);
        track(buffers + 3, c, mean_u, var_u, count, a->momentum);
        double constant = parameters[OUTER_SHIFT][c] - gain * (a_ * mean_y + k * mean_x);
        of.before[c] = gain * a_, of.before[channels + c] = gain * k,
        of.before[2 * channels + c] = constant;
        of.bias[c] = constant;
        for (int n = 0; n < 9; n++)
            of.folded[n * channels + c] =
                of.taps[n * channels + c] * gain * a_ + (n == 4 ? gain * k : 0);
    }
}

// The gradients of all parameters but the 3x3, and what `branches_back` takes.
PASS fold_conv_back(const Branches& of, const Training* a, float* const* gradients) {
    int64_t channels = of.channels;
    double count = a->batch * a->height * a->width;
    for (int64_t c = 0; c < channels; c++) {
        double g = over_samples(of.sums + c, a->batch, 3 * channels);
        double gy = over_samples(of.sums + channels + c, a->batch, 3 * channels) - of.mean_y[c] * g;
        double gx =
            over_samples(of.sums + 2 * channels + c, a->batch, 3 * channels) - of.mean_x[c] * g;
        double a_ = of.a[c], k = of.k[c], gain = of.gain[c];
        double gz = of.inverse_u[c] * (a_ * gy + k * gx);  // z: u normalised
        // du = gain (g - mean(g) - z mean(g z))
        double pull = gain * of.inverse_u[c] * gz / count;
        double duy = gain * gy - pull * count * (a_ * of.var_y[c] + k * of.covariance[c]);
        double dux = gain * gx - pull * count * (a_ * of.covariance[c] + k * of.var_x[c]);
        double constant = -gain * g / count + pull * (a_ * of.mean_y[c] + k * of.mean_x[c]);
        double du[4] = {gain, -pull * a_, -pull * k, constant};  // of g, y, x and 1
        double back = a_ * of.inverse_y[c] * of.inverse_y[c] * duy / count;
        for (int n = 0; n < 4; n++) {
            double own = n == 1 ? -back : n == 3 ? back * of.mean_y[c] : 0;
            of.mix[n * channels + c] = a_ * du[n] + own;
            of.mix[(4 + n) * channels + c] = k * du[n];
        }
        gradients[INNER][c] = of.inverse_y[c] * duy, gradients[DIRECT][c] = dux;
        gradients[OUTER][c] = gz, gradients[OUTER_SHIFT][c] = g;
        gradients[INNER_SHIFT][c] = gradients[DIRECT_BIAS][c] =
            0;  // the outer normalisation takes both out
    }
}

template <class T> static void fold_out(const Rmb<T>& r, const Training* a) {
    int64_t channels = r.channels, count = a->batch * a->height * a->width;
    for (int64_t c = 0; c < channels; c++) {
        double mean = over_samples(r.out_moments + c, a->batch, 2 * channels) / count,
               w = r.parameters[DW1X1][c];
        double square = over_samples(r.out_moments + channels + c, a->batch, 2 * channels) / count;
        double variance = w * w * (square > mean * mean ? square - mean * mean : 0);
        r.mean[c] = mean, r.inverse[c] = 1 / __builtin_sqrt(variance + EPS);
        track(r.buffers + BN_BN, c, w * mean, variance, count, a->momentum);
        double slope = r.parameters[BN][c] * w * r.inverse[c];
        r.affine[c] = slope, r.affine[channels + c] = r.parameters[BN_SHIFT][c] - slope * mean;
    }
}

template <class T> static void fold_out_back(const Rmb<T>& r, const Training* a) {
    int64_t channels = r.channels;
    double count = a->batch * a->height * a->width;
    for (int64_t c = 0; c < channels; c++) {
        double g = over_samples(r.out_sums + c, a->batch, 2 * channels), w = r.parameters[DW1X1][c];
        double gr = over_samples(r.out_sums + channels + c, a->batch, 2 * channels) - r.mean[c] * g;
        double inverse = r.inverse[c], gamma = r.parameters[BN][c], slope = gamma * w * inverse;
        double of_r = -slope * w * inverse * w * inverse * gr / count;
        r.mix[c] = slope, r.mix[channels + c] = of_r;
        r.mix[2 * channels + c] = -slope * g / count - of_r * r.mean[c];
        // The normalisation takes the size of w out again, all but what EPS leaves of it.
        r.gradients[DW1X1][c] = gamma * inverse * inverse * inverse * EPS * gr;
        r.gradients[BN][c] = w * inverse * gr, r.gradients[BN_SHIFT][c] = g;
    }
}

// Sums over the samples: values (batch, count).
template <class N> static void reduced(const N* values, int64_t batch, int64_t count, float* sum) {
    for (int64_t n = 0; n < count; n++) sum[n] = values[n];
    if constexpr (sizeof(N) == 8) {
        for (int64_t n = 0; n < count; n++) sum[n] = over_samples(values + n, batch, count);
    } else {
        for (int64_t b = 1; b < batch; b++)
            for (int64_t n = 0; n < count; n++) sum[n] += values[b * count + n];
    }
}

static void reduced_taps(const double* taps, int64_t batch, int64_t size, int64_t channels,
                         float* sum) {
    for (int64_t n = 0; n < size; n++)
        for (int64_t c = 0; c < channels; c++)
            sum[c * size + n] = over_samples(taps + n * channels + c, batch, size * channels);
}

template <class T> PASS fold_parameters(const Rmb<T>& r, const RmbBack<T>& back,
                                        const Training* a) {
    int64_t batch = a->batch, c = r.channels, rows = STATE + 2 + r.rank;
    float* const* to = r.gradients;
    for (int n = 0; n < 2; n++) {
        for (int64_t i = 0; i < c; i++)
            to[NORM + n][i] = over_samples(back.dnorm + n * c + i, batch, 2 * c);
        for (int64_t i = 0; i < 2 * c; i++)
            to[OUT_NORM + n][i] = over_samples(back.dout_norm + n * 2 * c + i, batch, 4 * c);
    }
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

// Stages

template <class F> static inline void in_chunks(int64_t pixels, F f) {
    for (int64_t p = 0; p < pixels; p += CHUNK) f(p, pixels - p < CHUNK ? pixels - p : CHUNK);
}

template <class N> static auto into(N* at, int64_t stride) {
    return [=](auto sum, int64_t row, int64_t column) { store(at + row * stride + column, sum); };
}

// The weights as the passes read them.
template <class T> PASS prepare(const Block<T>& block) {
    for (const Rmb<T>& r : block.rmbs) {
        int64_t c = r.channels;
        packed<T>(r.parameters[IN_PROJ], c, 4 * c, 1, c, 4 * c, r.in_proj);
        packed<T>(r.parameters[IN_PROJ], 4 * c, c, c, 1, c, r.in_proj_back);
        packed<T>(r.parameters[OUT_PROJ], 2 * c, c, 1, 2 * c, c, r.out_proj);
        packed<T>(r.parameters[OUT_PROJ], c, 2 * c, 2 * c, 1, 2 * c, r.out_proj_back);
        packed<float>(r.parameters[X_PROJ], c, r.rows, 1, c, r.padded, r.x_proj);
        for (int64_t n = 0; n < DIRECTIONS * c * STATE; n += LANES) {
            vec log = load(r.parameters[A_LOG] + n),
                z = exp2_negative((log > 0.0f ? -log : log) * LOG2_E);
            store(r.A + n, log > 0.0f ? -1.0f / z : -z);
        }
        const Branches* convs[2] = {&r.conv, &r.high_conv};
        for (int which = 0; which < 2; which++)
            for (int64_t i = 0; i < convs[which]->channels; i++)
                for (int n = 0; n < 9; n++) {
                    float tap = r.parameters[which ? HIGH_CONV : CONV][i * 9 + n];
                    convs[which]->taps[n * convs[which]->channels + i] = tap;
                    convs[which]->turned[(8 - n) * convs[which]->channels + i] = tap;
                }
    }
    const Feed<T>& f = block.feed;
    packed<T>(f.parameters[FC1], WIDTH, f.hidden, 1, WIDTH, f.hidden, f.fc1);
    packed<T>(f.parameters[FC1], f.hidden, WIDTH, WIDTH, 1, WIDTH, f.fc1_back);
    packed<T>(f.parameters[FC2], f.hidden, WIDTH, 1, f.hidden, WIDTH, f.fc2);
    packed<T>(f.parameters[FC2], WIDTH, f.hidden, f.hidden, 1, f.hidden, f.fc2_back);
    for (int64_t c = 0; c < f.hidden; c++)
        for (int n = 0; n < 25; n++)
            f.taps[n * f.hidden + c] = f.turned[(24 - n) * f.hidden + c] =
                f.parameters[DW5X5][c * 25 + n];
}

// The end of an RMB on a chunk of pixels, BN(w (v + out)), and what follows it up to the next map,
// which has twice the channels: in the first a skip, in the last one around all four; then the
// channels of t that come next.
template <class T, int C>
PASS finish(const Rmb<T>& r, const float* t, int64_t first, int64_t pixels, float* next) {
    typedef Of<C> V;
    constexpr int STRIDE = C < WIDTH ? 2 * C : C, N = C / lanes<V>;
    V slope[N], shift[N];
    load_rows(r.affine, lanes<V>, slope);
    load_rows(r.affine + C, lanes<V>, shift);
    for (int64_t p = first; p < first + pixels; p++)
        UNROLLED
            for (int n = 0; n < N; n++) {
                int c = n * lanes<V>;
                V value =
                    (load<V>(r.v + p * r.v_stride + c) + load<V>(r.out + p * C + c)) * slope[n] +
                    shift[n];
                if (C == 8 || C == WIDTH) value += load<V>(t + p * WIDTH + c);
                store(next + p * STRIDE + c, value);
                if (C < WIDTH) store(next + p * STRIDE + C + c, load<V>(t + p * WIDTH + C + c));
            }
}

// v from the RMB before, n = LN(v), xz = in_proj(n), and the moments that the RepConv of x has to
// know.
template <class T, int C> PASS enter(const Block<T>& block, int index, int64_t b) {
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += b * block.pixels;
        if constexpr (C > 8) finish<T, C / 2>(block.rmbs[index - 1], a->t, p, pixels, r.own_v);
        normalise<C>(pixels, r.v + p * r.v_stride, r.v_stride, r.parameters[NORM],
                     r.parameters[NORM_SHIFT], r.n + p * C);
        product(pixels, r.n + p * C, C, r.in_proj, C, 4 * C, into(r.xz + p * 4 * C, 4 * C));
    });
    moments<2 * C>(r.conv, b, r.xz + b * block.pixels * 4 * C, 4 * C, a->height, a->width);
}

// s = SiLU(conv(x)), its low half pooled, projected and scanned; the moments that the high half's
// RepConv has to know.
template <class T, int C> PASS middle(const Block<T>& block, int index, int64_t b, float* scratch) {
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    float *s = r.s + b * block.pixels * 2 * C, *pooled = r.pooled + b * block.length * C;
    convolve<2 * C, true>(r.conv, r.xz + b * block.pixels * 4 * C, 4 * C, a->height, a->width, s,
                          2 * C);
    moments<C>(r.high_conv, b, s + C, 2 * C, a->height, a->width);
    pool<C>(s, a->height, a->width, pooled);
    product(block.length, pooled, C, r.x_proj, C, r.padded,
            into(r.projected + b * block.length * r.padded, r.padded));
    Scan scan = scan_of(a, r);
    int64_t units = SLABS * (C / lanes<Of<C>>);
    JOINED(scan_forward, SCAN_LEVEL)(b * units, (b + 1) * units, &scan, scratch);
}

// y = LN(merged low half, conv(high half)), out = out_proj(y SiLU(z)), and the moments of v + out.
template <class T, int C> PASS leave(const Block<T>& block, int index, int64_t b) {
    typedef Of<C> V;
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    int64_t of_sample = b * block.pixels;
    float *s = r.s + of_sample * 2 * C, *merged = r.merged + of_sample * 2 * C;
    merge<C>(r.scanned + b * SLABS * block.length * C, r.pooled + b * block.length * C, s,
             a->height, a->width, merged);
    convolve<C, false>(r.high_conv, s + C, 2 * C, a->height, a->width, merged + C, 2 * C);
    double* totals = r.out_moments + b * 2 * C;
    memset(totals, 0, 2 * C * sizeof(double));
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += of_sample;
        gate<2 * C>(pixels, r.merged + p * 2 * C, r.parameters[OUT_NORM],
                    r.parameters[OUT_NORM_SHIFT], r.xz + p * 4 * C + 2 * C, 4 * C,
                    r.gated + p * 2 * C);
        product(pixels, r.gated + p * 2 * C, 2 * C, r.out_proj, 2 * C, C, into(r.out + p * C, C));
        for (int c = 0; c < C; c += lanes<V>) {
            V sum{}, squares{};
            for (int64_t q = p; q < p + pixels; q++) {
                V value = load<V>(r.v + q * r.v_stride + c) + load<V>(r.out + q * C + c);
                sum += value, squares += value * value;
            }
            add(totals + c, sum), add(totals + C + c, squares);
        }
    });
}

// Of a sample: sums of g and g r over its pixels, g the gradient of the RMB's result.
template <class T, int C> PASS out_sums(const Rmb<T>& r, int64_t b, int64_t pixels, const float* g,
                                        int64_t stride) {
    typedef Of<C> V;
    double* totals = r.out_sums + b * 2 * C;
    memset(totals, 0, 2 * C * sizeof(double));
    in_chunks(pixels, [&](int64_t p, int64_t count) {
        p += b * pixels;
        for (int c = 0; c < C; c += lanes<V>) {
            V sum{}, along{};
            for (int64_t q = p; q < p + count; q++) {
                V gradient = load<V>(g + q * stride + c);
                sum += gradient;
                along +=
                    gradient * (load<V>(r.v + q * r.v_stride + c) + load<V>(r.out + q * C + c));
            }
            add(totals + c, sum), add(totals + C + c, along);
        }
    });
}

// The gradient of an RMB's result, and its pixels' stride: the next one's, or what the last one
// has.
template <class T> static const float* gradient_of(const Block<T>& block, int index,
                                                   int64_t& stride) {
    stride = index == RMBS - 1 ? WIDTH : block.rmbs[index + 1].channels;
    return index == RMBS - 1 ? block.of->dt : block.backs[index + 1].dv;
}

// Back through BN, out_proj, the gate, the merging and the scan.
template <class T, int C> PASS leave_back(const Block<T>& block, int index, int64_t b,
                                          float* scratch) {
    typedef Of<C> V;
    const Training* a = block.of;
    const Rmb<T>& r = block.rmbs[index];
    const RmbBack<T>& back = block.backs[index];
    int64_t stride, of_sample = b * block.pixels, of_coarse = b * block.length;
    const float* g = gradient_of(block, index, stride);
    T* dout = (T*)scratch;
    float *dgated = scratch + CHUNK * C, *rest = dgated + CHUNK * 2 * C;
    float* dout_proj = back.dout_proj + b * 2 * C * C;
    double* totals = back.dout_norm + b * 4 * C;
    memset(dout_proj, 0, 2 * C * C * sizeof(float));
    memset(totals, 0, 4 * C * sizeof(double));
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += of_sample;
        for (int c = 0; c < C; c += lanes<V>) {
            V mix[3];
            load_rows(r.mix + c, C, mix);
            for (int64_t q = 0; q < pixels; q++) {
                V r_ = load<V>(r.v + (p + q) * r.v_stride + c) + load<V>(r.out + (p + q) * C + c);
                V value = mix[0] * load<V>(g + (p + q) * stride + c) + mix[1] * r_ + mix[2];
                store(back.dv + (p + q) * C + c, value);
                store(dout + q * C + c, value);
            }
        }
        product(pixels, dout, C, r.out_proj_back, C, 2 * C, into(dgated, 2 * C));
        weight_gradient(pixels, dout, C, C, r.gated + p * 2 * C, 2 * C, 2 * C, dout_proj, rest);
        gate_back<2 * C>(pixels, r.merged + p * 2 * C, r.parameters[OUT_NORM],
                         r.parameters[OUT_NORM_SHIFT], r.xz + p * 4 * C + 2 * C,
                         back.dxz + p * 4 * C + 2 * C, 4 * C, dgated, back.ds + p * 2 * C, totals);
    });
    float *ds = back.ds + of_sample * 2 * C, *dpooled = back.dpooled + of_coarse * C;
    merge_back<C>(ds, a->height, a->width, back.dscanned + of_coarse * C, dpooled);
    gradient_sums<C, false>(r.high_conv, b, r.s + of_sample * 2 * C + C, 2 * C, a->height, a->width,
                            ds + C, 2 * C, nullptr);

    float *du = back.du + SLABS * of_coarse * C, *drows = back.drows + of_coarse * r.padded;
    memset(du, 0, SLABS * block.length * C * sizeof(float));
    memset(drows, 0, block.length * r.padded * sizeof(float));
    memset(back.dconstants + b * back.constants, 0, back.constants * sizeof(float));
    ScanGradients scan = {};
    scan.scan = scan_of(a, r);
    scan.dy = back.dscanned, scan.dy_batch = block.length * C;
    scan.du = back.du, scan.drows = back.drows, scan.dconstants = back.dconstants;
    scan.drows_batch = scan.scan.rows_batch, scan.drows_group = scan.scan.rows_group,
    scan.drows_pixel = r.padded;
    JOINED(scan_backward, SCAN_LEVEL)(b * SLABS, (b + 1) * SLABS, &scan, scratch);
    product(block.length, drows, r.padded, r.parameters[X_PROJ], r.rows, C,
            [=, slab = block.length * C](auto sum, int64_t row, int64_t column) {
                const float* at = du + row * C + column;
                add(dpooled + row * C + column,
                    sum + (load<decltype(sum)>(at) + load<decltype(sum)>(at + slab)));
            });
    float* dx_proj = back.dx_proj + b * r.rows * C;
    memset(dx_proj, 0, r.rows * C * sizeof(float));
    weight_gradient<float>(block.length, drows, r.padded, r.rows, r.pooled + of_coarse * C, C, C,
                           dx_proj, nullptr);
}

// Back through the high half's RepConv and the SiLU.
template <class T, int C> PASS middle_back(const Block<T>& block, int index, int64_t b,
                                           float* scratch) {
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

// Back through the first RepConv, in_proj and LN; then the sums that the RMB before has to know.
template <class T, int C> PASS enter_back(const Block<T>& block, int index, int64_t b,
                                          float* scratch) {
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
    memset(din_proj, 0, 4 * C * C * sizeof(float));
    memset(totals, 0, 2 * C * sizeof(double));
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += of_sample;
        product(pixels, back.dxz + p * 4 * C, 4 * C, r.in_proj_back, 4 * C, C, into(dn, C));
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

// f(margin of N pixels from a row, ...) for pieces of a row, four pixels at once.
template <class F> static inline void pieces(int64_t width, F f) {
    int64_t column = 0;
    for (; column + 4 <= width; column += 4) f(Constant<4>{}, column);
    for (; column < width; column++) f(Constant<1>{}, column);
}

// Rings of five rows of vectors with a margin of two pixels, zeros beyond the map: what a 5x5
// stencil walks on.
struct Ring {
    float* at;
    int64_t height, width;
    Ring(float*& scratch, int64_t height, int64_t width)
        : at(scratch), height(height), width(width) {
        memset(at, 0, 6 * (width + 4) * LANES * sizeof(float));
        scratch += 6 * (width + 4) * LANES;
    }
    const float* row(int64_t i) const {  // from its margin on
        return at + (i < 0 || i >= height ? 5 : i % 5) * (width + 4) * LANES;
    }
    float* inner(int64_t i) const { return at + (i % 5 * (width + 4) + 2) * LANES; }
};

// N pixels of row i from a column on: start + the 5x5 products.
template <int N>
__attribute__((always_inline)) static inline void stencil5(const Ring& ring, int64_t i,
                                                           int64_t column, const float* taps,
                                                           int64_t stride, vec (&sums)[N]) {
    UNROLLED
        for (int r = 0; r < 5; r++) {
            const float* row = ring.row(i + r - 2) + column * LANES;
            vec values[N + 4];
            UNROLLED
                for (int n = 0; n < N + 4; n++) values[n] = load(row + n * LANES);
            UNROLLED
                for (int tap = 0; tap < 5; tap++) {
                    vec weight = load(taps + (5 * r + tap) * stride);
                    UNROLLED
                        for (int n = 0; n < N; n++) sums[n] += values[n + tap] * weight;
                }
        }
}

// h + GELU(c), c the 5x5 convolution of h = GELU(x + bias); a sample.
template <class T> PASS feed(const Feed<T>& f, int64_t first, int64_t height, int64_t width,
                             float* scratch) {
    int64_t hidden = f.hidden;
    Ring h(scratch, height, width);
    for (int64_t c = 0; c < hidden; c += LANES) {
        const T* x = f.x + first * hidden + c;
        T *convolved = f.convolved + first * hidden + c, *result = f.h + first * hidden + c;
        vec before = load(f.parameters[FC1_BIAS] + c), bias = load(f.parameters[DW5X5_BIAS] + c),
            bell;
        for (int64_t i = 0; i < height + 2; i++) {
            for (int64_t j = 0; i < height && j < width; j++) {
                vec value = load(x + (i * width + j) * hidden) + before;
                store(h.inner(i) + j * LANES, value * normal(value, bell));
            }
            int64_t k = i - 2;
            if (k < 0) continue;
            pieces(width, [&](auto several, int64_t column) {
                constexpr int N = decltype(several)::value;
                vec sums[N];
                UNROLLED
                    for (int n = 0; n < N; n++) sums[n] = bias;
                stencil5(h, k, column, f.taps + c, hidden, sums);
                UNROLLED
                    for (int n = 0; n < N; n++) {
                        int64_t place = (k * width + column + n) * hidden;
                        store(convolved + place, sums[n]);
                        store(result + place, sums[n] * normal(sums[n], bell) +
                                                  load(h.inner(k) + (column + n) * LANES));
                    }
            });
        }
    }
}

// The gradients of `feed`; dx holds that of its result first.
template <class T>
PASS feed_back(const Feed<T>& f, const FeedBack<T>& back, int64_t b, int64_t height, int64_t width,
               float* scratch) {
    int64_t hidden = f.hidden, first = b * height * width;
    Ring h(scratch, height, width), dc(scratch, height, width), slopes(scratch, height, width);
    double *dtaps = back.dtaps + b * 25 * hidden, *biases = back.biases + b * 2 * hidden;
    memset(dtaps, 0, 25 * hidden * sizeof(double));
    memset(biases, 0, 2 * hidden * sizeof(double));
    for (int64_t c = 0; c < hidden; c += LANES) {
        const T *x = f.x + first * hidden + c, *convolved = f.convolved + first * hidden + c;
        T* dx = back.dx + first * hidden + c;
        vec before = load(f.parameters[FC1_BIAS] + c);
        for (int64_t i = 0; i < height + 2; i++) {
            vec of_bias{}, of_before{};
            for (int64_t j = 0; i < height && j < width; j++) {
                int64_t place = (i * width + j) * hidden;
                vec slope, slope5;
                store(h.inner(i) + j * LANES, gelu(load(x + place) + before, slope));
                store(slopes.inner(i) + j * LANES, slope);
                gelu(load(convolved + place), slope5);
                slope5 *= load(dx + place);
                store(dc.inner(i) + j * LANES, slope5);
                of_bias += slope5;
            }
            int64_t k = i - 2;
            if (k >= 0) {
                UNROLLED
                    for (int r = 0; r < 5; r++) {
                        const float *row = h.row(k + r - 2), *g = dc.inner(k);
                        vec found[5] = {};
                        pieces(width, [&](auto several, int64_t column) {
                            constexpr int N = decltype(several)::value;
                            vec values[N + 4];
                            UNROLLED
                                for (int n = 0; n < N + 4; n++)
                                    values[n] = load(row + (column + n) * LANES);
                            UNROLLED
                                for (int n = 0; n < N; n++) {
                                    vec gradient = load(g + (column + n) * LANES);
                                    UNROLLED
                                        for (int tap = 0; tap < 5; tap++)
                                            found[tap] += gradient * values[n + tap];
                                }
                        });
                        UNROLLED
                            for (int tap = 0; tap < 5; tap++)
                                add(dtaps + (5 * r + tap) * hidden + c, found[tap]);
                    }
                pieces(width, [&](auto several, int64_t column) {
                    constexpr int N = decltype(several)::value;
                    vec sums[N];
                    UNROLLED
                        for (int n = 0; n < N; n++)
                            sums[n] = load(dx + (k * width + column + n) * hidden);
                    stencil5(dc, k, column, f.turned + c, hidden, sums);
                    UNROLLED
                        for (int n = 0; n < N; n++) {
                            vec value = sums[n] * load(slopes.inner(k) + (column + n) * LANES);
                            store(dx + (k * width + column + n) * hidden, value);
                            of_before += value;
                        }
                });
            }
            add(biases + c, of_bias), add(biases + hidden + c, of_before);
        }
    }
}

// a from the last RMB, and the result a + fc2(feed(fc1(LN(a)))).
template <class T> PASS feed_forward(const Block<T>& block, int64_t b, float* scratch) {
    const Training* of = block.of;
    const Feed<T>& f = block.feed;
    int64_t hidden = f.hidden, first = b * block.pixels;
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += first;
        finish<T, WIDTH>(block.rmbs[RMBS - 1], of->t, p, pixels, f.a);
        normalise<WIDTH>(pixels, f.a + p * WIDTH, WIDTH, f.parameters[FFN_NORM],
                         f.parameters[FFN_NORM_SHIFT], f.n + p * WIDTH);
        product(pixels, f.n + p * WIDTH, WIDTH, f.fc1, WIDTH, hidden,
                into(f.x + p * hidden, hidden));
    });
    feed(f, first, of->height, of->width, scratch);
    product(block.pixels, f.h + first * hidden, hidden, f.fc2, hidden, WIDTH,
            [=, a = f.a + first * WIDTH, result = of->result + first * WIDTH,
             bias = f.parameters[FC2_BIAS]](auto sum, int64_t row, int64_t column) {
                typedef decltype(sum) V;
                store(result + row * WIDTH + column,
                      sum + load<V>(bias + column) + load<V>(a + row * WIDTH + column));
            });
}

template <class T> PASS feed_forward_back(const Block<T>& block, int64_t b, float* scratch) {
    const Training* of = block.of;
    const Feed<T>& f = block.feed;
    const FeedBack<T>& back = block.feed_back;
    int64_t hidden = f.hidden, first = b * block.pixels;
    T* working = (T*)scratch;
    float *dn = scratch, *rest = scratch + CHUNK * WIDTH;
    float *dfc1 = back.dfc1 + b * hidden * WIDTH, *dfc2 = back.dfc2 + b * hidden * WIDTH;
    double *dnorm = back.dnorm + b * 2 * WIDTH, *dbias2 = back.dbias2 + b * WIDTH;
    memset(dfc1, 0, hidden * WIDTH * sizeof(float));
    memset(dfc2, 0, hidden * WIDTH * sizeof(float));
    memset(dnorm, 0, 2 * WIDTH * sizeof(double));
    memset(dbias2, 0, WIDTH * sizeof(double));
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
        product(pixels, working, WIDTH, f.fc2_back, WIDTH, hidden,
                into(back.dx + p * hidden, hidden));
        weight_gradient(pixels, working, WIDTH, WIDTH, f.h + p * hidden, hidden, hidden, dfc2,
                        rest);
    });
    feed_back(f, back, b, of->height, of->width, scratch);
    in_chunks(block.pixels, [&](int64_t p, int64_t pixels) {
        p += first;
        product(pixels, back.dx + p * hidden, hidden, f.fc1_back, hidden, WIDTH, into(dn, WIDTH));
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
    for (int n = 0; n < 2; n++) {
        for (int64_t c = 0; c < WIDTH; c++)
            to[FFN_NORM + n][c] = over_samples(back.dnorm + n * WIDTH + c, batch, 2 * WIDTH);
        for (int64_t c = 0; c < hidden; c++)
            to[n ? FC1_BIAS : DW5X5_BIAS][c] =
                over_samples(back.biases + n * hidden + c, batch, 2 * hidden);
    }
    reduced(back.dbias2, batch, WIDTH, to[FC2_BIAS]);
    reduced(back.dfc1, batch, hidden * WIDTH, to[FC1]);
    reduced(back.dfc2, batch, hidden * WIDTH, to[FC2]);
    reduced_taps(back.dtaps, batch, 25, hidden, to[DW5X5]);
}

// f(C) with the channels of an RMB as a constant.
template <class F> static inline void by_width(int64_t index, F f) {
    if (index == 0) f(Constant<8>{});
    if (index == 1) f(Constant<16>{});
    if (index == 2) f(Constant<32>{});
    if (index == 3) f(Constant<64>{});
}

// The stages, in the order of training_cpu.STAGES. Folds and the first two are one unit.
enum Stage : int64_t {
    SIZES,
    PREPARE,
    ENTER,
    ENTER_FOLD,
    MIDDLE,
    MIDDLE_FOLD,
    LEAVE,
    LEAVE_FOLD,
    FEED,
    FEED_BACK,
    FEED_BACK_FOLD,
    LEAVE_BACK,
    LEAVE_BACK_FOLD,
    MIDDLE_BACK,
    MIDDLE_BACK_FOLD,
    ENTER_BACK,
    ENTER_BACK_FOLD
};

template <class T> static void run(int64_t first, int64_t last, const Training* a, float* scratch) {
    Block<T> block(a);
    const Rmb<T>& r = block.rmbs[a->rmb];
    auto of_rmb = [&](auto stage) {
        for (int64_t b = first; b < last; b++) by_width(a->rmb, [&](auto c) { stage(c, b); });
    };
    switch (a->stage) {
        case SIZES:
            a->sizes[0] = block.kept_size, a->sizes[1] = block.passing_size;
            a->sizes[2] = CHUNK * (8 * WIDTH + 2 * a->hidden) + 18 * (a->width + 4) * LANES +
                          (STATE * 3 * SEGMENT) * LANES;
            break;
        case PREPARE: prepare(block); break;
        case ENTER: of_rmb([&](auto c, int64_t b) { enter<T, c.value>(block, a->rmb, b); }); break;
        case ENTER_FOLD: fold_conv(r.conv, a, r.parameters + CONV, r.buffers + CONV_BN); break;
        case MIDDLE:
            of_rmb([&](auto c, int64_t b) { middle<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case MIDDLE_FOLD:
            fold_conv(r.high_conv, a, r.parameters + HIGH_CONV, r.buffers + HIGH_CONV_BN);
            break;
        case LEAVE: of_rmb([&](auto c, int64_t b) { leave<T, c.value>(block, a->rmb, b); }); break;
        case LEAVE_FOLD: fold_out(r, a); break;
        case FEED:
            for (int64_t b = first; b < last; b++) feed_forward(block, b, scratch);
            break;
        case FEED_BACK:
            for (int64_t b = first; b < last; b++) feed_forward_back(block, b, scratch);
            break;
        case FEED_BACK_FOLD: fold_feed(block), fold_out_back(r, a); break;
        case LEAVE_BACK:
            of_rmb([&](auto c, int64_t b) { leave_back<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case LEAVE_BACK_FOLD: fold_conv_back(r.high_conv, a, r.gradients + HIGH_CONV); break;
        case MIDDLE_BACK:
            of_rmb([&](auto c, int64_t b) { middle_back<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case MIDDLE_BACK_FOLD: fold_conv_back(r.conv, a, r.gradients + CONV); break;
        case ENTER_BACK:
            of_rmb([&](auto c, int64_t b) { enter_back<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case ENTER_BACK_FOLD:
            fold_parameters(r, block.backs[a->rmb], a);
            if (a->rmb) fold_out_back(block.rmbs[a->rmb - 1], a);
    }
}

}  // namespace

KERNEL(training_float32, Training) { run<float>(first, last, a, scratch); }
KERNEL(training_bfloat16, Training) { run<bf16>(first, last, a, scratch); }
