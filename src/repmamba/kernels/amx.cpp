// The passes of inference with products of bfloat16 by AMX. Its instruction, on Intel's server
// processors, multiplies tiles: 16 rows of 32 factors by 32 rows of 16 weights, in 16 cycles. So
// the cost of a product is that of rounding the factors and reading the sums. A 3x3 convolution is
// the plain one: sums over nine pixels cost less than Winograd's transforms.
#include "pairs.h"
#include "passes.h"

namespace {

constexpr int TILE = 16;  // rows, and numbers of 4 bytes in one
// Rows and columns that are computed at once, in four tiles of sums.
constexpr int BLOCK = 2 * TILE;
// Pixels after a row that its last block may read, and does not use.
constexpr int64_t BEHIND = BLOCK - 1;

// All eight tile registers, for the lifetime of this object. Other users of them in the same thread
// configure their own.
struct Registers {
    Registers() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    ~Registers() { _tile_release(); }
};

static inline void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Add to sums 0 and 1, and below them 2 and 3, the products of 32 rows of factors, `apart` bytes
// from one to the next, with a panel of COLS tiles of weights.
template <int COLS>
static inline void add_products(const void* factors, int64_t apart, const float* panel,
                                int64_t inputs) {
    for (int64_t k = 0; k < inputs; k += 32) {
        const char* upper = (const char*)factors + 2 * k;
        const float* weights = panel + k / 2 * COLS * TILE;
        _tile_loadd(4, upper, apart);
        _tile_loadd(5, upper + TILE * apart, apart);
        _tile_loadd(6, weights, COLS * TILE * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (COLS == 2) {
            _tile_loadd(7, weights + TILE, COLS * TILE * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

// f(row, column, sum) for the sums of so many rows.
template <int COLS, class F> static inline void each_sum(int64_t rows, F f) {
    alignas(64) float sums[BLOCK][BLOCK];
    _tile_stored(0, sums[0], sizeof sums[0]);
    _tile_stored(2, sums[TILE], sizeof sums[0]);
    if constexpr (COLS == 2) {
        _tile_stored(1, sums[0] + TILE, sizeof sums[0]);
        _tile_stored(3, sums[TILE] + TILE, sizeof sums[0]);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < COLS; c++) f(r, c * TILE, load(sums[r] + c * TILE));
}

// f(tiles, column) for panels of two tiles, and of one that is left over.
template <class F> static inline void strips(int64_t outputs, F f) {
    int64_t column = 0;
    for (; column + BLOCK <= outputs; column += BLOCK) f(Constant<2>{}, column);
    if (column < outputs) f(Constant<1>{}, column);
}

struct Tiles {
    typedef bfloat16 Stored;

    template <class Result>
    static void product(int64_t count, const float* x, int64_t xs, const float* weight,
                        int64_t inputs, int64_t outputs, const Result& result) {
        if (!in_pairs(inputs)) return Exact::product(count, x, xs, weight, inputs, outputs, result);
        Registers registers;
        alignas(64) bfloat16 rounded[BLOCK * MOST_INPUTS];
        for (int64_t first = 0; first < count; first += BLOCK) {
            int64_t rows = less(BLOCK, count - first);
            round_rows(rows, x + first * xs, xs, inputs, rounded);
            strips(outputs, [&](auto columns, int64_t column) {
                constexpr int COLS = decltype(columns)::value;
                clear();
                add_products<COLS>(rounded, inputs * 2, weight + column * (inputs / 2), inputs);
                each_sum<COLS>(rows, [&](int64_t r, int64_t c, vec sum) {
                    result.finish(result.template start<vec>(first + r, column + c) + sum,
                                  first + r, column + c);
                });
            });
        }
    }
};

// What `convolution` computes, plainly: weight has nine matrices, by row and column of the window.
static int64_t convolution_by_tiles(int64_t first, int64_t last, const Convolution* a,
                                    float* memory) {
    const int64_t C = a->inputs, N = a->outputs, width = a->width, height = a->height;
    Scratch scratch{memory};
    Ring<bfloat16, 3, 1> ring(scratch, width, C, BEHIND);
    bfloat16* frame = scratch.take<bfloat16>(C);
    float *n = scratch.take(width * C), *rows = scratch.take(2 * width * N);
    if (!memory) return scratch.used;
    auto round = [](int64_t count, const float* from, bfloat16* to) {
        for (int64_t at = 0; at < count; at += LANES) store(to + at, load(from + at));
    };
    round(C, a->edge, frame);
    Registers registers;
    images(first, last, height, width, [&](int64_t image, int64_t start, int64_t stop) {
        ring.fill(frame);
        for (int64_t i = start - 1; i <= stop; i++) {
            const float* x = a->x + (image + i * width) * C;
            if (i < 0 || i >= height) {
                ring.fill(i, frame);
            } else {
                if (a->norm) normalised(C, width, x, C, a->norm_scale, a->norm_shift, n, C);
                round(width * C, a->norm ? n : x, ring.row(i));
            }
            int64_t row = i - 1, at = (image + row * width) * N;
            if (row < start) continue;
            float* result = a->result ? a->result + at : rows + row % 2 * width * N;
            for (int64_t pixel = 0; pixel < width; pixel += BLOCK)
                strips(N, [&](auto columns, int64_t column) {
                    constexpr int COLS = decltype(columns)::value;
                    clear();
                    for (int64_t tap = 0; tap < 9; tap++)
                        add_products<COLS>(ring.pad(row + tap / 3 - 1) + (pixel + tap % 3) * C,
                                           2 * C, a->weight + (tap * N + column) * (C / 2), C);
                    each_sum<COLS>(less(BLOCK, width - pixel), [&](int64_t r, int64_t c, vec sum) {
                        int64_t to = (pixel + r) * N + column + c;
                        vec value = sum + load(a->bias + column + c);
                        if (a->skip) value += load(a->skip + at + to);
                        store(result + to, value > 0.0f ? value : value * (float)a->slope);
                    });
                });
            if (!a->result && row % 2) shuffle(a, rows, image, row - 1);
        }
    });
    return scratch.used;
}

}  // namespace

PASS(front_amx, Front, front<Tiles>)
PASS(tail_amx, Tail, tail<Tiles>)
PASS(feed_forward_amx, FeedForward, feed_forward<Tiles>)
PASS(convolution_amx, Convolution, convolution_by_tiles)
