// The passes of inference in float32.
#include "passes.h"

namespace {

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

}  // namespace

PASS(first_convolution, FirstConvolution, first_convolution)
PASS(front, Front, front<Exact>)
PASS(tail, Tail, tail<Exact>)
PASS(feed_forward, FeedForward, feed_forward<Exact>)
PASS(convolution, Convolution, convolution<Exact>)

// Columns of a panel of weights, see products.h.
EXPORTED int64_t JOINED(panel, LEVEL)() { return PANEL; }
